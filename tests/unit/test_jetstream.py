"""JetStream's API, as it answers."""

from __future__ import annotations

import base64

import orjson
import pytest
import trio

from actors.clients.nats.connection import SinkRefused
from actors.clients.nats.jetstream import JetStream, JetStreamError
from actors.errors import SinkUnavailable
from tests.unit.nats_peer import NO_RESPONDERS, Published, connected


@pytest.mark.parametrize("err_code", [10071, 10164], ids=["alone", "replicated"])
def test_a_deleted_key_can_be_made_again(err_code: int) -> None:
    """The marker of its deletion is the subject's last message: a key that must not exist is written after it."""

    def answer(message: Published) -> bytes:
        if message.subject.startswith("$JS.API"):
            headers = base64.b64encode(b"NATS/1.0\r\nKV-Operation: DEL\r\n\r\n").decode()
            found = {"subject": "$KV.b.k", "seq": 41, "time": "2026-01-01T00:00:00Z", "hdrs": headers}
            return orjson.dumps({"message": found})
        if message.headers["Nats-Expected-Last-Subject-Sequence"] == "41":
            return b'{"stream":"KV_b","seq":42}'
        return orjson.dumps({"error": {"code": 400, "err_code": err_code, "description": "wrong last sequence"}})

    async def put() -> None:
        async with connected(answer) as (connection, _):
            assert await JetStream(connection).kv_put("b", "k", b"v", 0) == 42

    trio.run(put)


@pytest.mark.parametrize(
    ("reply", "kind", "code"),
    [
        (NO_RESPONDERS, SinkUnavailable, "WB211"),
        (b"{", SinkUnavailable, "WB212"),
        (b"[]", SinkUnavailable, "WB212"),
        (
            b'{"error":{"code":503,"err_code":10039,"description":"JetStream not enabled for account"}}',
            SinkRefused,
            "WB211",
        ),
        (b'{"error":{"code":503,"err_code":10008,"description":"temporarily unavailable"}}', JetStreamError, "WB210"),
        (b'{"error":{"code":400}}', JetStreamError, "WB210"),
    ],
)
def test_each_refusal_has_a_code(reply: bytes, kind: type[SinkUnavailable], code: str) -> None:
    async def ask() -> None:
        async with connected(lambda _: reply) as (connection, _):
            with pytest.raises(kind) as caught:
                await JetStream(connection).streams_taking("cdc.>")
            assert (type(caught.value), caught.value.code) == (kind, code)

    trio.run(ask)


def test_what_is_not_there_is_no_error() -> None:
    def answer(message: Published) -> bytes:
        err_code = 10037 if ".MSG.GET." in message.subject else 10059
        return orjson.dumps({"error": {"code": 404, "err_code": err_code, "description": "not found"}})

    async def ask() -> None:
        async with connected(answer) as (connection, _):
            js = JetStream(connection)
            assert await js.stream_info("CDC") is None
            assert await js.get_message("CDC", seq=1) is None
            assert await js.kv_get("b", "k") is None
            assert await js.kv_history("b", "k") == []
            assert await js.keys_of("b") == []
            await js.delete_stream("CDC")

    trio.run(ask)


def test_keys_are_read_page_by_page() -> None:
    pages = [["users", "sales/orders"], ["a.b"]]

    def answer(message: Published) -> bytes:
        asked = orjson.loads(message.body)
        assert (message.subject, asked["subjects_filter"]) == ("$JS.API.STREAM.INFO.KV_b", "$KV.b.>")
        page = pages[0] if asked["offset"] == 0 else pages[1]
        return orjson.dumps({"total": 3, "state": {"subjects": {f"$KV.b.{key}": 1 for key in page}}})

    async def ask() -> None:
        async with connected(answer) as (connection, _):
            assert await JetStream(connection).keys_of("b") == ["users", "sales/orders", "a.b"]

    trio.run(ask)
