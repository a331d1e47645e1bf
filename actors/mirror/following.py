"""Follows the live tables: applies events in local transactions of whole source transactions, each with its checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import trio

from actors.clients.nats.ordered_consumer import OrderedConsumer, open_consumer
from actors.contract.reader_note import ReaderNote
from actors.contract.records import Event, Gap
from actors.contract.stream_view import UNKNOWN_MESSAGE
from actors.contract.subjects import CDC_ALL, CDC_NOTICES, cdc_of_table
from actors.mirror.boundaries import Boundaries, Incomplete
from actors.mirror.holding import Hold, Holds
from actors.mirror.replica import Changed, LocalTransaction, Replica
from actors.mirror.source_stream import OutOfDate, SourceStream
from actors.mirror.stores.store import ApplyConflict
from actors.mirror.track import CutOff, Stale, Track
from actors.telemetry.log import get_logger

log = get_logger("mirror")

ROWS_MAX = 1_000
"""Changes after which a local transaction ends at the next end of a source transaction."""
FLUSH_ROWS = 5_000
"""Changes of one transaction that are kept in memory before they go to the database."""
IDLE_S = 0.5
SCAN_EVERY_S = 5.0
"""While nothing comes, the checkpoint moves this often over messages on other subjects."""


class _Run(NamedTuple):
    """One run over the stream, from one checkpoint and with one set of live tables."""

    track: Track
    local: LocalTransaction
    boundaries: Boundaries
    created: str
    """When the stream was created that the checkpoint is in."""
    generation: int


class Follower:
    """Follows all live tables of a replica."""

    def __init__(self, replica: Replica, source: SourceStream, holds: Holds, *, everything: bool) -> None:
        """`everything`: all tables of the bridge are mirrored, so that one filter is enough."""
        self._replica, self._source, self._holds = replica, source, holds
        self._everything = everything
        self.proven_lsn = 0
        """The bridge's record says that every transaction below was stored, and the mirror has read that far."""
        self.joiners = 0
        """Copies that wait for the checkpoint to move."""
        self._gap_seq = 0
        """Sequence of the newest gap. What the bridge's record proved before it concerns other LSNs."""
        self._voids: dict[int, int] = {}
        """Transactions that a gap has cut off, and the gap's sequence; several may come before the checkpoint moves."""
        self._stale_from: dict[str, tuple[int, Stale]] = {}
        self._scanned_at = 0.0
        self._seen_seq = 0
        """Sequence of the last message received, foreign ones included: deleting it afterwards harms nothing."""
        self.note = ReaderNote("mirror")
        """What each consumer says from its start on."""
        self._consumer: OrderedConsumer | None = None

    @property
    def is_held(self) -> bool:
        """Whether a verification compares the replica with its source, or is about to."""
        return self._holds.wanted is not None

    async def describe(self, note: ReaderNote) -> None:
        """Have the consumer say how far the mirror is, for whoever lists consumers. Raises SinkUnavailable."""
        if note != self.note:
            self.note = note
            if self._consumer is not None:
                await self._consumer.describe(note.as_metadata())

    def has_reached(self, lsn: int) -> bool:
        """Whether the live tables contain every transaction below `lsn`."""
        checkpoint = self._replica.checkpoint
        return checkpoint is not None and max(checkpoint.cursor.position.lsn, self.proven_lsn) >= lsn

    async def wait_for(self, lsn: int, after_seq: int) -> None:
        """Wait until the live tables contain every transaction below `lsn`, or until no table is live.

        `lsn` is of the history that the stream tells at `after_seq`. Behind a later gap LSNs may be lower, and perhaps none
        ever comes as far: then there is nothing to wait for.
        """
        replica = self._replica
        self.joiners += 1
        try:
            await replica.moved.wait_value(
                lambda _: replica.checkpoint is None or self.has_reached(lsn) or self._gap_seq > after_seq
            )
        finally:
            self.joiners -= 1

    async def run(self) -> None:
        """Follow until cancelled. Raises SinkUnavailable, ReplicaUnavailable, ReplicaRefused."""
        replica = self._replica
        while True:
            checkpoint, generation = replica.checkpoint, replica.generation
            if checkpoint is None:
                replica.counts.is_behind = True
                await replica.moved.wait_value(
                    lambda _, seen=generation: replica.checkpoint is not None or replica.generation != seen
                )
                continue
            filters = [CDC_ALL] if self._everything else [*(cdc_of_table(token) for token in replica.shapes), CDC_NOTICES]
            track = Track(
                replica.dialect, checkpoint.cursor, replica.followed(), voids=self._voids, stale_from=self._stale_from,
                last_message=checkpoint.last_message,
            )  # fmt: skip
            # filters, track and local transactions are of one generation: a copy may go live before the consumer is open
            run = _Run(track, replica.begin(track), Boundaries(self._source, filters), checkpoint.created, generation)
            seq = checkpoint.cursor.stream_seq
            try:
                async with open_consumer(
                    self._source.js, self._source.name, filters, seq + 1, self.note.as_metadata()
                ) as consumer:
                    self._consumer = consumer
                    await self._source.check_place(checkpoint.place)
                    await self._apply(consumer, run)
            except Changed:
                continue
            except Incomplete as exc:
                self._voids[exc.lsn] = exc.seq
            except CutOff as exc:
                self._stale_from[exc.token] = exc.lsn, exc.stale
            except ApplyConflict as exc:
                # a change does not match exactly one row: its key is not unique, or somebody else wrote to the replica
                await replica.note_conflict(exc.token, exc.reason, keyed=False if exc.is_duplicate else None)
            except OutOfDate as exc:
                log.warning("the replica is out of date", reason=str(exc), position=seq)
                self.proven_lsn = 0
                await replica.forget(str(exc))
            finally:
                self._consumer = None

    async def _apply(self, consumer: OrderedConsumer, run: _Run) -> None:
        replica, track = self._replica, run.track
        self._seen_seq = track.head_seq
        try:
            while True:
                messages = await consumer.receive(IDLE_S)
                if messages:
                    replica.counts.is_behind = True
                    await self._source.check_jumps(self._seen_seq, messages, run.created)
                    for message in messages:
                        events = await self._source.decode(message)
                        if events:
                            if track.open_lsn != events[0].lsn or type(events[0]) is Gap:
                                await self._take_boundary(message.seq, events, run)
                            track.take(message.seq, events, message.headers)
                            if track.gathered >= FLUSH_ROWS and track.open_lsn is not None:
                                await run.local.flush()
                    self._seen_seq = messages[-1].seq
                if (
                    track.open_lsn is not None
                    and (consumer.is_at_end or not messages)
                    and await run.boundaries.is_whole(track.open_lsn, track.head_seq)
                ):
                    track.close()
                if track.open_lsn is None:
                    await self._between_transactions(run, is_idle=not messages)
                    if consumer.is_at_end:
                        replica.counts.note_caught_up()
        finally:
            await run.local.roll_back()

    async def _take_boundary(self, seq: int, events: Sequence[Event], run: _Run) -> None:
        """End local transactions, and answer verifications, before the first event of a transaction, or before a gap."""
        track, first = run.track, events[0]
        is_bridges_gap = isinstance(first, Gap) and not first.of_table
        if track.open_lsn != first.lsn or is_bridges_gap:
            await run.boundaries.close_before(track, seq, events)
            if track.gathered >= ROWS_MAX:
                await run.local.commit()
            if self._holds.wanted is not None:
                await self._pause_before(first.lsn, run)
        if is_bridges_gap:
            self.proven_lsn, self._gap_seq = 0, seq

    async def _between_transactions(self, run: _Run, *, is_idle: bool) -> None:
        if run.track.is_dirty:
            await run.local.commit()
        if is_idle:
            await self._idle(run)
            if self._replica.generation != run.generation:
                raise Changed

    # -- while nothing comes

    async def _idle(self, run: _Run) -> None:
        """Answer a verification, or move the checkpoint over messages on other subjects."""
        hold, now = self._holds.wanted, trio.current_time()
        self._replica.counts.is_behind |= hold is not None  # nobody knows what comes while the mirror is held
        if hold is not None and not hold.lsn:
            await self._holds.stay(hold, "held")
        elif hold is not None or self.joiners or self._seen_seq > run.track.head_seq or now - self._scanned_at >= SCAN_EVERY_S:
            self._scanned_at = now
            if await self._scan(run) and hold is not None and self.has_reached(hold.lsn):
                await self._stay(hold)

    async def _scan(self, run: _Run) -> bool:
        """Move the checkpoint to the stream's end unless events of the live tables come before it. True if it is there."""
        source, seq = self._source, run.track.closed.stream_seq
        record = await source.record()  # must be read before the stream's end
        await source.check_holds(max(seq, self._seen_seq), run.created)
        last = await run.boundaries.end_without_more(seq)
        if last is None:
            return False
        last_message = await source.last_message_at(last, run.track.last_message)
        is_new = UNKNOWN_MESSAGE in (last_message, run.track.last_message) and last_message != run.track.last_message
        if last > seq or is_new:  # at the same sequence nothing but its end by age, or the first look, changes what is kept
            run.track.advance(last, last_message)
            await run.local.commit()
        if record is not None and self._gap_seq <= record.last_seq <= last and record.confirmed_lsn > self.proven_lsn:
            self.proven_lsn = record.confirmed_lsn
            self._replica.moved.value += 1
        return True

    # -- verifications

    async def _pause_before(self, lsn: int, run: _Run) -> None:
        """Stay before the transaction of `lsn` while a verification compares at or below it."""
        while (hold := self._holds.wanted) is not None and (not hold.lsn or lsn >= hold.lsn):
            if run.track.is_dirty:
                await run.local.commit()
            await self._stay(hold)

    async def _stay(self, hold: Hold) -> None:
        checkpoint = self._replica.checkpoint
        missed = hold.lsn and checkpoint is not None and checkpoint.cursor.position.lsn >= hold.lsn
        state = "missed" if missed else "reached" if hold.lsn else "held"
        self._replica.counts.is_behind = True
        await self._holds.stay(hold, state)
