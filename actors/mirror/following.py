"""The live tables: every event that waits, in local transactions of whole transactions, together with the place."""

from __future__ import annotations

import trio

from actors.clients.nats.ordered_consumer import OrderedConsumer, open_consumer
from actors.contract.records import Gap
from actors.contract.subjects import CDC_ALL, CDC_GAPS, cdc_of_table
from actors.mirror.holding import Hold, Holds
from actors.mirror.replica import Changed, LocalTransaction, Replica
from actors.mirror.source_stream import OutOfDate, SourceStream
from actors.mirror.stores.store import ApplyConflict
from actors.mirror.track import CutOff, Stale, Track
from actors.positions import format_lsn
from actors.telemetry.log import get_logger

log = get_logger("mirror")

ROWS_MAX = 1_000
"""Changes after which a local transaction ends with the next transaction of the source."""
FLUSH_ROWS = 5_000
"""Changes of one transaction that are kept here before they go to the database."""
IDLE_S = 0.5
SCAN_EVERY_S = 5.0
"""So often, when nothing comes, the place is moved over what others' messages fill the stream with."""


class Follower:
    """Follows all live tables of a replica."""

    def __init__(self, replica: Replica, source: SourceStream, holds: Holds, *, everything: bool) -> None:
        self._replica, self._source, self._holds = replica, source, holds
        self._everything = everything
        self.proven_lsn = 0
        """The bridge's record says that every transaction below has been stored, and we have read as far."""
        self.joiners = 0
        """Copies that wait for the place to move."""
        self._gap_seq = 0
        """Of the newest gap: what the bridge proved before it is of other LSNs."""
        self._void_lsn = -1
        self._stale_from: dict[str, tuple[int, Stale]] = {}
        self._scanned_at = 0.0
        self._filters: list[str] = []

    @property
    def is_held(self) -> bool:
        """Somebody compares the replica with its source, or is about to."""
        return self._holds.wanted is not None

    def has_reached(self, lsn: int) -> bool:
        """Every transaction below `lsn` is in the replica's live tables."""
        place = self._replica.place
        return place is not None and max(place.cursor.position.lsn, self.proven_lsn) >= lsn

    async def run(self) -> None:
        """Until cancelled. Raises SinkUnavailable, ReplicaUnavailable, ReplicaRefused."""
        replica = self._replica
        while True:
            place, generation = replica.place, replica.generation
            if place is None:
                replica.counts.is_behind = True
                await replica.moved.wait_value(
                    lambda _, seen=generation: replica.place is not None or replica.generation != seen
                )
                continue
            self._filters = [CDC_ALL] if self._everything else [*(cdc_of_table(token) for token in replica.shapes), CDC_GAPS]
            try:
                async with open_consumer(
                    self._source.js, self._source.name, self._filters, place.cursor.stream_seq + 1
                ) as consumer:
                    await self._source.check_holds(place.cursor.stream_seq, place.created)
                    await self._follow(consumer)
            except Changed:
                continue
            except CutOff as exc:
                self._stale_from[exc.token] = exc.lsn, exc.stale
            except ApplyConflict as exc:
                # the rows do not tell a change's row from others: its key is none, or somebody else wrote to the replica
                await replica.note_misfit(exc.token, exc.reason, keyed=False if exc.is_duplicate else None)
            except OutOfDate as exc:
                log.warning("the replica is out of date", reason=str(exc), position=place.cursor.stream_seq)
                self.proven_lsn = 0
                await replica.forget(str(exc))

    async def _follow(self, consumer: OrderedConsumer) -> None:
        replica = self._replica
        assert replica.place is not None, "there is a place"
        track = Track(
            replica.dialect, replica.place.cursor, replica.followed(), void_lsn=self._void_lsn, stale_from=self._stale_from
        )
        local = replica.begin(track)
        try:
            await self._apply(consumer, track, local, replica.place.cursor.stream_seq)
        finally:
            await local.roll_back()

    async def _apply(self, consumer: OrderedConsumer, track: Track, local: LocalTransaction, seen: int) -> None:
        source, replica = self._source, self._replica
        generation, created = replica.generation, replica.place.created if replica.place is not None else ""
        while True:
            messages = await consumer.receive(IDLE_S)
            if not messages:
                await self._idle(track, local)
                if replica.generation != generation and track.open_lsn is None:
                    raise Changed
                if consumer.is_at_end and track.open_lsn is None:
                    replica.counts.note_caught_up()
                continue
            replica.counts.is_behind = True
            await source.check_jumps(seen, messages, created)
            for message in messages:
                events = await source.decode(message)
                if not events:
                    continue
                lsn = events[0].lsn
                if track.open_lsn is not None and lsn != track.open_lsn:
                    if isinstance(events[0], Gap) and not await source.is_over(track.open_lsn, message.seq):
                        self._void_lsn = track.open_lsn  # a gap has cut it off: it must not be seen by halves
                        raise Changed
                    track.close()
                if track.open_lsn is None:
                    if track.gathered >= ROWS_MAX:
                        await local.commit()
                    if self._holds.wanted is not None:
                        await self._pause_before(lsn, track, local)
                if isinstance(events[0], Gap) and not events[0].of_table:
                    self.proven_lsn, self._gap_seq = 0, message.seq
                track.take(message.seq, events)
                if track.open_lsn is not None and track.gathered >= FLUSH_ROWS:
                    await local.flush()
            seen = messages[-1].seq
            if track.open_lsn is not None and consumer.is_at_end and await self._is_whole(track, track.open_lsn):
                track.close()
            if track.open_lsn is None and track.is_dirty:
                await local.commit()
                if consumer.is_at_end:
                    replica.counts.note_caught_up()

    async def _idle(self, track: Track, local: LocalTransaction) -> None:
        """Nothing came for a while."""
        if track.open_lsn is not None:
            if not await self._is_whole(track, track.open_lsn):
                return
            track.close()
            await local.commit()
        hold, now = self._holds.wanted, trio.current_time()
        self._replica.counts.is_behind |= hold is not None  # for all that is known while it stands still
        if hold is not None and not hold.lsn:
            await self._holds.stay(hold, "held")
        elif hold is not None or self.joiners or now - self._scanned_at >= SCAN_EVERY_S:
            self._scanned_at = now
            if await self._scan(track, local) and hold is not None and self.has_reached(hold.lsn):
                await self._stay(hold)

    async def _is_whole(self, track: Track, lsn: int) -> bool:
        """The open transaction has ended, and all of it that we read has come. Its last event may be another table's."""
        return await self._source.is_over(lsn) and await self._source.next_message(track.head_seq, self._filters) is None

    async def _scan(self, track: Track, local: LocalTransaction) -> bool:
        """Move the place to the stream's end, if nothing of ours lies between; whether it is there."""
        source, seq = self._source, track.closed.stream_seq
        place = self._replica.place
        if place is None:
            return False
        record = await source.record()  # before the stream's end is asked for
        await source.check_holds(seq, place.created)
        last = source.last_seq
        following = await source.next_message(seq, self._filters)
        if following is not None and following[0] <= last:
            return False
        if last > seq:
            track.advance(last)
            await local.commit()
        if record is not None and self._gap_seq <= record.last_seq <= last and record.confirmed_lsn > self.proven_lsn:
            self.proven_lsn = record.confirmed_lsn
            self._replica.moved.value += 1
        return True

    async def _pause_before(self, lsn: int, track: Track, local: LocalTransaction) -> None:
        """The next transaction is of `lsn`: stay here if somebody compares the replica with the source at or below it."""
        while (hold := self._holds.wanted) is not None and (not hold.lsn or lsn >= hold.lsn):
            if track.is_dirty:
                await local.commit()
            await self._stay(hold)

    async def _stay(self, hold: Hold) -> None:
        place = self._replica.place
        missed = hold.lsn and place is not None and place.cursor.position.lsn >= hold.lsn
        state = "missed" if missed else "reached" if hold.lsn else "held"
        log.debug("the mirror stays", state=state, lsn=format_lsn(hold.lsn))
        self._replica.counts.is_behind = True
        await self._holds.stay(hold, state)
