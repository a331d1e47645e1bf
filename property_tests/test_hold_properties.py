"""--confirm-hold: whatever a power cut of NATS takes, PostgreSQL still has it, and no gap is told.

A model of a nats-server that syncs the stream and the record's bucket independently, each at least every `SYNC_S`. A power cut
takes any part of what was not synced. The decisions are the real ones, at a hold of twice that time.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from actors.confirm_hold import ConfirmHold
from actors.contract.bridge_record import BridgeRecord, Held
from actors.contract.message_ids import message_id
from actors.positions import NO_LSN, Lsn, Position
from actors.startup.checkpoint import Source, StreamTail, find_loss, held_at_start, plan_start, tail_position

SYNC_S, HISTORY = 10.0, 10
BEGINNING = Lsn(1000)


@dataclass
class World:
    now: float = 0.0
    wal: list[tuple[Lsn, bool]] = field(default_factory=list)
    """(commit LSN, published). Each transaction takes 10 bytes."""
    wal_end: Lsn = BEGINNING
    confirmed: Lsn = BEGINNING
    stream: list[tuple[Lsn, float]] = field(default_factory=list)
    """(commit LSN, stored at)."""
    records: list[tuple[bytes, float]] = field(default_factory=list)
    record: BridgeRecord | None = None
    hold: ConfirmHold | None = None
    read_until: Lsn = BEGINNING

    def commit(self, *, published: bool) -> None:
        self.wal.append((self.wal_end, published))
        self.wal_end = Lsn(self.wal_end + 10)

    def write(self, record: BridgeRecord) -> None:
        self.record = record
        self.records.append((record.encode(), self.now))

    def start(self) -> None:
        history = [BridgeRecord.decode(data, "CDC") for data, _ in self.records[-HISTORY:]]
        record = history[-1] if history else None
        last = self.stream[-1][0] if self.stream else None
        tail = StreamTail("CDC", len(self.stream), last and message_id(Position(last, 0), "t", "insert"))
        position = tail_position(tail, record)
        source = Source("s", "1", 1, (), self.wal_end, self.confirmed, read_before=False)
        if record is not None:
            history = [*record.of_held(), *history]
        assert find_loss(source, tail, record, history, position) is None
        start = plan_start(source, tail, record, history, position, ())
        assert start.gap is None, f"a gap was told though nothing is lost: {start.gap}"
        assert self.confirmed <= max(start.proven_lsn, self.confirmed if record is None else NO_LSN)
        made = record or BridgeRecord("s", "p", "1", 1)
        held = held_at_start(start, record, 1)
        self.write(replace(made, position=start.skip, last_seq=start.last_seq, confirmed_lsn=start.proven_lsn, held=held))
        self.hold = ConfirmHold(2 * SYNC_S, held, self.now)
        self.read_until = max(start.start_lsn, self.confirmed)
        self.skip = start.skip

    def work(self) -> None:
        """Store everything that PostgreSQL has, then do what the acker does each second."""
        assert self.record is not None
        assert self.hold is not None
        for lsn, published in self.wal:
            if lsn >= self.read_until and published and Position(lsn, 0) > self.skip:
                self.stream.append((lsn, self.now))
        self.read_until = self.wal_end
        at = Position(self.stream[-1][0], 0) if self.stream else self.record.position
        self.hold.reached(Held(len(self.stream), at, self.wal_end, 1), self.now)
        due = self.hold.due(self.now)
        self.write(replace(
            self.record, position=at, last_seq=len(self.stream), confirmed_lsn=self.wal_end, held=self.hold.held
        ))  # fmt: skip
        self.confirmed = max(self.confirmed, due)

    def cut_power(self, of_stream: float, of_records: float) -> None:
        """Take what is younger than these ages, which are at most `SYNC_S`."""
        self.stream = [stored for stored in self.stream if stored[1] <= self.now - of_stream]
        self.records = [written for written in self.records if written[1] <= self.now - of_records] or self.records[:1]


ages = st.floats(0, SYNC_S)
ACTS = st.one_of(
    st.tuples(st.just("commit"), st.booleans()),
    st.tuples(st.just("work"), st.floats(0, 2)),
    st.tuples(st.just("work often"), st.integers(2, 30)),
    st.tuples(st.just("wait"), st.floats(0, 3 * SYNC_S)),
    st.tuples(st.just("kill"), st.none()),
    st.tuples(st.just("cut power"), st.tuples(ages, ages)),
)


@settings(max_examples=400)
@given(st.lists(ACTS, max_size=40))
def test_a_power_cut_of_nats_loses_nothing_and_no_gap_is_told(acts: list[tuple[str, object]]) -> None:
    world = World()
    world.start()
    world.now += 2 * SYNC_S  # before the first record is on disk, nothing could tell who wrote the stream
    for act, how in acts:
        match act, how:
            case "commit", bool(published):
                world.commit(published=published)
            case "work", float(seconds):
                world.now += seconds
                world.work()
            case "work often", int(times):
                for _ in range(times):
                    world.commit(published=True)
                    world.now += 0.3
                    world.work()
            case "wait", float(seconds):
                world.now += seconds
            case "kill", _:
                world.start()
            case "cut power", (float(of_stream), float(of_records)):
                world.cut_power(of_stream, of_records)
                world.start()
    world.work()
    assert [lsn for lsn, _ in world.stream] == [lsn for lsn, published in world.wal if published]
