"""Encodes a snapshot's messages on INIT: start, chunks, meta or error (contract, section 5). No I/O."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from actors.contract import subjects
from actors.contract.event_encoder import EventEncoder
from actors.contract.table_schema import base_type_field, schema_id
from actors.positions import Lsn, format_lsn
from actors.values.formats import SnapshotFormat
from actors.values.row_blocks import Piece
from actors.values.text_values import TypeInfo
from actors.wire.jetstream import MSG_ID_HEADER
from actors.wire.pgoutput import Relation


class Message(NamedTuple):
    """One message for the INIT stream."""

    subject: str
    body: bytes
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class SnapshotHead:
    """The values that all messages of one snapshot share."""

    snapshot_id: str
    token: str
    relation: Relation
    data_types: tuple[str, ...]
    pk: frozenset[str]
    snapshot_lsn: Lsn
    """The snapshot contains all events below this LSN and no others."""
    stream_seq: int
    """Readers must read the CDC stream's events after this sequence."""
    compressed: bool = False
    dictionary_id: str | None = None
    base_types: Mapping[str, str] = field(default_factory=dict)
    stream: str = subjects.CDC
    """The CDC stream that the snapshot joins."""
    version: str = ""
    """How the table was published as of `snapshot_lsn`."""
    types: Mapping[int, TypeInfo] = field(default_factory=dict)
    """Types that are not built in, by OID."""


def new_snapshot_id(unix_s: float) -> str:
    """Make an id: `snap-{unix s}-{4 hex}`."""
    return f"snap-{int(unix_s)}-{secrets.token_hex(2)}"


class SnapshotMessages:
    """Makes the messages of one snapshot, in one encoding and format."""

    def __init__(self, head: SnapshotHead, encoder: EventEncoder, fmt: SnapshotFormat) -> None:
        self._head, self._encoder, self._format = head, encoder, fmt

    def start(self) -> list[Message]:
        """Make the start and, in the array format, the announcement of the columns."""
        head = self._head
        columns = [
            {"name": column.name, "type": words, "pk": column.name in head.pk} | base_type_field(head.base_types, column.name)
            for column, words in zip(head.relation.columns, head.data_types, strict=True)
        ]
        shape = schema_id(head.relation, head.types)
        body: dict[str, object] = {
            "stream": head.stream,
            "snapshot_id": head.snapshot_id,
            "table": head.relation.name,
            "schema": head.relation.schema,
            "lsn": format_lsn(head.snapshot_lsn),
            "snapshot_lsn": head.snapshot_lsn,
            "stream_seq": head.stream_seq,
            "timestamp": int(time.time()),
            "status": "starting",
            "format": "array_streaming" if self._format == "array" else "map",
            **self._compression(),
            "schema_id": shape,
            "relation_id": head.relation.oid,
            "version": head.version,
            "columns": columns,
        }
        messages = [Message(subjects.init_start(head.token), self._encoder.document(body), {})]
        if self._format == "array":
            announced = {
                "stream": head.stream,
                "schema_id": shape,
                "table": head.relation.name,
                "columns": columns,
                "format": "array_streaming",
                "snapshot_id": head.snapshot_id,
                "snapshot_lsn": head.snapshot_lsn,
                "stream_seq": head.stream_seq,
                "version": head.version,
            }
            messages.append(Message(subjects.array_start(head.token), self._encoder.document(announced), {}))
        return messages

    def chunk(self, number: int, pieces: Sequence[Piece]) -> Message:
        """Make one chunk, not compressed yet."""
        head = self._head
        parts, rows = [piece.body for piece in pieces], sum(piece.rows for piece in pieces)
        msg_id = f"{head.stream}-{head.token}-{head.snapshot_id}-{number}"  # bridges that share INIT may draw one snapshot id
        headers = {MSG_ID_HEADER: msg_id, "Snapshot-Id": head.snapshot_id, "Chunk": str(number)}
        if self._format == "array":
            return Message(subjects.array_chunk(head.token), self._encoder.join_rows(parts, rows), headers)
        fields: dict[str, object] = {
            "table": head.relation.name,
            "operation": "snapshot",
            "snapshot_id": head.snapshot_id,
            "chunk": number,
            "lsn": format_lsn(head.snapshot_lsn),
            "snapshot_lsn": head.snapshot_lsn,
        }
        raw = raw_values(pieces, [column.name for column in head.relation.columns])
        if raw:
            fields["raw"] = raw
        body = self._encoder.with_rows(fields, parts, rows)
        return Message(subjects.init_chunk(head.token, head.snapshot_id, number), body, headers)

    def meta(self, batch_count: int, row_count: int) -> Message:
        """Make the meta: without it a snapshot does not count."""
        head = self._head
        body = {
            "stream": head.stream,
            "snapshot_id": head.snapshot_id,
            "table": head.relation.name,
            "lsn": format_lsn(head.snapshot_lsn),
            "snapshot_lsn": head.snapshot_lsn,
            "stream_seq": head.stream_seq,
            "timestamp": int(time.time()),
            "batch_count": batch_count,
            "row_count": row_count,
            **self._compression(),
        }
        return Message(subjects.init_meta(head.token), self._encoder.document(body), {})

    def _compression(self) -> dict[str, object]:
        found: dict[str, object] = {"compression_enabled": self._head.compressed}
        if self._head.dictionary_id is not None:
            found["dictionary_id"] = self._head.dictionary_id
        return found


def raw_values(pieces: Sequence[Piece], columns: Sequence[str]) -> list[tuple[int, str]]:
    """Return (row, column) of the values of a chunk that were kept as text; `columns` are the names in order."""
    raw: list[tuple[int, str]] = []
    first = 0
    for piece in pieces:
        raw += [(first + row, columns[column]) for row, column in piece.raw]
        first += piece.rows
    return raw


def error_message(
    encoder: EventEncoder,
    token: str,
    table: str,
    error_type: str,
    error_message: str,
    *,
    stream: str,
    snapshot_id: str | None = None,
    available_tables: Sequence[str] | None = None,
    streams: Sequence[str] | None = None,
) -> Message:
    """Make the message that says why a snapshot ended without a meta, or did not begin.

    `streams` are those to choose from when the request is ambiguous.
    """
    body: dict[str, object] = {"stream": stream, "table": table, "error_type": error_type, "error_message": error_message}
    body["timestamp"] = int(time.time())
    if snapshot_id is not None:
        body["snapshot_id"] = snapshot_id
    if available_tables is not None:
        body["available_tables"] = list(available_tables)
    if streams is not None:
        body["streams"] = list(streams)
    return Message(subjects.init_error(token), encoder.document(body), {})
