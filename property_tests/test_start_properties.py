"""Where the bridge goes on, whatever was killed, cut short or promoted: nothing is lost untold, nothing comes twice.

A model of PostgreSQL (WAL, timelines, one slot) and of JetStream (the stream and the record's history, each of which a power
cut may shorten) is driven through random acts. The decisions are the real ones; a run of the bridge may break off between
any two writes.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from actors.contract.bridge_record import BridgeRecord
from actors.contract.message_ids import gap_id, message_id
from actors.messages import Gap, Transaction
from actors.positions import NO_LSN, Lsn, Position
from actors.startup.checkpoint import (
    Source,
    Start,
    StreamTail,
    commit_us_of,
    find_loss,
    other_history,
    plan_start,
    start_after_loss,
    tail_position,
)

TXN_BYTES = 10
BEGINNING = Lsn(100)
HISTORY = 10


class Txn(NamedTuple):
    lsn: Lsn
    tag: int
    published: bool

    @property
    def end(self) -> Lsn:
        return Lsn(self.lsn + TXN_BYTES)


class Stored(NamedTuple):
    msg_id: str
    lsn: Lsn
    tag: int | None
    gap: Gap | None = None


class Revision(NamedTuple):
    data: bytes


@dataclass
class World:
    timeline: int = 1
    switch_points: list[tuple[int, Lsn]] = field(default_factory=list)
    wal: list[Txn] = field(default_factory=list)
    tags: int = 0
    confirmed: Lsn | None = None
    saved: Lsn = BEGINNING
    read: bool = False
    stream: list[Stored] = field(default_factory=list)
    records: list[Revision] = field(default_factory=list)
    synced: tuple[int, int] = (0, 0)
    has_lost: bool = False
    power_was_cut: bool = False
    records_were_cut: bool = False
    has_diverged: bool = False
    was_restored: bool = False
    backup: tuple[int, list[Txn], Lsn | None] | None = None
    trusted: list[tuple[Lsn, Lsn]] = field(default_factory=list)
    """What nobody can know to be missing: before the first slot, and where a power cut took the only record."""

    @property
    def wal_end(self) -> Lsn:
        return self.wal[-1].end if self.wal else max([BEGINNING, *(lsn for _, lsn in self.switch_points)])

    def commit(self, *, published: bool) -> None:
        self.tags += 1
        self.wal.append(Txn(self.wal_end, self.tags, published))

    def confirm(self, lsn: Lsn) -> None:
        if lsn and self.confirmed is not None:
            self.confirmed, self.read = max(self.confirmed, lsn), True

    def fail_over(self, missing: int) -> None:
        """A standby without the last transactions is promoted; its copy of the slot is as old as what was saved last."""
        begun = max([BEGINNING, *(lsn for _, lsn in self.switch_points)])
        kept = [txn for i, txn in enumerate(self.wal) if txn.lsn < begun or i < len(self.wal) - missing]
        switch = max(begun, kept[-1].end if kept else NO_LSN)
        self.switch_points.append((self.timeline, switch))
        self.timeline += 1
        self.wal = kept
        if self.confirmed is not None:
            self.confirmed = min(self.saved, self.confirmed, switch)
        self.saved = min(self.saved, switch)
        self.has_lost = True

    def back_up(self) -> None:
        self.backup = (self.timeline, list(self.wal), self.confirmed)

    def restore(self) -> None:
        """The volume comes back as it was, slot included, on the same timeline."""
        if any(stored.gap is not None for stored in self.stream) or b'"pending_gap":{' in b"".join(
            r.data for r in self.records
        ):
            return  # where a gap was told, nothing but its place could be compared with the other history
        if self.backup is not None and self.backup[0] == self.timeline and self.backup[2] is not None:
            _, wal, self.confirmed = self.backup
            self.was_restored = True
            self.wal, self.saved, self.has_lost = list(wal), self.confirmed or self.saved, True

    def cut_power(self, stream: int, records: int) -> None:
        del self.stream[max(self.synced[0], len(self.stream) - stream) :]
        self.records_were_cut |= records > 0
        del self.records[max(self.synced[1], len(self.records) - records) :]
        self.has_lost = self.power_was_cut = True


def run(world: World) -> Generator[None]:
    """One run of the bridge, as startup, publisher, acker and status_reporter do it; each yield is a chance to be killed."""
    history = [BridgeRecord.decode(r.data, "CDC") for r in world.records[-HISTORY:]]
    record = history[-1] if history else None
    last = world.stream[-1] if world.stream else None
    of_row = Transaction(last.lsn, last.tag, last.tag + 1) if last is not None and last.tag is not None else None
    tail = StreamTail("CDC", len(world.stream), last.msg_id if last else None, transaction=of_row)
    position = tail_position(tail, record)
    source = Source(
        "cdc_slot", "1", world.timeline, tuple(world.switch_points), world.wal_end, world.confirmed, read_before=world.read
    )
    loss = find_loss(source, tail, record, history, position)
    if world.has_diverged and loss is None and position is not None:
        loss = other_history(source, position)
    assert loss is None or loss.code == "WB108" or world.was_restored or world.power_was_cut, loss
    world.has_diverged = False
    if world.confirmed is None:
        world.confirmed = world.saved = world.wal_end
        world.read = False
        yield
    if record is None and not (position is None and world.read):
        # nothing tells that anything began before, or that anything came after the stream's last message
        world.trusted.append((position.lsn if position else NO_LSN, world.confirmed))
    if loss is not None:
        start = start_after_loss(loss, source, world.confirmed, tail, ())
    else:
        start = plan_start(replace(source, confirmed_lsn=world.confirmed), tail, record, history, position, ())
    made = record or BridgeRecord("cdc_slot", "p", "1", world.timeline)
    made = replace(
        made, timeline=world.timeline, switch_points=tuple(world.switch_points), position=start.skip, last_seq=start.last_seq,
        confirmed_lsn=start.proven_lsn, pending_gap=start.gap,
        commit_us=commit_us_of(tail, record, start.skip) if start.gap is None else 0,
    )  # fmt: skip
    world.records.append(Revision(made.encode()))
    yield
    yield from read_on(world, start, made)


def read_on(world: World, start: Start, made: BridgeRecord) -> Generator[None]:
    """What follows once the record is written: the gap event, if there is one, then the transactions."""
    assert world.confirmed is not None
    if start.gap is not None:
        gap = start.gap
        world.stream.append(Stored(gap_id(gap.position, gap.number), gap.position.lsn, None, gap))
        yield
        made = replace(made, pending_gap=None, last_seq=len(world.stream))
        world.records.append(Revision(made.encode()))
        yield
    told = world.confirmed  # what the status says at most
    begin = max(start.start_lsn, world.confirmed)
    done, expected = 0, start.expected
    while True:
        txns = [txn for txn in world.wal if txn.lsn >= begin]
        if done == len(txns):
            yield
            continue
        txn = txns[done]
        done += 1
        if expected is not None:
            if txn.lsn < expected.commit_lsn:
                continue  # stored before, and not confirmed before the expected one has come
            if (txn.lsn, txn.tag + 1) != expected:
                world.has_diverged = True
                yield from run(world)
            expected = None
        received = txn.end
        world.confirm(min(told, received))  # the status goes on while nothing is stored
        yield
        if txn.published and Position(txn.lsn, 0) > start.skip:
            world.stream.append(Stored(message_id(Position(txn.lsn, 0), "t", "insert"), txn.lsn, txn.tag))
            made = replace(made, position=Position(txn.lsn, 0), last_seq=len(world.stream), commit_us=txn.tag + 1)
            yield
        made = replace(made, confirmed_lsn=max(made.confirmed_lsn, txn.end))
        world.records.append(Revision(made.encode()))
        yield
        told = max(told, txn.end)
        world.confirm(min(told, received))
        yield


def check(world: World) -> None:
    gaps = [stored.gap for stored in world.stream if stored.gap is not None]
    tags = [stored.tag for stored in world.stream if stored.tag is not None]
    assert all(gap.from_lsn <= gap.to_lsn for gap in gaps)
    ids = [stored.msg_id for stored in world.stream if stored.gap is not None]
    assert len(ids) == len(set(ids)), "two gap events have one id"
    first: dict[int, int] = {}
    for place, stored in enumerate(world.stream):
        if stored.tag in first and stored.tag is not None:
            # a power cut of NATS took the record that names the new timeline and left what was stored after it
            told = [
                s.gap for s in world.stream[first[stored.tag] : place] if s.gap is not None and s.gap.from_lsn <= stored.lsn
            ]
            assert told, f"transaction {stored.tag} came twice"
            assert world.power_was_cut
        elif stored.tag is not None:
            first[stored.tag] = place
    last_gap = max([i for i, stored in enumerate(world.stream) if stored.gap is not None], default=-1)
    for before, after in pairwise(world.stream):
        if after.gap is None:
            assert after.lsn >= before.lsn, "out of order without a gap event between"
    if world.records_were_cut and world.timeline > 1:
        return  # the record that names the timeline may be gone: that takes another witness than stream and record
    live = {txn.tag for txn in world.wal}
    for place, stored in enumerate(world.stream):
        if stored.tag is not None and stored.tag not in live:
            told = [s.gap for s in world.stream[place + 1 :] if s.gap is not None and s.gap.from_lsn <= stored.lsn]
            assert told, f"transaction {stored.tag} is void and nobody is told"
    for txn in world.wal:
        if txn.published and txn.tag not in tags and not any(a <= txn.lsn < b for a, b in world.trusted):
            assert any(g.from_lsn <= txn.lsn < g.to_lsn for g in gaps), f"transaction {txn} is lost and nobody is told"
    for one, two in pairwise(gaps):
        assert one != two, "the same gap was told twice"
    if not world.has_lost:
        assert last_gap == -1, "a gap was told though nothing was ever lost"


ACTS = st.one_of(
    st.tuples(st.just("commit"), st.booleans()),
    st.tuples(st.just("commit"), st.booleans()),
    st.tuples(st.just("step"), st.integers(1, 9)),
    st.tuples(st.just("step"), st.integers(1, 30)),
    st.tuples(st.just("kill"), st.none()),
    st.tuples(st.just("checkpoint"), st.none()),
    st.tuples(st.just("crash"), st.none()),
    st.tuples(st.just("fail over"), st.integers(0, 4)),
    st.tuples(st.just("fail over, run a little"), st.tuples(st.integers(0, 4), st.integers(1, 4))),
    st.tuples(st.just("sync"), st.none()),
    st.tuples(st.just("cut power"), st.tuples(st.integers(0, 5), st.integers(0, 5))),
    st.tuples(st.just("drop slot"), st.none()),
    st.tuples(st.just("back up"), st.none()),
    st.tuples(st.just("restore"), st.none()),
)


@given(st.lists(ACTS, max_size=40))
@settings(max_examples=1000)
def test_nothing_is_lost_untold_and_nothing_comes_twice(acts: list[tuple[str, object]]) -> None:
    world = World()
    bridge: Generator[None] | None = None
    for act, how in acts:
        if act == "commit":
            world.commit(published=bool(how))
        elif act == "step":
            bridge = bridge or run(world)
            for _ in range(int(str(how))):
                next(bridge)
        else:
            bridge = None
            if act == "checkpoint":
                world.saved = world.confirmed or world.saved
            elif act == "crash" and world.confirmed is not None:
                world.confirmed = world.saved
            elif act == "fail over":
                world.fail_over(int(str(how)))
            elif act == "fail over, run a little":
                missing, steps = how  # type: ignore[misc]
                world.fail_over(missing)
                first = run(world)
                for _ in range(steps):
                    next(first)
            elif act == "sync":
                world.synced = (len(world.stream), len(world.records))
            elif act == "cut power":
                stream, records = how  # type: ignore[misc]
                world.cut_power(stream, records)
            elif act == "back up":
                world.back_up()
            elif act == "restore":
                world.restore()
            elif act == "drop slot" and world.confirmed is not None and not world.was_restored:
                # (of a restored server only the slot's own place shows where the histories part)
                world.confirmed, world.has_lost = None, True
    world.commit(published=True)
    bridge = run(world)
    for _ in range(6 * len(world.wal) + 20):
        next(bridge)
    if world.records:
        check(world)
