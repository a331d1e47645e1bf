"""The acker: confirms to PostgreSQL what the stream holds, never more, and the record in KV before that."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import pytest
import trio
import trio.lowlevel

from actors.acker import AckLedger, confirm_stored
from actors.channels import Channel, Sender
from actors.clients.nats.acknowledgements import Acknowledgements
from actors.clients.nats.jetstream import JetStream
from actors.clients.nats.record_store import RecordStore
from actors.contract.bridge_record import BridgeRecord, Held
from actors.errors import SinkFenced, SinkUnavailable
from actors.feedback import Feedback
from actors.messages import Batch, EventKind, PublishedChange, SchemaChange, SentBatch, Table
from actors.positions import NO_LSN, START, Lsn, Position
from actors.settings.resolve import resolve
from actors.startup.streams import check_changes
from actors.telemetry.telemetry import Telemetry
from actors.wire.jetstream import OutMessage
from actors.wire.nats import Msg
from actors.wire.pgoutput import Relation
from tests.fake_nats import FakeNats, Stored
from tests.mock_time import on_mock_clock

CONFIG = resolve({}, {"DATABASE_URL": "postgresql://u@h/db", "NATS_URL": "nats://fake"})
RECORD = BridgeRecord(slot="s", publication="p", system_id="1", timeline=1, switch_points=())
TABLE = Table(Relation(1, "public", "t", "d", ()), "t", 99, ("id",), frozenset())
INSERT = EventKind(TABLE, "insert")


def sent(
    last_seq: int, lsn: int, *, end_lsn: int | None = None, messages: int = 1, schemas: tuple[SchemaChange, ...] = ()
) -> SentBatch:
    out = [OutMessage(b"cdc.t.insert", b"id", b"{}")] * messages
    position = Position(Lsn(lsn), 0) if messages else None
    end = Lsn(lsn + 8 if end_lsn is None else end_lsn)
    return SentBatch(Batch(out, 100, {INSERT: messages}, position, end, 1_000_000, 1_000_000, schemas), last_seq, 0.0)


class Acking:
    """An acker at work on a record in a fake NATS."""

    def __init__(self, record: BridgeRecord = RECORD) -> None:
        self.nats, self.telemetry, self.record = FakeNats(), Telemetry(), record
        self.acks = Acknowledgements(0, Counter())
        self.acks.reply_prefix = b"_INBOX.x"
        self.stored_schemas: list[SchemaChange] = []
        self.stored_publication: list[tuple[PublishedChange, int]] = []
        self.ended = False
        self._channel = Channel[SentBatch]("published", 100, 1000)

    @asynccontextmanager
    async def running(self, *, ack_deadline_s: float = 10.0, hold_s: float = 0.0) -> AsyncIterator[Sender[SentBatch]]:
        self.feedback = Feedback(NO_LSN)
        self.feedback.received = Lsn(1 << 40)

        async def confirm(js: JetStream) -> None:
            self.store = RecordStore(js, "CDC", self.record, len(self.nats.streams["KV_bridges"]))
            await confirm_stored(
                self._channel.receiver(), self.acks, AckLedger(0, START), self.store, self.feedback, self.stored_schemas.append,
                lambda change, seq: self.stored_publication.append((change, seq)),
                self.telemetry, ack_deadline_s=ack_deadline_s, check_stream=partial(check_changes, js, "CDC"),
                hold_s=hold_s,
            )  # fmt: skip
            self.ended = True

        async with self.nats.connected(CONFIG) as connection, trio.open_nursery() as nursery:
            nursery.start_soon(confirm, JetStream(connection))
            yield self._channel.sender()

    def finish(self) -> None:
        """Nothing more is published."""
        with self._channel.sender():
            pass

    def acknowledge(self, seq: int) -> None:
        self.acks.on_reply(Msg(b"_INBOX.x.%d" % seq, 1, b"", b"", b'{"stream":"CDC","seq":%d}' % seq))

    def records(self) -> list[BridgeRecord]:
        return [BridgeRecord.decode(message.data, "CDC") for message in self.nats.streams["KV_bridges"]]


def test_the_ledger_confirms_a_batch_once_all_before_it_are_stored() -> None:
    ledger = AckLedger(0, START)
    for last_seq, lsn in ((3, 100), (5, 200), (6, 300)):
        ledger.published(sent(last_seq, lsn))
    assert ledger.stored(2) == []
    assert ledger.durable.lsn == NO_LSN
    assert [done.last_seq for done in ledger.stored(5)] == [3, 5]
    assert ledger.durable == (5, Position(Lsn(200), 0), 208, 1_000_000)
    assert ledger.open_batches == 1


def test_a_batch_that_ends_inside_of_a_transaction_confirms_nothing_and_keeps_its_place() -> None:
    ledger = AckLedger(0, START)
    ledger.published(sent(3, 100))
    ledger.published(sent(5, 200, end_lsn=0))
    ledger.stored(5)
    assert ledger.durable == (5, Position(Lsn(200), 0), 108, 1_000_000)


@on_mock_clock
async def test_nothing_is_confirmed_before_it_is_stored() -> None:
    acking = Acking()
    async with acking.running(ack_deadline_s=60) as published:
        await published.send(sent(1, 100), 1)
        await published.send(sent(2, 200), 1)
        await trio.sleep(5)
        assert acking.feedback.confirmed.value == NO_LSN
        assert acking.records() == []
        acking.acknowledge(1)
        await trio.sleep(2)
        assert acking.feedback.confirmed.value == 108
        with published:
            acking.acknowledge(2)
    assert acking.feedback.confirmed.value == 208


@on_mock_clock
async def test_the_record_says_it_before_postgresql_hears_of_it() -> None:
    acking = Acking()
    heard: list[tuple[Lsn, Lsn]] = []

    async def watch() -> None:
        async for confirmed in acking.feedback.confirmed.eventual_values():
            recorded = max((record.confirmed_lsn for record in acking.records()), default=NO_LSN)
            heard.append((confirmed, recorded))

    async with trio.open_nursery() as nursery:
        async with acking.running() as published:
            nursery.start_soon(watch)
            for number in range(1, 4):
                await published.send(sent(number, 1000 * number), 1)
                acking.acknowledge(number)
                await trio.sleep(1.5)
            acking.finish()
        nursery.cancel_scope.cancel()
    assert [confirmed for confirmed, _ in heard] == [0, 1008, 2008, 3008]
    assert all(recorded >= confirmed for confirmed, recorded in heard)
    last = acking.records()[-1]
    assert (last.last_seq, last.position, last.confirmed_lsn) == (3, Position(Lsn(3000), 0), 3008)


@on_mock_clock
async def test_the_records_confirmed_lsn_never_falls_while_changes_below_it_are_stored() -> None:
    acking = Acking(replace(RECORD, confirmed_lsn=Lsn(5000)))
    async with acking.running() as published:
        for number, lsn in enumerate((1000, 6000), 1):
            await published.send(sent(number, lsn), 1)
            acking.acknowledge(number)
            await trio.sleep(1.5)
        acking.finish()
    assert [(record.last_seq, record.confirmed_lsn) for record in acking.records()] == [(1, 5000), (2, 6008)]


@on_mock_clock
async def test_it_confirms_every_second_or_sooner_after_a_megabyte() -> None:
    acking = Acking()
    async with acking.running() as published:
        await trio.sleep(0.25)
        await published.send(sent(1, 100), 1)
        acking.acknowledge(1)
        await trio.sleep(0.1)
        assert acking.feedback.confirmed.value == NO_LSN
        await published.send(sent(2, 2_000_000), 1)
        acking.acknowledge(2)
        await trio.sleep(0.1)
        assert acking.feedback.confirmed.value == 2_000_008, "a megabyte is not kept waiting"
        await published.send(sent(3, 2_000_100), 1)
        acking.acknowledge(3)
        await trio.sleep(1.1)
        assert acking.feedback.confirmed.value == 2_000_108
        acking.finish()


@on_mock_clock
async def test_the_end_waits_for_every_acknowledgement_and_confirms_the_last() -> None:
    acking = Acking()
    async with acking.running() as published:
        with published:
            await published.send(sent(1, 100), 1)
            await published.send(sent(1, 300, messages=0), 1)  # an idle mark
        await trio.sleep(3)
        assert not acking.ended
        acking.acknowledge(1)
        await trio.lowlevel.checkpoint()
    assert acking.ended
    assert acking.feedback.confirmed.value == 308
    assert acking.telemetry.events_published == 1
    assert acking.telemetry.stored_seq == 1


@on_mock_clock
async def test_silence_while_something_waits_is_a_fault_and_silence_alone_is_none() -> None:
    acking = Acking()
    with pytest.RaisesGroup(pytest.RaisesExc(SinkUnavailable, match="nothing for 10 s"), flatten_subgroups=True):
        async with acking.running() as published:
            await trio.sleep(100)
            started = trio.current_time()
            await published.send(sent(1, 100), 1)
            await trio.sleep(100)
    assert acking.feedback.confirmed.value == NO_LSN
    assert trio.current_time() - started == pytest.approx(10, abs=0.1)


@on_mock_clock
async def test_each_acknowledgement_gives_new_patience() -> None:
    acking = Acking()
    async with acking.running() as published:
        for number in range(1, 5):
            await published.send(sent(number, 100 * number), 1)
        for number in range(1, 5):
            await trio.sleep(8)
            acking.acknowledge(number)
        acking.finish()
    assert acking.feedback.confirmed.value == 408


@on_mock_clock
async def test_another_bridges_record_fences_it_off_and_nothing_is_confirmed() -> None:
    acking = Acking()
    with pytest.RaisesGroup(pytest.RaisesExc(SinkFenced, match="another bridge"), flatten_subgroups=True):
        async with acking.running() as published:
            await trio.sleep(0.1)
            acking.nats.streams["KV_bridges"].append(Stored(1, "$KV.bridges.CDC", {}, RECORD.encode()))
            await published.send(sent(1, 100), 1)
            acking.acknowledge(1)
            await trio.sleep(5)
    assert acking.feedback.confirmed.value == NO_LSN
    assert len(acking.records()) == 1


@on_mock_clock
async def test_a_schema_is_told_of_and_recorded_once_the_stream_holds_it() -> None:
    acking = Acking()
    change = SchemaChange(TABLE, Position(Lsn(100), 0), {})
    async with acking.running() as published:
        await published.send(sent(1, 100, schemas=(change,)), 1)
        await trio.sleep(1)
        assert acking.stored_schemas == []
        acking.acknowledge(1)
        await trio.sleep(2)
        assert acking.stored_schemas == [change]
        acking.finish()
    assert acking.records()[-1].schemas == {"t": 99}


@on_mock_clock
async def test_with_a_hold_the_record_is_written_at_once_and_postgresql_hears_of_it_later() -> None:
    begin = Held(0, START, Lsn(50), 1)
    acking = Acking(replace(RECORD, held=(begin,)))
    async with acking.running(hold_s=40) as published:
        for number in range(1, 101):  # an event a second
            await published.send(sent(number, 1000 * number), 1)
            acking.acknowledge(number)
            await trio.sleep(1)
            confirmed = acking.feedback.confirmed.value
            record = acking.records()[-1] if acking.records() else RECORD
            assert confirmed <= max(50, 1000 * (number - 38)), "forty seconds at least"
            assert confirmed >= 1000 * (number - 53), "and a quarter more at most"
            assert record.last_seq >= number - 1
            assert len(record.held) <= 6
            if confirmed:
                assert record.held[0].lsn == confirmed, "each version proves what was confirmed"
        acking.finish()
    assert acking.ended
    assert acking.feedback.confirmed.value <= 1000 * 62, "what is held at a stop stays unconfirmed"
    assert acking.records()[-1].last_seq == 100


@on_mock_clock
async def test_with_a_hold_nothing_is_written_again_and_again_while_nothing_comes() -> None:
    acking = Acking()
    async with acking.running(hold_s=10) as published:
        await published.send(sent(1, 4 << 20), 1)
        acking.acknowledge(1)
        await trio.sleep(60)
        assert len(acking.records()) == 1
        assert acking.feedback.confirmed.value == (4 << 20) + 8
        acking.finish()
