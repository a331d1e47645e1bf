"""How many connections read tables at once, and who gets one. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

SMALL_BYTES = 16 * 1024 * 1024
"""A table of this size is read within a second or two: it need not wait for larger ones."""


class Seats:
    """The connections that may read: `count` for any table, and one more for small tables and for rows named by their keys.

    A snapshot in rounds keeps one seat and takes those that are free for a round, unless somebody waits for one.
    """

    def __init__(self, count: int, freed: Callable[[], None]) -> None:
        """`freed` is called whenever a seat becomes free."""
        self.free = count
        self.is_small_free = True
        self.is_anybody_waiting = False
        self._freed = freed

    def take(self, *, is_small: bool) -> Callable[[], None] | None:
        """Take a seat; return what gives it back, or None if there is no free one."""
        if self.free > 0:
            self.free -= 1
            return self._give_back
        if is_small and self.is_small_free:
            self.is_small_free = False
            return self._give_back_small
        return None

    @contextmanager
    def more(self) -> Iterator[int]:
        """Take all seats that are free and that nobody waits for; yields how many."""
        taken = 0 if self.is_anybody_waiting else self.free
        self.free -= taken
        try:
            yield taken
        finally:
            self.free += taken
            if taken:
                self._freed()

    def _give_back(self) -> None:
        self.free += 1
        self._freed()

    def _give_back_small(self) -> None:
        self.is_small_free = True
        self._freed()
