"""acker: turns acknowledgements into one confirmed LSN; counts a batch's events once the batch is stored."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

import trio
from trio_util import AsyncValue

from actors.channels import Receiver
from actors.clients.nats.acknowledgements import Acknowledgements
from actors.clients.nats.record_store import RecordStore
from actors.confirm_hold import ConfirmHold
from actors.contract.bridge_record import Held
from actors.errors import SinkUnavailable
from actors.feedback import Feedback
from actors.messages import PublishedChange, SchemaChange, SentBatch
from actors.positions import NO_LSN, ROW_RANK, Lsn, Position
from actors.telemetry.telemetry import StoredBatch, Telemetry

CONFIRM_EVERY_S = 1.0
CONFIRM_EVERY_BYTES = 1024 * 1024


class Durable(NamedTuple):
    """How far the stream has certainly stored."""

    seq: int
    position: Position
    lsn: Lsn
    """Everything below is stored, so it may be confirmed."""
    commit_us: int
    """When the transaction at `position` was committed, in microseconds since 1970; 0 if the last message is of none."""


CheckStream = Callable[[], Awaitable[None]]
"""Returns if the stream keeps what it has acknowledged, by its present settings; raises ConfigError if not."""


class AckLedger:
    """Turns stored sequences into one LSN that is safe to confirm. No I/O, no trio."""

    def __init__(self, seq: int, position: Position, commit_us: int = 0) -> None:
        self.durable = Durable(seq, position, NO_LSN, commit_us)
        self._open: deque[SentBatch] = deque()

    @property
    def open_batches(self) -> int:
        return len(self._open)

    def published(self, batch: SentBatch) -> None:
        """Note a sent batch. Batches come in the stream's order."""
        assert not self._open or batch.last_seq >= self._open[-1].last_seq, "batches are published in stream order"
        self._open.append(batch)

    def stored(self, seq: int) -> list[SentBatch]:
        """Note that the stream has stored everything up to `seq`; return the batches that are complete now, in order."""
        complete: list[SentBatch] = []
        while self._open and self._open[0].last_seq <= seq:
            done = self._open.popleft()
            complete.append(done)
            seq_before, position, lsn, commit_us = self.durable
            if done.batch.position is not None:
                position = done.batch.position
                commit_us = done.batch.newest_commit_us if position.rank == ROW_RANK else 0
            self.durable = Durable(max(seq_before, done.last_seq), position, max(lsn, done.batch.end_lsn), commit_us)
        return complete


async def confirm_stored(
    published_in: Receiver[SentBatch],
    acks: Acknowledgements,
    ledger: AckLedger,
    store: RecordStore,
    feedback: Feedback,
    stored_schemas: Callable[[SchemaChange], None],
    stored_publication: Callable[[PublishedChange, int], None],
    telemetry: Telemetry,
    *,
    ack_deadline_s: float,
    check_stream: CheckStream,
    hold_s: float = 0.0,
) -> None:
    """Follow every batch until it is stored, and confirm stored changes: first in the KV record, then, after `hold_s`, to
    PostgreSQL. What is still held at the end stays unconfirmed.

    Somebody may edit the stream at any time so that it throws away what it acknowledges. So its settings are looked at before
    each confirmation, after the acknowledgements: what came after an edit is never confirmed.

    Ends when `published_in` has ended, every batch is stored and the last LSN is confirmed. Raises SinkUnavailable when NATS
    is away or acknowledges nothing for `ack_deadline_s` while a batch waits; SinkFenced when another bridge took over;
    ConfigError from `check_stream`.
    """
    wake = AsyncValue(0)
    confirmation = _Confirmation(
        ledger, store, feedback, telemetry, check_stream, ConfirmHold(hold_s, store.record.held, trio.current_time())
    )
    settle = _Settler(ledger, stored_schemas, stored_publication, telemetry)
    async with trio.open_nursery() as confirming:
        confirming.start_soon(_confirm_regularly, ledger, confirmation, settle)
        async with trio.open_nursery() as acknowledging:
            acknowledging.start_soon(_await_acks, acks, ledger, settle, wake, ack_deadline_s)
            with published_in:
                async for batch in published_in:
                    ledger.published(batch)
                    settle(acks.stored_seq.value)  # a batch without messages is stored already
                    wake.value += 1
            while ledger.open_batches:
                await settle.settled.wait_transition()
            acknowledging.cancel_scope.cancel()
        settle.end()  # a confirmation that has begun is not cancelled: half a frame would end the connection
    await confirmation(settle.schemas)


