"""status_reporter: reports to PostgreSQL how far the stream was read and stored, even while the pipeline is blocked."""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from actors.clients.postgres.replication import ReplicationStream
from actors.errors import Fatal, SourceUnavailable
from actors.feedback import Feedback
from actors.process import leaves_of

STATUS_EVERY_S = 1.0


async def report_status(stream: ReplicationStream, feedback: Feedback) -> None:
    """Send status updates until cancelled: every second, on a new confirmed LSN, on request, and when data pauses.

    Raises what `stream.send_status` raises.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_wake_on_confirm, feedback)
        next_due = trio.current_time()
        while True:
            await feedback.until_due(next_due)
            await send_status(stream, feedback)
            next_due = trio.current_time() + STATUS_EVERY_S


async def send_status(stream: ReplicationStream, feedback: Feedback) -> None:
    """Send one status update now."""
    confirmed = feedback.to_report()
    await stream.send_status(feedback.received, confirmed, confirmed, reply_wanted=feedback.is_silent())


async def _wake_on_confirm(feedback: Feedback) -> None:
    async for _ in feedback.confirmed.transitions():
        feedback.reply_now()


@dataclass(slots=True)
class LiveStream:
    """A replication stream whose status updates continue without the pipeline: NATS may be away for hours.

    `run_status` is its task; `ended` is set when PostgreSQL has ended the stream, and `error` says why.
    """

    stream: ReplicationStream
    feedback: Feedback
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)
    error: SourceUnavailable | Fatal | None = None

    async def run_status(self) -> None:
        """Report to PostgreSQL until cancelled by `close`."""
        try:
            with self.scope:
                await report_status(self.stream, self.feedback)
        except* (SourceUnavailable, Fatal) as group:
            cause = next(leaves_of(group))
            assert isinstance(cause, SourceUnavailable | Fatal)
            self.error = cause
        finally:
            self.ended.set()

    async def watch(self) -> None:
        """Raise what ended the stream, if anything did."""
        await self.ended.wait()
        if self.error is not None:
            raise self.error

    async def close(self) -> None:
        """Stop the status updates and end the connection."""
        self.scope.cancel()
        await self.ended.wait()
        await self.stream.close()
