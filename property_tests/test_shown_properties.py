"""What a bridge shows of itself is true: each figure and sentence, held against a world that knows better, in any history.

The world writes into the telemetry what the actors would write, and knows which changes are committed, sent and stored. Faults of
earlier versions are put back one by one, and each must be found by its history.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from actors.commands.status import describe
from actors.contract.bridge_record import NotedGap
from actors.positions import Lsn, format_lsn
from actors.settings.config import HttpConfig
from actors.settings.resolve import resolve
from actors.telemetry import backlog, figures, verdict
from actors.telemetry.backlog import CATCHING_UP_S, LATE_S, UNREAD_MIN_BYTES, Backlog
from actors.telemetry.history import STUCK_AFTER_S, History
from actors.telemetry.log import metrics_line
from actors.telemetry.metrics import Metrics
from actors.telemetry.problems import gap_problem
from actors.telemetry.quantities import age, human_bytes
from actors.telemetry.telemetry import (
    Problem,
    RunBegin,
    SlotHealth,
    Telemetry,
)
from actors.telemetry.verdict import OLD_S, UNREAD_WARN_BYTES
from actors.web.status import status_document

CONFIG = resolve({}, {"DATABASE_URL": "postgresql://u@h/db"})
KB, MB, GB = 1024, 1024**2, 1024**3
BUDGET = 10 * GB
BEGAN = 1_700_000_000.0
Act = tuple[Any, ...]
History_ = list[Act]


@dataclass(slots=True)
class Commit:
    """A transaction of a published table."""

    lsn: int
    end: int
    at: float


@dataclass
class Clock:
    """In the place of `time.time`."""

    now: float = BEGAN

    def __call__(self) -> float:
        return self.now


@dataclass
class World:
    """PostgreSQL, JetStream, and the bridge between them, a process at a time. Times are unix seconds."""

    clock: Clock
    wal_end: int = 16 * MB
    restart: int = 15 * MB
    commits: list[Commit] = field(default_factory=list)
    """Those that JetStream has not stored, oldest first."""
    told: int = 0
    """So many of them this run has been sent."""
    known: int = 0
    """So many of them any run of this process has been sent."""
    sent: int = 16 * MB
    durable: int = 16 * MB
    confirmed: int = 16 * MB
    looked_end: int = 0
    looked_at: float = 0.0
    written: list[tuple[int, float]] = field(default_factory=list)
    """(end of the WAL, when) for what is not sent yet."""
    last_told_commit_at: float = 0.0
    told_at: float = 0.0
    outages: list[int] = field(default_factory=lambda: [0, 0])
    """Of PostgreSQL and of NATS, in this process."""
    away: str = ""
    down: set[str] = field(default_factory=set)
    """Who was away since the bridge last streamed."""
    gaps: list[NotedGap] = field(default_factory=list)
    """That nobody has acknowledged."""
    stood: float = 0.0
    """Since when something waits to be stored or confirmed, if only that other databases' WAL is passed; 0 if nothing does."""

    def __post_init__(self) -> None:
        self.start()

    @property
    def now(self) -> float:
        return self.clock.now

    # -- the bridge

    def start(self) -> None:
        """A new process, which streams at once unless one side is away."""
        self.telemetry = Telemetry(started_at=self.now)
        self.history = History(self.telemetry)
        self.metrics = Metrics(self.telemetry, CONFIG)
        self.outages, self.known, self.last_told_commit_at, self.told_at = [0, 0], 0, 0.0, 0.0
        self.down.clear()
        self.looked_end, self.looked_at = 0, 0.0
        if self.away:
            self.fail(self.away)
        else:
            self.begin()

    def begin(self) -> None:
        t = self.telemetry
        t.note_streaming(("t",))
        self.down.clear()
        t.postgres_connected = t.nats_connected = True
        t.begin_run({}, RunBegin(0, Lsn(self.durable - 1), Lsn(self.confirmed), Lsn(self.wal_end)))
        t.gap_problems = tuple(gap_problem(gap, "CDC", HttpConfig()) for gap in self.gaps)  # from the record
        self.told, self.sent, self.told_at = 0, self.confirmed, 0.0
        self.written = [(self.wal_end, self.now)] if self.wal_end > self.sent else []
        self.receive(self.sent if self.commits else self.wal_end)
        self.store(0)
        self.look()

    def fail(self, side: str) -> None:
        t = self.telemetry
        is_first = side not in self.down
        self.away = side
        self.down.add(side)
        fault = Problem("WB101" if side == "postgres" else "WB201", f"{side} is away", since_unix_s=self.now)
        t.note_fault(fault, from_source=side == "postgres")
        self.outages[side == "nats"] += is_first

    def receive(self, lsn: int) -> None:
        t = self.telemetry
        self.sent = max(self.sent, lsn)
        self.written = [mark for mark in self.written if mark[0] > self.sent]
        t.received_lsn = t.decoded_lsn = t.published_lsn = Lsn(self.sent)
        t.last_received_at = self.now
        if self.durable < self.sent and not self.stood:
            self.stood = self.now

    # -- what happens

    def write(self, size: int) -> None:
        self.wal_end += size
        self.written.append((self.wal_end, self.now))

    def commit(self, count: int, size: int = 200) -> None:
        for _ in range(count):
            self.write(size)
            self.commits.append(Commit(self.wal_end - 50, self.wal_end, self.now))

    def send(self, count: int) -> None:
        """PostgreSQL sends its next transactions, and how far it has come when there are no more."""
        if self.away:
            return
        following = self.commits[self.told : self.told + count]
        self.telemetry.backlog.told([(Lsn(c.lsn), c.at) for c in following], self.now)
        self.told += len(following)
        self.known = max(self.known, self.told)
        if following:
            self.receive(following[-1].end)
            self.telemetry.last_commit_at = self.last_told_commit_at = following[-1].at
            self.told_at = self.now
        if self.told == len(self.commits):
            self.receive(self.wal_end)

    def store(self, count: int) -> None:
        """JetStream stores the first of what was sent."""
        if self.away:
            return
        count = min(count, self.told)
        done, self.commits = self.commits[:count], self.commits[count:]
        self.told, self.known = self.told - count, max(0, self.known - count)
        self.durable = self.sent if not self.told else (done[-1].end if done else self.durable)
        self.telemetry.durable_lsn = Lsn(self.durable)
        self.telemetry.events_published += len(done)
        self.telemetry.backlog.stored(Lsn(self.durable))
        if self.confirmed < self.durable and not self.stood:
            self.stood = self.now

    def confirm(self) -> None:
        if not self.away:
            self.confirmed, self.stood = self.durable, self.now if self.durable < self.sent else 0.0
            self.telemetry.confirmed_lsn = Lsn(self.confirmed)
            self.restart = max(self.restart, self.confirmed - MB)

    def look(self) -> None:
        """The wal_monitor looks."""
        if self.away == "postgres":
            self.telemetry.slot.active = False
            return
        free = BUDGET - (self.wal_end - self.restart)
        self.telemetry.slot = SlotHealth(
            not self.away, Lsn(self.wal_end), Lsn(self.restart), Lsn(self.confirmed), "reserved", free, True,
            seconds_to_loss=4 * 86400.0, looked_at=self.now,
        )  # fmt: skip
        self.telemetry.backlog.wal_ends(Lsn(self.wal_end), self.telemetry.received_lsn, self.now)
        self.looked_end, self.looked_at = self.wal_end, self.now

    def wait(self, seconds: float) -> None:
        """Time passes; what is in order is confirmed, PostgreSQL answers each second, and monitors look every 2."""
        for second in range(int(seconds)):
            self.clock.now += 1
            if not self.away:
                self.telemetry.last_received_at = self.now
            if second % 2:
                self.look()
            self.check()

    def act(self, name: str, *values: Any) -> None:
        if name == "commit":
            self.commit(values[0])
        elif name == "large":
            self.commit(1, values[0] * MB)
        elif name == "unpublished":
            self.write(values[0] * KB)
        elif name == "send":
            self.send(values[0])
        elif name == "store":
            self.store(values[0])
        elif name == "confirm":
            self.confirm()
        elif name == "look":
            self.look()
        elif name == "wait":
            self.wait(values[0])
        elif name == "settle":
            self.settle()
        elif name == "catch_up":
            self.commit(1)
            self.wait(values[0])
            self.settle(confirm=False)
        elif name == "backlog":  # one transaction at a time through an empty pipeline, each as late as the one before
            for _ in range(4):
                self.commit(1, 40 * MB)
            self.wait(20)
            for _ in range(4):
                self.send(1)
                self.store(1)
                self.check()
                self.wait(1)
            self.confirm()
        elif name == "away":
            for attempt in range(values[1]):
                self.fail(values[0])
                self.wait(2 if attempt else 1)
        elif name == "back":
            self.away = ""
            self.begin()
        elif name == "restart":
            self.start()
        elif name == "gap":
            self.gaps.append(NotedGap(len(self.gaps) + 1, self.now, "slot was dropped", Lsn(16), Lsn(4096), ("t",), 1))
            if not self.away:
                self.begin()
        self.check()

    def settle(self, *, confirm: bool = True) -> None:
        self.send(len(self.commits))
        self.store(len(self.commits))
        if confirm:
            self.confirm()

    # -- what must be true of what is shown

    def check(self) -> None:
        t = self.telemetry
        self.history.sample(self.now)
        status = status_document(CONFIG, t, self.history)
        lines, line = "\n".join(describe(status, self.now)), metrics_line(t)
        text, level, lag = status["verdict"]["text"], status["verdict"]["level"], status["lag_seconds"]
        said = f"{text!r} ({level}), lag {lag}"
        told = self.commits[: self.known]
        told_s = self.now - told[0].at if told else 0.0
        unread = self.wal_end - t.received_lsn
        unread_s = self.now - self.written[0][1] if self.written else 0.0
        is_idle = not self.commits and unread < UNREAD_MIN_BYTES

        # one number, wherever it is read
        assert lines.splitlines()[1] == text
        assert f"lag        {lag:g} s" in lines, said
        assert f"lag_bytes={status['wal_lag_bytes']} " in line
        assert status["wal_lag_bytes"] == status["wal"]["held_bytes"]

        # lag: the age of the oldest change that was told of and is not stored
        if is_idle:
            assert lag == 0, f"an idle database, caught up: {said}"
            assert "unstored" not in text, said
            assert "not read" not in text, said
        if told:
            assert lag >= round(told_s, 3), f"the oldest is {told_s} s old: {said}"
        late = self.now - self.last_told_commit_at if self.now - self.told_at < CATCHING_UP_S and unread else 0.0
        if late and self.told_at - self.last_told_commit_at > LATE_S and self.looked_end - t.received_lsn >= UNREAD_MIN_BYTES:
            assert lag >= round(late, 3), f"fallen, although the next change is as late: {said}"
        oldest = self.now - self.commits[0].at if self.commits else 0.0
        assert lag <= round(max(oldest, late, unread_s), 3), f"nothing is that old: {said}"
        if told_s > STUCK_AFTER_S:
            assert level != "ok", f"green over a change that is {told_s} s old: {said}"
            assert f"The oldest unstored change is {age(told_s)} old" in text, said
        is_backlog = t.received_lsn and self.looked_end - t.received_lsn >= UNREAD_WARN_BYTES
        if is_backlog:
            assert level != "ok", f"green over {unread} bytes of WAL: {said}"
            assert f"{human_bytes(self.looked_end - t.received_lsn)} of WAL that the bridge has not read" in text, said

        self.check_words(status, said)
        self.check_events(status)

    def check_words(self, status: dict[str, Any], said: str) -> None:
        """Colour, and what was looked up."""
        t, text, level = self.telemetry, status["verdict"]["text"], status["verdict"]["level"]
        unread = self.wal_end - t.received_lsn
        is_waiting = self.stood and self.now - self.stood > STUCK_AFTER_S
        is_behind = bool(self.commits) or unread >= UNREAD_MIN_BYTES or is_waiting
        if t.state == "streaming" and not is_behind and not self.gaps:
            assert level == "ok", f"nothing is wrong: {said}"
            assert not [stage["stage"] for stage in status["stages"] if stage["stuck"]], said
        if "No changes now" in text:
            assert not self.known, f"there are some: {said}"
            assert f"the last was committed {age(self.now - self.last_told_commit_at)} ago" in text, said
        assert status["positions"]["confirmed"] != "0/0" or self.away, "the slot's own is known from the start"
        if t.slot.restart_lsn:
            held = f"{human_bytes(max(self.looked_end, t.received_lsn) - t.slot.restart_lsn)} of WAL for this slot"
            assert held in text, said
            if self.now - self.looked_at > OLD_S:
                assert f"{age(self.now - self.looked_at)} ago" in text, f"an old figure without its age: {said}"
            used = (self.looked_end - t.slot.restart_lsn) / BUDGET
            assert "room for" not in text or used > 0.1, f"extrapolated from nothing: {said}"
            assert "room for" not in text or self.away != "postgres", said

    def check_events(self, status: dict[str, Any]) -> None:
        """Outages and losses."""
        assert [status["reconnect_count"], status["nats_reconnect_count"]] == self.outages, "attempts are no outages"
        cards = [problem for problem in status["problems"] if problem["code"] == "WB152"]
        if not self.away:
            assert len(cards) == len(self.gaps), "a loss is shown until it is acknowledged"
        for card, gap in zip(cards, self.gaps, strict=False):
            assert f"{format_lsn(gap.from_lsn)} to {format_lsn(gap.to_lsn)}" in card["what"]
            assert (card["since_unix_s"], card["acknowledge"]) == (gap.unix_s, f"gaps/{gap.seq}/acknowledge")
        if self.gaps and not self.away:
            assert status["verdict"]["level"] == "bad"


