"""What a running mirror shows of itself over HTTP."""

from __future__ import annotations

from actors.mirror.progress import MirrorCounts
from actors.mirror.replica import Replica
from actors.mirror.state import REFUSED, STALE, WAITING


class View:
    """What is shown of a mirror: its counts, and the replica of the session that runs, or ran last."""

    def __init__(self, stream: str, kind: str, counts: MirrorCounts) -> None:
        self.stream, self.kind, self.counts = stream, kind, counts
        self.replica: Replica | None = None
        self.wanted: tuple[str, ...] = ()
        self.reason = "starting"

    def begin(self, replica: Replica, wanted: tuple[str, ...]) -> None:
        """A session has begun."""
        self.replica, self.wanted, self.counts.connected, self.reason = replica, wanted, True, ""

    @property
    def states(self) -> list[tuple[str, str]]:
        """(token, state) of each table that is mirrored."""
        return [(t, self.replica.tables[t].state) for t in self.wanted] if self.replica is not None else []

    @property
    def has_place(self) -> bool:
        """Some table is live."""
        return self.replica is not None and self.replica.place is not None

    @property
    def position_seq(self) -> int:
        """The stream's sequence up to which everything is in the replica; 0 when no table is live."""
        place = self.replica.place if self.replica is not None else None
        return place.cursor.stream_seq if place is not None else 0

    @property
    def not_ready_reason(self) -> str:
        """Empty when all tables are live and followed."""
        if not self.counts.connected:
            return self.reason
        refused = [token for token, state in self.states if state == REFUSED]
        copied = [token for token, state in self.states if state in (WAITING, STALE)]
        words, tokens = ("cannot be mirrored, see the log", refused) if refused else ("being copied", copied)
        return f"{words}: {', '.join(tokens[:5])}{' ...' if len(tokens) > 5 else ''}" if tokens else ""
