"""What has happened to the bridge since it started: a bounded list in memory, for the page and `GET /journal`."""

from __future__ import annotations

import time
from collections import deque
from typing import Literal, NamedTuple

ENTRIES_MAX = 500
"""The oldest entries are forgotten beyond this."""

Kind = Literal[
    "started", "streaming", "outage", "stopping", "paused", "resumed", "problem", "solved", "publication", "suspended", "gap",
    "slot", "snapshot", "reader", "verified",
]  # fmt: skip
Level = Literal["info", "ok", "warn", "bad"]


class Entry(NamedTuple):
    """One thing that happened."""

    number: int
    """From 1, without holes."""
    at: float
    """Unix seconds."""
    kind: Kind
    level: Level
    text: str
    table: str = ""
    """The token of the table that it concerns, if it is one alone."""
    consumer: str = ""
    """The name of the consumer that it concerns."""


class Journal:
    """Takes entries from whoever sees something happen: the supervisor, `SnapshotBoard`, `Suspensions` and the monitors."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque(maxlen=ENTRIES_MAX)
        self.last_number = 0

    def note(self, kind: Kind, text: str, level: Level = "info", *, table: str = "", consumer: str = "") -> None:
        """Add an entry of now."""
        self.last_number += 1
        self._entries.append(Entry(self.last_number, time.time(), kind, level, text, table, consumer))

    def after(self, number: int) -> list[Entry]:
        """The entries after this number that are still kept, oldest first."""
        missing = min(self.last_number - number, len(self._entries))
        return list(self._entries)[len(self._entries) - missing :] if missing > 0 else []
