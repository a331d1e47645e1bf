"""The schema_publisher: KV `schemas` says what the stream has told of, once, and never before the stream does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import trio

from actors.clients.nats.jetstream import JetStream
from actors.contract.event_encoder import event_encoder
from actors.contract.table_schema import describe_table
from actors.messages import SchemaChange
from actors.schema_publisher import SchemaPublisher
from actors.settings.resolve import resolve
from actors.wire import pgoutput
from actors.wire.pgoutput import Relation
from tests import pgoutput_bytes as pg
from tests.fake_nats import FakeNats
from tests.mock_time import on_mock_clock
from tests.scripted_replication import COLUMNS, DESCRIPTION, OID

CONFIG = resolve({}, {"DATABASE_URL": "postgresql://u@h/db", "NATS_URL": "nats://fake"})


def change(name: str = "users", *, columns: list[tuple[str, int, bool]] = COLUMNS, oid: int = OID, default: str | None = None,
           described: bool = True) -> SchemaChange:  # fmt: skip
    relation = pgoutput.decode(pg.relation(oid, name, columns))
    assert isinstance(relation, Relation)
    first, *others = DESCRIPTION.catalog
    catalog = (first._replace(column_default=default), *others)
    description = replace(DESCRIPTION, catalog=catalog, data_types=("integer", *["text"] * (len(columns) - 1)))
    return describe_table(relation, description)._replace(described=described)


@asynccontextmanager
async def publishing(nats: FakeNats) -> AsyncIterator[SchemaPublisher]:
    async with nats.connected(CONFIG) as connection, trio.open_nursery() as nursery:
        publisher = SchemaPublisher(None, JetStream(connection), event_encoder("msgpack"))  # type: ignore[arg-type]
        nursery.start_soon(publisher.publish_changes)
        yield publisher
        await publisher.finish()
        nursery.cancel_scope.cancel()


@on_mock_clock
async def test_what_the_stream_holds_is_put_and_told_of_once() -> None:
    nats = FakeNats()
    async with publishing(nats) as publisher:
        publisher.stored(change())
        await trio.sleep(1)
        publisher.stored(change())
        await trio.sleep(1)
    assert [message.subject for message in nats.streams["KV_schemas"]] == ["$KV.schemas.users"]
    assert [message.subject for message in nats.streams["INIT"]] == ["init.schema.users"]
    (body,), (told,) = nats.bodies("KV_schemas"), nats.bodies("INIT")
    assert body == told
    assert body["schema_id"] == change().table.schema_id
    assert [column["name"] for column in body["columns"]] == ["id", "name"]


@on_mock_clock
async def test_a_schema_that_the_bucket_has_is_not_put_again_after_a_restart() -> None:
    nats = FakeNats()
    for _ in range(2):
        async with publishing(nats) as publisher:
            publisher.stored(change())
    assert len(nats.streams["KV_schemas"]) == len(nats.streams["INIT"]) == 1


@on_mock_clock
async def test_of_many_changes_to_a_table_the_newest_is_put_and_other_tables_have_theirs() -> None:
    nats = FakeNats()
    async with publishing(nats) as publisher:
        for default in ("1", "2", "3"):
            publisher.stored(change(default=default))
        publisher.stored(change("orders", oid=2))
    assert [message.subject for message in nats.streams["KV_schemas"]] == ["$KV.schemas.users", "$KV.schemas.orders"]
    assert nats.bodies("KV_schemas")[0]["columns"][0]["column_default"] == "3"


@on_mock_clock
async def test_a_catalog_that_changed_under_the_same_shape_is_put() -> None:
    nats = FakeNats()
    async with publishing(nats) as publisher:
        publisher.stored(change())
        await trio.sleep(1)
        publisher.refresh(change())
        await trio.sleep(1)
        assert len(nats.streams["KV_schemas"]) == 1, "nothing has changed"
        publisher.refresh(change(default="7"))
    assert [body["columns"][0]["column_default"] for body in nats.bodies("KV_schemas")] == [None, "7"]


@on_mock_clock
async def test_an_announcement_puts_nothing_that_the_stream_has_not_told_of() -> None:
    nats = FakeNats()
    async with publishing(nats) as publisher:
        publisher.refresh(change())  # of a table that nothing is known of
        publisher.stored(change())
        await trio.sleep(1)
        publisher.refresh(change(columns=[*COLUMNS, ("more", 25, False)]))  # its SCHEMA event is on its way
        publisher.refresh(change(default="7", described=False))  # the catalog was of another shape already
    assert len(nats.streams["KV_schemas"]) == 1
