"""Watches the write-ahead log of a SQLite replica: a reader that keeps a transaction open makes it grow without limit."""

from __future__ import annotations

import trio

from actors.mirror.replica import Replica
from actors.telemetry.log import get_logger

log = get_logger("mirror")

WATCH_EVERY_S = 10.0
HELD_BYTES_MAX = 64 * 1024 * 1024
"""What a reader may hold before the log says so; then again each time that has doubled."""


async def watch_write_ahead(replica: Replica) -> None:
    """Keep the metric of the log's size current, and warn while a reader holds much of it. Runs until cancelled."""
    warn_at = HELD_BYTES_MAX
    while True:
        found = await replica.write_ahead()
        replica.counts.wal_bytes = found.size_bytes
        if found.held_bytes >= warn_at:
            warn_at = 2 * found.held_bytes
            log.warning(
                "a reader keeps a transaction open on the replica: until it ends, SQLite's write-ahead log cannot be emptied",
                wal_bytes=found.size_bytes, held_bytes=found.held_bytes,
                fix="end that transaction; fuser -v on the replica's file shows which programs have it open",
            )  # fmt: skip
        elif found.held_bytes < HELD_BYTES_MAX:
            warn_at = HELD_BYTES_MAX
        await trio.sleep(WATCH_EVERY_S)
