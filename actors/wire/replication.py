"""Encodes what the reader of a replication stream sends. The decoder reads the stream itself, without copies.

https://www.postgresql.org/docs/18/protocol-replication.html (standby status update, TIMELINE_HISTORY).
"""

from __future__ import annotations

import struct

from actors.errors import MalformedMessage
from actors.positions import Lsn, parse_lsn

POSTGRES_EPOCH_US = 946_684_800_000_000
"""PostgreSQL counts microseconds since 2000-01-01 UTC; this is that day in microseconds since 1970."""

_STATUS = struct.Struct(">cQQQqb")


def encode_status(received: Lsn, flushed: Lsn, applied: Lsn, now_us: int, *, reply_wanted: bool = False) -> bytes:
    """Return a standby status update. `flushed` lets PostgreSQL remove WAL; `now_us` counts since 1970 UTC."""
    return _STATUS.pack(b"r", received, flushed, applied, now_us - POSTGRES_EPOCH_US, reply_wanted)


def parse_timeline_history(text: str) -> list[tuple[int, Lsn]]:
    """Return the (timeline, LSN where it was left) pairs of a history file, oldest first. Raises MalformedMessage."""
    switches: list[tuple[int, Lsn]] = []
    for line in text.splitlines():
        fields = line.split("#", 1)[0].split()
        if fields:
            try:
                switches.append((int(fields[0]), parse_lsn(fields[1])))
            except (ValueError, IndexError) as exc:
                raise MalformedMessage(f"timeline history: cannot read {line!r}") from exc
    return switches
