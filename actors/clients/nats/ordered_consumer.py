"""Reads a stream's messages from a sequence on, in order, each once, no faster than the reader takes them.

An ordered consumer as in ADR-17 of nats-architecture-and-design, but pulling: the reader's own pace is the flow control. The
consumer keeps no position: the reader remembers the sequence, and creates a new consumer from there after any fault.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import orjson
import trio
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, ReplayPolicy

from actors.clients.nats.jetstream import JetStream
from actors.errors import SinkUnavailable
from actors.wire.api_subjects import ACK_PREFIX
from actors.wire.jetstream import LAST_CONSUMER_HEADER, PENDING_MESSAGES_HEADER
from actors.wire.nats import Msg, decode_headers, encode_pub

BATCH = 2_000
"""Messages requested at a time; at most twice as many wait here."""
BATCH_BYTES = 8 * 1024 * 1024
EXPIRES_S = 30.0
HEARTBEAT_S = 5.0
SILENCE_S = 3 * HEARTBEAT_S
INACTIVE_S = 300.0
NOTHING: Mapping[str, str] = {}
_ENDS_OF_PULLS = (b"axBytes", b"Batch Completed")
"""The end of a pull: the next message would exceed the byte limit, or the pull is complete."""


class Delivered(NamedTuple):
    """One message."""

    subject: str
    seq: int
    """The stream's sequence."""
    headers: bytes
    """The raw header block."""
    payload: bytes
    stored_at: bytes = b"0"
    """When JetStream stored it, in nanoseconds since 1970 UTC, as decimal digits."""


