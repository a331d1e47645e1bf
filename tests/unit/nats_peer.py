"""The other end of a NATS connection, in memory: a real client over a pair of streams, and answers that a test gives."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

import trio
from trio.testing import memory_stream_pair

from actors.clients.nats.auth import ServerAddress
from actors.clients.nats.connection import NatsConnection
from actors.wire.nats import NatsParser, decode_headers


class Published(NamedTuple):
    """What the client sent."""

    subject: str
    headers: dict[str, str]
    body: bytes


Answer = Callable[[Published], bytes | None]
"""The payload of the reply; None for silence."""
NO_RESPONDERS = b"NATS/1.0 503\r\n\r\n"


@asynccontextmanager
async def connected(answer: Answer) -> AsyncGenerator[tuple[NatsConnection, list[Published]]]:
    """A connection whose publishes are answered, and the list of them. `NO_RESPONDERS` goes out as headers alone."""
    ours, theirs = memory_stream_pair()
    published: list[Published] = []
    connection = NatsConnection(
        ours, ServerAddress("peer", 4222), {"max_payload": 1 << 20, "version": "2.15.1", "jetstream": True}, set()
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection._read, NatsParser())
        nursery.start_soon(_serve, theirs, answer, published)
        yield connection, published
        nursery.cancel_scope.cancel()


async def _serve(stream: trio.abc.Stream, answer: Answer, published: list[Published]) -> None:
    buffer = b""
    sids: dict[bytes, bytes] = {}
    while True:
        buffer += await stream.receive_some()
        while b"\r\n" in buffer:
            line, _, rest = buffer.partition(b"\r\n")
            word, *fields = line.split(b" ")
            if word == b"SUB":
                subject, sid = fields
                sids[subject.removesuffix(b">")] = sid
                buffer = rest
                continue
            assert word in (b"PUB", b"HPUB"), line
            header_size = int(fields[-2]) if word == b"HPUB" else 0
            total = int(fields[-1])
            if len(rest) < total + 2:
                break
            block, body, buffer = rest[:header_size], rest[header_size:total], rest[total + 2 :]
            message = Published(fields[0].decode(), decode_headers(block), body)
            published.append(message)
            reply_to = fields[1] if len(fields) > (3 if word == b"HPUB" else 2) else b""
            payload = answer(message)
            if reply_to and payload is not None:
                sid = next(sid for prefix, sid in sids.items() if reply_to.startswith(prefix))
                if payload == NO_RESPONDERS:
                    frame = b"HMSG %b %b %d %d\r\n%b\r\n" % (reply_to, sid, len(payload), len(payload), payload)
                else:
                    frame = b"MSG %b %b %d\r\n%b\r\n" % (reply_to, sid, len(payload), payload)
                await stream.send_all(frame)
