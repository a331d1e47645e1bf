"""Finds a small list that still breaks a consumer. No I/O of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


async def shrink(items: Sequence[T], breaks: Callable[[Sequence[T]], Awaitable[bool]], trials_max: int) -> list[T]:
    """Leave out as much as possible of a list that `breaks`, trying at most so many others.

    Delta debugging without its complements: ever smaller parts are left out, the later ones first.
    """
    kept, size, trials = list(items), max(1, len(items) // 2), 0
    while size:
        end = len(kept)
        while end > 0 and trials < trials_max:
            candidate = kept[: max(0, end - size)] + kept[end:]
            trials += 1
            if await breaks(candidate):
                kept = candidate
            end -= size
        size = size // 2 if size > 1 else 0
    return kept