def holds(history: History_) -> None:
    """Check each sentence after each act."""
    clock = Clock()
    with mock.patch.object(time, "time", clock):
        world = World(clock)
        world.check()
        for act in history:
            world.act(*act)


few = st.integers(1, 4)
acts = st.one_of(
    st.tuples(st.just("commit"), few),
    st.tuples(st.just("large"), st.sampled_from([1, 70, 226])),
    st.tuples(st.just("unpublished"), st.sampled_from([1, 30, 100, 100_000])),
    st.tuples(st.just("send"), few),
    st.tuples(st.just("store"), few),
    st.tuples(st.just("wait"), st.sampled_from([1, 3, 7, 40])),
    st.tuples(st.just("catch_up"), st.sampled_from([3, 40])),
    st.tuples(st.just("away"), st.sampled_from(["postgres", "nats"]), few),
    st.sampled_from(
        [("confirm",), ("look",), ("settle",), ("settle",), ("back",), ("back",), ("restart",), ("backlog",), ("gap",)]
    ),
)


@settings(deadline=None, max_examples=150)
@given(st.lists(acts, max_size=12))
@example([("catch_up", 40), ("confirm",)])
def test_every_sentence_is_true_in_any_history(history: list[Act]) -> None:
    holds(history)


# -- what earlier versions said, put back


