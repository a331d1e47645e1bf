"""Applies the events after a copy's snapshot up to the live tables' checkpoint, and switches the copy in there.

While no table is live there is no checkpoint: the copy that is complete first sets it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import trio

from actors.clients.nats.ordered_consumer import Delivered, OrderedConsumer, open_consumer
from actors.contract.records import Event
from actors.contract.subjects import CDC_NOTICES, cdc_of_table
from actors.mirror.boundaries import Boundaries, Incomplete
from actors.mirror.following import Follower
from actors.mirror.gathered import Gathered, SnapshotUnusable, check_published
from actors.mirror.replica import Replica
from actors.mirror.source_stream import SourceStream
from actors.mirror.state import WAITING, Checkpoint
from actors.mirror.stores.dialect import Statement
from actors.mirror.stores.shapes import TableShape
from actors.mirror.track import Cursor, CutOff, FollowedTable, Told, Track
from actors.positions import START, format_lsn
from actors.telemetry.log import get_logger

log = get_logger("mirror")

ROWS_MAX = 5_000
"""Changes per local transaction, and the most for which the live tables may stand still."""
LOOK_S = 0.1


async def join(replica: Replica, source: SourceStream, follower: Follower, gathered: Gathered) -> None:
    """Apply the events after the snapshot, and make the copy a live table at the live tables' checkpoint.

    Raises SnapshotUnusable, NotPublished, OutOfDate; ApplyConflict when a change does not fit; SinkUnavailable.
    """
    start = gathered.start
    before = await replica.shape_now(replica.tables[start.token])  # asked before the live tables stand still
    follower.joiners += 1
    try:
        filters = [cdc_of_table(start.token), CDC_NOTICES]
        async with open_consumer(source.js, source.name, filters, start.stream_seq + 1) as consumer:
            await source.check_holds(start.stream_seq, gathered.created)
            events = _Events(replica, source, consumer, Boundaries(source, filters), gathered)
            await _Joiner(replica, source, follower, gathered, before, events).run()
    except CutOff as exc:
        raise SnapshotUnusable(exc.stale.reason, exc.stale.needed_seq) from exc
    except Incomplete as exc:
        raise SnapshotUnusable("a gap cut off a transaction of the table", exc.seq) from exc
    finally:
        follower.joiners -= 1


class _Joiner:
    """Joins one copy with the live tables. For one task."""

    def __init__(
        self, replica: Replica, source: SourceStream, follower: Follower, gathered: Gathered, before: TableShape,
        events: _Events,
    ) -> None:  # fmt: skip
        """`before` is the shape of the table that the copy replaces."""
        self._replica, self._source, self._follower = replica, source, follower
        self._gathered, self._before = gathered, before
        self._events, self._track = events, events.track

    async def run(self) -> None:
        """Apply events until the copy is live."""
        replica, track = self._replica, self._track
        while True:
            checkpoint = replica.checkpoint
            check_published(replica, self._gathered.start.token)
            await self._events.receive(LOOK_S)
            taken = await self._events.take(None if checkpoint is None else checkpoint.cursor.stream_seq)
            if track.is_dirty:
                await replica.run(track.drain())
            if checkpoint is None:
                done = await self._be_first(is_idle=not taken)
            else:
                done = await self._is_near(checkpoint) and await self._join()
            if done:
                return
            if not taken:
                await self._wait(checkpoint)

    async def _wait(self, checkpoint: Checkpoint | None) -> None:
        """Wait until the live tables have moved, but not longer than a moment."""
        with trio.move_on_after(LOOK_S):
            await self._replica.moved.wait_value(lambda _: self._replica.checkpoint != checkpoint)

    async def _be_first(self, *, is_idle: bool) -> bool:
        """Set the replica's first checkpoint, where this copy is what the source was at some LSN."""
        if not self._events.is_consistent and not (is_idle and await self._skip_to_the_end()):
            return False
        async with self._replica.still() as checkpoint:
            if checkpoint is not None:
                return False
            first = Checkpoint(self._source.name, self._gathered.created, self._track.closed, self._track.last_message)
            await self._go_live(first)
        return True

    async def _skip_to_the_end(self) -> bool:
        """Skip to the stream's end if the bridge's record proves that the snapshot's LSN is passed there; no event does."""
        source, track, boundaries = self._source, self._track, self._events.boundaries
        record = await source.record()  # must be read before the stream's end
        await source.check_holds(max(track.head_seq, self._events.seen_seq), self._gathered.created)
        last = await boundaries.end_without_more(track.head_seq)
        if last is None or not (await boundaries.is_whole_at(last))[0]:
            return False
        proven = record.confirmed_lsn if record is not None and record.last_seq <= last else 0
        if max(track.closed.position.lsn, proven) < self._gathered.start.snapshot_lsn:
            return False
        track.close()
        track.advance(last, await source.last_message_at(last, track.last_message))
        return True

    async def _is_near(self, checkpoint: Checkpoint) -> bool:
        """Whether so little is left up to the checkpoint that the live tables may stand still for it."""
        if checkpoint.cursor.stream_seq - self._track.head_seq <= ROWS_MAX:
            return True
        following = await self._events.boundaries.next_after(self._track.head_seq)
        return following is None or following.seq > checkpoint.cursor.stream_seq

    async def _join(self) -> bool:
        """Come to the live tables' checkpoint while they stand still, and go live; return False when it is no place to do so.

        The live tables must have all of the transaction there. This table may have more of it after the checkpoint.
        """
        replica, source, track, start = self._replica, self._source, self._track, self._gathered.start
        async with replica.still() as checkpoint:
            if checkpoint is None or checkpoint.created != self._gathered.created or self._follower.is_held:
                return False
            seq, position = checkpoint.cursor
            # a copy that was to be the first may be ahead of the one that was: the live tables come to where it is
            if seq < max(start.stream_seq, track.head_seq) or not self._follower.has_reached(start.snapshot_lsn):
                return False
            live = Boundaries(source, [CDC_NOTICES, *(cdc_of_table(token) for token in replica.shapes)])
            is_whole, lsn = await live.is_whole_at(seq)
            if not is_whole:
                return False
            await self._events.take_through(seq, lsn)
            await source.check_holds(self._events.seen_seq, self._gathered.created)
            track.close()
            await self._go_live(replace(checkpoint, cursor=Cursor(seq, max(position, track.closed.position))))
        return True

    async def _go_live(self, checkpoint: Checkpoint) -> None:
        """Make the copy the live table at `checkpoint`."""
        replica, track, start, staging = self._replica, self._track, self._gathered.start, self._gathered.staging
        check_published(replica, start.token)
        record = replica.tables[start.token]
        rest = track.drain()
        shape = replace(track.tables[start.token].shape, local=record.local)
        dialect, lacks = replica.dialect, self._before.lacks(shape)
        if record.state != WAITING and lacks is not None:
            statements = [dialect.add_column(record.local, name, kind) for name, kind in lacks.items()]
            statements += dialect.refill(shape, staging.local)
        else:
            statements = [dialect.drop_table(record.local), *dialect.rename_table(staging.local, record.local_name)]
        live = record.as_live(shape, start.snapshot_id, start.snapshot_lsn, self._gathered.init_seq, start.version)
        if start.version:  # the snapshot tells how the table was published there
            live = live.as_told(Told(start.version, start.stream_seq, ""))
        if start.token in track.told:
            live = live.as_told(track.told[start.token])
        switch = [Statement(sql, [()], token=start.token) for sql in statements]
        await replica.go_live(live, shape, [*rest, *switch], checkpoint)
        log.info(
            "table is live", table=start.token, rows=self._gathered.rows, snapshot_id=start.snapshot_id,
            snapshot_lsn=format_lsn(start.snapshot_lsn),
        )  # fmt: skip


