"""publisher: sends batches to JetStream, each at its place in the stream, within a window of unacknowledged messages."""

from __future__ import annotations

import secrets
import time
from collections import deque
from functools import partial
from typing import Literal, NamedTuple

from actors.batches.joining import BatchSize, joined
from actors.channels import Receiver, Sender
from actors.clients.nats.acknowledgements import Acknowledgements
from actors.clients.nats.connection import NatsConnection
from actors.messages import Batch, SentBatch
from actors.telemetry.telemetry import Telemetry
from actors.wire.jetstream import MSG_ID_HEADER, OWN_MSG_ID_HEADER, frame_atomic_batch, frame_fast_batch, frame_plain

FLOW = 500
"""The server is asked to acknowledge every so many messages of a fast batch, 500 at most. It need not follow a batch's size:
the last message of each batch commits it, and the acknowledgement of that one counts for all before it."""


SINGLES_MAX = 32
"""An atomic batch costs nats-server as much as some hundred single messages, but ten if it syncs each one (`always`)."""


class Window(NamedTuple):
    """How much may be unacknowledged. Bounds memory here and in the server's ingest queue."""

    messages_max: int = 8_000
    bytes_max: int = 16 * 1024 * 1024
    join: BatchSize | None = None
    """If set, batches that wait are joined up to this size, and a small batch waits until nothing is in flight.

    An atomic batch costs the server some milliseconds, whatever its size: so the busier it is, the larger they become.
    """

    def admits(self, batch: Batch, messages: int, bytes_: int) -> bool:
        """Return whether a batch may be sent while so much is in flight."""
        if self.join is not None and not self.join.is_half_full(batch):
            return not messages
        return messages < self.messages_max and bytes_ + batch.size_bytes <= self.bytes_max


def durable_window(size: BatchSize) -> Window:
    """Return the window for atomic batches: up to four full ones."""
    return Window(messages_max=3 * size.messages_max, bytes_max=4 * size.bytes_max, join=size)


class Publisher:
    """Frames batches for one stream. Its only state is the last sequence."""

    def __init__(
        self, mode: Literal["fast", "durable", "plain"], reply_prefix: bytes, last_seq: int, remembered: int = 0
    ) -> None:
        """`remembered`: of so many messages, the first ones, JetStream may remember the ids although it holds them no more."""
        self.last_seq = last_seq
        self._remembered = remembered
        self._mode, self._reply_prefix = mode, reply_prefix
        # the server keeps an unfinished batch for 10 s: a later batch must not have the same id
        self._unique = secrets.token_hex(4).encode()

    def frames(self, batch: Batch) -> bytes:
        """Return the bytes that publish a batch right after the previous one."""
        before = self.last_seq
        self.last_seq += len(batch.messages)
        id_header = MSG_ID_HEADER
        if self._remembered > 0:
            self._remembered -= len(batch.messages)
            id_header = OWN_MSG_ID_HEADER
        batch_id = b"%d-%b" % (self.last_seq, self._unique)
        if self._mode == "durable" and not _needs_no_atomic_batch(batch):
            return frame_atomic_batch(batch.messages, self._reply_prefix, batch_id, before, id_header)
        if self._mode == "fast":
            return frame_fast_batch(batch.messages, self._reply_prefix, batch_id, FLOW, before, id_header)
        return frame_plain(batch.messages, self._reply_prefix, before, id_header)


def _needs_no_atomic_batch(batch: Batch) -> bool:
    """Return whether each transaction is one message, and there are so few that they cost the server less one by one."""
    messages = len(batch.messages)
    return messages == 1 or (messages == batch.transactions and messages <= SINGLES_MAX)


async def publish_batches(
    batches_in: Receiver[Batch],
    published_out: Sender[SentBatch],
    connection: NatsConnection,
    publisher: Publisher,
    acks: Acknowledgements,
    window: Window,
    telemetry: Telemetry,
) -> None:
    """Send each batch once there is room in the window, after handing it to the acker.

    Owns both channel ends; ends when `batches_in` ends, with acknowledgements still to come.
    Raises SinkUnavailable when NATS is away, SinkFenced when another writer has published first.
    """
    in_flight: deque[tuple[int, int]] = deque()  # (last sequence, bytes) of unacknowledged batches, oldest first
    bytes_in_flight = 0
    with batches_in, published_out:
        async for batch in batches_in:
            first_unsent = publisher.last_seq
            while True:
                stored = acks.stored_seq.value
                while in_flight and in_flight[0][0] <= stored:
                    bytes_in_flight -= in_flight.popleft()[1]
                batch = _with_waiting(batch, batches_in, window)  # noqa: PLW2901
                room = not in_flight or window.admits(batch, first_unsent - stored, bytes_in_flight)
                if room and (acks.failure is None or not in_flight):
                    break
                await acks.beyond(stored)
            data = publisher.frames(batch) if batch.messages else b""
            await published_out.send(SentBatch(batch, publisher.last_seq, time.time()), 1)
            if data:
                in_flight.append((publisher.last_seq, batch.size_bytes))
                bytes_in_flight += batch.size_bytes
                telemetry.sent_seq = publisher.last_seq
                telemetry.sent_bytes += batch.size_bytes
                await connection.send(data)
                telemetry.published_bytes += len(data)
            if batch.end_lsn:
                telemetry.published_lsn = batch.end_lsn


def _with_waiting(batch: Batch, batches_in: Receiver[Batch], window: Window) -> Batch:
    """Return the batch with those that wait behind it, as far as they may be joined."""
    size = window.join
    while size is not None:
        following = batches_in.take_if(partial(size.can_join, batch))
        if following is None:
            break
        batch = joined(batch, following)
    return batch
