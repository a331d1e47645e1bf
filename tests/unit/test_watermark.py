"""Where a snapshot stands in the WAL and in the stream, decided from values."""

from __future__ import annotations

from math import log2

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import SourceUnavailable
from actors.positions import Lsn
from actors.snapshots.failures import NoWatermark, SnapshotFailed
from actors.snapshots.transaction_log import TransactionLog
from actors.snapshots.watermark import (
    STREAM_CATCHES_UP_S,
    Stored,
    Watermark,
    XidSnapshot,
    find_lsn,
    sequence_before,
    wait_for_lsn,
)


def log_of(*commits: tuple[int, int], reached: int = 0) -> TransactionLog:
    log = TransactionLog()
    for lsn, xid in commits:
        log.add(Lsn(lsn), xid)
    log.reached.value = Lsn(reached)
    return log


def ordinary(xmax: int, *in_progress: int, insert_lsn: int, stalled: tuple[int, ...] = ()) -> Watermark:
    return Watermark(None, XidSnapshot(1, xmax, frozenset(in_progress)), Lsn(insert_lsn), frozenset(stalled))


def test_an_exported_snapshot_has_its_lsn() -> None:
    assert find_lsn(Watermark(Lsn(700)), TransactionLog()) == 700


def test_an_ordinary_snapshot_stands_before_the_first_commit_that_it_does_not_see() -> None:
    log = log_of((100, 5), (200, 6), (300, 7))
    assert find_lsn(ordinary(9, 7, insert_lsn=400), log) == 300
    assert find_lsn(ordinary(9, insert_lsn=400), log) == 400, "it sees them all"
    assert find_lsn(ordinary(9, 7, insert_lsn=250), log) == 250, "what commits later is not in it"


def test_a_snapshot_that_sees_a_later_commit_and_not_an_earlier_one_has_no_lsn() -> None:
    with pytest.raises(NoWatermark):
        find_lsn(ordinary(9, 6, insert_lsn=400), log_of((100, 5), (200, 6), (300, 7)))


def test_a_commit_that_waits_for_a_standby_must_have_been_streamed() -> None:
    log = log_of((100, 5), (200, 6))
    assert find_lsn(ordinary(9, 6, insert_lsn=400, stalled=(6,)), log) == 200
    with pytest.raises(SnapshotFailed) as caught:
        find_lsn(ordinary(9, 6, insert_lsn=400, stalled=(6, 2**32 + 4)), log)
    assert caught.value.kind == "no_watermark"


def test_the_answer_waits_until_the_stream_has_passed_the_snapshot() -> None:
    async def main() -> None:
        log, found = log_of((100, 5), reached=150), []

        async def find() -> None:
            found.append(await wait_for_lsn(ordinary(9, 6, insert_lsn=400), log))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(find)
            await trio.testing.wait_all_tasks_blocked()
            log.reached.value = Lsn(399)
            await trio.testing.wait_all_tasks_blocked()
            assert not found
            log.add(Lsn(300), 6)
            log.reached.value = Lsn(400)
        assert found == [300]

    trio.run(main)


def test_an_exported_snapshot_waits_for_nothing() -> None:
    assert trio.run(wait_for_lsn, Watermark(Lsn(700)), TransactionLog()) == 700


def test_a_stream_that_does_not_catch_up_is_a_passing_fault() -> None:
    async def main() -> float:
        with pytest.raises(SourceUnavailable, match="WB320"):
            await wait_for_lsn(ordinary(9, insert_lsn=400), log_of(reached=399))
        return trio.current_time()

    clock = trio.testing.MockClock(autojump_threshold=0)
    assert trio.run(main, clock=clock) == pytest.approx(STREAM_CATCHES_UP_S)


def test_after_a_restart_of_the_stream_the_log_is_not_complete_until_it_is_read_again() -> None:
    log = log_of((100, 5), (200, 6), reached=300)
    log.restart()
    log.add(Lsn(100), 5)
    assert log.reached.value == 0
    assert list(log) == [(100, 5)]


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 2)), max_size=60), st.integers(0, 200))
def test_the_bisection_finds_what_a_scan_finds(steps: list[tuple[int, int]], wanted: int) -> None:
    """Sequences have holes, where messages were deleted, and several events have one LSN."""
    stored: list[Stored] = []
    seq, lsn = 10, 0
    for hole, rise in steps:
        seq, lsn = seq + hole, lsn + rise
        stored.append(Stored(seq, Lsn(lsn)))
    looked_at: list[int] = []

    async def look_up(seq: int) -> Stored | None:
        looked_at.append(seq)
        return next((one for one in stored if one.seq >= seq), None)

    first, last = (stored[0].seq, stored[-1].seq) if stored else (0, 0)  # as JetStream says of a new stream
    found = trio.run(sequence_before, Lsn(wanted), first, last, look_up)
    before = [one.seq for one in stored if one.lsn < wanted]
    after = [one.seq for one in stored if one.lsn >= wanted]
    assert found >= 0
    assert all(seq <= found for seq in before)
    assert all(seq > found for seq in after)
    assert len(looked_at) <= log2(max(1, last - first + 1)) + 2
