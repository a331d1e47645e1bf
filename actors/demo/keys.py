"""Single keys from a terminal, without Enter; none where there is no terminal."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def read_keys() -> Iterator[Callable[[float], str]]:
    """Give a function that waits up to so many seconds for a key and returns the key, or an empty string.

    Ctrl-C keeps its meaning. The terminal is restored at the end.
    """
    if not sys.stdin.isatty():
        yield _sleep
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield lambda wait_s: _read(descriptor, wait_s)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _read(descriptor: int, wait_s: float) -> str:
    ready, _, _ = select.select([descriptor], [], [], wait_s)
    return os.read(descriptor, 1).decode("ascii", "replace") if ready else ""


def _sleep(wait_s: float) -> str:
    time.sleep(wait_s)
    return ""
