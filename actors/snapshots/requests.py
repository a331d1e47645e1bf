"""Requests for snapshots: received at once while a bridge runs, kept by the stream REQUESTS while none does."""

from __future__ import annotations

from collections.abc import Collection

import trio

from actors.clients.nats.connection import SinkRefused
from actors.clients.nats.jetstream import JetStream, JetStreamError
from actors.contract.subjects import REQUEST_ALL, REQUESTS, parse, request
from actors.telemetry.log import get_logger
from actors.wire.nats import Msg

log = get_logger("snapshotter")

WAITING_MAX = 10_000
"""Distinct tables, as many as the stream keeps. Further requests are found when the stream is read again."""
READ_AGAIN_S = 30.0
_TOKEN_MAX = 600


class SnapshotRequests:
    """Requested table tokens, each once, in the order of the requests.

    `known` are the published tables: a flood of other tokens neither keeps them out nor fills memory.
    """

    def __init__(self, js: JetStream, known: Collection[str], *, kept: bool) -> None:
        self.known = known
        self._js, self._kept = js, kept
        self._waiting: dict[str, None] = {}
        self._news = trio.Event()

    @property
    def waiting(self) -> tuple[str, ...]:
        """The tokens to serve, the next first."""
        return tuple(self._waiting)

    async def listen(self) -> None:
        """Subscribe to requests, and add the requests made before. Raises SinkUnavailable."""
        await self._js.connection.subscribe(REQUEST_ALL, self._on_message)
        await self._read_stream()

    def add(self, token: str) -> None:
        """Add a request; a second request for a waiting table changes nothing."""
        if 0 < len(token) <= _TOKEN_MAX and (len(self._waiting) < WAITING_MAX or token in self.known):
            self._waiting.setdefault(token)
            self._news.set()

    async def wait(self) -> None:
        """Wait until there is a request. Read the stream again every 30 s, since a message may have been missed."""
        while not self._waiting:
            self._news = trio.Event()
            with trio.move_on_after(READ_AGAIN_S):
                await self._news.wait()
            if not self._waiting:
                await self._read_stream()

    def leave(self, token: str) -> None:
        """Remove a request that is being served or that another bridge answers; a later request is a new one."""
        self._waiting.pop(token, None)

    async def answered(self, token: str) -> None:
        """Delete a request whose answer is in the stream. Raises SinkUnavailable."""
        if self._kept:
            try:
                await self._js.purge(REQUESTS, request(token))
            except (JetStreamError, SinkRefused) as exc:
                log.warning("cannot delete a request; it is served again at the next start", table=token, said=exc.said)

    def _on_message(self, message: Msg) -> None:
        self._add_subject(message.subject.decode("utf-8", "replace"))

    async def _read_stream(self) -> None:
        if self._kept:
            for subject in await self._js.subjects_of(REQUESTS, REQUEST_ALL):
                self._add_subject(subject)

    def _add_subject(self, subject: str) -> None:
        asked = parse(subject)
        if asked is not None:
            self.add(asked.token)