def confirmed_begins_at_zero() -> mock._patch[Any]:
    begin_run = Telemetry.begin_run

    def begin(self: Telemetry, channels: dict[str, Any], begin: RunBegin) -> None:
        begin_run(self, channels, begin)
        self.confirmed_lsn = Lsn(0)

    return mock.patch.object(Telemetry, "begin_run", begin)


def only_what_is_in_flight() -> mock._patch[Any]:
    return mock.patch.object(Backlog, "unread_bytes", return_value=0)


def an_outage_is_a_change() -> mock._patch[Any]:
    def lag_s(t: Telemetry, now: float) -> float:
        return max(figures.unstored_s(t, now), now - t.fault.since_unix_s if t.fault else 0)

    return mock.patch.object(figures, "lag_s", lag_s)


def an_outage_forgets() -> mock._patch[Any]:
    begin = Backlog.begin

    def forgetful(self: Backlog, *values: Any) -> None:
        self._waiting.clear()
        self._before.clear()
        begin(self, *values)

    return mock.patch.object(Backlog, "begin", forgetful)


def late_for_good() -> mock._patch[Any]:
    """A catch-up that nothing ends."""

    def unstored_s(self: Backlog, _: Lsn, now: float) -> float:
        oldest = min((at for _, at in self._open()), default=0.0) or (self._newest[1] if self._newest[2] else 0.0)
        return max(0.0, now - oldest) if oldest else 0.0

    return mock.patch.object(Backlog, "unstored_s", unstored_s)


