"""In-memory connections between the real clients and the models of servers, and what networks do to them."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Items
from contextvars import ContextVar
from typing import Protocol, TypeVar

import trio

from property_tests.simulation.timers import Timers
from property_tests.simulation.trace import Trace

owner: ContextVar[str] = ContextVar("owner", default="")
"""The simulated process in which a task runs."""


Data = TypeVar("Data", bound=Items[object])


class Server(Protocol):
    """What accepts connections. Nothing of it blocks."""

    def accept(self, link: Link) -> Session | None:
        """Begin a session; None refuses the connection."""


class Session(Protocol):
    """The server's side of a connection."""

    def received(self, data: bytes) -> None: ...

    def ended(self) -> None:
        """The connection is gone, in whichever way."""


class Link:
    """One connection. What is sent needs some time, arrives in order, and may stop arriving or be cut anywhere.

    For NATS it carries bytes, for PostgreSQL messages.
    """

    def __init__(self, network: Network, name: str) -> None:
        self.name, self.owner = name, owner.get()
        self._network = network
        self.session: Session | None = None
        self.broken = self.silent = self.closing = False
        self.cut_after: int | None = None
        """So many bytes more, in either direction."""
        self.messages: deque[bytes] = deque()
        """What has come for a client that takes messages."""
        self._inbox = bytearray()
        self._arrived = trio.Event()
        self._free_at = [0.0, 0.0]  # per direction: bytes do not overtake each other
        self._held: list[Callable[[], None]] = []

    async def changed(self) -> None:
        """Wait until something arrives at the client, or the connection ends."""
        if self._arrived.is_set():
            self._arrived = trio.Event()
        await self._arrived.wait()

    def wake(self) -> None:
        """Wake the client."""
        self._arrived.set()

    # -- the server's side

    def send(self, data: bytes) -> None:
        """Send bytes to the client."""
        self.travel(1, data, self._to_client)

    def close(self) -> None:
        """End the connection after what was sent."""
        self.closing = True
        self._network.timers.at(max(self._free_at[1], trio.current_time()), self.cut)

    def cut(self) -> None:
        """End the connection now: what is on its way is gone."""
        if self.broken:
            return
        self.broken = True
        self._arrived.set()
        self._network.links.discard(self)
        if self.session is not None:
            self.session.ended()

    def heal(self) -> None:
        """No more faults on this connection."""
        self.cut_after = None
        if self.silent:
            self._speak()

    def fall_silent(self, seconds: float) -> None:
        """Let nothing through for a while; then all of it."""
        self.silent = True
        self._network.timers.after(seconds, self._speak)

    def _speak(self) -> None:
        self.silent = False
        held, self._held = self._held, []
        for action in held:
            action()

    # -- both

    def travel(self, direction: int, data: Data, arrive: Callable[[Data], None]) -> None:
        """Send: 0 to the server, 1 to the client."""
        if self.broken or self.closing:
            return
        at = max(self._free_at[direction], trio.current_time() + self._network.latency_s())
        self._free_at[direction] = at
        self._network.timers.at(at, lambda: self._deliver(data, arrive))

    def _deliver(self, data: Data, arrive: Callable[[Data], None]) -> None:
        if self.broken:
            return
        if self.silent:
            self._held.append(lambda: self._deliver(data, arrive))
            return
        if self.cut_after is None:
            arrive(data)
            return
        passing: Data = data[: self.cut_after]  # type: ignore[assignment]
        self.cut_after -= len(passing)
        if passing:
            arrive(passing)
        if len(passing) < len(data):
            self._network.trace("network", f"{self.name} is cut amid {len(data)}, after {len(passing)}")
            self.cut()

    def _to_client(self, data: bytes) -> None:
        self._inbox += data
        self._arrived.set()

    def _to_server(self, data: bytes) -> None:
        assert self.session is not None
        self.session.received(data)


class ClientStream(trio.abc.Stream):
    """The client's side of a link."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        if self._link.broken or self._link.closing:
            raise trio.BrokenResourceError("connection reset")
        self._link.travel(0, bytes(data), self._link._to_server)

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        link = self._link
        await trio.lowlevel.checkpoint()
        while not link._inbox:
            if link.broken:
                return b""
            await link.changed()
        data = bytes(link._inbox[:max_bytes])
        del link._inbox[: len(data)]
        return data

    async def aclose(self) -> None:
        self._link.close()
        await trio.lowlevel.checkpoint()


class Network:
    """All links."""

    def __init__(self, timers: Timers, dice: random.Random, trace: Trace) -> None:
        self.timers, self.trace = timers, trace
        self.links: set[Link] = set()
        self.servers: dict[str, Server] = {}
        self.opened = 0
        self.slow_s = 0.0
        """Up to so much is added to each way."""
        self._dice = dice

    def latency_s(self) -> float:
        return 0.0002 + (self._dice.random() * self.slow_s if self.slow_s else 0.0)

    def ordered(self) -> list[Link]:
        """The links in an order that does not depend on addresses in memory."""
        return sorted(self.links, key=lambda link: link.name)

    def connect(self, host: str) -> Link | None:
        """Open a connection; None if nobody accepts it."""
        self.opened += 1
        server = self.servers.get(host)
        link = Link(self, f"{host}-{self.opened:05d}-{owner.get()}")
        link.session = None if server is None else server.accept(link)
        if link.session is None:
            return None
        self.links.add(link)
        return link

    async def open_tcp_stream(self, host: str, _port: int, **_: object) -> trio.abc.Stream:
        """Instead of trio's. Raises OSError."""
        await trio.lowlevel.checkpoint()
        link = self.connect(host)
        if link is None:
            raise ConnectionRefusedError(111, "Connection refused")
        return ClientStream(link)

    def sever(self, process: str) -> None:
        """A process was killed: what it had sent arrives, and nothing more."""
        for link in self.ordered():
            if link.owner == process:
                link.close()
                link.owner = ""
