"""Concerns of the process: the garbage collector, signals, and which error of a group the user should read.

Exception groups are taken apart here and nowhere else.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import signal
from collections.abc import Iterator

import trio

from actors.errors import Fatal, WalbridgeError
from actors.telemetry.log import get_logger

log = get_logger("bridge")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
OWN_PAGES_BYTES = 1024 * 1024
"""A block of this size gets pages of its own, which go back when it is freed. Batches and blocks of messages are smaller."""
FREE_BYTES_MAX = 2 * 1024 * 1024


def freeze_loaded_objects() -> None:
    """Exempt the objects loaded so far from garbage collection, and collect rarely: together this saves a tenth of the CPU.

    Rows hold no reference cycles, so collecting after every few hundred rows is wasted.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def bound_free_memory() -> None:
    """Have the C library return large freed blocks at once, where that can be set (glibc). `MALLOC_*` in the environment wins.

    By itself glibc keeps blocks up to the size of the largest one freed so far, 32 MB at most, within its heap, where small
    blocks in use pin them, and keeps twice as much unused at the heap's end.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt(_M_MMAP_THRESHOLD, OWN_PAGES_BYTES)
        mallopt(_M_TRIM_THRESHOLD, FREE_BYTES_MAX)


def allow_many_files() -> None:
    """Raise the limit of open files to the one that the system allows, often 1,024 and 524,288.

    Whoever opens many HTTP connections would otherwise keep the bridge from connecting to PostgreSQL and NATS again.
    """
    _, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))


def return_free_memory() -> None:
    """Return freed memory to the system, where the C library can: it keeps what lies below a block in use."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def most_telling(error: BaseException) -> BaseException:
    """Return the error of a group that the user should read: a bug, else a fatal error, else the first of the rest.

    An error that is not a group is returned as it is.
    """
    leaves = causes(error)
    for wanted in (Fatal, WalbridgeError):
        for leaf in leaves:
            if isinstance(leaf, wanted) and all(isinstance(x, WalbridgeError) for x in leaves):
                return leaf
    return next((leaf for leaf in leaves if not isinstance(leaf, WalbridgeError)), leaves[0])


def causes(error: BaseException) -> list[BaseException]:
    """Return a group's errors without mere consequences: a stage that ends closes its neighbours' channels."""
    leaves = list(leaves_of(error))
    return [leaf for leaf in leaves if not isinstance(leaf, trio.BrokenResourceError)] or leaves


def leaves_of(error: BaseException) -> Iterator[BaseException]:
    """Yield the single errors of a group, nested groups included, or the error itself."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves_of(inner)
    else:
        yield error


async def stop_on_signal(
    stop: trio.Event, everything: trio.CancelScope, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Set `stop` at the first SIGINT or SIGTERM, and cancel `everything` at the second. Runs until cancelled."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for number in signals:
            if stop.is_set():
                log.warning("second signal: ending at once; the slot sends unconfirmed changes again")
                everything.cancel()
                return
            log.info("stopping: draining what was read", signal=signal.Signals(number).name)
            stop.set()
