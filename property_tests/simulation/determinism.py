"""One seed decides everything: scheduling, ids, pauses and the clock."""

from __future__ import annotations

import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest import mock

import trio
import trio._core._run as trio_run
import trio._path
from trio.testing import MockClock

T = TypeVar("T")
BEGINNING_UNIX_S = 1_800_000_000.0
"""When every simulation begins."""


def run(seed: int, main: Callable[[], Awaitable[T]]) -> T:
    """Run `main` under trio on a clock that jumps; the same seed gives the same run."""
    clock = MockClock(autojump_threshold=0)
    with _seeded(seed, clock):
        return trio.run(main, clock=clock)


@contextmanager
def _seeded(seed: int, clock: MockClock) -> Generator[None]:
    ids = random.Random(f"ids {seed}")
    state = random.getstate()
    random.seed(f"bridge {seed}")

    def unix_s() -> float:
        return BEGINNING_UNIX_S + clock.current_time()

    def unix_ns() -> int:
        return int(unix_s() * 1e9)

    patches: list[Any] = [
        mock.patch.object(trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
        mock.patch.object(trio_run, "_r", random.Random(f"scheduler {seed}")),
        mock.patch.object(secrets, "token_hex", lambda size: ids.randbytes(size).hex()),
        mock.patch.object(time, "time", unix_s),
        mock.patch.object(time, "time_ns", unix_ns),
        mock.patch.object(time, "monotonic", clock.current_time),
        mock.patch.object(time, "perf_counter", clock.current_time),
        mock.patch.object(trio.to_thread, "run_sync", _inline),
        mock.patch.object(trio._path, "run_sync", _inline),
    ]
    logger = logging.getLogger("walbridge")
    level, propagates = logger.level, logger.propagate
    logger.propagate = False
    if not logger.handlers:
        logger.setLevel(logging.CRITICAL + 1)
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in reversed(patches):
            one.stop()
        random.setstate(state)
        logger.setLevel(level)  # which also clears what loggers remember of it
        logger.propagate = propagates


async def _inline(function: Callable[..., T], *args: object, **_: object) -> T:
    """Instead of a worker thread, which a clock that jumps would not wait for."""
    await trio.lowlevel.checkpoint()
    return function(*args)
