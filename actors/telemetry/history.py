"""The bridge's last 15 minutes, one point per second, and when each stage and table last moved. No I/O, no trio."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from actors.contract.table_token import split_token, table_token
from actors.positions import NO_LSN, Lsn
from actors.telemetry import figures
from actors.telemetry.telemetry import Telemetry

POINTS_MAX = 900
SUMMARY_POINTS = 10
"""Rates in sentences are means over this many seconds, because a single second fluctuates."""
LATENCY_POINTS = 60
STUCK_AFTER_S = 5.0
SILENT_AFTER_S = 120.0
"""PostgreSQL sends a keepalive at least every half of wal_sender_timeout (60 s)."""
OPERATIONS = ("insert", "update", "delete", "truncate")


class Point(NamedTuple):
    """One second. Rates are per second; None where there was nothing to measure."""

    unix_s: float
    inserts: float
    updates: float
    deletes: float
    others: float
    latency_p50_ms: float | None
    latency_p99_ms: float | None
    ack_p50_ms: float | None
    lag_s: float
    wal_held_bytes: int
    in_flight_messages: int
    received_bytes: float
    sent_bytes: float

    @property
    def events(self) -> float:
        return self.inserts + self.updates + self.deletes + self.others


@dataclass(slots=True)
class Stage:
    """How far one stage has got, and since when it has stayed there."""

    name: str
    lsn: Lsn = NO_LSN
    moved_at: float = 0.0
    """Unix seconds; 0 for never."""
    behind: bool = False
    """The stage before it has got further."""
    even_at: float = 0.0
    """When the stage was last not behind; 0 for never."""
    stuck: bool = False
    """Behind, and not moved for STUCK_AFTER_S."""
    _mark: object = None

    @property
    def stands_since(self) -> float:
        """Since when the stage could have moved and did not; 0 when it never could."""
        return max(self.moved_at, self.even_at)


@dataclass(slots=True)
class TableCounts:
    """Stored events of one table."""

    token: str
    schema: str
    table: str
    counts: list[int]
    """By OPERATIONS."""
    changed_at: float = 0.0
    changed_tick: int = 0


def percentile(bounds: Sequence[float], counts: Sequence[int], share: float) -> float | None:
    """The value below which this share of the observations lies, interpolated within its bucket; None without observations."""
    total = sum(counts)
    if not total:
        return None
    rank, seen, low = total * share, 0, 0.0
    for bound, count in zip(bounds, counts, strict=False):
        if seen + count >= rank and count:
            return low + (bound - low) * (rank - seen) / count
        seen, low = seen + count, bound
    return bounds[-1]


class History:
    """Grows by `sample`, once per second. All other methods only read."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self.tick = 0
        self.points: deque[Point] = deque(maxlen=POINTS_MAX)
        self.tables: dict[tuple[str, str], TableCounts] = {}
        self.stages = [Stage(name) for name in ("received", "decoded", "published", "durable", "confirmed")]
        self._at = 0.0
        self._counted = -1
        self._named: tuple[str, ...] = ()
        self._totals = self.operation_totals()
        self._bytes = (telemetry.wal_bytes_received, telemetry.published_bytes)
        self._latency = list(telemetry.event_latency_s.fine_counts)
        self._ack = list(telemetry.ack_s.fine_counts)
        self._latencies: deque[list[int]] = deque(maxlen=LATENCY_POINTS)

    def sample(self, now_unix_s: float) -> None:
        """Add one point."""
        t = self._telemetry
        elapsed_s = max(now_unix_s - self._at, 0.001) if self._at else 1.0
        self._at = now_unix_s
        self.tick += 1
        self._sample_tables(now_unix_s)
        totals = self.operation_totals()
        totals_before = self._totals if self.tick > 1 else totals  # events stored before the first sample are no rate
        moved = (t.wal_bytes_received, t.published_bytes)
        moved_before, self._bytes, self._totals = self._bytes, moved, totals
        latency, self._latency = _since(t.event_latency_s.fine_counts, self._latency)
        ack, self._ack = _since(t.ack_s.fine_counts, self._ack)
        self._latencies.append(latency)
        now, before = (*totals, *moved), (*totals_before, *moved_before)
        rates = [max(0, new - old) / elapsed_s for new, old in zip(now, before, strict=True)]
        bounds = t.event_latency_s.fine_bounds
        self.points.append(
            Point(
                now_unix_s,
                inserts=rates[0],
                updates=rates[1],
                deletes=rates[2],
                others=rates[3],
                latency_p50_ms=_ms(percentile(bounds, latency, 0.5)),
                latency_p99_ms=_ms(percentile(bounds, latency, 0.99)),
                ack_p50_ms=_ms(percentile(t.ack_s.fine_bounds, ack, 0.5)),
                lag_s=round(figures.lag_s(t, now_unix_s), 3),
                wal_held_bytes=figures.held_bytes(t),
                in_flight_messages=max(0, t.in_flight_messages),
                received_bytes=rates[4],
                sent_bytes=rates[5],
            )
        )
        self.look(now_unix_s)

    def points_after(self, tick: int) -> list[Point]:
        """The points after this tick that are still kept."""
        missing = min(self.tick - tick, len(self.points))
        return list(self.points)[len(self.points) - missing :] if missing > 0 else []

    def tables_after(self, tick: int) -> Iterator[TableCounts]:
        """The tables that have changed after this tick."""
        return (table for table in self.tables.values() if table.changed_tick > tick)

    @property
    def events_per_second(self) -> float:
        """The mean over the last SUMMARY_POINTS seconds."""
        recent = list(self.points)[-SUMMARY_POINTS:]
        return sum(point.events for point in recent) / len(recent) if recent else 0.0

    def latency_ms(self, share: float) -> float | None:
        """A percentile of the time from commit to stored, over the last minute's events."""
        counts = [sum(column) for column in zip(*self._latencies, strict=True)]
        return _ms(percentile(self._telemetry.event_latency_s.fine_bounds, counts, share))

    def operation_totals(self) -> tuple[int, int, int, int]:
        """Count the events of all tables, by OPERATIONS."""
        sums = [0, 0, 0, 0]
        for table in self.tables.values():
            for i, count in enumerate(table.counts):
                sums[i] += count
        return sums[0], sums[1], sums[2], sums[3]

    def _sample_tables(self, now_unix_s: float) -> None:
        t = self._telemetry
        if t.tables != self._named:
            self._named = t.tables
            for token in t.tables:
                self._table(*split_token(token))
        if t.events_published == self._counted:
            return  # nothing was stored, so skip up to thousands of tables
        self._counted = t.events_published
        for (schema, name, operation), count in t.table_events.items():
            table = self._table(schema, name)
            place = OPERATIONS.index(operation) if operation in OPERATIONS else 3
            if table.counts[place] != count:
                table.counts[place] = count
                table.changed_at, table.changed_tick = now_unix_s, self.tick

    def _table(self, schema: str, name: str) -> TableCounts:
        found = self.tables.get((schema, name))
        if found is None:
            found = self.tables[schema, name] = TableCounts(
                table_token(schema, name), schema, name, [0] * len(OPERATIONS), changed_tick=self.tick
            )
        return found

    def look(self, now_unix_s: float) -> None:
        """Look at the stages, each second and whenever they are to be shown: an outage may have ended since."""
        t = self._telemetry
        received, decoded, published, durable, confirmed = self.stages
        # within one long transaction LSNs stay the same while messages move, so either counts as moving
        for stage, lsn, mark in (
            (received, t.received_lsn, t.wal_messages_received),
            (decoded, t.decoded_lsn, t.decoded_lsn),
            (published, t.published_lsn, t.sent_seq),
            (durable, t.durable_lsn, t.stored_seq),
            (confirmed, t.confirmed_lsn, t.confirmed_lsn),
        ):
            if stage._mark != (lsn, mark):
                if stage._mark is not None or lsn:
                    stage.moved_at = now_unix_s
                stage.lsn, stage._mark = lsn, (lsn, mark)
        received.moved_at = t.last_received_at or received.moved_at
        received.behind = t.state == "waiting_postgres"
        decoded.behind = decoded.lsn < received.lsn
        published.behind = published.lsn < decoded.lsn
        durable.behind = durable.lsn < published.lsn or t.in_flight_messages > 0
        confirmed.behind = confirmed.lsn < durable.lsn
        for stage in self.stages[1:]:
            stage.behind &= stage.lsn != NO_LSN  # it has not begun: there is nothing that it could be behind with
        found = False
        for stage in self.stages:
            if not stage.behind:
                stage.even_at = now_unix_s
            stood_s = now_unix_s - (stage.stands_since or t.started_at)
            held_s = 1.5 * t.confirm_hold_s if stage is confirmed else 0.0
            stage.stuck = not found and stage.behind and stood_s > STUCK_AFTER_S + held_s
            found |= stage.stuck
        received.stuck = t.state == "waiting_postgres" or (
            # an outage of NATS was no silence of PostgreSQL
            t.state == "streaming" and now_unix_s - max(received.moved_at, t.run_began_at) > SILENT_AFTER_S
        )
        if t.state == "waiting_nats":
            for stage in self.stages:
                stage.stuck = stage is durable
        elif t.state == "paused":  # nobody reads, as was wanted
            for stage in self.stages:
                stage.stuck = False
        elif received.stuck:
            for stage in self.stages[1:]:
                stage.stuck = False


def _since(counts: Sequence[int], before: Sequence[int]) -> tuple[list[int], list[int]]:
    return [new - old for new, old in zip(counts, before, strict=True)], list(counts)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else float(f"{seconds * 1000:.2g}")  # no more digits than the buckets know
