"""What a snapshot says on INIT: start, chunks, meta or error (contract, section 5). No I/O."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from actors.config import SnapshotFormat
from actors.lsn import Lsn, format_lsn
from actors.messages import Relation
from actors.wire.envelope import EventEncoder
from actors.wire.row_blocks import Piece
from actors.wire.table_schema import base_type_field, schema_id

ROWS_MAX = 10_000
"""Rows of a chunk at most."""


class Message(NamedTuple):
    """One message for the INIT stream."""

    subject: str
    body: bytes
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class SnapshotHead:
    """What all messages of one snapshot share."""

    snapshot_id: str
    token: str
    relation: Relation
    data_types: tuple[str, ...]
    pk: frozenset[str]
    snapshot_lsn: Lsn
    """Events with `lsn >= snapshot_lsn` are not in it, all others are."""
    stream_seq: int
    """Events behind this sequence of the CDC stream must be looked at."""
    compressed: bool = False
    dictionary_id: str | None = None
    base_types: Mapping[str, str] = field(default_factory=dict)


def new_snapshot_id(unix_s: float) -> str:
    """`snap-{unix s}-{4 hex}`."""
    return f"snap-{int(unix_s)}-{secrets.token_hex(2)}"


class SnapshotMessages:
    """Writes the messages of one snapshot, in one encoding and format."""

    def __init__(self, head: SnapshotHead, encoder: EventEncoder, fmt: SnapshotFormat) -> None:
        self._head, self._encoder, self._format = head, encoder, fmt

    def start(self) -> list[Message]:
        """The start, and with the array format what its rows are made of."""
        head = self._head
        columns = [
            {"name": column.name, "type": words, "pk": column.name in head.pk} | base_type_field(head.base_types, column.name)
            for column, words in zip(head.relation.columns, head.data_types, strict=True)
        ]
        shape = schema_id(head.relation)
        body: dict[str, object] = {
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
            "columns": columns,
        }
        messages = [Message(f"init.start.{head.token}", self._encoder.document(body), {})]
        if self._format == "array":
            announced = {
                "schema_id": shape,
                "table": head.relation.name,
                "columns": columns,
                "format": "array_streaming",
                "snapshot_id": head.snapshot_id,
                "snapshot_lsn": head.snapshot_lsn,
                "stream_seq": head.stream_seq,
            }
            messages.append(Message(f"snapshot.init.{head.token}", self._encoder.document(announced), {}))
        return messages

    def chunk(self, number: int, pieces: Sequence[Piece]) -> Message:
        """One chunk, not compressed yet."""
        head = self._head
        parts, rows = [piece.body for piece in pieces], sum(piece.rows for piece in pieces)
        headers = {"Nats-Msg-Id": f"{head.snapshot_id}-{number}", "Snapshot-Id": head.snapshot_id, "Chunk": str(number)}
        if self._format == "array":
            return Message(f"snapshot.data.{head.token}", self._encoder.join_rows(parts, rows), headers)
        fields: dict[str, object] = {
            "table": head.relation.name,
            "operation": "snapshot",
            "snapshot_id": head.snapshot_id,
            "chunk": number,
            "lsn": format_lsn(head.snapshot_lsn),
            "snapshot_lsn": head.snapshot_lsn,
        }
        raw: list[tuple[int, str]] = []
        first = 0
        for piece in pieces:
            raw += [(first + row, head.relation.columns[column].name) for row, column in piece.raw]
            first += piece.rows
        if raw:
            fields["raw"] = raw
        body = self._encoder.with_rows(fields, parts, rows)
        return Message(f"init.snap.{head.token}.{head.snapshot_id}.{number}", body, headers)

    def meta(self, batch_count: int, row_count: int) -> Message:
        """The end: without it a snapshot does not count."""
        head = self._head
        body = {
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
        return Message(f"init.meta.{head.token}", self._encoder.document(body), {})

    def _compression(self) -> dict[str, object]:
        found: dict[str, object] = {"compression_enabled": self._head.compressed}
        if self._head.dictionary_id is not None:
            found["dictionary_id"] = self._head.dictionary_id
        return found


def error_message(
    encoder: EventEncoder,
    token: str,
    table: str,
    error_type: str,
    error_message: str,
    *,
    snapshot_id: str | None = None,
    available_tables: Sequence[str] | None = None,
) -> Message:
    """Why a snapshot ended without a meta, or did not begin."""
    body: dict[str, object] = {"table": table, "error_type": error_type, "error_message": error_message}
    body["timestamp"] = int(time.time())
    if snapshot_id is not None:
        body["snapshot_id"] = snapshot_id
    if available_tables is not None:
        body["available_tables"] = list(available_tables)
    return Message(f"init.error.{token}", encoder.document(body), {})


class ChunkCutter:
    """Gathers pieces until a chunk is full. No I/O.

    `size` tells the bytes that a chunk of these pieces would have as sent; `bytes_max` is what it may have. With compression a
    chunk holds more: as much as the last one shows to fit, and never more than `gather_bytes_max` before it is compressed.
    """

    def __init__(
        self,
        encode: Callable[[int, Sequence[Piece]], Message],
        compress: Callable[[Message], Message],
        split: Callable[[Piece], list[Piece]],
        *,
        bytes_max: int,
        gather_bytes_max: int,
    ) -> None:
        self._encode, self._compress, self._split = encode, compress, split
        self._bytes_max, self._gather_max = bytes_max, gather_bytes_max
        self._target = bytes_max - _size(encode(0, ())) - _RESERVE_BYTES
        self._limit = self._target
        self._pieces: list[Piece] = []
        self._bytes = self._rows = 0
        self.chunks = self.rows = 0

    def add(self, piece: Piece) -> list[Message]:
        """Take one piece; returns the chunks that are full now. Raises RowTooLarge."""
        size = len(piece.body) + 1 + _RAW_BYTES * len(piece.raw)
        if piece.rows > 1 and (self._rows + piece.rows > ROWS_MAX or self._bytes + size > self._target):
            fits_alone = size <= self._target and self._bytes > self._target * 0.9 and piece.rows <= ROWS_MAX
            if not fits_alone:
                return [message for one in self._split(piece) for message in self.add(one)]
        made: list[Message] = []
        if self._pieces and (self._rows + piece.rows > ROWS_MAX or self._bytes + size > self._target):
            made = self._cut()
        self._pieces.append(piece)
        self._bytes += size
        self._rows += piece.rows
        return made

    def finish(self) -> list[Message]:
        """The rest."""
        return self._cut() if self._pieces else []

    def _cut(self) -> list[Message]:
        pieces, self._pieces = self._pieces, []
        before = self._bytes
        self._bytes = self._rows = 0
        message = self._compress(self._encode(self.chunks, pieces))
        size = _size(message)
        if size > self._bytes_max:
            return self._halved(pieces)
        self.chunks += 1
        self.rows += sum(piece.rows for piece in pieces)
        # what the next one may gather, if it is compressed as well as this one was
        self._target = max(self._limit, min(self._gather_max, int(before * self._bytes_max / size * 0.9)))
        return [message]

    def _halved(self, pieces: list[Piece]) -> list[Message]:
        """Too large after all: in two parts, down to a single row."""
        self._target = self._limit
        if len(pieces) == 1:
            if pieces[0].rows == 1:
                raise RowTooLarge(len(pieces[0].body), self._bytes_max)
            pieces = self._split(pieces[0])
        middle = max(1, len(pieces) // 2)
        made: list[Message] = []
        for part in (pieces[:middle], pieces[middle:]):
            self._pieces = part
            self._bytes = sum(len(piece.body) for piece in part)
            self._rows = sum(piece.rows for piece in part)
            made += self._cut()
        return made


class RowTooLarge(ValueError):
    """One row alone does not fit into a message."""

    def __init__(self, size_bytes: int, bytes_max: int) -> None:
        super().__init__(f"a row of {size_bytes:,} bytes is larger than a message may be ({bytes_max:,} bytes)")


_RAW_BYTES = 80
"""What naming one raw value takes: a row number and a column's name."""
_RESERVE_BYTES = 64
"""For numbers that grow: chunk, array head, digits in headers."""


def _size(message: Message) -> int:
    """Headers and body: what counts against max_payload."""
    return len(message.body) + headers_size(message.headers)


def headers_size(headers: Mapping[str, str]) -> int:
    """Bytes of a header block on the wire."""
    return len("NATS/1.0\r\n\r\n") + sum(len(name) + len(value) + 4 for name, value in headers.items())
