"""One run of the pipeline, from PostgreSQL's bytes to JetStream's acknowledgements and back, in memory and without waiting."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from actors.clients.nats.connection import NatsConnection
from actors.clients.nats.jetstream import JetStream
from actors.clients.nats.record_store import RecordStore
from actors.contract.bridge_record import BridgeRecord
from actors.contract.event_encoder import event_encoder
from actors.contract.table_schema import Description
from actors.errors import SinkFenced, SinkUnavailable, SourceUnavailable
from actors.feedback import Feedback
from actors.pace import Pace
from actors.pipeline import DrainTimeout, run_pipeline
from actors.positions import NO_LSN, ROW_RANK, START, Lsn, Position
from actors.publication_model import PublicationModel
from actors.publication_monitor import PublicationMonitor
from actors.schema_publisher import SchemaPublisher
from actors.session import Session
from actors.settings.resolve import resolve
from actors.snapshots.transaction_log import TransactionLog
from actors.startup.checkpoint import Start
from actors.startup.start_plan import StartPlan
from actors.startup.streams import StreamSetup
from actors.status_reporter import LiveStream
from actors.suspensions import Suspensions
from actors.telemetry.telemetry import Telemetry
from actors.wire.pgoutput import Relation
from tests import pgoutput_bytes as pg
from tests.fake_nats import FakeNats, Stored
from tests.mock_time import on_mock_clock
from tests.scripted_replication import DESCRIPTION, ScriptedReplication, relation, transaction

CONFIG = resolve({}, {"DATABASE_URL": "postgresql://u@h/db", "NATS_URL": "nats://fake"})


class Schemas(SchemaPublisher):
    """Describes the one table that there is without a catalog."""

    async def describe(self, relation: Relation) -> Description:
        return DESCRIPTION


class LateSchemas(Schemas):
    """Has had no time to write by itself before the stop."""

    async def publish_changes(self) -> None:
        await trio.sleep_forever()


async def no_looks(monitor: PublicationMonitor) -> None:
    """In the place of `run`: there is no catalog to look at."""
    await trio.sleep_forever()


class Pipeline:
    """A pipeline between a scripted PostgreSQL and a fake NATS; both outlive its runs."""

    def __init__(self, mode: str = "fast", schemas: type[Schemas] = Schemas) -> None:
        self.postgres, self.nats, self.telemetry, self.stop = ScriptedReplication(), FakeNats(), Telemetry(), trio.Event()
        self._mode, self._schemas = mode, schemas

    async def _run(self, nats: NatsConnection, start: Start, live: LiveStream) -> None:
        """All that knows how a run is put together."""
        js, encoder = JetStream(nats), event_encoder("msgpack")
        record = BridgeRecord(slot="cdc_slot", publication="cdc_pub", system_id="1", timeline=1, switch_points=())
        store = RecordStore(js, "CDC", record, len(self.nats.streams["KV_bridges"]))
        setup = StreamSetup("CDC", b"", self._mode, start.last_seq, 1024 * 1024, 1024 * 1024, False)  # type: ignore[arg-type]
        plan = StartPlan(start, NO_LSN, store, NO_LSN)
        schemas = self._schemas(None, js, encoder)  # type: ignore[arg-type]
        session = Session(
            js,
            setup,
            plan,
            schemas,
            encoder,
            {},
            Suspensions(store, self.telemetry),
            TransactionLog(),
            PublicationModel("cdc_pub"),
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PublicationMonitor, "run", no_looks)
            await run_pipeline(CONFIG, session, live, self.telemetry, self.stop, lambda *_: None, Pace(self.telemetry, 0))

    @asynccontextmanager
    async def running(self, skip: Position = START, *, reporting: bool = True) -> AsyncIterator[None]:
        """A run that the body of the block watches; it ends by `stop` and in order, or the block raises why not."""
        live = LiveStream(self.postgres, Feedback(NO_LSN))  # type: ignore[arg-type]
        start = Start(skip, NO_LSN, len(self.nats.streams["CDC"]), NO_LSN)
        async with self.nats.connected(CONFIG) as nats, trio.open_nursery() as nursery:
            if reporting:
                nursery.start_soon(live.run_status)

            async def run() -> None:
                await self._run(nats, start, live)
                if reporting:
                    await live.close()

            nursery.start_soon(run)
            yield

    def rows(self) -> list[tuple[int, int, int]]:
        """(lsn, seq, id) of every row event that is stored."""
        return [(body["lsn"], body["seq"], body["data"]["id"]) for body in self.nats.bodies() if body["operation"] == "INSERT"]


@pytest.mark.parametrize("mode", ["fast", "plain"])
@on_mock_clock
async def test_every_row_is_stored_once_and_in_order_and_confirmed(mode: str) -> None:
    pipeline = Pipeline(mode)
    expected = [(1000 * n, seq, 100 * n + seq) for n in range(1, 51) for seq in range(n)]
    async with pipeline.running():
        pipeline.postgres.feed(relation())
        for n in range(1, 51):
            pipeline.postgres.feed(*transaction(1000 * n, *(100 * n + seq for seq in range(n))))
            if n % 10 == 0:
                await trio.sleep(0.5)
        await trio.sleep(5)
        assert pipeline.rows() == expected
        assert pipeline.postgres.confirmed == 50_008
        pipeline.stop.set()
    messages = pipeline.nats.streams["CDC"]
    ids = [message.headers["Nats-Msg-Id"] for message in messages]
    assert ids[:2] == ["3e8-0-users-schema", "3e8-0-users-insert"]
    assert len(set(ids)) == len(ids) == len(expected) + 1
    assert {message.subject for message in messages} == {"cdc.users.schema", "cdc.users.insert"}
    assert [message.subject for message in pipeline.nats.streams["KV_schemas"]] == ["$KV.schemas.users"]


@on_mock_clock
async def test_a_stop_stores_and_confirms_what_was_read_before_it_ends() -> None:
    pipeline = Pipeline()
    pipeline.nats.silent = True
    async with pipeline.running():
        pipeline.postgres.feed(relation(), *transaction(1000, 1, 2), *transaction(2000, 3))
        await trio.sleep(1)
        pipeline.stop.set()
        await trio.sleep(2)
        pipeline.postgres.feed(*transaction(3000, 4))  # read no more
        assert pipeline.postgres.confirmed == 0
        await pipeline.nats.speak()
    assert pipeline.rows() == [(1000, 0, 1), (1000, 1, 2), (2000, 0, 3)]
    assert pipeline.postgres.confirmed == 2008
    assert pipeline.postgres.statuses[-1][1] == 2008, "PostgreSQL's last word from us"


@on_mock_clock
async def test_the_end_itself_tells_postgresql_what_is_stored_and_writes_the_schemas_that_wait() -> None:
    pipeline = Pipeline(schemas=LateSchemas)
    async with pipeline.running(reporting=False):
        pipeline.postgres.feed(relation(), *transaction(1000, 1))
        await trio.sleep(3)
        assert pipeline.postgres.statuses == []
        assert pipeline.nats.streams["KV_schemas"] == []
        pipeline.stop.set()
    assert pipeline.postgres.statuses == [(1008, 1008, False)]
    assert [message.subject for message in pipeline.nats.streams["KV_schemas"]] == ["$KV.schemas.users"]


@on_mock_clock
async def test_a_batch_that_is_not_acknowledged_is_not_confirmed_though_it_is_stored() -> None:
    pipeline = Pipeline()
    with pytest.RaisesGroup(pytest.RaisesExc(SinkUnavailable, match="acknowledged nothing"), flatten_subgroups=True):
        async with pipeline.running():
            pipeline.postgres.feed(relation(), *transaction(1000, 1))
            await trio.sleep(3)
            assert pipeline.postgres.confirmed == 1008
            pipeline.nats.silent = True
            pipeline.postgres.feed(*transaction(2000, 2))
            await trio.sleep(60)
    assert pipeline.rows() == [(1000, 0, 1), (2000, 0, 2)]
    assert pipeline.postgres.confirmed == 1008


@on_mock_clock
async def test_nothing_is_confirmed_inside_of_a_transaction() -> None:
    pipeline = Pipeline()
    begin, *rows, commit = transaction(9000, *range(2000))
    with trio.move_on_after(30):
        async with pipeline.running():
            pipeline.postgres.feed(relation(), *transaction(1000, 1), begin, *rows, pg.keepalive(8000))
            await trio.sleep(5)
            assert len(pipeline.rows()) == 2000, "all but the last row, which may end the transaction"
            assert pipeline.postgres.confirmed == 1008
            pipeline.postgres.feed(commit)
            await trio.sleep(5)
            assert len(pipeline.rows()) == 2001
            assert pipeline.postgres.confirmed == 9008
            pipeline.stop.set()


@on_mock_clock
async def test_idle_wal_is_confirmed_too() -> None:
    pipeline = Pipeline()
    async with pipeline.running():
        pipeline.postgres.feed(pg.keepalive(77_000))
        await trio.sleep(3)
        pipeline.stop.set()
    assert pipeline.postgres.confirmed == 77_000
    assert pipeline.nats.streams["CDC"] == []


@pytest.mark.parametrize("mode", ["fast", "plain"])
@on_mock_clock
async def test_a_publish_that_the_stream_refuses_for_its_place_fences_the_bridge_off(mode: str) -> None:
    pipeline = Pipeline(mode)
    with pytest.RaisesGroup(pytest.RaisesExc(SinkFenced, match="not where this bridge left it"), flatten_subgroups=True):
        async with pipeline.running():
            pipeline.postgres.feed(relation(), *transaction(1000, 1))
            await trio.sleep(3)
            pipeline.nats.streams["CDC"].append(Stored(3, "cdc.users.insert", {}, b"{}"))  # another writer's
            pipeline.postgres.feed(*transaction(2000, 2))
            await trio.sleep(60)
    assert pipeline.postgres.confirmed == 1008
    assert len(pipeline.nats.streams["CDC"]) == 3


@on_mock_clock
async def test_after_a_cut_the_next_run_stores_what_is_missing_and_nothing_twice() -> None:
    first = Pipeline()
    script = [relation(), *transaction(1000, 1, 2, 3), *transaction(2000, 4, 5), *transaction(3000, 6)]
    with pytest.RaisesGroup(SourceUnavailable, flatten_subgroups=True):
        async with first.running():
            first.postgres.feed(*script[:9])  # up to the last row of the second transaction, without its commit
            await trio.sleep(3)
            first.postgres.end(SourceUnavailable("WB100", "connection to PostgreSQL lost"))
            await trio.sleep(5)
    stored = first.rows()
    assert stored == [*((1000, n, n + 1) for n in range(3)), (2000, 0, 4)]
    assert first.postgres.confirmed == 1008
    second = Pipeline()
    second.nats.streams = first.nats.streams
    lsn, seq, _ = stored[-1]
    async with second.running(Position(Lsn(lsn), seq, ROW_RANK)):
        second.postgres.feed(*script)
        await trio.sleep(5)
        second.stop.set()
    assert second.rows() == [*((1000, n, n + 1) for n in range(3)), (2000, 0, 4), (2000, 1, 5), (3000, 0, 6)]
    assert second.postgres.confirmed == 3008


@on_mock_clock
async def test_a_drain_that_is_acknowledged_too_slowly_ends_with_words_and_confirms_only_what_was() -> None:
    pipeline = Pipeline()
    pipeline.nats.silent = True
    with pytest.RaisesGroup(DrainTimeout, flatten_subgroups=True):
        async with pipeline.running():
            pipeline.postgres.feed(relation())
            for n in range(1, 8):  # a batch each
                pipeline.postgres.feed(*transaction(1000 * n, n))
                await trio.sleep(0.1)
            pipeline.stop.set()
            for _ in range(7):
                await trio.sleep(8)
                await pipeline.nats.speak(one=True)
    assert pipeline.postgres.confirmed == 3008, "three of them in 30 s"


@on_mock_clock
async def test_the_end_of_the_nats_connection_ends_the_run() -> None:
    pipeline = Pipeline()
    with pytest.RaisesGroup(pytest.RaisesExc(SinkUnavailable, match="closed by the server"), flatten_subgroups=True):
        async with pipeline.running():
            pipeline.postgres.feed(relation(), *transaction(1000, 1))
            await trio.sleep(3)
            await pipeline.nats.close()
            await trio.sleep(60)
    assert pipeline.postgres.confirmed == 1008
