"""The table of faults counts what the judge found, in the judge's own words."""

from __future__ import annotations

from tests.evidence import Evidence, Stored, judge
from tests.faults.scenarios import SCENARIOS
from tests.faults.tally import Tally
from tests.oracle import Expected

WAL = [Expected(lsn, 0, "INSERT", "t", {"id": lsn}) for lsn in range(100, 110)]


def tally_of(*lsns: int) -> Tally:
    tally = Tally(SCENARIOS[0])
    tally.condemn(
        judge(Evidence(list(WAL), [Stored(at, (lsn, 0, "INSERT", "t"), {"id": lsn}, ()) for at, lsn in enumerate(lsns)])).faults
    )
    return tally


def test_nothing_wrong_is_nothing() -> None:
    assert not tally_of(*range(100, 110)).wrong


def test_lost_events_are_counted() -> None:
    assert tally_of(*range(103, 110)).wrong == {"lost": 3}


def test_events_out_of_order_are_counted_one_by_one() -> None:
    assert tally_of(*range(100, 108), 109, 108).wrong == {"out of order": 1}


def test_what_the_witness_sees_doubled_and_everything_else_has_a_place() -> None:
    tally = Tally(SCENARIOS[0])
    tally.condemn(
        [
            "doubled: (1, 0, 'INSERT', 't') at [3] and 4",
            "doubled: other",
            "mirror in sqlite differs",
            "lost: 7 events in a hole",
        ]
    )
    assert tally.wrong == {"doubled": 2, "otherwise": 1, "lost": 7}
