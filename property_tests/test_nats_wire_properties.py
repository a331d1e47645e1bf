"""The NATS parser reads the same however the bytes are split, as nats-py does, and refuses what is not NATS."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.protocol.parser import Parser

from actors.errors import MalformedMessage
from actors.wire.nats import (
    Err,
    Info,
    Msg,
    NatsParser,
    Ok,
    Ping,
    Pong,
    checked_subject,
    encode_headers,
    encode_pub,
)

subjects = st.text("abcXYZ019$_-=/", min_size=1, max_size=10).map(str.encode)
payloads = st.binary(max_size=50)
header_blocks = st.sampled_from([b"NATS/1.0\r\nA: b\r\n\r\n", b"NATS/1.0 503\r\n\r\n"])


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from("MHPQOEI"))
    subject, sid, payload = draw(subjects), draw(st.integers(1, 999)), draw(payloads)
    reply = draw(st.one_of(st.just(b""), subjects.map(lambda s: s + b" ")))
    if kind == "M":
        return b"MSG %b %d %b%d\r\n%b\r\n" % (subject, sid, reply, len(payload), payload)
    if kind == "H":
        block = draw(header_blocks)
        return b"HMSG %b %d %b%d %d\r\n%b%b\r\n" % (
            subject, sid, reply, len(block), len(block) + len(payload), block, payload
        )  # fmt: skip
    return {"P": b"PING\r\n", "Q": b"PONG\r\n", "O": b"+OK\r\n", "E": b"-ERR 'Stale Connection'\r\n",
            "I": b'INFO {"version":"2.15.1","headers":true}\r\n'}[kind]  # fmt: skip


def feed(pieces: list[bytes]) -> list[object]:
    parser = NatsParser()
    return [event for piece in pieces for event in parser.feed(piece)]


@given(st.lists(frames(), max_size=8), st.lists(st.integers(1, 40), max_size=30))
def test_any_split_of_the_bytes_reads_alike(parts, sizes):
    data = b"".join(parts)
    pieces, at = [], 0
    for size in sizes:
        pieces.append(data[at : at + size])
        at += size
    assert feed([*pieces, data[at:]]) == feed([data])
    assert len(feed([data])) == len(parts)


class Recorder:
    """What nats-py's parser calls on a client."""

    def __init__(self) -> None:
        self.events: list[object] = []

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
        self.events.append(Msg(bytes(subject), sid, bytes(reply or b""), bytes(headers or b""), bytes(payload)))

    async def _process_ping(self) -> None:
        self.events.append(Ping())

    async def _process_pong(self) -> None:
        self.events.append(Pong())

    async def _process_err(self, text: str) -> None:
        self.events.append(Err("Stale Connection"))

    async def _process_info(self, info: dict[str, object]) -> None:
        self.events.append(Info(info))


@given(st.lists(frames(), max_size=8))
def test_nats_py_reads_the_same(parts):
    data = b"".join(part for part in parts if not part.startswith(b"+OK"))

    async def oracle() -> list[object]:
        recorder = Recorder()
        await Parser(recorder).parse(data)
        return recorder.events

    assert feed([data]) == asyncio.run(oracle())


@pytest.mark.parametrize("bad", [
    b"HELLO\r\n", b"MSG a\r\n", b"MSG a 1 99999999999999\r\n", b"HMSG a 1 10 5\r\n12345\r\n", b"MSG a 1 2\r\nabcd\r\n",
    b"INFO {\r\n", b"MSG a x 1\r\nb\r\n", b"x" * 70_000, b"MSG a 1 -5\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n",
])  # fmt: skip
def test_what_is_not_nats_is_refused(bad):
    with pytest.raises(MalformedMessage):
        feed([bad])


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_waits_for_more(data):
    try:
        for event in feed([data]):
            assert isinstance(event, Msg | Info | Ping | Pong | Ok | Err)
    except MalformedMessage:
        pass


@pytest.mark.parametrize("subject", ["", ".", "a..b", "a b", "a\r\nPUB x 0", "a.", ".a", "a\tb", "a\0"])
def test_illegal_subjects_are_refused(subject):
    with pytest.raises(ValueError, match="subject"):
        checked_subject(subject)


@given(st.text(max_size=10), st.text(max_size=10))
def test_headers_cannot_break_the_frame(name, value):
    try:
        block = encode_headers({name: value})
    except ValueError:
        return
    assert block.count(b"\r\n") == 3
    assert encode_pub(b"a", b"", b"x", {name: value}).endswith(b"x\r\n")
