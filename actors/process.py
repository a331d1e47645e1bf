"""Concerns of the process: the garbage collector, signals, and which error of a group the user should read.

Exception groups are taken apart here and nowhere else.
"""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator

import trio

from actors.errors import Fatal, WalbridgeError
from actors.telemetry.log import get_logger

log = get_logger("bridge")


def freeze_loaded_objects() -> None:
    """Exempt the objects loaded so far from garbage collection, and collect rarely: together this saves a tenth of the CPU.

    Rows hold no reference cycles, so collecting after every few hundred rows is wasted.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


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
