"""The events that are gathered for one message (`--pack`). No I/O, no trio."""

from __future__ import annotations

from actors.contract.event_encoder import Packable
from actors.messages import EventKind

LIST_HEAD_BYTES = 5
"""What a list adds to its events, at most."""


class MessageGroup:
    """Consecutive events of one kind and transaction. Its size is that of events sent alone: more than that of the message."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self.kind: EventKind | None = None
        self.size_bytes = LIST_HEAD_BYTES
        self._bodies: list[bytes] = []
        self._last_id = b""

    def __len__(self) -> int:
        return len(self._bodies)

    def add(self, kind: EventKind, events: Packable) -> None:
        """Add at least one event."""
        self.kind = kind
        self._bodies += events.bodies
        self._last_id = events.last_id
        self.size_bytes += events.size_bytes

    def take(self) -> Packable:
        """Take all events; the group is empty then."""
        events = Packable(self._bodies, self._last_id, self.size_bytes)
        self._start()
        return events
