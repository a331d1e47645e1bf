"""Something that goes on in a thread while a test does something else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ENDS_WITHIN_S = 60.0


@contextmanager
def beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run `work` until the body has ended, of which its event tells."""
    done = threading.Event()
    thread = threading.Thread(target=work, args=[done], daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(ENDS_WITHIN_S)
