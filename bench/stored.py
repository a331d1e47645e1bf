"""What JetStream has stored, and when: read with nats-py, which has no part in the bridge."""

from __future__ import annotations

import datetime
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgpack
import nats
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError

STREAM, EVENTS, ROWS = "CDC", "cdc.>", "cdc.*.insert"
OPERATIONS = ("insert", "update", "delete")
ANSWER_S = 30.0


class StoredRows:
    """The row events of the CDC stream. Made by `open_stored`, which owns the connection."""

    def __init__(self, client: Client) -> None:
        self._client, self._js = client, client.jetstream(timeout=ANSWER_S)

    async def count(self) -> int:
        """How many messages there are now; 0 also before the bridge has made the stream."""
        try:
            info = await self._js.stream_info(STREAM, subjects_filter=EVENTS)
        except NotFoundError:
            return 0
        subjects = (info.state.subjects or {}).items()
        return sum(count for subject, count in subjects if subject.rpartition(".")[2] in OPERATIONS)

    async def span(self) -> tuple[float, float]:
        """When the first and the last one were stored, in seconds since 1970."""
        firsts, lasts = list[float](), list[float]()
        for operation in OPERATIONS:
            try:
                first = await self._js.get_msg(STREAM, seq=1, subject=f"cdc.*.{operation}", next=True)
                last = await self._js.get_last_msg(STREAM, f"cdc.*.{operation}")
            except NotFoundError:
                continue
            assert isinstance(first.time, datetime.datetime)
            assert isinstance(last.time, datetime.datetime)
            firsts.append(first.time.timestamp())
            lasts.append(last.time.timestamp())
        return min(firsts), max(lasts)

    async def commits(self) -> Sequence[tuple[float, float]]:
        """(when it was committed, when it was stored) of every one, in stream order, in seconds since 1970.

        One pull request for many messages at a time: nats-py's own fetch() costs several times as much a message.
        """
        consumer = await self._js.add_consumer(STREAM, ConsumerConfig(
            ack_policy=AckPolicy.NONE, deliver_policy=DeliverPolicy.ALL, filter_subject=ROWS, mem_storage=True))  # fmt: skip
        waiting, found = consumer.num_pending or 0, list[tuple[float, float]]()
        inbox = self._client.new_inbox()
        messages = await self._client.subscribe(inbox, pending_msgs_limit=0, pending_bytes_limit=0)
        while waiting:
            batch = min(waiting, 5_000)
            request = json.dumps({"batch": batch, "expires": int(ANSWER_S * 1e9)}).encode()
            await self._client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{consumer.name}", request, reply=inbox)
            for _ in range(batch):
                message = await messages.next_msg(timeout=ANSWER_S)
                # $JS.ACK.<stream>.<consumer>.<deliveries>.<stream sequence>.<consumer sequence>.<stored at, ns>.<pending>
                stored_ns = int(message.reply.split(".")[-2])
                commit_us: int = msgpack.unpackb(message.data)["commit_ts"]
                found.append((commit_us / 1e6, stored_ns / 1e9))
            waiting -= batch
        return found


@asynccontextmanager
async def open_stored(url: str) -> AsyncIterator[StoredRows]:
    """Connect to a nats-server and disconnect at the end."""
    client = await nats.connect(url, allow_reconnect=False)
    try:
        yield StoredRows(client)
    finally:
        await client.close()
