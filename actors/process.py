"""What concerns the process as a whole: the collector, signals, and the one error of a group that a person should read."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator

import trio

from actors.errors import Fatal, WalbridgeError
from actors.telemetry.log import get_logger

log = get_logger("bridge")


def freeze_loaded_objects() -> None:
    """Tell the garbage collector that what is loaded by now stays, and to run rarely: together a tenth of the CPU.

    Rows hold no reference cycles, so the collector need not run for every few hundred of them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def most_telling(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error of a group that a person should read: a fatal one, else a bug, else whatever there is."""
    leaves = causes(group)
    for wanted in (Fatal, WalbridgeError):
        for leaf in leaves:
            if isinstance(leaf, wanted) and all(isinstance(x, WalbridgeError) for x in leaves):
                return leaf
    return next((leaf for leaf in leaves if not isinstance(leaf, WalbridgeError)), leaves[0])


def causes(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """The errors of a group without those that only follow: a stage that ended closes its neighbours' channels."""
    leaves = list(leaves_of(group))
    return [leaf for leaf in leaves if not isinstance(leaf, trio.BrokenResourceError)] or leaves


def leaves_of(exc: BaseException) -> Iterator[BaseException]:
    """Yield the single errors of a group of groups, or the error itself."""
    if isinstance(exc, BaseExceptionGroup):
        for inner in exc.exceptions:
            yield from leaves_of(inner)
    else:
        yield exc


async def stop_on_signal(
    stop: trio.Event, everything: trio.CancelScope, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Set `stop` at the first SIGINT or SIGTERM, and cancel `everything` at the second. Runs until cancelled."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for number in signals:
            if stop.is_set():
                log.warning("second signal: ending at once; what is not confirmed comes again from the slot")
                everything.cancel()
                return
            log.info("stopping: draining what was read", signal=signal.Signals(number).name)
            stop.set()
