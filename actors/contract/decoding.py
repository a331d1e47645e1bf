"""Decodes message bodies to records: both encodings, packed or not, compressed or not. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

import msgpack
import msgspec
import orjson

from actors.contract.compression import Decompressors
from actors.contract.record_checks import compile_check
from actors.contract.records import (
    AMBIGUOUS,
    ArrayChunk,
    Body,
    Column,
    Event,
    Gap,
    Published,
    RangesChunk,
    RangesStart,
    Raw,
    Record,
    Row,
    RowRange,
    Schema,
    SchemaChange,
    SnapshotChunk,
    SnapshotError,
    SnapshotMeta,
    SnapshotStart,
)
from actors.contract.row_bodies import OPERATIONS, RowEvent, decode_row_events, row_event
from actors.contract.subjects import BRIDGE_TOKEN, CDC, CDC_ALL, Kind, matches, parse, split_suffix
from actors.errors import MalformedMessage
from actors.values.json_values import json_converter, jsonb_converter

_WRONG_SHAPE = (LookupError, TypeError, AttributeError, ValueError)
"""Errors of reading a field from a body that no bridge wrote."""

_msgpack: Callable[[bytes], Any] = msgspec.msgpack.Decoder().decode


def decode_body(body: bytes) -> Any:
    """Decode MessagePack or JSON: the first byte says which. Raises MalformedMessage."""
    try:
        if body[:1] in (b"{", b"["):
            return orjson.loads(body)
        try:
            return _msgpack(body)  # twice as fast, but refuses text that is not UTF-8
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return msgpack.unpackb(body, unicode_errors="surrogateescape")
    except ValueError as exc:
        raise MalformedMessage(f"neither MessagePack nor JSON: {body[:64]!r} ({exc})") from exc


def decode_event(body: Body) -> Event:
    """Read one event of the CDC stream. Raises MalformedMessage when a field is missing or wrong."""
    try:
        if body["operation"] in OPERATIONS:
            return row_event(body)
        event = _NOTICES[body["operation"]](body)
        if _IS_WHOLE[type(event)](event):
            return event
    except _WRONG_SHAPE as exc:
        raise MalformedMessage(f"not an event: {str(body)[:200]} ({exc!r})") from exc
    raise MalformedMessage(f"not an event: {str(body)[:200]} (a field of another type)")


def decode_events(body: bytes) -> list[Event]:
    """Read the events of one message of the CDC stream. The body must be unpacked (see `Decompressors`)."""
    if body[:1] not in (b"{", b"[") and (events := decode_row_events(body)) is not None:
        return list(events)
    decoded = decode_body(body)
    if type(decoded) is list:
        return [decode_event(event) for event in decoded]
    return [decode_event(decoded)]


_NO_DICTIONARIES = Decompressors()


def decode_message(
    subject: str, headers: Mapping[str, str], body: bytes, decompressors: Decompressors = _NO_DICTIONARIES
) -> list[Record]:
    """Read a message of CDC, which has events, or of INIT, which has one record of a snapshot.

    Raises MalformedMessage for a message that no bridge wrote.
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
            record: Record = ArrayChunk(found.token, headers["Snapshot-Id"], int(headers["Chunk"]), decode_body(body), encoding)
        else:
            record = _INIT[found.kind](found.token, decode_body(body))
        if _IS_WHOLE[type(record)](record):
            return [record]
    except _WRONG_SHAPE as exc:
        raise MalformedMessage(f"not a message of a snapshot: {subject} ({exc!r})") from exc
    raise MalformedMessage(f"not a message of a snapshot: {subject} (a field of another type)")


def _columns(body: Body) -> tuple[Column, ...]:
    return tuple(Column(c["name"], c["data_type"], c["pk"], c.get("base_type", "")) for c in body["columns"])


def _schema_change(body: Body) -> SchemaChange:
    # {commit lsn, hex}-{seq}-{table token}-schema
    token = body["msg_id"].split("-", 2)[2].rpartition("-")[0]
    schema = body["schema"][: -1 - len(body["table"])]
    return SchemaChange(
        token,
        schema,
        body["table"],
        body["lsn"],
        body["seq"],
        body.get("last", False),
        body["schema_id"],
        body["relation_id"],
        _columns(body),
    )


def _gap(body: Body) -> Gap:
    lsn, seq, rest = body["msg_id"].split("-", 2)
    return Gap(
        int(lsn, 16), int(seq), body.get("last", False), body["slot"], body["reason"], body["from_lsn"], body["to_lsn"],
        tuple(body["tables"]), rest.rpartition("-")[0] != BRIDGE_TOKEN,
    )  # fmt: skip