class _Settler:
    """Counts the events of batches once they are stored."""

    def __init__(
        self, ledger: AckLedger, stored_schemas: Callable[[SchemaChange], None],
        stored_publication: Callable[[PublishedChange, int], None], telemetry: Telemetry,
    ) -> None:  # fmt: skip
        self.settled = AsyncValue(0)
        self.ended = False
        self.schemas: dict[str, int] = {}
        self._ledger, self._telemetry = ledger, telemetry
        self._stored_schemas, self._stored_publication = stored_schemas, stored_publication

    def end(self) -> None:
        """Note that nothing more will come."""
        self.ended = True
        self.settled.value += 1

    def __call__(self, seq: int) -> None:
        telemetry = self._telemetry
        now = time.time()
        complete = self._ledger.stored(seq)
        for done in complete:
            batch = done.batch
            for kind, count in batch.counts.items():
                relation = kind.table.relation
                key = (relation.schema, relation.name, kind.operation)
                telemetry.table_events[key] = telemetry.table_events.get(key, 0) + count
                telemetry.events_published += count
            for change in batch.schema_changes:
                self.schemas[change.table.token] = change.table.schema_id
                self._stored_schemas(change)
            for published in batch.published:
                self._stored_publication(published, done.last_seq)
            telemetry.stored_bytes += batch.size_bytes
            if batch.messages:
                telemetry.ack_s.observe(now - done.sent_unix_s)
                telemetry.last_ack_at = now
                if telemetry.stored_batches is not None:
                    telemetry.stored_batches.append(_story(done, now))
            if batch.newest_commit_us:
                telemetry.event_latency_s.observe(max(0.0, now - batch.newest_commit_us / 1e6), sum(batch.counts.values()))
        if complete:
            telemetry.stored_seq = self._ledger.durable.seq
            telemetry.backlog.stored(self._ledger.durable.lsn)
            telemetry.durable_lsn = max(telemetry.durable_lsn, self._ledger.durable.lsn)
            self.settled.value += 1


def _story(done: SentBatch, now: float) -> StoredBatch:
    batch = done.batch
    return StoredBatch(
        batch.oldest_commit_us / 1e6, done.sent_unix_s, now,
        len(batch.messages), sum(batch.counts.values()), batch.size_bytes, done.last_seq, batch.end_lsn,
    )  # fmt: skip


async def _await_acks(
    acks: Acknowledgements, ledger: AckLedger, settle: _Settler, wake: AsyncValue[int], deadline_s: float
) -> None:
    stored = acks.stored_seq.value
    while True:
        if not ledger.open_batches:
            await wake.wait_transition()
            continue
        with trio.move_on_after(deadline_s) as deadline:
            stored = await acks.beyond(stored)
            settle(stored)
        if deadline.cancelled_caught:
            raise SinkUnavailable(
                "WB222",
                f"JetStream has acknowledged nothing for {deadline_s:g} s",
                means="nothing is confirmed to PostgreSQL; retrying from the stream's tail. After a full disk nats-server "
                "stays silent, even once there is space, until it is restarted",
                fix="check the disk and the log of nats-server: nats server report jetstream",
            )


async def _confirm_regularly(ledger: AckLedger, confirmation: _Confirmation, settle: _Settler) -> None:
    """Confirm every second, and sooner after each megabyte of WAL, until nothing more will come."""
    while not settle.ended:
        with trio.move_on_after(CONFIRM_EVERY_S):
            goal = confirmation.recorded_lsn + CONFIRM_EVERY_BYTES
            await settle.settled.wait_value(lambda _, goal=goal: settle.ended or ledger.durable.lsn >= goal)
        await confirmation(settle.schemas)


class _Confirmation:
    """Writes into the record what is stored, and confirms it to PostgreSQL once it has been held for long enough."""

    def __init__(
        self, ledger: AckLedger, store: RecordStore, feedback: Feedback, telemetry: Telemetry, check_stream: CheckStream,
        hold: ConfirmHold,
    ) -> None:  # fmt: skip
        self._ledger, self._store, self._feedback, self._telemetry = ledger, store, feedback, telemetry
        self._check_stream, self._hold = check_stream, hold
        self.recorded_lsn = feedback.confirmed.value
        """Of the ledger, as it was last written; the confirmed one, unless something is held."""

    async def __call__(self, schemas: Mapping[str, int]) -> None:
        durable, store, feedback, now = self._ledger.durable, self._store, self._feedback, trio.current_time()
        if durable.lsn:
            self._hold.reached(Held(durable.seq, durable.position, durable.lsn, store.record.timeline), now)
        due = self._hold.due(now) if durable.lsn else NO_LSN  # before that, it is not known whose history PostgreSQL sends
        is_news = (
            durable.lsn > self.recorded_lsn
            or durable.seq != store.record.last_seq
            or (durable.lsn and self._hold.held != store.record.held)
        )
        if not is_news and due <= feedback.confirmed.value:
            return
        await self._check_stream()
        if is_news:
            await store.update(
                position=durable.position,
                commit_us=durable.commit_us,
                last_seq=durable.seq,
                confirmed_lsn=max(durable.lsn, store.record.confirmed_lsn),
                schemas={**store.record.schemas, **schemas},
                held=self._hold.held,
            )
            self.recorded_lsn = max(self.recorded_lsn, durable.lsn)
        if due > feedback.confirmed.value:
            feedback.confirmed.value = due
            self._telemetry.confirmed_lsn = due
