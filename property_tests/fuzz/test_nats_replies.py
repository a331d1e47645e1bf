"""Whatever a NATS server, or something in its place, sends, the only errors are typed ones."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import orjson
import trio
from hypothesis import given
from hypothesis import strategies as st

from actors.clients.nats.connection import NatsConnection
from actors.clients.nats.jetstream import JetStream
from actors.clients.nats.ordered_consumer import OrderedConsumer
from actors.contract.bridge_record import BridgeRecord
from actors.contract.publication import KnownTable, KnownType
from actors.contract.stream_view import StreamView
from actors.errors import WalbridgeError
from actors.positions import Lsn, Position
from actors.wire.api_subjects import OWN
from actors.wire.jetstream import Duplicate, Progress, Refused, Stored, parse_publish_reply
from actors.wire.nats import Msg, NatsParser
from property_tests.fuzz.hostile import VALUES, broken_bytes, broken_documents

MESSAGE = {"message": {"subject": "$KV.bridges.CDC", "seq": 7, "data": base64.b64encode(b"{}").decode(), "time": "2026-01-01T00:00:00Z",
                       "hdrs": base64.b64encode(b"NATS/1.0\r\nKV-Operation: DEL\r\n\r\n").decode()}}  # fmt: skip
STREAM = {"config": {"name": "CDC", "subjects": ["cdc.>"], "max_bytes": -1, "num_replicas": 1}, "created": "2026-01-01T00:00:00Z",
          "state": {"messages": 3, "bytes": 300, "first_seq": 1, "last_seq": 5, "num_deleted": 2, "deleted": [2, 3],
                    "subjects": {"cdc.users.insert": 3}}, "total": 1}  # fmt: skip
REPLIES = [
    MESSAGE, STREAM, {"error": {"code": 404, "err_code": 10037, "description": "no message found"}}, {"success": True, "purged": 3},
    {"error": {"code": 503, "err_code": 10039, "description": "JetStream not enabled for account"}}, {"seq": 9, "stream": "CDC"},
    {"consumers": [{"name": "c", "num_pending": 3}]}, {"name": "c", "num_pending": 3}, {"streams": ["CDC"]},
    {"limits": {"max_storage": -1}, "tier": {}},
]  # fmt: skip
QUESTIONS: dict[str, Callable[[JetStream], Awaitable[object]]] = {
    "account": lambda js: js.account(),
    "stream": lambda js: js.stream_info("CDC"),
    "consumers": lambda js: js.consumers("CDC"),
    "streams taking": lambda js: js.streams_taking("cdc.>"),
    "message": lambda js: js.get_message("CDC", seq=7),
    "subjects": lambda js: js.subjects_of("REQUESTS", ">"),
    "publish": lambda js: js.publish("cdc.x", b""),
    "get": lambda js: js.kv_get("bridges", "CDC"),
    "keys": lambda js: js.keys_of("bridges"),
    "put": lambda js: js.kv_put("bridges", "CDC", b"", 0),
    "consumer": lambda js: js.create_consumer("CDC", {"name": "c"}),
}


def answered(replies: list[bytes], question: Callable[[JetStream], Awaitable[object]]) -> object:
    """Ask a JetStream that gives these replies, one after another, then the last of them for ever."""
    asked = 0

    async def request(*_: object, **__: object) -> Msg:
        nonlocal asked
        asked += 1
        assert asked < 200, "it asks for ever"
        await trio.lowlevel.checkpoint()
        return Msg(b"_INBOX.x", 1, b"", b"", replies[min(asked, len(replies)) - 1])

    async def main() -> object:
        return await question(JetStream(cast(NatsConnection, SimpleNamespace(request=request, max_payload=1 << 20, api=OWN))))

    return trio.run(main)


@given(st.sampled_from(sorted(QUESTIONS)), st.lists(broken_documents(REPLIES) | VALUES, min_size=1, max_size=2))
def test_any_json_in_reply_is_read_or_refused(name: str, documents: list[Any]) -> None:
    try:
        answered(
            [orjson.dumps(document, default=str, option=orjson.OPT_NON_STR_KEYS) for document in documents], QUESTIONS[name]
        )
    except WalbridgeError:
        pass


@given(broken_documents([STREAM]))
def test_any_description_of_a_stream_is_read_or_refused(document: Any) -> None:
    try:
        found = answered([orjson.dumps(document)], QUESTIONS["stream"])
        StreamView.of(cast(dict[str, Any], found))
    except WalbridgeError:
        pass


ACKNOWLEDGED = [
    b'{"stream":"CDC","seq":22}', b'{"type":"ack","seq":3}', b'{"type":"gap","last_seq":3,"seq":5}',
    b'{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 5"},"stream":"CDC","seq":0}',
    b'{"stream":"CDC","seq":22,"duplicate":true}', b'{"stream":"CDC","seq":24,"batch":"24-abcd","count":3}',
]  # fmt: skip


@given(broken_bytes([b"in.22", b"in.24-abcd.500.fail.3.2.$FI"]), broken_bytes([b"", b"NATS/1.0 503\r\n\r\n"]),
       broken_bytes(ACKNOWLEDGED) | broken_documents([orjson.loads(reply) for reply in ACKNOWLEDGED]).map(orjson.dumps))  # fmt: skip
def test_only_a_clear_answer_counts_as_stored(subject: bytes, headers: bytes, payload: bytes) -> None:
    reply = parse_publish_reply(Msg(subject, 1, b"", headers, payload), b"in")
    assert isinstance(reply, (Stored, Progress, Refused, Duplicate))
    if isinstance(reply, Stored):
        assert type(reply.seq) is int
        assert reply.seq > 0


DELIVERED = [
    Msg(b"cdc.t.insert", 1, b"$JS.ACK.CDC.walbridge-1.1.7.1.1700000000.0", b"NATS/1.0\r\nNats-Msg-Id: 1-0-t-insert\r\n\r\n", b"x"),
    Msg(b"cdc.t.insert", 1, b"$JS.ACK.hub.acc.CDC.walbridge-1.1.7.1.1700000000.0.x", b"", b"x"),
    Msg(b"in.1", 1, b"", b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 0\r\n\r\n", b""),
    Msg(b"in.1", 1, b"", b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 1\r\nNats-Pending-Bytes: 0\r\n\r\n", b""),
    Msg(b"in.1", 1, b"", b"NATS/1.0 409 Message Size Exceeds MaxBytes\r\nNats-Pending-Messages: 1\r\n\r\n", b""),
]  # fmt: skip


@given(st.lists(st.sampled_from(DELIVERED).flatmap(lambda m: st.tuples(
    broken_bytes([m.subject]) | st.just(m.subject), broken_bytes([m.reply]) | st.just(m.reply),
    broken_bytes([m.headers]) | st.just(m.headers), st.just(m.payload))), min_size=1, max_size=4))  # fmt: skip
def test_whatever_a_consumer_is_sent_is_delivered_in_order_or_ends_it(parts: list[tuple[bytes, bytes, bytes, bytes]]) -> None:
    async def send(_: bytes) -> None: ...

    async def main() -> None:
        js = cast(JetStream, SimpleNamespace(connection=SimpleNamespace(send=send, api=OWN)))
        consumer = OrderedConsumer(js, "CDC", "c", 1 << 20)
        for subject, reply, headers, payload in parts:
            consumer._on_message(Msg(subject, 1, reply, headers, payload))
        try:
            for message in await consumer.receive(0):
                assert type(message.seq) is int
        except WalbridgeError:
            pass

    trio.run(main)


FRAMES = [
    b'INFO {"server_id":"x","max_payload":1048576,"headers":true,"jetstream":true}\r\nPING\r\n', b"-ERR 'Permissions Violation'\r\n",
    b"MSG a.b 1 5\r\nhello\r\nPONG\r\n", b"HMSG a.b 1 r.1 12 17\r\nNATS/1.0\r\n\r\nhello\r\n+OK\r\n",
]  # fmt: skip


@given(st.lists(broken_bytes(FRAMES), min_size=1, max_size=4))
def test_a_server_that_does_not_speak_nats_is_refused_and_fills_no_memory(blocks: list[bytes]) -> None:
    parser = NatsParser(payload_max=1 << 20)
    try:
        for block in blocks:
            parser.feed(block)
            assert len(parser._buffer) <= (1 << 20) + 65_536 + 200
    except WalbridgeError:
        pass


RECORD = orjson.loads(
    BridgeRecord("slot", "pub", "1", 1, ((1, Lsn(5)),), Position(Lsn(9), 1, 2), 5, Lsn(8), {"t": 1}, ("t",)).encode()
)
KNOWN = orjson.loads(KnownTable(1, "d", 2, 3, (KnownType(4, 2, "x"),), 5, "v", 6, {"a": 1}).encode())


@given(broken_documents([RECORD]).map(orjson.dumps) | broken_bytes([orjson.dumps(RECORD)]))
def test_a_record_that_no_bridge_wrote_is_refused(data: bytes) -> None:
    try:
        BridgeRecord.decode(data, "CDC").encode()
    except WalbridgeError:
        pass


@given(broken_documents([KNOWN]).map(orjson.dumps) | broken_bytes([orjson.dumps(KNOWN)]))
def test_an_entry_that_no_bridge_wrote_is_none_or_can_be_written_again(data: bytes) -> None:
    known = KnownTable.decode(data)
    if known is not None:
        known.encode()
