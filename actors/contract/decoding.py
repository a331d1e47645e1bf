"""Message bodies to records: both encodings, packed or not, compressed or not. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgpack
import msgspec
import orjson
import zstandard

from actors.contract.compression import DICTIONARY_HEADER, ENCODING_HEADER
from actors.contract.records import (
    ArrayChunk,
    Body,
    Column,
    Delete,
    Event,
    Gap,
    Insert,
    Raw,
    Record,
    Row,
    Schema,
    SchemaChange,
    SnapshotChunk,
    SnapshotError,
    SnapshotMeta,
    SnapshotStart,
    Truncate,
    Update,
)
from actors.contract.subjects import BRIDGE_TOKEN, CDC_ALL, Kind, matches, parse
from actors.errors import MalformedMessage
from actors.values.json_values import json_converter, jsonb_converter

UNPACKED_BYTES_MAX = 256 * 1024 * 1024
"""A compressed body may be this large unpacked: a bridge makes none of more than a few megabytes."""


class Decompressors:
    """zstd with the dictionaries that messages name. What `missing` names must be put in with `add` first."""

    def __init__(self, dictionaries: Mapping[str, bytes] | None = None) -> None:
        plain = zstandard.ZstdDecompressor()
        self._by_id: dict[str, zstandard.ZstdDecompressor] = {"": plain}
        for dictionary_id, content in (dictionaries or {}).items():
            self.add(dictionary_id, content)

    def add(self, dictionary_id: str, content: bytes) -> None:
        """Take what KV `dictionaries` holds under this key. Raises MalformedMessage when it is no dictionary."""
        try:
            data = zstandard.ZstdCompressionDict(content, dict_type=zstandard.DICT_TYPE_FULLDICT)
            self._by_id[dictionary_id] = zstandard.ZstdDecompressor(dict_data=data)
        except zstandard.ZstdError as exc:
            raise MalformedMessage(f"dictionary {dictionary_id}: {exc}") from exc

    def missing(self, headers: Mapping[str, str]) -> str | None:
        """The dictionary that is needed and not here."""
        wanted = headers.get(DICTIONARY_HEADER, "")
        return None if wanted in self._by_id else wanted

    def unpack(self, headers: Mapping[str, str], body: bytes) -> bytes:
        """The body as it was before compression. Raises MalformedMessage."""
        coding = headers.get(ENCODING_HEADER)
        if coding is None:
            return body
        decompressor = self._by_id.get(headers.get(DICTIONARY_HEADER, ""))
        if coding != "zstd" or decompressor is None:
            raise MalformedMessage(f"a body in {coding}, dictionary {headers.get(DICTIONARY_HEADER)}: cannot be unpacked")
        try:
            if zstandard.get_frame_parameters(body).content_size > UNPACKED_BYTES_MAX:
                raise MalformedMessage(f"a zstd frame of more than {UNPACKED_BYTES_MAX} bytes unpacked")
            return decompressor.decompress(body, max_output_size=UNPACKED_BYTES_MAX)
        except zstandard.ZstdError as exc:
            raise MalformedMessage(f"not a zstd frame: {exc}") from exc


_msgpack: Callable[[bytes], Any] = msgspec.msgpack.Decoder().decode


def decode_body(body: bytes) -> Any:
    """MessagePack or JSON: the first byte tells. Raises MalformedMessage."""
    try:
        if body[:1] in (b"{", b"["):
            return orjson.loads(body)
        try:
            return _msgpack(body)  # in half the time, but for text in another encoding than UTF-8
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return msgpack.unpackb(body, unicode_errors="surrogateescape")
    except ValueError as exc:
        raise MalformedMessage(f"neither MessagePack nor JSON: {body[:64]!r} ({exc})") from exc


def decode_event(body: Body) -> Event:
    """One event of the CDC stream. Raises MalformedMessage when a field is missing."""
    try:
        return _EVENTS[body["operation"]](body)
    except (KeyError, TypeError, AttributeError, IndexError) as exc:
        raise MalformedMessage(f"not an event: {str(body)[:200]} ({exc!r})") from exc


def decode_events(body: bytes) -> list[Event]:
    """The events of one message of the CDC stream, unpacked already (see `Decompressors`)."""
    decoded = decode_body(body)
    if type(decoded) is list:
        return [decode_event(one) for one in decoded]
    return [decode_event(decoded)]


_NO_DICTIONARIES = Decompressors()


def decode_message(
    subject: str, headers: Mapping[str, str], body: bytes, decompressors: Decompressors = _NO_DICTIONARIES
) -> list[Record]:
    """What a message of CDC or INIT says: events, or the one record of a snapshot's message.

    Raises MalformedMessage for what no bridge writes.
    """
    if headers:
        body = decompressors.unpack(headers, body)
    if matches(CDC_ALL, subject):
        return list(decode_events(body))
    found = parse(subject)
    if found is None:
        raise MalformedMessage(f"not a message of a snapshot: {subject}")
    try:
        if found.kind == "array chunk":
            encoding = "json" if body[:1] == b"[" else "msgpack"
            return [ArrayChunk(found.token, headers["Snapshot-Id"], int(headers["Chunk"]), decode_body(body), encoding)]
        return [_INIT[found.kind](found.token, decode_body(body))]
    except (KeyError, TypeError, AttributeError, ValueError) as exc:
        raise MalformedMessage(f"not a message of a snapshot: {subject} ({exc!r})") from exc


def _mark(row: Row, raw: list[str]) -> Row:
    for name in raw:
        if name in row:  # else it was too large for the message
            row[name] = Raw(row[name])
    return row


def _token(body: Body, operation: str) -> str:
    return str(body["subject"][4 : -1 - len(operation)])


def _insert(body: Body) -> Insert:
    row, raw = body["data"], body.get("raw")
    return Insert(
        _token(body, "insert"), body["schema"], body["table"], body["lsn"], body["seq"], body.get("last", False), body["xid"],
        body["commit_ts"], tuple(body["key"]), _mark(row, raw) if raw else row, body.get("omitted", ()),
    )  # fmt: skip


def _update(body: Body) -> Update:
    row, old, raw, old_raw = body["data"], body.get("old"), body.get("raw"), body.get("old_raw")
    if raw:
        _mark(row, raw)
    if old is not None and old_raw:
        _mark(old, old_raw)
    return Update(
        _token(body, "update"), body["schema"], body["table"], body["lsn"], body["seq"], body.get("last", False), body["xid"],
        body["commit_ts"], tuple(body["key"]), row, body.get("omitted", ()), old, body.get("unchanged", ()),
    )  # fmt: skip


def _delete(body: Body) -> Delete:
    row, raw = body["data"], body.get("raw")
    return Delete(
        _token(body, "delete"), body["schema"], body["table"], body["lsn"], body["seq"], body.get("last", False), body["xid"],
        body["commit_ts"], tuple(body["key"]), _mark(row, raw) if raw else row, body.get("omitted", ()),
    )  # fmt: skip


def _truncate(body: Body) -> Truncate:
    return Truncate(
        _token(body, "truncate"), body["schema"], body["table"], body["lsn"], body["seq"], body.get("last", False), body["xid"],
        body["commit_ts"], body["cascade"], body["restart_identity"],
    )  # fmt: skip


def _columns(body: Body) -> tuple[Column, ...]:
    return tuple(Column(c["name"], c["data_type"], c["pk"], c.get("base_type", "")) for c in body["columns"])


def _schema_change(body: Body) -> SchemaChange:
    # {commit lsn, hex}-{seq}-{table token}-schema
    token = body["msg_id"].split("-", 2)[2].rpartition("-")[0]
    schema = body["schema"][: -1 - len(body["table"])]
    return SchemaChange(
        token, schema, body["table"], body["lsn"], body["seq"], False, body["schema_id"], body["relation_id"], _columns(body)
    )


def _gap(body: Body) -> Gap:
    lsn, seq, rest = body["msg_id"].split("-", 2)
    return Gap(
        int(lsn, 16), int(seq), body.get("last", False), body["slot"], body["reason"], body["from_lsn"], body["to_lsn"],
        tuple(body["tables"]), rest.rpartition("-")[0] != BRIDGE_TOKEN,
    )  # fmt: skip


_EVENTS: dict[str, Callable[[Body], Event]] = {
    "INSERT": _insert,
    "UPDATE": _update,
    "DELETE": _delete,
    "TRUNCATE": _truncate,
    "SCHEMA": _schema_change,
    "GAP": _gap,
}


def decode_schema(token: str, body: Body) -> Schema:
    """What KV `schemas` holds under a token."""
    schema = body["schema"][: -1 - len(body["table"])]
    return Schema(token, schema, body["table"], body["schema_id"], _columns(body))


def _start(token: str, body: Any) -> SnapshotStart:
    columns = tuple(Column(c["name"], c["type"], c["pk"], c.get("base_type", "")) for c in body["columns"])
    return SnapshotStart(
        token, body.get("schema", ""), body["table"], body["snapshot_id"], body["snapshot_lsn"], body["stream_seq"],
        body.get("relation_id", 0), columns, body["format"],
    )  # fmt: skip


def _chunk(token: str, body: Any) -> SnapshotChunk:
    rows = body["data"]
    for index, name in body.get("raw", ()):
        rows[index][name] = Raw(rows[index][name])
    return SnapshotChunk(token, body["snapshot_id"], body["chunk"], rows)


def _meta(token: str, body: Any) -> SnapshotMeta:
    return SnapshotMeta(
        token, body["snapshot_id"], body["snapshot_lsn"], body["stream_seq"], body["batch_count"], body["row_count"]
    )


def _error(token: str, body: Any) -> SnapshotError:
    return SnapshotError(
        token, body.get("snapshot_id", ""), body["error_type"], body["error_message"], tuple(body.get("available_tables", ()))
    )


_INIT: dict[Kind, Callable[[str, Any], Record]] = {
    "start": _start,
    "chunk": _chunk,
    "meta": _meta,
    "error": _error,
    "init schema": decode_schema,
    "array start": _start,
}


def array_rows(chunk: ArrayChunk, columns: tuple[Column, ...]) -> list[Row]:
    """The rows of an array chunk as maps; json as events have it, so that a row is found by them again."""
    names = [column.name for column in columns]
    converters = {"json": json_converter(chunk.encoding), "jsonb": jsonb_converter(chunk.encoding)}
    documents = [(column.name, converters[column.native]) for column in columns if column.native in converters]
    rows = [dict(zip(names, row, strict=True)) for row in chunk.rows]
    for row in rows:
        for name, convert in documents:
            if row[name] is not None:
                value, stayed = convert(row[name].encode())
                row[name] = Raw(value) if stayed else value
    return rows
