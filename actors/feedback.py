"""The positions to report to PostgreSQL: how far the replication stream was read, and how far it is stored."""

from __future__ import annotations

import trio
from trio_util import AsyncValue

from actors.positions import NO_LSN, Lsn

QUIET_S = 0.05
"""PostgreSQL 18 can withhold a finished transaction from a client that has sent nothing since the previous data."""
ASK_AFTER_S = 30.0
"""An idle PostgreSQL sends nothing while it receives status updates: after this silence the bridge asks for a keepalive."""


class Feedback:
    """Positions that the status_reporter sends to PostgreSQL.

    The acker writes `confirmed`, the replication_reader writes the rest through `data_arrived`, the status_reporter reads both.
    """

    def __init__(self, confirmed: Lsn, *, is_held: bool = False) -> None:
        """`is_held`: what was received is confirmed only much later."""
        self.confirmed = AsyncValue(confirmed)
        self._is_held, self._told = is_held, confirmed
        self.received = NO_LSN
        self._news = trio.Event()
        self._reply_wanted = False
        self._ask_at = trio.current_time() + ASK_AFTER_S

    @property
    def to_confirm(self) -> Lsn:
        """The LSN to confirm, never beyond what PostgreSQL has sent: PostgreSQL would accept it and skip changes."""
        return min(self.confirmed.value, self.received) if self.received else NO_LSN

    def to_report(self) -> Lsn:
        """Return the LSN for the next status.

        While confirmations are held it is told once, and 0 otherwise: PostgreSQL takes 0 for a receiver that confirms nothing,
        and waits at its own stop only until everything was received. Else it would wait until everything is confirmed.
        """
        lsn = self.to_confirm
        if not self._is_held:
            return lsn
        is_news, self._told = lsn > self._told, max(lsn, self._told)
        return lsn if is_news else NO_LSN

    def data_arrived(self, wal_end: Lsn, *, reply_wanted: bool) -> None:
        """Note that a block was read: a status is due once data pauses, or at once if PostgreSQL asks for a reply."""
        self.received = wal_end
        self._ask_at = trio.current_time() + ASK_AFTER_S
        self._reply_wanted |= reply_wanted
        self._news.set()

    def reply_now(self) -> None:
        """Make a status due at once."""
        self._reply_wanted = True
        self._news.set()

    async def until_due(self, deadline: float) -> None:
        """Wait until a status is due: at `deadline` (trio's clock), on request, or when data pauses."""
        with trio.move_on_at(deadline):
            await self._news.wait()
            while not self._reply_wanted:  # data flows: wait for a short pause
                self._news = trio.Event()
                with trio.move_on_after(QUIET_S) as quiet:
                    await self._news.wait()
                if quiet.cancelled_caught:
                    break
        self._news, self._reply_wanted = trio.Event(), False

    def is_silent(self) -> bool:
        """Return whether PostgreSQL has been silent for so long that a keepalive should be requested; True once per silence."""
        now = trio.current_time()
        if now < self._ask_at:
            return False
        self._ask_at = now + ASK_AFTER_S
        return True
