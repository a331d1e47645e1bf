"""A gathered copy, brought over the events behind its snapshot to the place of the live tables, and switched in there.

While there is no live table there is no place either: the copy that comes first says where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import trio

from actors.clients.nats.ordered_consumer import Delivered, OrderedConsumer, open_consumer
from actors.contract.records import Event
from actors.contract.subjects import CDC_GAPS, cdc_of_table
from actors.mirror.following import Follower
from actors.mirror.gathering import Gathered, SnapshotUnusable
from actors.mirror.replica import Replica
from actors.mirror.source_stream import SourceStream
from actors.mirror.state import WAITING, Checkpoint
from actors.mirror.stores.dialect import Statement
from actors.mirror.stores.shapes import TableShape
from actors.mirror.track import Cursor, CutOff, FollowedTable, Track
from actors.positions import START, format_lsn
from actors.telemetry.log import get_logger

log = get_logger("mirror")

ROWS_MAX = 5_000
"""Changes of a local transaction, and those for which the live tables may stand still."""
LOOK_S = 0.1


async def join(replica: Replica, source: SourceStream, follower: Follower, gathered: Gathered) -> None:
    """Apply what came behind the snapshot, and make the copy a live table where the live tables are.

    Raises CopyUseless, OutOfDate; TableFault when a change does not fit; SinkUnavailable.
    """
    start = gathered.start
    before = await replica.shape_of(replica.tables[start.token])  # now: the database is not asked while everything stands still
    follower.joiners += 1
    try:
        filters = [cdc_of_table(start.token), CDC_GAPS]
        async with open_consumer(source.js, source.name, filters, start.stream_seq + 1) as consumer:
            await source.check_holds(start.stream_seq, gathered.created)
            events = _Events(replica, source, consumer, filters, gathered)
            await _Joiner(replica, source, follower, gathered, before, events).run()
    except CutOff as exc:
        raise SnapshotUnusable(exc.stale.reason, exc.stale.needed_seq) from exc
    finally:
        follower.joiners -= 1


class _Joiner:
    """One copy on its way. For one task."""

    def __init__(
        self, replica: Replica, source: SourceStream, follower: Follower, gathered: Gathered, before: TableShape,
        events: _Events,
    ) -> None:  # fmt: skip
        """`before` is the table that it takes the place of."""
        self._replica, self._source, self._follower = replica, source, follower
        self._gathered, self._before = gathered, before
        self._events, self._track = events, events.track

    async def run(self) -> None:
        """Until the copy is live."""
        replica, track = self._replica, self._track
        while True:
            place = replica.place
            await self._events.receive(LOOK_S)
            taken = await self._events.take(None if place is None else place.cursor.stream_seq)
            if track.is_dirty:
                await replica.run(track.drain())
            if place is None:
                done = await self._be_first(is_idle=not taken)
            else:
                done = await self._is_near(place) and await self._join()
            if done:
                return
            if not taken:
                await self._wait(place)

    async def _wait(self, place: Checkpoint | None) -> None:
        """Until the live tables have moved, or a moment."""
        with trio.move_on_after(LOOK_S):
            await self._replica.moved.wait_value(lambda _: self._replica.place != place)

    async def _be_first(self, *, is_idle: bool) -> bool:
        """No table is live: this one says where the replica is. It must be what the source was at some LSN."""
        if not self._events.is_at_a_place and not (is_idle and await self._skip_to_the_end()):
            return False
        async with self._replica.still() as place:
            if place is not None:
                return False
            await self._go_live(Checkpoint(self._source.name, self._gathered.created, self._track.closed))
        return True

    async def _skip_to_the_end(self) -> bool:
        """No event of the table says that the snapshot's LSN is passed: does the bridge's record, at the stream's end?"""
        source, track, filters = self._source, self._track, self._events.filters
        record = await source.record()  # before the stream's end is asked for
        await source.check_holds(track.head_seq, self._gathered.created)
        last = source.last_seq
        following = await source.next_message(track.head_seq, filters)
        if (following is not None and following[0] <= last) or not await source.is_boundary(last, filters):
            return False
        proven = record.confirmed_lsn if record is not None and record.last_seq <= last else 0
        if max(track.closed.position.lsn, proven) < self._gathered.start.snapshot_lsn:
            return False
        track.close()
        track.advance(last)
        return True

    async def _is_near(self, place: Checkpoint) -> bool:
        """What is left up to the place is little: the live tables may stand still for it."""
        if place.cursor.stream_seq - self._track.head_seq <= ROWS_MAX:
            return True
        following = await self._source.next_message(self._track.head_seq, self._events.filters)
        return following is None or following[0] > place.cursor.stream_seq

    async def _join(self) -> bool:
        """Come to the place of the live tables while they stand still; whether that place will do.

        It is behind all that they need of one transaction, of which this table may have more.
        """
        replica, source, track, start = self._replica, self._source, self._track, self._gathered.start
        async with replica.still() as place:
            if place is None or place.created != self._gathered.created or self._follower.is_held:
                return False
            seq, position = place.cursor
            if seq < start.stream_seq or not self._follower.has_reached(start.snapshot_lsn):
                return False
            lsn = await source.lsn_at(seq)
            if lsn is not None:
                if not await source.is_over(lsn):
                    return False
                if await source.has_more(lsn, seq, [CDC_GAPS, *(cdc_of_table(live) for live in replica.shapes)]):
                    return False
            await self._events.take_through(seq, lsn)
            track.close()
            await self._go_live(replace(place, cursor=Cursor(seq, max(position, track.closed.position))))
        return True

    async def _go_live(self, place: Checkpoint) -> None:
        """Make the copy the live table, at `place`."""
        replica, track, start, staging = self._replica, self._track, self._gathered.start, self._gathered.staging
        record = replica.tables[start.token]
        rest = track.drain()
        shape = replace(track.tables[start.token].shape, local=record.local)
        dialect, lacks = replica.dialect, self._before.lacks(shape)
        if record.state != WAITING and lacks is not None:
            statements = [dialect.add_column(record.local, name, kind) for name, kind in lacks.items()]
            statements += dialect.refill(shape, staging.local)
        else:
            statements = [dialect.drop_table(record.local), dialect.rename_table(staging.local, record.local_name)]
        live = record.as_live(shape, start.snapshot_id, start.snapshot_lsn, self._gathered.init_seq)
        switch = [Statement(sql, [()], token=start.token) for sql in statements]
        await replica.go_live(live, shape, [*rest, *switch], place)
        log.info(
            "table is live", table=start.token, rows=self._gathered.rows, snapshot_id=start.snapshot_id,
            snapshot_lsn=format_lsn(start.snapshot_lsn),
        )  # fmt: skip


