"""What was seen of a bridge's work, and what follows from it: the one judge of faults on real servers and of the simulation. No I/O.

Expected is what the WAL held, in its order. What is missing must be told; what is told must have a cause.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.oracle import Expected

PACK_MAX = 100
"""Events in a message, at most."""
_SHOWN = 5

Place = tuple[int, int, str, str]


class Stored(NamedTuple):
    """A row or truncate event of the stream."""

    stream_seq: int
    place: Place
    data: Mapping[str, Any]
    omitted: tuple[str, ...]


class GapSeen(NamedTuple):
    """A gap event."""

    stream_seq: int
    from_lsn: int
    to_lsn: int
    tables: tuple[str, ...]
    at_s: float = 0.0
    """When it was stored; told with `causes`."""

    @property
    def suspends(self) -> bool:
        """One table is left out from here on, until its next snapshot."""
        return self.from_lsn == self.to_lsn and len(self.tables) == 1


class Hole(NamedTuple):
    """Messages that somebody removed, or that expired, before they were seen here: those between two sequences."""

    after: int
    before: int


class Sample(NamedTuple):
    """What the slot had confirmed, and the stream's last sequence right afterwards."""

    confirmed_lsn: int
    last_seq: int


class Cause(NamedTuple):
    """Something after which a gap event is due, or after which a bridge cannot know better."""

    at_s: float
    reason: str
    is_vague: bool = False
    """Nobody can say where the loss begins: the event's range may name changes that are stored."""


MERGED_WITHIN_S = 20.0
"""A gap event may stand for several causes; one that comes while it is being decided has an event of its own."""


@dataclass
class Evidence:
    """Of WAL, by a slot that the bridge has no part in, and of the stream, read as it grew."""

    expected: list[Expected] = field(default_factory=list)
    stored: list[Stored] = field(default_factory=list)
    gaps: list[GapSeen] = field(default_factory=list)
    holes: list[Hole] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    """Faults that show at once: an event whose earlier copy the stream still holds."""
    copies: int = 0
    """Events that were stored again after somebody had removed the earlier copy."""
    void: set[Place] = field(default_factory=set)
    """Expected events of a history that was abandoned since: a bridge need not have them, and must say so if it has."""
    unknowable: set[Place] = field(default_factory=set)
    """Events of a server that became an older copy of itself, and of the history that it had before, where nothing was left
    by which a bridge could tell one from the other."""
    removed: set[Place] = field(default_factory=set)
    """Events that somebody was seen to remove from the stream."""
    causes: list[Cause] | None = None
    """All that was done after which gap events may come; None where nobody wrote that down."""
    settled_lsn: int = 0
    """Everything up to here was judged."""

    def forget_from(self, places: Collection[Place]) -> None:
        """Take out what is not part of the stream's order: events that were removed, and are now stored again."""
        settled = any(one[0] <= self.settled_lsn for one in places)
        found = (at for at, one in enumerate(self.stored) if one.place in places)
        del self.stored[0 if settled else next(found, len(self.stored)) :]

    def settle(self) -> None:
        """Begin anew after a verdict, so that nothing is judged twice and memory stays small."""
        self.settled_lsn = max((change.lsn for change in self.expected[-1:]), default=self.settled_lsn)
        for one in (self.expected, self.stored, self.gaps, self.holes, self.samples, self.seen):
            one.clear()


class Verdict(NamedTuple):
    """What no gap event, no hole and no suspension explains."""

    faults: tuple[str, ...]
    excused: Mapping[str, int]
    """How many expected events are missing, by what explains it."""


def shortened(data: Mapping[str, Any]) -> dict[str, Any]:
    """Replace large texts by their hashes, so that hours of evidence fit into memory."""
    return {
        name: hashlib.sha256(value.encode()).hexdigest() if isinstance(value, str) and len(value) > 64 else value
        for name, value in data.items()
    }


