"""Atomic batches without a bridge: what nats-server itself takes, from frames that are made beforehand."""

from __future__ import annotations

import asyncio
import json
import time

import nats

from actors.embedded.nats import NatsServer
from actors.startup.streams import cdc_config
from actors.wire.jetstream import OutMessage, frame_atomic_batch

MESSAGES, IN_FLIGHT, BODY = 1_000, 4, b"x" * 268
"""A body is as large as an event of the table that the benchmark writes."""


def publish_batches(server: NatsServer, batches: int) -> float:
    """Publish batches of 1,000 messages, four in flight; return messages per second."""
    return asyncio.run(_publish(server, batches))


async def _publish(server: NatsServer, batches: int) -> float:
    client = await nats.connect(server.url)
    created = await client.request("$JS.API.STREAM.CREATE.CDC", json.dumps(cdc_config("CDC", 1, (2, 15, 0)).as_dict()).encode())
    await client.close()
    assert "error" not in json.loads(created.data), created.data
    frames = [
        frame_atomic_batch(
            [OutMessage(b"cdc.bench.insert", b"%x-%d-bench-insert" % (first, i), BODY) for i in range(MESSAGES)],
            b"_INBOX.b", b"%d-raw" % first, first,
        )
        for first in range(0, batches * MESSAGES, MESSAGES)
    ]  # fmt: skip
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 20)
    writer.write(b'CONNECT {"headers":true,"verbose":false}\r\nSUB _INBOX.b.> 1\r\nPING\r\n')
    while await reader.readline() != b"PONG\r\n":
        pass
    began, in_flight = time.monotonic(), 0
    for frame in [*frames, *[b""] * IN_FLIGHT]:
        if in_flight == IN_FLIGHT or not frame:
            await _acknowledged(reader, writer)
            in_flight -= 1
        if frame:
            writer.write(frame)
            await writer.drain()
            in_flight += 1
    elapsed_s = time.monotonic() - began
    writer.close()
    return batches * MESSAGES / elapsed_s


async def _acknowledged(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while not (line := await reader.readline()).startswith(b"MSG "):
        if line == b"PING\r\n":
            writer.write(b"PONG\r\n")
    reply = json.loads(await reader.readexactly(int(line.split()[-1]) + 2))
    if "error" in reply:
        raise RuntimeError(reply["error"])
