"""Decides which LSN may be confirmed when an acknowledgement is not trusted to be on disk at once. No I/O, no trio.

nats-server acknowledges before its disk has the data, and syncs every so often (`sync_interval`). What it acknowledged long
enough ago survives a power cut; what came later may be gone, from the stream and from KV `bridges`, which are synced
independently. Afterwards the stream's tail is a point between, and the record must prove that nothing confirmed to PostgreSQL
was after it. So confirmations go in steps: each version of the record names a few points, and only these are confirmed.
"""

from __future__ import annotations

from collections.abc import Sequence

from actors.contract.bridge_record import Held
from actors.positions import NO_LSN, Lsn

STEPS = 4
"""Points per hold: PostgreSQL keeps WAL for the hold and at most one step more."""


class ConfirmHold:
    """Points that the stream has reached, until they are old enough."""

    def __init__(self, seconds: float, held: Sequence[Held], now: float) -> None:
        """`held` are points of earlier runs. Their ages are unknown, so they begin at `now`."""
        self._seconds = seconds
        self._points = [(now, point) for point in held]

    @property
    def held(self) -> tuple[Held, ...]:
        """What each version of the record must name, oldest first; nothing without a hold."""
        return tuple(point for _, point in self._points) if self._seconds else ()

    def reached(self, point: Held, now: float) -> None:
        """Note a point if the last one is old enough, and further back."""
        if self._points:
            since, last = self._points[-1]
            if now - since < self._seconds / STEPS or (point.last_seq, point.lsn) == (last.last_seq, last.lsn):
                return
        self._points.append((now, point))

    def due(self, now: float) -> Lsn:
        """Return the newest LSN that may be confirmed, 0 for none; forget the points before it."""
        old_enough = [i for i, (since, _) in enumerate(self._points) if now - since >= self._seconds]
        if not old_enough:
            return NO_LSN
        del self._points[: old_enough[-1]]
        return self._points[0][1].lsn