class _Events:
    """A table's events behind its snapshot, taken as far as they are wanted."""

    def __init__(
        self, replica: Replica, source: SourceStream, consumer: OrderedConsumer, filters: Sequence[str], gathered: Gathered
    ) -> None:
        start = gathered.start
        table = FollowedTable.of(replica.dialect, gathered.staging, start.snapshot_lsn)
        self.track = Track(replica.dialect, Cursor(start.stream_seq, START), {start.token: table})
        self.filters = filters
        """The subjects that `consumer` reads."""
        self._source, self._consumer = source, consumer
        self._created, self._snapshot_lsn = gathered.created, start.snapshot_lsn
        self._waiting: list[Delivered] = []
        self._seen = start.stream_seq

    @property
    def is_at_a_place(self) -> bool:
        """Everything of whole transactions has been taken, and the snapshot's LSN is passed."""
        return self.track.open_lsn is None and self.track.closed.position.lsn >= self._snapshot_lsn

    async def receive(self, within_s: float) -> None:
        """Have some at hand, if there are any. Raises OutOfDate when some are gone."""
        if not self._waiting:
            self._waiting = await self._consumer.receive(within_s)
            if self._waiting:
                await self._source.check_jumps(self._seen, self._waiting, self._created)
                self._seen = self._waiting[-1].seq

    async def take(self, limit: int | None) -> int:
        """What is at hand up to the sequence `limit`, or without one to the first place that will do; how many messages."""
        taken = 0
        for message in self._waiting:
            if limit is not None and message.seq > limit:
                break
            events = await self._source.decode(message)
            if not events:
                taken += 1
                continue
            if self.track.open_lsn not in (None, events[0].lsn):
                self.track.close()
            if limit is None and self.is_at_a_place:
                break
            self._take(message, events)
            taken += 1
            if self.track.gathered >= ROWS_MAX:
                break
        del self._waiting[:taken]
        return taken

    async def take_through(self, seq: int, lsn: int | None) -> None:
        """Everything up to `seq`, and behind it what belongs to the transaction of `lsn`."""
        while True:
            following = await self._source.next_message(self.track.head_seq, self.filters)
            if following is None or (following[0] > seq and following[1] != lsn):
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
        self.track.take(message.seq, events)
        for stale in self.track.stale.values():
            raise SnapshotUnusable(stale.reason, stale.needed_seq)
