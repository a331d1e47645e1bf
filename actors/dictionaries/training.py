"""Train a zstd dictionary on events, and measure on other events what it saves. No I/O.

The events are real: rows of the table, through the converters and the encoder of the bridge. One dictionary serves both
encodings: trained on both it saves one to three points less than a dictionary for MessagePack or JSON alone, which would
save nearly nothing on the other encoding.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import zstandard

from actors.clients.postgres.table_sample import Row, TableSample
from actors.contract.compression import LEVEL, Compressor
from actors.contract.event_encoder import EventEncoder, event_encoder
from actors.contract.snapshot_encoder import SnapshotHead, SnapshotMessages
from actors.contract.table_schema import describe_table
from actors.messages import EventKind, Notes, RowChange, Table, Transaction
from actors.positions import Lsn
from actors.snapshots.chunks import ROWS_MAX
from actors.values.formats import Encoding
from actors.values.row_blocks import Piece
from actors.values.text_values import converter_for

ENCODINGS: tuple[Encoding, ...] = ("msgpack", "json")
CHUNK_BYTES = 1024 * 1024
TRAINING_BYTES_MAX = 12 * 1024 * 1024
"""zstd recommends a hundred times the dictionary's size; more only takes longer."""
EVENT_BYTES_MAX = 64 * 1024
"""Larger events compress without a dictionary and add nothing to it."""
MONTH_S = 30 * 86_400


class Measured(NamedTuple):
    """Bodies of one kind that were not trained on: how many, and their bytes plain and compressed."""

    what: str
    """`event` or `chunk`."""
    encoding: Encoding
    messages: int
    plain_bytes: int
    zstd_bytes: int
    dictionary_bytes: int
    sent_bytes: int
    """With the dictionary and the header lines that name it; a body that gets no smaller is sent plain."""
    zstd_us: float
    """Microseconds to compress one body."""
    dictionary_us: float

    def saved(self, compressed_bytes: int) -> float:
        """The share of the bytes that compression saves; below 0 when it adds some."""
        return 1 - compressed_bytes / self.plain_bytes


@dataclass(frozen=True, slots=True)
class Trained:
    """A dictionary and what it saves."""

    token: str
    dictionary: bytes
    rows_trained: int
    rows_tested: int
    figures: tuple[Measured, ...]


class TooLittle(ValueError):
    """The rows are too few, or too small, for a dictionary of this size."""


def train_dictionary(sample: TableSample, size_bytes: int) -> Trained:
    """Train on one half of the rows, test on the other half. Raises TooLittle."""
    table = describe_table(sample.relation, sample.description).table
    halves = sample.rows[0::2], sample.rows[1::2]
    encoded = {encoding: event_encoder(encoding) for encoding in ENCODINGS}
    material: list[bytes | bytearray | memoryview] = []
    budget = max(TRAINING_BYTES_MAX, 100 * size_bytes)
    rows = [events_of(sample, table, encoder, encoding, halves[0], -MONTH_S) for encoding, encoder in encoded.items()]
    for both in zip(*rows, strict=True):
        material += [body for body in both if len(body) <= EVENT_BYTES_MAX]
        budget -= sum(map(len, both))
        if budget <= 0:
            break
    try:
        dictionary = zstandard.train_dictionary(size_bytes, material, level=LEVEL).as_bytes()
        with_it = Compressor(table.token, dictionary)
    except (zstandard.ZstdError, ValueError) as exc:
        raise TooLittle(str(exc)) from exc
    figures: list[Measured] = []
    for encoding, encoder in encoded.items():
        events = events_of(sample, table, encoder, encoding, halves[1], MONTH_S)
        figures.append(measure("event", encoding, list(events), with_it))
        chunks = chunks_of(sample, table, encoder, encoding, halves[1])
        figures.append(measure("chunk", encoding, list(chunks), with_it))
    figures.sort(key=lambda one: one.what != "event")
    return Trained(table.token, dictionary, len(halves[0]), len(halves[1]), tuple(figures))