def _published(body: Body) -> Published:
    return Published(body["lsn"], body["seq"], body["table"], body["change"], body["version"], body["reason"])


_NOTICES: dict[str, Callable[[Body], Event]] = {
    "SCHEMA": _schema_change,
    "GAP": _gap,
    "PUBLISHED": _published,
}


def decode_schema(token: str, body: Body) -> Schema:
    """Read the value of a token in KV `schemas`."""
    schema = body["schema"][: -1 - len(body["table"])]
    return Schema(token, schema, body["table"], body["schema_id"], _columns(body))


def stream_of(body: Body) -> str:
    """The CDC stream of a snapshot's start, meta or error; that of a bridge which did not write `stream` yet is CDC."""
    return str(body.get("stream", CDC))


def answers(body: Body, stream: str) -> bool:
    """Whether a snapshot's start, meta or error is for those who asked the bridge of `stream` by name."""
    return stream_of(body) == stream and body.get("error_type") != AMBIGUOUS


def _start(token: str, body: Any) -> SnapshotStart | RangesStart:
    if "mode" in body:
        return _ranges_start(token, body)
    columns = tuple(Column(c["name"], c["type"], c["pk"], c.get("base_type", "")) for c in body["columns"])
    return SnapshotStart(
        token, body.get("schema", ""), body["table"], body["snapshot_id"], body["snapshot_lsn"], body["stream_seq"],
        body.get("relation_id", 0), columns, body["format"], stream_of(body), body.get("version", ""),
    )  # fmt: skip


def _ranges_start(token: str, body: Any) -> RangesStart:
    columns = tuple(Column(c["name"], c["type"], c["pk"], c.get("base_type", "")) for c in body["columns"])
    return RangesStart(
        token, body["schema"], body["table"], body["snapshot_id"], body["mode"], body["relation_id"], body["schema_id"],
        columns, tuple(body["key"]), stream_of(body), body["version"], body["rows_expected"], body["system_id"],
        body["timeline"],
    )  # fmt: skip


def _chunk(token: str, body: Any) -> SnapshotChunk | RangesChunk:
    rows = body["data"]
    for index, name in body.get("raw", ()):
        rows[index][name] = Raw(rows[index][name])
    if split_suffix(token)[1]:
        left = tuple(RowRange(*(None if bound is None else tuple(bound) for bound in (a, b))) for a, b in body["left"])
        return RangesChunk(
            token, body["snapshot_id"], body["chunk"], body["snapshot_lsn"], body["stream_seq"], rows, body["row_count"], left
        )
    return SnapshotChunk(token, body["snapshot_id"], body["chunk"], rows)


def _meta(token: str, body: Any) -> SnapshotMeta:
    return SnapshotMeta(
        token, body["snapshot_id"], body["snapshot_lsn"], body["stream_seq"], body["batch_count"], body["row_count"],
        stream_of(body),
    )  # fmt: skip


def _error(token: str, body: Any) -> SnapshotError:
    return SnapshotError(
        token, body.get("snapshot_id", ""), body["error_type"], body["error_message"], tuple(body.get("available_tables", ())),
        stream_of(body), tuple(body.get("streams", ())),
    )  # fmt: skip


_INIT: dict[Kind, Callable[[str, Any], Record]] = {
    "start": _start,
    "chunk": _chunk,
    "meta": _meta,
    "error": _error,
    "init schema": decode_schema,
    "array start": _start,
}


# events about rows are checked while they are read
_IS_WHOLE = {kind: compile_check(kind) for kind in get_args(Record) if kind not in get_args(RowEvent)}


def array_rows(chunk: ArrayChunk, columns: tuple[Column, ...]) -> list[Row]:
    """Turn an array chunk's rows into maps, with json as events have it, so that later events find the row.

    Raises MalformedMessage when they are not rows of these columns.
    """
    names = [column.name for column in columns]
    converters = {"json": json_converter(chunk.encoding), "jsonb": jsonb_converter(chunk.encoding)}
    documents = [(column.name, converters[column.native]) for column in columns if column.native in converters]
    try:
        rows = [dict(zip(names, row, strict=True)) for row in chunk.rows]
        for row in rows:
            for name, convert in documents:
                if row[name] is not None:
                    value, kept_as_text = convert(row[name].encode())
                    row[name] = Raw(value) if kept_as_text else value
    except _WRONG_SHAPE as exc:
        raise MalformedMessage(f"chunk {chunk.chunk} of {chunk.snapshot_id} is not of these columns ({exc!r})") from exc
    return rows
