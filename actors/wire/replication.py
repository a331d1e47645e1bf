"""The streaming replication protocol inside CopyData.

https://www.postgresql.org/docs/18/protocol-replication.html (XLogData, primary keepalive, standby status update,
TIMELINE_HISTORY).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from actors.errors import MalformedMessage
from actors.positions import Lsn, parse_lsn

POSTGRES_EPOCH_US = 946_684_800_000_000
"""PostgreSQL counts microseconds since 2000-01-01 UTC; this is that day in microseconds since 1970."""

XLOGDATA_HEADER_BYTES = 25
_XLOGDATA = struct.Struct(">cqqq")
_KEEPALIVE = struct.Struct(">cqqb")
_STATUS = struct.Struct(">cqqqqb")


class XLogData(NamedTuple):
    """A piece of the stream: one pgoutput message."""

    start: Lsn
    wal_end: Lsn
    sent_us: int
    """The server's clock, microseconds since 1970 UTC."""
    payload: bytes


class Keepalive(NamedTuple):
    """The server is alive and has decoded up to `wal_end`."""

    wal_end: Lsn
    sent_us: int
    reply_wanted: bool


def decode_copy_data(message: bytes) -> XLogData | Keepalive:
    """Decode one CopyData payload. Raises MalformedMessage."""
    try:
        if message[:1] == b"w":
            _, start, wal_end, sent = _XLOGDATA.unpack_from(message)
            return XLogData(Lsn(start), Lsn(wal_end), sent + POSTGRES_EPOCH_US, message[XLOGDATA_HEADER_BYTES:])
        if message[:1] == b"k":
            _, wal_end, sent, reply = _KEEPALIVE.unpack(message)
            return Keepalive(Lsn(wal_end), sent + POSTGRES_EPOCH_US, reply != 0)
    except struct.error as exc:
        raise MalformedMessage(f"replication: cannot decode {message[:32]!r}") from exc
    raise MalformedMessage(f"replication: neither XLogData nor keepalive: {message[:32]!r}")


def encode_status(received: Lsn, flushed: Lsn, applied: Lsn, now_us: int, *, reply_wanted: bool = False) -> bytes:
    """A standby status update. `flushed` is what lets PostgreSQL remove WAL; `now_us` counts since 1970 UTC."""
    return _STATUS.pack(b"r", received, flushed, applied, now_us - POSTGRES_EPOCH_US, reply_wanted)


def parse_timeline_history(text: str) -> list[tuple[int, Lsn]]:
    """The (timeline, where it was left) pairs of a timeline history file, oldest first. Raises MalformedMessage."""
    switches: list[tuple[int, Lsn]] = []
    for line in text.splitlines():
        fields = line.split("#", 1)[0].split()
        if fields:
            try:
                switches.append((int(fields[0]), parse_lsn(fields[1])))
            except (ValueError, IndexError) as exc:
                raise MalformedMessage(f"timeline history: cannot read {line!r}") from exc
    return switches
