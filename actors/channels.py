"""Memory channels between actors, bounded in items and in bytes. A full channel is the back-pressure."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class Channel(Generic[T]):
    """A bounded queue from one actor to the next, for one sender task and one receiver task.

    `send` waits while `capacity` items or `bytes_max` bytes wait already; a single item may be larger than `bytes_max`, so
    that a huge row passes. Closing the sender (`with channel.sender():`) ends the receiver's `async for` after the last item.
    Closing the receiver makes `send` raise trio.BrokenResourceError.

    `blocked_s` counts the seconds that the sender spent waiting: the slowest stage comes after the most blocked channel.
    """

    def __init__(self, name: str, capacity: int, bytes_max: int) -> None:
        self.name, self.capacity, self.bytes_max = name, capacity, bytes_max
        self.items_waiting = 0
        self.bytes_waiting = 0
        self.blocked_s = 0.0
        self._queue: deque[tuple[T, int]] = deque()
        self._sender_closed = self._receiver_closed = False
        self._readable: trio.Event | None = None
        self._writable: trio.Event | None = None

    def sender(self) -> Sender[T]:
        return Sender(self)

    def receiver(self) -> Receiver[T]:
        return Receiver(self)

    def _full(self) -> bool:
        return self.items_waiting > 0 and (self.items_waiting >= self.capacity or self.bytes_waiting >= self.bytes_max)

    async def _send(self, item: T, size: int) -> None:
        if self._full() and not self._receiver_closed:
            since = trio.current_time()
            while self._full() and not self._receiver_closed:
                self._writable = trio.Event()
                await self._writable.wait()
            self.blocked_s += trio.current_time() - since
        if self._receiver_closed:
            raise trio.BrokenResourceError(f"channel {self.name}: its receiver is closed")
        self._queue.append((item, size))
        self.items_waiting += 1
        self.bytes_waiting += size
        if self._readable is not None:
            self._readable.set()
            self._readable = None

    def _pop(self) -> T:
        item, size = self._queue.popleft()
        self.items_waiting -= 1
        self.bytes_waiting -= size
        if self._writable is not None and not self._full():
            self._writable.set()
            self._writable = None
        return item

    async def _receive(self) -> T:
        while not self._queue:
            if self._sender_closed:
                raise trio.EndOfChannel
            self._readable = trio.Event()
            await self._readable.wait()
        return self._pop()

    def _close(self, *, sender: bool) -> None:
        if sender:
            self._sender_closed = True
            event = self._readable
        else:
            self._receiver_closed = True
            event = self._writable
        if event is not None:
            event.set()


class Sender(Generic[T]):
    def __init__(self, channel: Channel[T]) -> None:
        self._channel = channel

    async def send(self, item: T, size_bytes: int) -> None:
        """Hand over one item; wait while the channel is full, and let other tasks run in any case."""
        await trio.lowlevel.checkpoint()
        await self._channel._send(item, size_bytes)

    def __enter__(self) -> Sender[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._channel._close(sender=True)


class Receiver(Generic[T]):
    def __init__(self, channel: Channel[T]) -> None:
        self._channel = channel

    async def receive(self) -> T:
        """Return the next item. Raises trio.EndOfChannel after the last item of a closed sender."""
        await trio.lowlevel.checkpoint_if_cancelled()
        return await self._channel._receive()

    def take_if(self, wanted: Callable[[T], bool]) -> T | None:
        """Return the next item if one waits and is wanted; None otherwise."""
        queue = self._channel._queue
        return self._channel._pop() if queue and wanted(queue[0][0]) else None

    def is_empty(self) -> bool:
        """Return whether no item waits: what has been gathered may be handed on at once."""
        return not self._channel._queue

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        try:
            return await self.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    def __enter__(self) -> Receiver[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._channel._close(sender=False)
