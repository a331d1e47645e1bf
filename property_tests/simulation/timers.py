"""Runs what the models do later: one task with a heap, instead of one task per message in flight."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

import trio

Action = Callable[[], None]


class Timers:
    """Calls functions at times of trio's clock, those of one time in the order in which they were given."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Action]] = []
        self._numbers = count()
        self._news = trio.Event()

    def after(self, seconds: float, action: Action) -> None:
        """Call `action` in so many seconds. It must not block, and may do nothing if it is no longer wanted."""
        self.at(trio.current_time() + seconds, action)

    def at(self, when: float, action: Action) -> None:
        """Call `action` at a time."""
        heapq.heappush(self._heap, (when, next(self._numbers), action))
        if self._heap[0][2] is action:
            self._news.set()

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            self._news = trio.Event()
            with trio.move_on_at(self._heap[0][0] if self._heap else float("inf")):
                await self._news.wait()
            while self._heap and self._heap[0][0] <= trio.current_time():
                heapq.heappop(self._heap)[2]()
