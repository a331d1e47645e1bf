"""Processes of the simulation: the real bridge and mirror, and a loop that starts them again, as an operator would."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any
from unittest import mock

import trio

from actors import bridge
from actors.clients.postgres import replication
from actors.clients.postgres.connection import PgConnection
from actors.errors import WalbridgeError
from actors.mirror import run as mirror
from actors.pause import Pause
from actors.process import most_telling
from property_tests.simulation.network import Network, owner
from property_tests.simulation.postgres.connection import SimulatedConnection, SimulatedStream, start
from property_tests.simulation.trace import Trace


class Process:
    """One process: started, killed, stopped in order, started again."""

    def __init__(self, name: str, nursery: trio.Nursery, network: Network, trace: Trace) -> None:
        self.name = name
        self.stop = trio.Event()
        """Set by whoever asks for an end in order."""
        self.ended: BaseException | int | None = None
        """With what it has ended; None while it runs."""
        self.telemetry: Any = None
        self.pause: Pause | None = None
        """Of a bridge, for its operator."""
        self.runs = 0
        self._nursery, self._network, self._trace = nursery, network, trace
        self._scope = trio.CancelScope()
        self._over = trio.Event()
        self._over.set()

    @property
    def is_running(self) -> bool:
        return not self._over.is_set()

    def start(self, main: Callable[[], Awaitable[int]]) -> None:
        """Start it anew."""
        assert not self.is_running
        self.runs += 1
        self.pause = None
        self.ended, self.stop, self._over, self._scope = None, trio.Event(), trio.Event(), trio.CancelScope()
        self._nursery.start_soon(self._run, main)

    async def _run(self, main: Callable[[], Awaitable[int]]) -> None:
        owner.set(f"{self.name}.{self.runs}")
        current.set(self)
        over, scope = self._over, self._scope
        try:
            with scope:
                self.ended = await main()
        except (WalbridgeError, BaseExceptionGroup) as exc:
            self.ended = most_telling(exc)
            if not isinstance(self.ended, WalbridgeError):
                raise
        finally:
            over.set()
        self._trace(self.name, f"ended: {self.ended}" if self.ended is not None else "killed")

    async def kill(self) -> None:
        """Kill it: nothing that it still does reaches anybody."""
        self._network.sever(f"{self.name}.{self.runs}")
        self._scope.cancel()
        await self._over.wait()

    async def finish(self) -> None:
        """Wait until it has ended."""
        await self._over.wait()


current: ContextVar[Process] = ContextVar("current")


@contextmanager
def in_memory(network: Network) -> Generator[None]:
    """Let everything that opens a connection open it in the simulated network."""

    async def connect(config: Any, **words: object) -> SimulatedConnection:
        return await SimulatedConnection.connect(network, config, **words)

    with ExitStack() as stack:
        for where, name, instead in (
            (PgConnection, "connect", connect),
            (replication, "_start", start),
            (replication, "ReplicationStream", SimulatedStream),
            (trio, "open_tcp_stream", network.open_tcp_stream),
            (bridge, "serve_http", _serve_nobody),
            (bridge, "stop_on_signal", _no_signals),
            (bridge, "print_metrics_line", lambda _telemetry: None),
            (mirror, "_stop_on_signal", _sleep),
        ):
            stack.enter_context(mock.patch.object(where, name, instead))
        yield


async def _serve_nobody(
    _config: object, telemetry: object, *, stop: trio.Event, task_status: trio.TaskStatus[list[str]], pause: Pause | None = None,
    **_: object,
) -> None:  # fmt: skip
    """Instead of HTTP: what a stop, a pause or a question needs is handed to the process."""
    process = current.get()
    process.telemetry, process.pause = telemetry, pause
    task_status.started([])
    await process.stop.wait()
    stop.set()
    await trio.sleep_forever()


async def _no_signals(_stop: object, _everything: object, task_status: trio.TaskStatus[None]) -> None:
    task_status.started()
    await trio.sleep_forever()


async def _sleep(_scope: object) -> None:
    await trio.sleep_forever()