def judge(evidence: Evidence) -> Verdict:
    """Compare what is stored with what WAL held; everything in WAL must have been given the time to be stored."""
    faults = list(evidence.seen)
    index = {place_of(change): at for at, change in enumerate(evidence.expected)}
    at_seq: dict[int, int] = {}  # index of an expected event -> the sequence of its message
    wrong: list[str] = []
    order: list[tuple[int, int]] = []  # stream sequence, index
    for event in _in_force(evidence):
        at = index.get(event.place)
        if at is None:
            faults.append(f"never committed: {event.place} at {event.stream_seq}")
            continue
        if order and at <= order[-1][1]:
            faults.append(f"out of order: {event.place} at {event.stream_seq} after {evidence.expected[order[-1][1]]}")
        at_seq[at] = event.stream_seq
        order.append((event.stream_seq, at))
        wanted = {name: value for name, value in evidence.expected[at].data.items() if name not in event.omitted}
        if wanted != event.data:
            wrong.append(f"wrong: {event.place} at {event.stream_seq}: {event.data}, not {wanted}")
    excuses = _Excuses(evidence, order)
    excused: Counter[str] = Counter()
    missing: list[Expected] = []
    for at, change in enumerate(evidence.expected):
        if at not in at_seq:
            is_void = place_of(change) in evidence.void
            reason = "abandoned history" if is_void else excuses.of(at, change)
            excused[reason] += bool(reason)
            if not reason:
                missing.append(change)
    if missing:
        ends = [f"{e.lsn:X}-{e.seq}-{e.token}-{e.operation}" for e in (*missing[:_SHOWN], missing[-1])]
        faults.append(f"lost: {len(missing)} events untold: {ends} in tables {sorted({e.token for e in missing})}")
    faults += [f"{len(wrong)} events are {wrong[0]}"] if wrong else []
    faults += excuses.too_many()
    faults += _early(evidence, at_seq, missing)
    faults += _untold_voids(evidence)
    faults += _false_gaps(evidence)
    return Verdict(tuple(faults), dict(+excused))


def _in_force(evidence: Evidence) -> list[Stored]:
    """The stored events without those that a later gap event declared void and that are void or come again after it."""
    last = {event.place: event.stream_seq for event in evidence.stored}
    ranges = [gap for gap in evidence.gaps if not gap.suspends]

    def is_in_force(event: Stored) -> bool:
        again = 1 << 62 if event.place in evidence.void else last[event.place]
        return again == event.stream_seq or not any(
            event.stream_seq < gap.stream_seq < again and gap.from_lsn <= event.place[0] < gap.to_lsn for gap in ranges
        )

    return [event for event in evidence.stored if is_in_force(event)]


def place_of(change: Expected) -> Place:
    """Where an expected event stands, and of what it is."""
    return change.lsn, change.seq, change.operation, change.token


def not_stored_below(evidence: Evidence, confirmed_lsn: int, stored: Collection[Place]) -> list[Expected]:
    """Expected events below a confirmed LSN that are neither among those stored nor told to be missing."""
    excuses = _Excuses(evidence, [])
    return [
        change for at, change in enumerate(evidence.expected)
        if change.lsn < confirmed_lsn and (one := place_of(change)) not in stored and one not in evidence.void
        and not excuses.of(at, change)
    ]  # fmt: skip


