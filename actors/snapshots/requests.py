"""Requests for snapshots: received at once while a bridge runs, kept by the stream REQUESTS while none does."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, NamedTuple

import trio

from actors.clients.nats.connection import SinkRefused
from actors.clients.nats.jetstream import JetStream, JetStreamError
from actors.contract.subjects import CDC, REQUEST_ALL, REQUESTS, parse, request
from actors.contract.table_token import TOKEN_MAX
from actors.telemetry.log import get_logger
from actors.wire.nats import Msg

log = get_logger("snapshotter")

WAITING_MAX = 10_000
"""Distinct tables, as many as the stream keeps. Further requests are found when the stream is read again."""
READ_AGAIN_S = 30.0


class Asked(NamedTuple):
    """One request: for a table, of this bridge by name or of whichever bridge answers for the table."""

    token: str
    stream: str = ""
    """This bridge's stream; empty when the request names none."""


Verdict = Literal["snapshot", "unknown table", "ambiguous", "another bridge's"]


def verdict_on(asked: Asked, own: str, publishing: Collection[str]) -> Verdict:
    """What the bridge of stream `own` does with a request; `publishing` are the streams whose bridges publish the table.

    A request that names no bridge is for CDC's, if that publishes the table or no bridge does; else for the only one that
    does. Of several the first answers that they are several.
    """
    if not asked.stream:
        if own != (CDC if CDC in publishing or not publishing else min(publishing)):
            return "another bridge's"
        if own != CDC and len(publishing) > 1:
            return "ambiguous"
    return "snapshot" if own in publishing else "unknown table"


class SnapshotRequests:
    """The requests that this bridge may have to serve, each once, in the order of asking.

    Requests that name another bridge are left to that bridge, and those with a suffix to a version that knows it: both stay in
    stream REQUESTS. `known` are the tables that are published: a flood of other tokens neither keeps them out nor fills memory.
    """

    def __init__(self, js: JetStream, known: Collection[str], *, stream: str, kept: bool) -> None:
        self.known = known
        self._js, self._stream, self._kept = js, stream, kept
        self._waiting: dict[Asked, None] = {}
        self._news = trio.Event()

    @property
    def waiting(self) -> tuple[Asked, ...]:
        """The requests to serve, the next first."""
        return tuple(self._waiting)

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables of the requests, each once, in the same order."""
        return tuple(dict.fromkeys(asked.token for asked in self._waiting))

    async def listen(self) -> None:
        """Subscribe to requests, and add the requests made before. Raises SinkUnavailable."""
        await self._js.connection.subscribe(REQUEST_ALL, self._on_message)
        await self._read_stream()

    def add(self, asked: Asked) -> None:
        """Add a request; an equal one changes nothing."""
        if 0 < len(asked.token) <= TOKEN_MAX and (len(self._waiting) < WAITING_MAX or asked.token in self.known):
            self._waiting.setdefault(asked)
            self._news.set()

    async def wait(self) -> None:
        """Wait until there is a request. Read the stream again every 30 s, since a message may have been missed."""
        while not self._waiting:
            self._news = trio.Event()
            with trio.move_on_after(READ_AGAIN_S):
                await self._news.wait()
            if not self._waiting:
                await self._read_stream()

    def leave(self, *asked: Asked) -> None:
        """Remove requests that are being served or that another bridge answers; a later request is a new one."""
        for one in asked:
            self._waiting.pop(one, None)

    async def answered(self, *asked: Asked) -> None:
        """Delete requests whose answer is in the stream. Raises SinkUnavailable."""
        for one in asked if self._kept else ():
            try:
                await self._js.purge(REQUESTS, request(*one))
            except (JetStreamError, SinkRefused) as exc:
                log.warning("cannot delete a request; it is served again at the next start", table=one.token, said=exc.said)

    def _on_message(self, message: Msg) -> None:
        self._add_subject(message.subject.decode("utf-8", "replace"))

    async def _read_stream(self) -> None:
        if self._kept:
            for subject in await self._js.subjects_of(REQUESTS, REQUEST_ALL):
                self._add_subject(subject)

    def _add_subject(self, subject: str) -> None:
        found = parse(subject)
        if found is not None and not found.suffix and found.stream in ("", self._stream):
            self.add(Asked(found.token, found.stream))
