"""Figures that once cried wolf: consumers, room for WAL, suspended tables; and a gap that was nearly forgotten."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.contract.bridge_record import NOTED_GAPS_MAX, BridgeRecord
from actors.messages import Gap
from actors.positions import GAP_RANK, Lsn, Position
from actors.settings.resolve import resolve
from actors.stream_monitor import consumer_health
from actors.telemetry.figures import is_at_risk, is_discarding, room_s
from actors.telemetry.history import History, percentile
from actors.telemetry.problems import shown_problems
from actors.telemetry.telemetry import ConsumerHealth, Problem, SlotHealth, StreamHealth, Telemetry
from actors.web.status import status_document

NOW, DAY, GB = 1_700_000_000.0, 86400.0, 1 << 30


def stream(
    *, used_bytes: int = 336, bytes_max: int = 10 * GB, oldest_s: float = 1.0, age_max_s: float = 8 * DAY, old: bool = True
) -> StreamHealth:
    return StreamHealth(
        5, used_bytes, bytes_max, 1, 5, NOW - oldest_s, NOW, age_max_s=age_max_s, discards_old=old
    )  # fmt: skip


@pytest.mark.parametrize(
    ("of", "discards"),
    [
        (stream(), False),
        (stream(used_bytes=int(9.5 * GB)), True),
        (stream(used_bytes=int(9.5 * GB), old=False), False),
        (stream(oldest_s=7.5 * DAY), True),
        (stream(oldest_s=7.5 * DAY, age_max_s=0), False),
    ],
)
def test_a_consumer_at_the_beginning_is_at_risk_only_where_the_stream_discards(of: StreamHealth, discards: bool) -> None:
    assert is_discarding(of, NOW) == discards
    assert is_at_risk(ConsumerHealth("reader", 5, 0, 1.0), of, NOW) == discards
    assert not is_at_risk(ConsumerHealth("reader", 1, 0, 0.2), of, NOW)
    assert not is_at_risk(ConsumerHealth("xyz", 5, 0, 1.0, is_left=True), of, NOW)


@pytest.mark.parametrize(
    ("info", "is_left"),
    [
        ({"config": {"durable_name": "d"}}, False),
        ({"config": {}, "push_bound": True}, False),
        ({"config": {}, "num_waiting": 1}, False),
        ({"config": {}, "num_ack_pending": 3}, False),
        ({"config": {}}, True),
    ],
)
def test_a_nameless_consumer_that_nobody_reads_was_left(info: dict[str, object], is_left: bool) -> None:
    assert consumer_health({"name": "x", "num_pending": 5, **info}, 5, NOW).is_left == is_left


@pytest.mark.parametrize(
    ("held", "seconds", "is_said"),
    [(1 << 20, 4 * DAY, False), (1 << 20, 5301 * DAY, False), (2 * GB, 4 * DAY, True), (1 << 20, DAY / 2, True)],
)
def test_how_long_the_wal_lasts_is_said_when_it_matters(held: int, seconds: float, is_said: bool) -> None:
    slot = SlotHealth(True, Lsn(20 * GB), Lsn(20 * GB - held), wal_limited=True, safe_wal_bytes=10 * GB - held)
    slot.seconds_to_loss = seconds
    assert room_s(slot) == (seconds if is_said else math.inf)


def test_hundreds_of_suspended_tables_are_one_problem() -> None:
    telemetry = Telemetry()
    telemetry.suspended_tables = {f"t{n}": Problem("WB301", f"table public.t{n} is suspended", fix="x") for n in range(302)}
    (shown,) = shown_problems(telemetry)
    assert shown.what.startswith("302 tables are suspended: t0, t1, ")
    assert shown.what.endswith(" and 292 more")


def gap(from_lsn: int, to_lsn: int) -> Gap:
    return Gap(Position(Lsn(to_lsn), 0, GAP_RANK), "s", "dropped", Lsn(from_lsn), Lsn(to_lsn), ("t",))


def test_a_gap_stays_in_the_record_and_one_that_is_decided_again_takes_its_place() -> None:
    record = BridgeRecord("s", "p", "1", 1)
    assert record.noting(None, 1, NOW) == ()
    record = BridgeRecord("s", "p", "1", 1, gaps=record.noting(gap(10, 20), 5, NOW))
    assert BridgeRecord.decode(record.encode(), "CDC").gaps == record.gaps
    assert [noted.seq for noted in record.noting(gap(30, 40), 9, NOW)] == [5, 9]
    assert [noted.seq for noted in record.noting(gap(10, 40), 5, NOW)] == [5], "announced, not stored, and longer by now"
    for n in range(20):
        record = BridgeRecord("s", "p", "1", 1, gaps=record.noting(gap(100 * n + 100, 100 * n + 120), n + 10, NOW))
    assert [noted.seq for noted in record.gaps] == list(range(30 - NOTED_GAPS_MAX, 30))


def test_an_outage_of_postgresql_that_is_over_leaves_no_stage_red() -> None:
    telemetry, now = Telemetry(), time.time()
    telemetry.state, telemetry.last_received_at, telemetry.received_lsn = "waiting_postgres", now - 60, Lsn(16)
    history = History(telemetry)
    history.look(now)
    assert history.stages[0].stuck
    telemetry.state, telemetry.last_received_at = "streaming", now
    status = status_document(resolve({}, {"POSTGRES_BRIDGE_USER": "x"}), telemetry, history)
    assert not [stage["stage"] for stage in status["stages"] if stage["stuck"]]
    assert "has not moved" not in status["verdict"]["text"]


@given(st.lists(st.floats(0.0001, 250) | st.sampled_from(Telemetry().event_latency_s.bounds), min_size=1))
def test_a_median_is_nearly_that_of_the_events_and_buckets_are_those_of_prometheus(latencies_s: list[float]) -> None:
    histogram = Telemetry().event_latency_s
    for one in latencies_s:
        histogram.observe(one)
    bounds = histogram.bounds
    expected = [
        sum(low < one <= high for one in latencies_s) for low, high in zip((-1.0, *bounds), (*bounds, math.inf), strict=True)
    ]
    assert histogram.counts == expected
    found = percentile(histogram.fine_bounds, histogram.fine_counts, 0.5)
    median = sorted(latencies_s)[(len(latencies_s) - 1) // 2]
    assert found is not None
    widest = max(high - low for low, high in zip((0.0, *bounds), bounds, strict=False) if low <= median) / histogram.PARTS
    assert abs(found - median) <= widest
