"""The judge of faults: what it condemns, and what each excuse covers and no more."""

from __future__ import annotations

import pytest

from tests.evidence import Evidence, GapSeen, Hole, Sample, Stored, judge
from tests.oracle import Expected

EVERYTHING = tuple(range(100, 110))


def evidence_of(stored: tuple[int, ...] = EVERYTHING, *, tables: str = "ab", first_seq: int = 1) -> Evidence:
    """Ten transactions of one event, of tables in turn, of which these are stored, one after another."""
    table_of = {lsn: tables[lsn % len(tables)] for lsn in EVERYTHING}
    return Evidence(
        [Expected(lsn, 0, "INSERT", table_of[lsn], {"id": lsn}) for lsn in EVERYTHING],
        [Stored(seq, (lsn, 0, "INSERT", table_of.get(lsn, "a")), {"id": lsn}, ()) for seq, lsn in enumerate(stored, first_seq)],
    )


def without(*lsns: int) -> tuple[int, ...]:
    return tuple(lsn for lsn in EVERYTHING if lsn not in lsns)


def test_a_stream_that_holds_everything_once_and_in_order_is_right() -> None:
    evidence = evidence_of()
    evidence.samples = [Sample(101, 1), Sample(110, 10), Sample(50, 0)]
    assert judge(evidence) == ((), {})


@pytest.mark.parametrize(
    ("stored", "word"),
    [
        (without(103), "lost: 1 events untold"),
        (without(109), "lost: 1 events untold"),
        ((101, 100, *EVERYTHING[2:]), "out of order"),
        ((*EVERYTHING, 109), "out of order"),
        ((*EVERYTHING, 110), "never committed"),
    ],
)
def test_what_nothing_explains_is_a_fault(stored: tuple[int, ...], word: str) -> None:
    assert judge(evidence_of(stored)).faults[0].startswith(word)


def test_another_value_is_a_fault_unless_the_event_says_that_it_lacks_it() -> None:
    evidence = evidence_of()
    evidence.stored[3] = evidence.stored[3]._replace(data={})
    assert "not {'id': 103}" in judge(evidence).faults[0]
    evidence.stored[3] = evidence.stored[3]._replace(omitted=("id",))
    assert judge(evidence).faults == ()


def test_a_confirmed_lsn_beyond_what_was_stored_at_that_moment_is_a_fault() -> None:
    evidence = evidence_of()
    evidence.samples = [Sample(104, 4), Sample(105, 4)]
    assert judge(evidence).faults == ("confirmed too early: 1 samples, the first Sample(confirmed_lsn=105, last_seq=4)",)


def test_a_gap_event_explains_its_range_and_its_tables_alone() -> None:
    evidence = evidence_of(without(103, 105))
    evidence.gaps = [GapSeen(20, 102, 106, ("b",))]
    assert judge(evidence) == ((), {"gap event": 2})
    evidence.gaps = [GapSeen(20, 104, 106, ("b",))]
    assert judge(evidence).faults[0].startswith("lost: 1 events")
    evidence.gaps = [GapSeen(20, 102, 106, ("a",))]
    assert judge(evidence).faults[0].startswith("lost: 2 events")


def test_a_hole_explains_what_was_between_its_neighbours_and_no_more_than_fits() -> None:
    evidence = evidence_of(without(102))
    evidence.stored = [e._replace(stream_seq=e.place[0] - 99) for e in evidence.stored]
    evidence.holes = [Hole(2, 4)]
    assert judge(evidence) == ((), {"removed from the stream": 1})
    evidence.holes = [Hole(5, 7)]
    assert judge(evidence).faults[0].startswith("lost: 1 events")
    evidence = evidence_of(without(102))
    evidence.holes = [Hole(2, 3)]  # no message was there
    assert "in a hole of 0 messages" in judge(evidence).faults[0]


def test_a_suspended_table_may_lack_events_until_it_goes_on() -> None:
    evidence = evidence_of(without(103, 105))
    evidence.gaps = [GapSeen(3, 103, 103, ("b",))]
    evidence.stored = [e._replace(stream_seq=e.place[0] - 99) for e in evidence.stored]
    assert judge(evidence) == ((), {"suspended table": 2})
    evidence = evidence_of(without(103, 107))
    evidence.stored = [e._replace(stream_seq=e.place[0] - 99) for e in evidence.stored]
    evidence.gaps = [GapSeen(3, 103, 103, ("b",))]
    assert judge(evidence).faults[0].startswith("lost: 1 events")


def test_what_was_removed_and_is_stored_again_counts_once() -> None:
    evidence = evidence_of()
    again = evidence.stored[7:]
    evidence.forget_from([again[0].place])
    evidence.stored += [event._replace(stream_seq=event.stream_seq + 10) for event in again]
    evidence.samples = [Sample(108, 18)]
    assert judge(evidence).faults == ()
    evidence.samples = [Sample(108, 17)]
    assert judge(evidence).faults, "the copy that was removed proves nothing"
