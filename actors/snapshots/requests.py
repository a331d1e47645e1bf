"""Requests for snapshots: received at once while a bridge runs, kept by the stream REQUESTS while none does."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, NamedTuple

import trio

from actors.clients.nats.connection import SinkRefused
from actors.clients.nats.jetstream import JetStream, JetStreamError
from actors.contract.subjects import CDC, REQUEST_ALL, REQUESTS, Part, parse, part_of, request
from actors.contract.table_token import TOKEN_MAX
from actors.telemetry.log import get_logger
from actors.wire.nats import Msg

log = get_logger("snapshotter")

WAITING_MAX = 10_000
"""Distinct tables, as many as the stream keeps. Further requests are found when the stream is read again."""
READ_AGAIN_S = 30.0
BODIES_BYTES_MAX = 16 * 1024 * 1024
"""Of all requests that name rows and wait. Who asks for more meanwhile asks again half a minute later."""


class Asked(NamedTuple):
    """One request: for a table or a part of it, of this bridge by name or of whichever bridge answers for the table."""

    token: str
    stream: str = ""
    """This bridge's stream; empty when the request names none."""
    suffix: str = ""
    """The part of the table; empty for the complete table."""

    @property
    def answered_as(self) -> str:
        """The token of the answer's subjects."""
        return self.token + self.suffix

    @property
    def subject(self) -> str:
        """The subject on which it was asked."""
        return request(self.answered_as, self.stream)


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

    Requests that name another bridge are left to that bridge, and those with an unknown suffix to a version that knows it: both
    stay in stream REQUESTS. `known` are the tables that are published: a flood of other tokens neither keeps them out nor fills
    memory.
    """

    def __init__(self, js: JetStream, known: Collection[str], *, stream: str, kept: bool) -> None:
        self.known = known
        self._js, self._stream, self._kept = js, stream, kept
        self._waiting: dict[Asked, None] = {}
        self._bodies: dict[Asked, bytes] = {}
        self._bodies_bytes = 0
        self._news = trio.Event()

    @property
    def waiting(self) -> tuple[Asked, ...]:
        """The requests to serve, the next first."""
        return tuple(self._waiting)

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables of the requests, with their suffixes, each once, in the same order."""
        return tuple(dict.fromkeys(asked.answered_as for asked in self._waiting))

    async def listen(self) -> None:
        """Subscribe to requests, and add the requests made before. Raises SinkUnavailable."""
        await self._js.connection.subscribe(REQUEST_ALL, self._on_message)
        await self._read_stream()

    def add(self, asked: Asked, body: bytes = b"") -> None:
        """Add a request; an equal one changes nothing, but its body counts."""
        room = len(self._waiting) < WAITING_MAX or (asked.token in self.known and not asked.suffix)
        if 0 < len(asked.token) <= TOKEN_MAX and (room or asked in self._waiting):
            if body and part_of(asked.suffix) == Part("keys", asked.suffix[1:]):
                total = self._bodies_bytes + len(body) - len(self._bodies.get(asked, b""))
                if total > BODIES_BYTES_MAX:
                    return
                self._bodies[asked], self._bodies_bytes = body, total
            self._waiting.setdefault(asked)
            self.nudge()

    async def body_of(self, asked: Asked) -> bytes:
        """Return what a request says besides its subject. Raises SinkUnavailable."""
        body = self._bodies.get(asked, b"")
        if not body and self._kept:
            stored = await self._js.get_message(REQUESTS, last_by_subj=asked.subject)
            body = b"" if stored is None else stored.data
        return body

    async def stored_at(self, asked: Asked) -> str:
        """Return when a request was stored, as JetStream writes it; empty if it is not in the stream."""
        stored = await self._js.get_message(REQUESTS, last_by_subj=asked.subject) if self._kept else None
        return "" if stored is None else stored.time

    def nudge(self) -> None:
        """Have what waits looked at again."""
        self._news.set()

    def expect_news(self) -> None:
        """Forget the news so far. Call it before a look at what waits, so that what comes meanwhile is not missed."""
        self._news = trio.Event()

    async def wait_for_news(self) -> None:
        """Wait for news since `expect_news`. After 30 s the stream is read again, since a message may have been missed."""
        with trio.move_on_after(READ_AGAIN_S) as silence:
            await self._news.wait()
        if silence.cancelled_caught:
            await self._read_stream()

    def leave(self, *asked: Asked) -> None:
        """Remove requests that are being served or that another bridge answers; a later request is a new one."""
        for one in asked:
            self._waiting.pop(one, None)
            self._bodies_bytes -= len(self._bodies.pop(one, b""))

    async def keep(self, asked: Asked) -> None:
        """Have a request in the stream that is to be served even if the bridge ends now. Raises SinkUnavailable."""
        if not self._kept:
            return
        try:
            await self._js.publish(asked.subject, b"")
        except (JetStreamError, SinkRefused) as exc:
            if not isinstance(exc, JetStreamError) or await self.stored_at(asked) == "":  # else it is there already
                log.warning("cannot keep a request; it is lost if the bridge ends now", table=asked.token, said=exc.said)

    async def answered(self, *asked: Asked) -> None:
        """Delete requests whose answer is in the stream. Raises SinkUnavailable."""
        for one in asked if self._kept else ():
            try:
                await self._js.purge(REQUESTS, one.subject)
            except (JetStreamError, SinkRefused) as exc:
                log.warning("cannot delete a request; it is served again at the next start", table=one.token, said=exc.said)

    def _on_message(self, message: Msg) -> None:
        self._add_subject(message.subject.decode("utf-8", "replace"), message.payload)

    async def _read_stream(self) -> None:
        if self._kept:
            for subject in await self._js.subjects_of(REQUESTS, REQUEST_ALL):
                self._add_subject(subject)

    def _add_subject(self, subject: str, body: bytes = b"") -> None:
        found = parse(subject)
        if found is not None and part_of(found.suffix) is not None and found.stream in ("", self._stream):
            self.add(Asked(found.token, found.stream, found.suffix), body)
