"""replication_reader: reads the replication stream and hands on blocks of raw messages."""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from typing import NamedTuple

import trio

from actors.channels import Sender
from actors.clients.postgres.replication import HUGE_BYTES, ReplicationStream
from actors.feedback import Feedback
from actors.messages import Block, RawMessage
from actors.positions import Lsn
from actors.process import return_free_memory
from actors.telemetry.log import get_logger
from actors.telemetry.telemetry import Telemetry

log = get_logger("replication_reader")

BLOCK_MESSAGES_MAX = 1000
BLOCK_BYTES_MAX = 256 * 1024
RENEW_AFTER_S = 10.0
"""Time after the last huge message before the buffer is given back: more may follow."""
RETRY_RENEW_S = 60.0
_KEEPALIVE, _XLOGDATA, _COMMIT = ord("k"), ord("w"), ord("C")
_keepalive = struct.Struct(">Qqb").unpack_from  # WAL end, send time, reply requested
_wal_end = struct.Struct(">Q").unpack_from
NEVER = float("inf")
_COMMIT_END = 35  # offset of the transaction's end


class Place(NamedTuple):
    """Where a transaction ends: PostgreSQL can continue from there on a new connection."""

    lsn: Lsn
    messages: int
    """Of the block, those up to and including the transaction's end."""


class LargeBuffer:
    """Decides when to give back the buffer that a huge message has left libpq with. No I/O, no trio.

    Only a new connection gives the memory back, so it is done when no more such messages come, and between two transactions.
    """

    def __init__(self) -> None:
        self.due_at = NEVER
        """On trio's clock; NEVER while there is no such buffer."""
        self._end: Lsn | None = None  # of the last transaction, if no other has begun

    def grown(self, now: float) -> None:
        """Note that a huge message has come, within a transaction."""
        self.due_at, self._end = now + RENEW_AFTER_S, None

    def passed(self, messages: Sequence[RawMessage], now: float) -> Place | None:
        """Take note of a block that is not handed on yet; return where to go over to a new connection, if it is time."""
        if sum(map(len, messages)) > HUGE_BYTES:
            self.grown(now)
        data = [i for i, message in enumerate(messages) if message[0] == _XLOGDATA]
        ends = [i for i in data if messages[i][25] == _COMMIT]
        is_due = now >= self.due_at
        count = len(messages)
        if data:
            self._end = None
            if ends and (is_due or ends[-1] == data[-1]):
                self._end = Lsn(_wal_end(messages[ends[-1]], _COMMIT_END)[0])
                count = ends[-1] + 1
        return Place(self._end, count) if is_due and self._end is not None else None

    def paused(self) -> Place | None:
        """Return where to go over when nothing has come until `due_at`; None in the middle of a transaction."""
        return None if self._end is None else Place(self._end, 0)


async def read_blocks(
    stream: ReplicationStream, blocks_out: Sender[Block], feedback: Feedback, intake: trio.CancelScope, telemetry: Telemetry
) -> None:
    """Read blocks until `intake` is cancelled; the slot sends again what was not handed on by then.

    A block holds the messages that have arrived, up to its limits. Owns the channel end, whose closing ends the following
    stages one by one. Raises SourceUnavailable when the connection ends, Fatal when the slot can no longer be read.
    """
    large = LargeBuffer()

    async def hand_on(messages: list[RawMessage]) -> None:
        size_bytes = sum(map(len, messages))
        wal_end, reply_wanted = feedback.received, False
        for message in messages:
            if message[0] == _KEEPALIVE:
                sent_to, _, reply = _keepalive(message, 1)
                wal_end, reply_wanted = max(wal_end, Lsn(sent_to)), reply_wanted or reply == 1
        if messages[-1][0] != _KEEPALIVE:
            wal_end = max(wal_end, Lsn(_wal_end(messages[-1], 9)[0]))
        feedback.data_arrived(wal_end, reply_wanted=reply_wanted)
        telemetry.wal_messages_received += len(messages)
        telemetry.wal_bytes_received += size_bytes
        telemetry.received_lsn = wal_end
        telemetry.last_received_at = time.time()
        if size_bytes > HUGE_BYTES and stream.is_renewable:
            large.grown(trio.current_time())
        await blocks_out.send(Block(messages, size_bytes, wal_end), size_bytes)

    async def read_with_large_buffer() -> None:
        messages: list[RawMessage] = []
        with trio.move_on_at(large.due_at if trio.current_time() < large.due_at else NEVER):
            messages = await stream.read_block(BLOCK_MESSAGES_MAX, BLOCK_BYTES_MAX)
        place = large.passed(messages, trio.current_time()) if messages else large.paused()
        count = len(messages) if place is None else place.messages
        if count:
            await hand_on(messages[:count])
        if place is not None:
            if await stream.renew(place.lsn):
                large.due_at = NEVER
                return_free_memory()
                log.info("the buffer of a large message was given back: the stream continues on a new connection")
                return
            large.due_at = trio.current_time() + RETRY_RENEW_S
        if messages[count:]:
            await hand_on(messages[count:])

    with blocks_out, intake:
        while True:
            if large.due_at == NEVER:
                await hand_on(await stream.read_block(BLOCK_MESSAGES_MAX, BLOCK_BYTES_MAX))
            else:
                await read_with_large_buffer()
