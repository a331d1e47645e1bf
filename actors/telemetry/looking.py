"""When to look figures up again: often while somebody watches, seldom otherwise."""

from __future__ import annotations

import trio

WATCHED_S = 10.0
"""Who has asked for figures is taken to watch for so long: Prometheus and the page ask again."""
WATCHED_EVERY_S = 1.0


class Looking:
    """Tells the monitors that somebody watches. The HTTP server writes `watch`, the monitors wait in `pause`."""

    def __init__(self) -> None:
        self._until = 0.0
        self._news = trio.Event()

    @property
    def is_watched(self) -> bool:
        return trio.current_time() < self._until

    def watch(self) -> None:
        """Note that somebody asks for figures."""
        now_s = trio.current_time()
        if now_s >= self._until:
            self._news.set()
            self._news = trio.Event()
        self._until = now_s + WATCHED_S

    async def pause(self, idle_s: float) -> None:
        """Wait until the next look is due: a second later while somebody watches, else `idle_s` or until somebody does."""
        await trio.sleep(WATCHED_EVERY_S)
        if not self.is_watched:
            with trio.move_on_after(idle_s - WATCHED_EVERY_S):
                await self._news.wait()
