"""Encodes the messages of a snapshot in rounds, and of rows that are named by their keys (contract, section 5). No I/O."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from actors.contract import subjects
from actors.contract.event_encoder import EventEncoder
from actors.contract.records import KeyText, RowRange
from actors.contract.snapshot_encoder import Message, raw_values
from actors.contract.table_schema import base_type_field, schema_id
from actors.positions import Lsn, format_lsn
from actors.values.row_blocks import Piece
from actors.values.text_values import TypeInfo
from actors.wire.jetstream import EXPECTED_LAST_SUBJECT_SEQUENCE_HEADER
from actors.wire.pgoutput import Relation


@dataclass(frozen=True, slots=True)
class RoundsHead:
    """The values that all messages of one snapshot share."""

    snapshot_id: str
    token: str
    """With the suffix."""
    mode: Literal["ranges", "keys"]
    relation: Relation
    data_types: tuple[str, ...]
    pk: frozenset[str]
    key: tuple[str, ...]
    stream: str
    version: str
    system_id: str
    timeline: int
    rows_expected: int = 0
    compressed: bool = False
    dictionary_id: str | None = None
    base_types: Mapping[str, str] = field(default_factory=dict)
    types: Mapping[int, TypeInfo] = field(default_factory=dict)


class ChunkPlace(NamedTuple):
    """Where a chunk stands in the stream."""

    snapshot_lsn: Lsn
    """The chunk contains all events below this LSN and no others."""
    stream_seq: int
    """The last message of the stream with a lower LSN."""


class RoundMessages:
    """Makes start and meta of a snapshot in rounds."""

    def __init__(self, head: RoundsHead, encoder: EventEncoder) -> None:
        self._head, self._encoder = head, encoder

    def start(self) -> Message:
        """Make the start, which has no LSN: each chunk has its own."""
        head = self._head
        columns = [
            {"name": column.name, "type": words, "pk": column.name in head.pk} | base_type_field(head.base_types, column.name)
            for column, words in zip(head.relation.columns, head.data_types, strict=True)
        ]
        body: dict[str, object] = {
            "stream": head.stream,
            "snapshot_id": head.snapshot_id,
            "table": head.relation.name,
            "schema": head.relation.schema,
            "mode": head.mode,
            "timestamp": int(time.time()),
            "status": "starting",
            "format": "map",
            "compression_enabled": head.compressed,
            "schema_id": schema_id(head.relation, head.types),
            "relation_id": head.relation.oid,
            "version": head.version,
            "key": list(head.key),
            "rows_expected": head.rows_expected,
            "system_id": head.system_id,
            "timeline": head.timeline,
            "columns": columns,
        }
        if head.dictionary_id is not None:
            body["dictionary_id"] = head.dictionary_id
        return Message(subjects.init_start(head.token), self._encoder.document(body), {})


class ChunkMessages:
    """Makes the chunks and the meta of a snapshot whose start is in the stream; no knowledge of its head is needed."""

    def __init__(
        self, token: str, table: str, stream: str, snapshot_id: str, columns: Sequence[str], encoder: EventEncoder
    ) -> None:
        """`columns` are the names of the result's columns, in order."""
        self._token, self._table, self._stream, self._snapshot_id = token, table, stream, snapshot_id
        self._columns, self._encoder = columns, encoder

    def chunk(
        self,
        number: int,
        pieces: Sequence[Piece],
        place: ChunkPlace,
        covered: RowRange,
        left: Sequence[RowRange],
        row_count: int,
    ) -> Message:
        """Make one chunk, not compressed yet. `row_count` counts its own rows and those of all chunks before it.

        It must be the first message on its own subject. That chains the chunks: each is sent once the one before it is stored,
        so a bridge that was paused, and whose successor went on, has the number of its next chunk taken and is refused. The
        last sequence of all subjects of the snapshot, `init.snap.{token}.{id}.*`, would do the same only from nats-server 2.11
        on: before, the header that names other subjects than the message's own is ignored, and nothing is checked. For the
        same reason there is no message id: within the duplicate window JetStream would answer a second chunk of one number as
        if it had stored it.
        """
        headers = {"Snapshot-Id": self._snapshot_id, "Chunk": str(number), EXPECTED_LAST_SUBJECT_SEQUENCE_HEADER: "0"}
        fields: dict[str, object] = {
            "table": self._table,
            "operation": "snapshot",
            "snapshot_id": self._snapshot_id,
            "chunk": number,
            "lsn": format_lsn(place.snapshot_lsn),
            "snapshot_lsn": place.snapshot_lsn,
            "stream_seq": place.stream_seq,
            "after": _bound(covered.after),
            "through": _bound(covered.through),
            "left": [[_bound(after), _bound(through)] for after, through in left],
            "row_count": row_count,
        }
        raw = raw_values(pieces, self._columns)
        if raw:
            fields["raw"] = raw
        body = self._encoder.with_rows(fields, [piece.body for piece in pieces], sum(piece.rows for piece in pieces))
        return Message(subjects.init_chunk(self._token, self._snapshot_id, number), body, headers)

    def meta(self, batch_count: int, row_count: int, place: ChunkPlace) -> Message:
        """Make the meta; `place` is the last chunk's."""
        body: dict[str, object] = {
            "stream": self._stream,
            "snapshot_id": self._snapshot_id,
            "table": self._table,
            "lsn": format_lsn(place.snapshot_lsn),
            "snapshot_lsn": place.snapshot_lsn,
            "stream_seq": place.stream_seq,
            "timestamp": int(time.time()),
            "batch_count": batch_count,
            "row_count": row_count,
        }
        return Message(subjects.init_meta(self._token), self._encoder.document(body), {})


def _bound(key: KeyText | None) -> list[str] | None:
    return None if key is None else list(key)
