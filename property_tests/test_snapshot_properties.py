"""Snapshots: blocks read as single values do, chunks hold every row once within their limits, an LSN divides or there is none."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.contract.compression import Compressor
from actors.contract.event_encoder import event_encoder
from actors.contract.snapshot_encoder import SnapshotHead, SnapshotMessages
from actors.errors import MalformedMessage
from actors.positions import Lsn
from actors.snapshots.chunks import ChunkCutter, RowTooLarge, headers_size
from actors.snapshots.transaction_log import REMEMBERED_MAX, TransactionLog
from actors.snapshots.watermark import XidSnapshot, dividing_lsn, parse_snapshot
from actors.values.formats import Encoding, SnapshotFormat
from actors.values.row_blocks import Piece, RowBlocks, array_head
from actors.values.text_values import converter_for
from actors.wire.pgoutput import Column, Relation
from tests.frames import decompress


@given(st.integers(0, 2**40), st.lists(st.tuples(st.integers(1, 10**6), st.integers(0, 200)), max_size=60), st.data())
def test_a_dividing_lsn_divides_or_there_is_none(base: int, steps: list[tuple[int, int]], data: st.DataObject) -> None:
    lsn, log, commits = 1000, TransactionLog(), []
    for step, xid in steps:
        lsn += step
        commits.append((Lsn(lsn), base + xid))
        log.add(Lsn(lsn), (base + xid) & 0xFFFF_FFFF)
    xmax = base + data.draw(st.integers(0, 210))
    snapshot = XidSnapshot(base, xmax, frozenset(base + x for x in data.draw(st.sets(st.integers(0, 200)))))
    end = Lsn(lsn + 1)
    found = dividing_lsn(snapshot, log, end)
    seen = {at: xid < xmax and xid not in snapshot.in_progress for at, xid in commits}
    possible = [at for at in (*seen, end) if all(s == (c < at) for c, s in seen.items())]
    assert (found in possible) if possible else found is None


def test_the_log_forgets_the_oldest_and_a_stream_that_begins_anew_is_told_once() -> None:
    log = TransactionLog()
    for number in range(1, 3 * REMEMBERED_MAX):
        log.add(Lsn(number), number % 1000)
    lsns = [lsn for lsn, _ in log]
    assert lsns[-1] == 3 * REMEMBERED_MAX - 1
    assert REMEMBERED_MAX <= len(lsns) <= 2 * REMEMBERED_MAX
    log.add(Lsn(lsns[-5]), 7)
    again = [lsn for lsn, _ in log]
    assert again == lsns[:-4]
    assert 7 in log


def test_xids_wrap_around() -> None:
    snapshot = parse_snapshot(f"{2**32 - 2}:{2**32 + 5}:{2**32 - 1},{2**32 + 3}")
    assert [snapshot.sees(xid) for xid in (2**32 - 3, 2**32 - 1, 2, 3, 4, 5)] == [True, False, True, False, True, False]


pieces = st.lists(st.lists(st.binary(max_size=300), min_size=1, max_size=30), max_size=20)


@given(pieces, st.integers(600, 3000), st.sampled_from(["msgpack", "json"]), st.booleans(), st.sampled_from(["map", "array"]))
def test_chunks_hold_every_row_once_in_order_and_keep_their_limit(
    blocks: list[list[bytes]], limit: int, encoding: Encoding, zstd: bool, fmt: SnapshotFormat
) -> None:
    encoder = event_encoder(encoding)
    relation = Relation(1, "public", "t", "d", (Column("v", 25, -1, False),))
    head = SnapshotHead("snap-1-aaaa", "t", relation, ("text",), frozenset(), Lsn(1), 0, zstd)
    messages, compressor = SnapshotMessages(head, encoder, fmt), Compressor()
    inside = RowBlocks([("v", converter_for(25, {}, encoding, "literal"))], encoding, fmt)

    def piece(rows: list[bytes], first: int) -> Piece:
        values: list[Any] = [[row.hex()] if fmt == "array" else {"v": row.hex()} for row in rows]
        return Piece(inside._encoded(values), len(rows), [(i, 0) for i in range(len(rows)) if (first + i) % 7 == 0])

    cutter = ChunkCutter(
        messages.chunk,
        lambda m: m._replace(body=compressor.compress(m.body), headers=m.headers | compressor.headers) if zstd else m,
        inside.split, bytes_max=limit, gather_bytes_max=limit * 4 if zstd else limit,
    )  # fmt: skip
    made, first = [], 0
    expected: list[str] = []
    try:
        for rows in blocks:
            made += cutter.add(piece(rows, first))
            first += len(rows)
            expected += [row.hex() for row in rows]
        made += cutter.finish()
    except RowTooLarge:
        assert max(len(row) for rows in blocks for row in rows) * 2 + 400 > limit
        return
    found: list[str] = []
    raw: list[int] = []
    for number, message in enumerate(made):
        assert len(message.body) + headers_size(message.headers) <= limit
        assert message.headers["Chunk"] == str(number)
        body: Any = encoder.read_document(decompress(message.body, bytes_max=10**6) if zstd else message.body)
        data = body["data"] if fmt == "map" else body
        if fmt == "map":
            raw += [len(found) + row for row, _ in body.get("raw", [])]
        found += [row["v"] if fmt == "map" else row[0] for row in data]
    assert found == expected
    assert (cutter.chunks, cutter.rows) == (len(made), len(expected))
    assert fmt == "array" or raw == [i for i in range(len(expected)) if i % 7 == 0]


@given(st.integers(0, 70_000))
def test_an_array_head_is_msgpacks(count: int) -> None:
    assert array_head(count) == msgspec.msgpack.encode([None] * count)[: len(array_head(count))]


@given(st.binary(max_size=2000))
def test_a_frame_gives_back_its_body(body: bytes) -> None:
    assert decompress(Compressor().compress(body), bytes_max=2000) == body


@given(st.binary(max_size=200))
def test_hostile_frames_are_typed_errors_and_take_no_memory(data: bytes) -> None:
    for frame in (data, Compressor().compress(data)[:-1] + b"\xff", b"\x28\xb5\x2f\xfd" + data):
        try:
            assert len(decompress(frame, bytes_max=1000)) <= 1000
        except MalformedMessage:
            continue


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = Compressor().compress(bytes(100_000_000))
    with pytest.raises(MalformedMessage, match="100000000 bytes"):
        decompress(bomb, bytes_max=1_000_000)