class _Events:
    """A table's events after its snapshot, taken as far as they are wanted."""

    def __init__(
        self, replica: Replica, source: SourceStream, consumer: OrderedConsumer, boundaries: Boundaries, gathered: Gathered
    ) -> None:
        """`boundaries` are those on the subjects that `consumer` reads."""
        start = gathered.start
        table = FollowedTable.of(replica.dialect, gathered.staging, start.snapshot_lsn, start.version)
        self.track = Track(replica.dialect, Cursor(start.stream_seq, START), {start.token: table})
        self.boundaries = boundaries
        self._source, self._consumer = source, consumer
        self._created, self._snapshot_lsn = gathered.created, start.snapshot_lsn
        self._waiting: list[Delivered] = []
        self.seen_seq = start.stream_seq
        """Sequence of the last message received."""

    @property
    def is_consistent(self) -> bool:
        """Whether the copy is what the source was at some LSN: only whole transactions are taken, up to the snapshot's LSN."""
        return self.track.open_lsn is None and self.track.closed.position.lsn >= self._snapshot_lsn

    async def receive(self, within_s: float) -> None:
        """Receive messages unless some wait to be taken. Raises OutOfDate when the stream has deleted some."""
        if not self._waiting:
            self._waiting = await self._consumer.receive(within_s)
            if self._waiting:
                await self._source.check_jumps(self.seen_seq, self._waiting, self._created)
                self.seen_seq = self._waiting[-1].seq

    async def take(self, limit: int | None) -> int:
        """Take messages up to sequence `limit`, or without one until the copy is consistent; return how many were taken."""
        taken = 0
        for message in self._waiting:
            if limit is not None and message.seq > limit:
                break
            events = await self._source.decode(message)
            if not events:
                taken += 1
                continue
            await self.boundaries.close_before(self.track, message.seq, events)
            if limit is None and self.is_consistent:
                break
            self._take(message, events)
            taken += 1
            if self.track.gathered >= ROWS_MAX:
                break
        del self._waiting[:taken]
        return taken

    async def take_through(self, seq: int, lsn: int | None) -> None:
        """Take everything up to `seq`, and what comes after it of the transaction of `lsn`."""
        while True:
            following = await self.boundaries.next_after(self.track.head_seq)
            if following is None or (following.seq > seq and following.lsn != lsn):
                return
            await self.receive(LOOK_S)
            while self._waiting:
                events = await self._source.decode(self._waiting[0])
                if events and self._waiting[0].seq > seq and events[0].lsn != lsn:
                    return
                message = self._waiting.pop(0)
                if events:
                    self._take(message, events)

    def _take(self, message: Delivered, events: Sequence[Event]) -> None:
        self.track.take(message.seq, events, message.headers)
        for token, stale in self.track.stale.items():
            raise SnapshotUnusable(stale.reason, stale.needed_seq, told=self.track.told.get(token))