class _Excuses:
    """Says why an expected event may be missing."""

    def __init__(self, evidence: Evidence, order: list[tuple[int, int]]) -> None:
        self._ranges = [gap for gap in evidence.gaps if not gap.suspends]
        self._holes = [(hole, _between(hole, order)) for hole in evidence.holes]
        self._in_hole: Counter[Hole] = Counter()
        self._removed, self._unknowable = evidence.removed, evidence.unknowable
        self._suspended = [
            (gap.tables[0], gap.from_lsn, _first_after(gap, evidence.stored))
            for gap in evidence.gaps if gap.suspends
        ]  # fmt: skip

    def of(self, at: int, change: Expected) -> str:
        """The reason; empty without one."""
        if any(gap.from_lsn <= change.lsn < gap.to_lsn and change.token in gap.tables for gap in self._ranges):
            return "gap event"
        if any(token == change.token and since <= change.lsn <= until for token, since, until in self._suspended):
            return "suspended table"
        if place_of(change) in self._unknowable:
            return "nobody can know"
        if place_of(change) in self._removed:
            return "removed from the stream"
        for hole, (first, last) in self._holes:
            if first < at < last:
                self._in_hole[hole] += 1
                return "removed from the stream"
        return ""

    def too_many(self) -> list[str]:
        return [
            f"lost: {count} events in a hole of {hole.before - hole.after - 1} messages after {hole.after}"
            for hole, count in self._in_hole.items()
            if count > PACK_MAX * (hole.before - hole.after - 1)
        ]


def _between(hole: Hole, order: list[tuple[int, int]]) -> tuple[int, int]:
    """The expected events on both sides of a hole."""
    right = bisect_left(order, (hole.before, -1))
    return (order[right - 1][1] if right else -1), (order[right][1] if right < len(order) else 1 << 62)


def _first_after(gap: GapSeen, stored: list[Stored]) -> int:
    """The LSN with which a suspended table goes on: from there on nothing may be missing."""
    return min((e.place[0] for e in stored if e.stream_seq > gap.stream_seq and e.place[3] == gap.tables[0]), default=1 << 62)


def _early(evidence: Evidence, at_seq: Mapping[int, int], missing: list[Expected]) -> list[str]:
    """Samples of the confirmed LSN that are beyond what the stream held."""
    lost = {(e.lsn, e.seq) for e in missing}
    lsns: list[int] = []
    needed: list[int] = []  # the stream's last sequence before which nothing up to this LSN may be confirmed
    for at, change in enumerate(evidence.expected):
        seq = at_seq.get(at, 1 << 62 if (change.lsn, change.seq) in lost else 0)
        lsns.append(change.lsn)
        needed.append(max(seq, needed[-1] if needed else 0))
    early = [
        sample for sample in evidence.samples
        if (below := bisect_left(lsns, sample.confirmed_lsn)) and needed[below - 1] > sample.last_seq
    ]  # fmt: skip
    return [f"confirmed too early: {len(early)} samples, the first {early[0]}"] if early else []


def _untold_voids(evidence: Evidence) -> list[str]:
    """Stored events of an abandoned history that no later gap event names."""
    untold = [
        event for event in evidence.stored
        if event.place in evidence.void and event.place not in evidence.unknowable and not any(
            gap.stream_seq > event.stream_seq and gap.from_lsn <= event.place[0] < gap.to_lsn for gap in evidence.gaps
        )
    ]  # fmt: skip
    return [f"abandoned history untold: {len(untold)} events, the first {untold[0]}"] if untold else []


def _false_gaps(evidence: Evidence) -> list[str]:
    """Gap events without a cause, a second one for one cause, and ranges with changes that are stored."""
    if evidence.causes is None:
        return []
    found: list[str] = []
    open_causes = sorted(evidence.causes)
    for gap in evidence.gaps:
        if gap.suspends:
            continue
        before = [cause for cause in open_causes if cause.at_s <= gap.at_s]
        if not before:
            found.append(f"false gap: {gap}")
            continue
        used = [before[0], *(cause for cause in before[1:] if cause.at_s <= gap.at_s - MERGED_WITHIN_S)]
        open_causes = [cause for cause in open_causes if cause not in used]
        inside = [
            event for event in evidence.stored
            if gap.from_lsn < event.place[0] < gap.to_lsn and event.place not in evidence.void
            and event.stream_seq < gap.stream_seq
        ]  # fmt: skip
        if inside and not any(cause.is_vague for cause in before):
            found.append(f"gap too wide: {gap} names {len(inside)} changes that are stored, the first {inside[0]}")
    return found
