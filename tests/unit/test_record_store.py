"""A bridge's record is written by one bridge: a second writer is noticed, whichever way the server says so."""

from __future__ import annotations

import orjson
import pytest
import trio

from actors.clients.nats.jetstream import JetStream, JetStreamError
from actors.clients.nats.record_store import RecordStore
from actors.contract.bridge_record import BridgeRecord
from actors.errors import SinkFenced
from tests.unit.nats_peer import Published, connected

RECORD = BridgeRecord(slot="cdc_slot", publication="cdc_pub", system_id="1", timeline=1)


def refusal(err_code: int) -> bytes:
    """A refused publish, as the server words it."""
    return orjson.dumps({"stream": "KV_bridges", "seq": 0, "error": {"code": 400, "err_code": err_code, "description": "no"}})


@pytest.mark.parametrize("err_code", [10071, 10164], ids=["alone", "replicated"])
def test_a_second_writer_of_the_record_fences_this_one(err_code: int) -> None:
    async def update() -> None:
        async with connected(lambda _: refusal(err_code)) as (connection, _):
            store = RecordStore(JetStream(connection), "CDC", RECORD, 7)
            with pytest.raises(SinkFenced) as caught:
                await store.update(last_seq=1)
            assert caught.value.code == "WB223"
            assert store.record == RECORD

    trio.run(update)


def test_another_refusal_is_not_a_second_writer() -> None:
    async def update() -> None:
        async with connected(lambda _: refusal(10077)) as (connection, _):
            with pytest.raises(JetStreamError, match="refused"):
                await RecordStore(JetStream(connection), "CDC", RECORD, 7).update(last_seq=1)

    trio.run(update)


def test_each_write_expects_the_revision_of_the_last() -> None:
    revisions = iter([8, 12])

    def stored(_: Published) -> bytes:
        return b'{"stream":"KV_bridges","seq":%d}' % next(revisions)

    async def update() -> None:
        async with connected(stored) as (connection, published):
            store = RecordStore(JetStream(connection), "CDC", RECORD, 7)
            await store.update(last_seq=1)
            await store.update(last_seq=2)
            assert [m.headers["Nats-Expected-Last-Subject-Sequence"] for m in published] == ["7", "8"]
            assert {m.subject for m in published} == {"$KV.bridges.CDC"}
            assert BridgeRecord.decode(published[1].body, "CDC") == store.record
            assert store.record.last_seq == 2

    trio.run(update)
