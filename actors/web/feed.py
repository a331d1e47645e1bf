"""GET /events: the page's live data, one frame per second, encoded once for all viewers in step."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import orjson
import trio

from actors.settings.config import Config
from actors.telemetry.history import POINTS_MAX, History
from actors.telemetry.telemetry import Telemetry
from actors.web.guard import posts_wanted, reads_wanted
from actors.web.status import status_document

VIEWERS_MAX = 16
EVERY_S = 1.0
STOPPING_EVERY_S = 0.05


class Feed:
    """Samples the telemetry every second, viewers or not, and hands frames to viewers."""

    def __init__(self, config: Config, telemetry: Telemetry, history: History) -> None:
        self._config, self._telemetry, self.history = config, telemetry, history
        self._news = trio.Event()
        self._frames: dict[int, bytes] = {}
        self._noted: deque[int] = deque(maxlen=POINTS_MAX)  # the journal's last number at each of the last samples
        self.viewers = 0

    async def run(self, stop: trio.Event) -> None:
        """Sample until cancelled: every second, and often after `stop`, so that viewers are told before the process ends."""
        next_due = trio.current_time()
        while True:
            self.history.sample(time.time())
            self._noted.append(self._telemetry.journal.last_number)
            if self.viewers:
                self._telemetry.looking.watch()
            self._frames.clear()
            self._news.set()
            self._news = trio.Event()
            next_due = max(next_due + EVERY_S, trio.current_time())  # missed samples are not made up
            if stop.is_set():
                await trio.sleep(STOPPING_EVERY_S)
                continue
            with trio.move_on_at(next_due):
                await stop.wait()

    @contextmanager
    def viewer(self) -> Iterator[bool]:
        """Admit a viewer while the block runs; False when all places are taken."""
        if self.viewers >= VIEWERS_MAX:
            yield False
            return
        self.viewers += 1
        try:
            yield True
        finally:
            self.viewers -= 1

    async def frames(self) -> AsyncIterator[bytes]:
        """Yield server-sent events for one viewer: everything first, then changes. A slow viewer skips frames but no facts."""
        since = -1
        while True:
            frame = self._frames.get(since)
            if frame is None:
                frame = self._frames[since] = b"data: " + _encode(self.document(since)) + b"\n\n"
            since = self.history.tick
            yield frame
            if since == self.history.tick:
                await self._news.wait()

    def document(self, since: int) -> dict[str, Any]:
        """Everything after tick `since`, for a viewer that already has what came before."""
        history = self.history
        return {
            "tick": history.tick,
            "whole": since < 0,
            "now": time.time(),
            "posts": posts_wanted(self._config.http),
            "reads": reads_wanted(self._config.http),
            "journal": self._telemetry.journal.after(self._noted_at(since)),
            "status": status_document(self._config, self._telemetry, history),
            "points": history.points_after(max(since, 0)),
            "tables": [[t.token, t.schema, t.table, *t.counts, t.changed_at] for t in history.tables_after(since)],
        }

    def _noted_at(self, tick: int) -> int:
        """The journal's last number as of a tick; 0 when that is unknown, so that a viewer rather gets an entry twice."""
        passed = self.history.tick - tick
        return self._noted[-1 - passed] if 0 <= passed < len(self._noted) and tick > 0 else 0


def _encode(document: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(document)
    except TypeError:  # a table name in an SQL_ASCII database need not be UTF-8
        return json.dumps(document).encode()
