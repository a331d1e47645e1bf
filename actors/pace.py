"""The rate of snapshots: all of a bridge's snapshots together send no more than an operator allows."""

from __future__ import annotations

import trio

from actors.telemetry.telemetry import Telemetry

_MB = 1_000_000


class Pace:
    """Keeps all snapshots together within a rate. No I/O but sleeping.

    The HTTP server writes through `limit`, snapshots through `sent`.
    """

    def __init__(self, telemetry: Telemetry, rate_mb_s: int) -> None:
        """`rate_mb_s` as `--snapshot-rate-mb-s` has it: 0 is without limit."""
        self._telemetry = telemetry
        self._due = 0.0
        self._changed = trio.Event()
        self._rate = rate_mb_s * _MB
        telemetry.snapshot_rate_mb_s = rate_mb_s

    def limit(self, rate_mb_s: int) -> None:
        """Change the rate, until the bridge ends; what waits goes by the new rate at once."""
        debt_bytes = self.debt_s * self._rate
        self._rate = rate_mb_s * _MB
        self._due = trio.current_time() + debt_bytes / self._rate if self._rate else 0.0
        self._telemetry.snapshot_rate_mb_s = rate_mb_s
        self._changed.set()
        self._changed = trio.Event()

    def sent(self, size_bytes: int) -> None:
        """Count what was sent."""
        if self._rate:
            self._due = max(self._due, trio.current_time()) + size_bytes / self._rate

    @property
    def debt_s(self) -> float:
        """Seconds until more may be sent."""
        return max(0.0, self._due - trio.current_time()) if self._rate else 0.0

    async def wait(self) -> None:
        """Wait until more may be sent."""
        while debt_s := self.debt_s:
            with trio.move_on_after(debt_s):
                await self._changed.wait()
