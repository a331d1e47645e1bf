"""Pull consumers without acknowledgements, as an ordered reader uses them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import trio

from property_tests.simulation.nats.store import Message, Stream, matches
from property_tests.simulation.timers import Timers

Deliver = Callable[[str, str, str, bytes, bytes], None]
"""To the subscription of an inbox: inbox, subject, reply, headers, data."""


@dataclass
class Pull:
    """A request for more."""

    inbox: str
    remaining: int
    bytes_left: int
    expires_at: float
    heartbeat_s: float
    heard_at: float = field(default_factory=trio.current_time)


class Consumer:
    """One consumer."""

    def __init__(self, stream: Stream, config: Mapping[str, Any], deliver: Deliver, timers: Timers) -> None:
        self.name = str(config["name"])
        self._stream, self._deliver, self._timers = stream, deliver, timers
        self._filters = list(config.get("filter_subjects") or [])
        self._next = int(config.get("opt_start_seq") or 1)
        self._sent = self._last_seq = 0
        self._pulls: deque[Pull] = deque()
        self.metadata: dict[str, str] = dict(config.get("metadata") or {})
        self.gone = False

    @property
    def pending(self) -> int:
        return len(self._waiting())

    def _waiting(self) -> list[Message]:
        stream = self._stream
        if self._next > stream.last_seq:
            return []
        return [
            m for m in stream.messages.values()
            if m.seq >= self._next and (not self._filters or any(matches(pattern, m.subject) for pattern in self._filters))
        ]  # fmt: skip

    def info(self) -> dict[str, Any]:
        return {
            "stream_name": self._stream.name, "name": self.name, "num_pending": self.pending, "num_ack_pending": 0,
            "config": {"name": self.name, "metadata": self.metadata},
        }  # fmt: skip

    def pull(self, inbox: str, request: Mapping[str, Any]) -> None:
        """Answer a request for more messages, now or when they come."""
        expires, heartbeat = float(request.get("expires", 0)) / 1e9, float(request.get("idle_heartbeat", 0)) / 1e9
        one = Pull(
            inbox, int(request["batch"]), int(request.get("max_bytes") or 1 << 40), trio.current_time() + expires, heartbeat
        )
        self._pulls.append(one)
        self._timers.after(expires, lambda: self._expire(one))
        if heartbeat:
            self._timers.after(heartbeat, lambda: self._beat(one))
        self.wake()

    def wake(self) -> None:
        """Deliver what there is."""
        if self.gone or not self._pulls:
            return
        waiting = self._waiting()
        for i, message in enumerate(waiting):
            if not self._pulls:
                return
            one = self._pulls[0]
            if message.size > one.bytes_left:
                self._end(one, "409 Message Size Exceeds MaxBytes")
                return
            self._sent += 1
            self._next, self._last_seq = message.seq + 1, message.seq
            left = len(waiting) - i - 1
            reply = f"$JS.ACK.{self._stream.name}.{self.name}.1.{message.seq}.{self._sent}.{int(message.at * 1e9)}.{left}"
            self._deliver(one.inbox, message.subject, reply, message.headers, message.data)
            one.remaining -= 1
            one.bytes_left -= message.size
            one.heard_at = trio.current_time()
            if not one.remaining:
                self._pulls.popleft()

    def _end(self, one: Pull, status: str) -> None:
        self._pulls.remove(one)
        headers = f"NATS/1.0 {status}\r\nNats-Pending-Messages: {one.remaining}\r\nNats-Pending-Bytes: {one.bytes_left}\r\n\r\n"
        self._deliver(one.inbox, one.inbox, "", headers.encode(), b"")

    def _expire(self, one: Pull) -> None:
        if not self.gone and one in self._pulls:
            self._end(one, "408 Request Timeout")

    def _beat(self, one: Pull) -> None:
        if self.gone or one not in self._pulls:
            return
        if trio.current_time() - one.heard_at >= one.heartbeat_s - 1e-9:
            headers = (
                f"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: {self._sent}\r\nNats-Last-Stream: {self._last_seq}\r\n\r\n"
            )
            self._deliver(one.inbox, one.inbox, "", headers.encode(), b"")
            one.heard_at = trio.current_time()
        self._timers.after(one.heartbeat_s, lambda: self._beat(one))
