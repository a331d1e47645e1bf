"""replication_reader: reads the replication stream and hands on blocks of raw messages."""

from __future__ import annotations

import struct
import time

import trio

from actors.channels import Sender
from actors.clients.postgres.replication import ReplicationStream
from actors.feedback import Feedback
from actors.messages import Block
from actors.positions import Lsn
from actors.telemetry.telemetry import Telemetry

BLOCK_MESSAGES_MAX = 1000
BLOCK_BYTES_MAX = 256 * 1024
_KEEPALIVE = ord("k")
_keepalive = struct.Struct(">Qqb").unpack_from  # WAL end, send time, reply requested
_wal_end = struct.Struct(">Q").unpack_from


async def read_blocks(
    stream: ReplicationStream, blocks_out: Sender[Block], feedback: Feedback, intake: trio.CancelScope, telemetry: Telemetry
) -> None:
    """Read blocks until `intake` is cancelled; the slot sends again what was not handed on by then.

    A block holds the messages that have arrived, up to its limits. Owns the channel end, whose closing ends the following
    stages one by one. Raises SourceUnavailable when the connection ends, Fatal when the slot can no longer be read.
    """
    with blocks_out, intake:
        while True:
            messages = await stream.read_block(BLOCK_MESSAGES_MAX, BLOCK_BYTES_MAX)
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
            await blocks_out.send(Block(messages, size_bytes, wal_end), size_bytes)
