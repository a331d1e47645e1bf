"""Finds a place in a stream whose messages are ordered by what is looked for: LSN, or the time when they were stored."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple


class Found(NamedTuple):
    """The first message at or after a sequence."""

    seq: int
    is_reached: bool
    """Whether it belongs to what is looked for, as do all after it."""


async def first_reached(first: int, end: int, look: Callable[[int], Awaitable[Found | None]]) -> int:
    """Return the first of the sequences from `first` on from which `look` finds only what is reached; `end` if there is none.

    `look` returns the first message at or after a sequence, since some messages may have been deleted.
    """
    while first < end:
        middle = (first + end) // 2
        found = await look(middle)
        if found is None or found.is_reached:
            end = middle
        else:
            first = found.seq + 1
    return first
