"""What the replication stream tells PostgreSQL while it runs: how far it has read, and what is stored for good."""

from __future__ import annotations

import trio
from trio_util import AsyncValue

from actors.clients.replication import ReplicationStream
from actors.lsn import NO_LSN, Lsn

STATUS_EVERY_S = 1.0
QUIET_S = 0.05
"""PostgreSQL 18 can withhold a finished transaction from a client that has said nothing since the data before it."""
ASK_AFTER_S = 30.0
"""An idle PostgreSQL that hears from us says nothing by itself: after so much silence it is asked for a sign of life."""


class Feedback:
    """The position to confirm. `confirmed` is written by the acker, the rest by the replication_reader."""

    def __init__(self, confirmed: Lsn) -> None:
        self.confirmed = AsyncValue(confirmed)
        self.received = NO_LSN
        self._news = trio.Event()
        self._reply_wanted = False
        self._ask_at = trio.current_time() + ASK_AFTER_S

    def data_arrived(self, wal_end: Lsn, *, reply_wanted: bool) -> None:
        """A block was read: a status follows once the stream falls silent, at once if PostgreSQL asks for it."""
        self.received = wal_end
        self._ask_at = trio.current_time() + ASK_AFTER_S
        self._reply_wanted |= reply_wanted
        self._news.set()

    async def report(self, stream: ReplicationStream) -> None:
        """Send status updates for ever: every second, on a new confirmed LSN, when asked, and when data goes quiet.

        Runs beside the pipeline, so that PostgreSQL hears from us also while the pipeline is blocked or NATS is gone.
        Raises what `stream.send_status` raises.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._wake_on_confirm)
            next_due = trio.current_time()
            while True:
                with trio.move_on_at(next_due):
                    await self._news.wait()
                unanswered = self._news.is_set()
                self._news = trio.Event()
                if unanswered and not self._reply_wanted and trio.current_time() < next_due:
                    # data flows: wait until it has been quiet for a moment, but never past the next second
                    with trio.move_on_at(next_due):
                        while True:
                            with trio.move_on_after(QUIET_S) as quiet:
                                await self._news.wait()
                            if quiet.cancelled_caught or self._reply_wanted:
                                break
                            self._news = trio.Event()
                self._reply_wanted = False
                await self.send(stream)
                next_due = trio.current_time() + STATUS_EVERY_S

    async def send(self, stream: ReplicationStream) -> None:
        """Send one status now."""
        # never beyond what PostgreSQL has told us: it would take it and skip everything up to there
        confirmed = min(self.confirmed.value, self.received) if self.received else NO_LSN
        now = trio.current_time()
        ask = now >= self._ask_at
        if ask:
            self._ask_at = now + ASK_AFTER_S
        await stream.send_status(self.received, confirmed, confirmed, reply_wanted=ask)

    async def _wake_on_confirm(self) -> None:
        async for _ in self.confirmed.transitions():
            self._reply_wanted = True
            self._news.set()