class OrderedConsumer:
    """An open consumer, from `open_consumer`. For one task."""

    def __init__(self, js: JetStream, stream: str, name: str, bytes_max: int) -> None:
        self._js, self._stream, self._name = js, stream, name
        self._next = js.connection.api.next_message(stream, name).encode()
        self._inbox = b""
        self._waiting: list[Delivered] = []
        self._news = trio.Event()
        self._asked = 0  # messages that the server may still send
        self._consumer_seq = 0
        self._pending = b""
        self._fault = ""
        self._bytes_max = bytes_max
        self._heard = trio.current_time()
        self._pulls = 0
        self._config: dict[str, object] = {}

    async def describe(self, metadata: Mapping[str, str]) -> None:
        """Give the consumer other metadata, which whoever lists consumers sees. Raises SinkUnavailable."""
        await self._js.update_consumer(self._stream, {**self._config, "metadata": dict(metadata)})

    @property
    def is_at_end(self) -> bool:
        """Whether every message was taken that the stream had when it sent the last one."""
        return not self._waiting and self._pending == b"0"

    async def receive(self, within_s: float) -> list[Delivered]:
        """Return all waiting messages in order; none after `within_s`. Raises SinkUnavailable when the consumer is lost."""
        if not self._waiting:
            await self._pull()
            with trio.move_on_after(within_s):
                while not self._waiting and not self._fault:
                    self._news = trio.Event()
                    await self._news.wait()
                    if not self._waiting:
                        await self._pull()
        else:
            await trio.lowlevel.checkpoint()
        if self._fault:
            raise self._lost(self._fault)
        if not self._waiting and self._asked and trio.current_time() - self._heard > SILENCE_S:
            raise self._lost(f"no message and no heartbeat for {SILENCE_S:g} s")
        taken, self._waiting = self._waiting, []
        if taken:
            self._heard = trio.current_time()
        await self._pull()
        return taken

    async def _pull(self) -> None:
        """Request more once less than half of a batch is to come. Called only when no messages wait, which bounds memory."""
        if self._asked > BATCH // 2 or self._fault:
            return
        self._asked += BATCH
        self._pulls += 1
        request = {
            "batch": BATCH,
            "max_bytes": self._bytes_max,
            "expires": int(EXPIRES_S * 1e9),
            "idle_heartbeat": int(HEARTBEAT_S * 1e9),
        }
        if self._asked == BATCH:  # nothing was to come: silence counts from now on
            self._heard = trio.current_time()
        frame = encode_pub(self._next, b"%b.%d" % (self._inbox, self._pulls), orjson.dumps(request), None)
        await self._js.connection.send(frame)

    def _on_message(self, message: Msg) -> None:
        """Handle a message, in the connection's reading task."""
        try:
            if message.reply.startswith(ACK_PREFIX):
                self._deliver(message)
            else:
                self._heard = trio.current_time()
                self._on_status(message)
        except (ValueError, IndexError) as exc:
            self._fault = f"the server sent {message.reply[:200]!r} with headers {message.headers[:200]!r}: {exc}"
        self._news.set()

    def _deliver(self, message: Msg) -> None:
        # $JS.ACK.<stream>.<consumer>.<deliveries>.<stream seq>.<consumer seq>.<time>.<pending>; newer servers may put
        # <domain>.<account> before the stream and something after the rest
        parts = message.reply.split(b".")
        place = 5 if len(parts) == 9 else 7
        seq, consumer_seq, stored_at, pending = int(parts[place]), int(parts[place + 1]), parts[place + 2], parts[place + 3]
        if consumer_seq != self._consumer_seq + 1:
            self._fault = f"message {self._consumer_seq + 1} is missing before {consumer_seq}"
            return
        self._consumer_seq = consumer_seq
        self._asked -= 1
        self._pending = pending
        # anybody may publish on subjects that are no UTF-8
        subject = message.subject.decode("utf-8", "replace")
        self._waiting.append(Delivered(subject, seq, message.headers, message.payload, stored_at))

    def _on_status(self, message: Msg) -> None:
        status, headers = message.status, decode_headers(message.headers)
        if status == 100:
            if int(headers.get(LAST_CONSUMER_HEADER, self._consumer_seq)) > self._consumer_seq:
                self._fault = f"messages up to {headers[LAST_CONSUMER_HEADER]} were sent but did not arrive"
        elif status in (404, 408) or (status == 409 and any(words in message.headers for words in _ENDS_OF_PULLS)):
            self._asked = max(0, self._asked - int(headers.get(PENDING_MESSAGES_HEADER, self._asked)))
        else:
            self._fault = message.headers.split(b"\r\n", 1)[0].decode("utf-8", "replace")

    def _lost(self, said: str) -> SinkUnavailable:
        return SinkUnavailable(
            "WB214",
            f"the consumer of stream {self._stream} is lost",
            said=said,
            means="creating a new consumer from the same sequence",
        )


@asynccontextmanager
async def open_consumer(
    js: JetStream, stream: str, filters: Sequence[str], start_seq: int, metadata: Mapping[str, str] = NOTHING
) -> AsyncGenerator[OrderedConsumer]:
    """Read the messages on `filters` (subjects with wildcards) from `start_seq` on. The consumer ends with the body.

    `metadata`: what the consumer says about its reader.

    Raises SinkUnavailable when the consumer cannot be created.
    """
    name = "walbridge-" + secrets.token_hex(8)
    consumer = OrderedConsumer(js, stream, name, max(BATCH_BYTES, 2 * js.connection.max_payload))
    consumer._inbox = await js.connection.inbox(consumer._on_message)
    config = ConsumerConfig(
        name=name,
        deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
        opt_start_seq=start_seq,
        ack_policy=AckPolicy.NONE,
        replay_policy=ReplayPolicy.INSTANT,
        filter_subjects=list(filters),
        mem_storage=True,
        num_replicas=1,
        inactive_threshold=INACTIVE_S,
    )
    consumer._config = config.as_dict()
    created = await js.create_consumer(stream, {**consumer._config, **({"metadata": dict(metadata)} if metadata else {})})
    consumer._pending = str(created.get("num_pending", -1)).encode()
    try:
        yield consumer
    finally:
        # otherwise the consumer ends by itself after some minutes
        with trio.move_on_after(1) as ending:
            ending.shield = True
            try:
                await js.delete_consumer(stream, name)
            except SinkUnavailable:
                pass
