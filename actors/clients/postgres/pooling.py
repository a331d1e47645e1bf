"""Finds poolers that give each transaction of a session another server process.

Behind such a pooler a session's settings, prepared statements and locks are another session's in the next moment: nothing may
be set there, not even to find out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import trio

PROBES = 3
PROBE_TIMEOUT_S = 5.0


class Session(Protocol):
    """What is needed of a connection."""

    async def query(self, sql: str) -> Sequence[object]: ...

    def close(self) -> None: ...


async def loses_sessions(session: Session, open_another: Callable[[], Awaitable[Session]]) -> bool:
    """Return whether a pooler gives the transactions of `session` to different server processes.

    While other sessions hold transactions open, it must give this one another process, or let it wait; then the connection is
    closed. Raises SourceUnavailable.
    """
    own_process = "SELECT pg_catalog.pg_backend_pid()"
    before = await session.query(own_process)
    others: list[Session] = []
    try:
        for _ in range(PROBES):
            others.append(await open_another())
            await others[-1].query("BEGIN")
            with trio.move_on_after(PROBE_TIMEOUT_S) as deadline:
                if await session.query(own_process) != before:
                    return True
            if deadline.cancelled_caught:
                return True
    finally:
        for other in others:
            other.close()
    return False
