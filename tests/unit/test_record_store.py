"""A bridge's record is written by one bridge: a second writer is noticed, whichever way the server says so."""

from __future__ import annotations

import base64

import orjson
import pytest
import trio

from actors.clients.nats.jetstream import JetStream, JetStreamError
from actors.clients.nats.record_store import RecordStore
from actors.contract.bridge_record import BridgeRecord
from actors.errors import ConfigError, SinkFenced, SinkUnavailable
from tests.unit.nats_peer import Published, connected

RECORD = BridgeRecord(slot="cdc_slot", publication="cdc_pub", system_id="1", timeline=1)


def refusal(err_code: int) -> bytes:
    """A refused publish, as the server words it."""
    return orjson.dumps({"stream": "KV_bridges", "seq": 0, "error": {"code": 400, "err_code": err_code, "description": "no"}})


def held(headers: str = "") -> bytes:
    """The bucket's last message on the key, as the server answers."""
    block = base64.b64encode(f"NATS/1.0\r\n{headers}\r\n".encode()).decode()
    message = {"subject": "$KV.bridges.CDC", "seq": 9, "hdrs": block, "data": "", "time": "2026-01-01T00:00:00Z"}
    return orjson.dumps({"message": message})


GONE = b'{"error":{"code":404,"err_code":10037,"description":"no message found"}}'


@pytest.mark.parametrize("err_code", [10071, 10164], ids=["alone", "replicated"])
@pytest.mark.parametrize(
    ("last", "kind", "words"),
    [
        (held(), SinkFenced, "another bridge has written the record of stream CDC"),
        (held("KV-Operation: DEL\r\n"), SinkUnavailable, "the record of stream CDC in KV bridges was deleted"),
        (held("KV-Operation: PURGE\r\n"), SinkUnavailable, "the record of stream CDC in KV bridges was deleted"),
        (GONE, SinkUnavailable, "the record of stream CDC in KV bridges was purged, or has expired"),
    ],
)
def test_only_a_second_writer_of_the_record_is_called_one(
    last: bytes, kind: type[SinkUnavailable], words: str, err_code: int
) -> None:
    def answer(published: Published) -> bytes:
        return last if "MSG.GET" in published.subject else refusal(err_code)

    async def update() -> None:
        async with connected(answer) as (connection, _):
            store = RecordStore(JetStream(connection), "CDC", RECORD, 7)
            with pytest.raises(SinkUnavailable) as caught:
                await store.update(last_seq=1)
            assert (type(caught.value), caught.value.code, caught.value.what) == (kind, "WB223", words)
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


def test_a_record_that_no_message_can_carry_is_refused_with_words() -> None:
    async def update() -> None:
        async with connected(lambda _: refusal(10077)) as (connection, published):
            store = RecordStore(JetStream(connection), "CDC", RECORD, 7)
            with pytest.raises(ConfigError, match="more than a message may have") as caught:
                await store.update(tables=tuple(f"table_{i:060}" for i in range(20_000)))
            assert (caught.value.code, store.record, published) == ("WB244", RECORD, [])
            assert "20,000 tables" in caught.value.means

    trio.run(update)
