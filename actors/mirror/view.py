"""The state that a running mirror shows over HTTP."""

from __future__ import annotations

from actors.mirror.mirror_counts import MirrorCounts
from actors.mirror.replica import Replica
from actors.mirror.state import REFUSED, STALE, WAITING


class View:
    """A mirror's counts, and the replica of its current session, or of the last one."""

    def __init__(self, stream: str, kind: str, counts: MirrorCounts) -> None:
        self.stream, self.kind, self.counts = stream, kind, counts
        self.replica: Replica | None = None
        self.wanted: tuple[str, ...] = ()
        self.reason = "starting"

    def begin(self, replica: Replica, wanted: tuple[str, ...]) -> None:
        """Show the replica of a session that has begun."""
        self.replica, self.wanted, self.counts.connected, self.reason = replica, wanted, True, ""

    @property
    def states(self) -> list[tuple[str, str]]:
        """(token, state) of each mirrored table."""
        return [(t, self.replica.tables[t].state) for t in self.wanted] if self.replica is not None else []

    @property
    def has_checkpoint(self) -> bool:
        """Whether any table is live."""
        return self.replica is not None and self.replica.checkpoint is not None

    @property
    def position_seq(self) -> int:
        """The stream sequence up to which the replica contains everything; 0 when no table is live."""
        checkpoint = self.replica.checkpoint if self.replica is not None else None
        return checkpoint.cursor.stream_seq if checkpoint is not None else 0

    @property
    def not_ready_reason(self) -> str:
        """Why the replica is not current; empty when all tables are live and followed."""
        if not self.counts.connected:
            return self.reason
        refused = [token for token, state in self.states if state == REFUSED]
        copied = [token for token, state in self.states if state in (WAITING, STALE)]
        words, tokens = ("cannot be mirrored, see the log", refused) if refused else ("being copied", copied)
        return f"{words}: {', '.join(tokens[:5])}{' ...' if len(tokens) > 5 else ''}" if tokens else ""