def figures_without_age() -> mock._patch[Any]:
    return mock.patch.object(verdict, "OLD_S", float("inf"))


def room_from_noise() -> mock._patch[Any]:
    return mock.patch.object(figures, "room_s", lambda slot: slot.seconds_to_loss)


def attempts_are_counted() -> mock._patch[Any]:
    note_fault = Telemetry.note_fault

    def note(self: Telemetry, fault: Problem, *, from_source: bool = False) -> None:
        self.outage.clear()
        note_fault(self, fault, from_source=from_source)

    return mock.patch.object(Telemetry, "note_fault", note)


def green_over_a_backlog() -> mock._patch[Any]:
    return mock.patch.object(verdict, "_backlog", return_value=[])


def falls_between_two_batches() -> mock._patch[Any]:
    return mock.patch.object(backlog, "CATCHING_UP_S", 0.0)


MUTANTS: dict[Callable[[], mock._patch[Any]], History_] = {
    confirmed_begins_at_zero: [("restart",), ("wait", 7)],
    only_what_is_in_flight: [("large", 226), ("look",)],
    falls_between_two_batches: [("backlog",)],
    an_outage_is_a_change: [("away", "nats", 4)],
    an_outage_forgets: [("commit", 1), ("send", 1), ("wait", 7), ("away", "nats", 1), ("back",)],
    late_for_good: [("catch_up", 40), ("confirm",)],
    figures_without_age: [("away", "postgres", 4)],
    room_from_noise: [("look",)],
    attempts_are_counted: [("away", "nats", 4), ("back",), ("away", "nats", 4)],
    green_over_a_backlog: [("commit", 1), ("send", 1), ("wait", 7)],
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_fault_of_earlier_versions_is_found(mutant: Callable[[], mock._patch[Any]]) -> None:
    holds(MUTANTS[mutant])
    with mutant(), pytest.raises(AssertionError):
        holds(MUTANTS[mutant])