def measure(what: str, encoding: Encoding, bodies: Sequence[bytes], with_it: Compressor) -> Measured:
    """Compress each body, without a dictionary and with this one."""
    sizes: list[list[int]] = []
    times_us: list[float] = []
    for compress in (Compressor().compress, with_it.compress):
        began = time.perf_counter()
        sizes.append([len(compress(body)) for body in bodies])
        times_us.append((time.perf_counter() - began) * 1e6 / max(1, len(bodies)))
    plain, header_bytes = list(map(len, bodies)), len(with_it.header_lines)
    sent = sum(min(before, after + header_bytes) for before, after in zip(plain, sizes[1], strict=True))
    return Measured(what, encoding, len(bodies), sum(plain), sum(sizes[0]), sum(sizes[1]), sent, *times_us)


def events_of(
    sample: TableSample, table: Table, encoder: EventEncoder, encoding: Encoding, rows: Sequence[Row], within_s: int,
    *, changes: tuple[int, int] = (1, 9), inserts_only: bool = False,
) -> Iterator[bytes]:  # fmt: skip
    """Event bodies: each row inserted and updated, every second one deleted, in transactions of one to nine `changes`.

    Their positions and times lie `within_s` of now: events to train on in the past, events to test in the future, as those
    are that a dictionary will meet. The same each time, in both encodings.
    """
    places = random.Random(sample.relation.oid)
    convert = _converter(sample, encoding)
    identified = bool(table.key) and not inserts_only
    kinds = {operation: EventKind(table, operation) for operation in ("insert", "update", "delete")}
    now_us = int(time.time()) * 1_000_000
    txn, seq, left = Transaction(Lsn(0), 0, 0), 0, 0
    for number, row in enumerate(rows):
        data, notes = convert(row)
        old = data if sample.relation.replica_identity == "f" else None
        made: list[tuple[str, dict[str, object], dict[str, object] | None, Notes | None]] = [("insert", data, None, notes)]
        if identified:
            made.append(("update", data, old, notes))
            if number % 2:
                made.append(("delete", {name: data[name] if name in table.key else None for name in data}, None, None))
        for operation, values, before, noted in made:
            if not left:
                way = places.random() * (1 if within_s > 0 else -1)
                lsn = max(8, round(sample.wal_lsn * (1 + way / 2))) & ~7
                xid = max(3, round(sample.next_xid * (1 + way / 2))) & 0xFFFF_FFFF
                txn = Transaction(Lsn(lsn), xid, now_us + round(way * abs(within_s) * 1e6))
                seq, left = 0, places.randint(*changes)
            left -= 1
            yield encoder.row(RowChange(kinds[operation], txn, seq, values, before, noted), last=not left).body
            seq += 1


def chunks_of(
    sample: TableSample, table: Table, encoder: EventEncoder, encoding: Encoding, rows: Sequence[Row]
) -> Iterator[bytes]:
    """The same rows as the chunks of a snapshot, up to 1 MB each."""
    convert = _converter(sample, encoding)
    head = SnapshotHead("snap-0-0000", table.token, table.relation, (), frozenset(), Lsn(sample.wal_lsn), 0)
    messages = SnapshotMessages(head, encoder, "map")
    pieces: list[Piece] = []
    size = number = 0
    for row in rows:
        body = encoder.document(convert(row)[0])
        if pieces and (size + len(body) > CHUNK_BYTES or len(pieces) == ROWS_MAX):
            yield messages.chunk(number, pieces).body
            pieces, size, number = [], 0, number + 1
        pieces.append(Piece(body, 1, []))
        size += len(body) + 1
    if pieces:
        yield messages.chunk(number, pieces).body


def _converter(sample: TableSample, encoding: Encoding) -> Callable[[Row], tuple[dict[str, object], Notes | None]]:
    """Make of PostgreSQL's texts a row as events have it, and what its event must note."""
    types = sample.description.types
    columns = [
        (column.name, converter_for(column.type_oid, types, encoding, "literal").convert) for column in sample.relation.columns
    ]

    def convert(row: Row) -> tuple[dict[str, object], Notes | None]:
        data: dict[str, object] = {}
        raw: tuple[str, ...] = ()
        for (name, value), text in zip(columns, row, strict=True):
            if text is None:
                data[name] = None
                continue
            data[name], kept_as_text = value(text)
            if kept_as_text:
                raw = (*raw, name)
        return data, Notes((), raw) if raw else None

    return convert
