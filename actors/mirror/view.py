"""The state that a running mirror shows over HTTP."""

from __future__ import annotations

from actors.mirror.mirror_counts import MirrorCounts
from actors.mirror.replica import NOT_PUBLISHED, Replica
from actors.mirror.state import REFUSED, STALE, UNPUBLISHED, WAITING
from actors.mirror.table_choice import KeptTables

_NOT_READY = {
    "cannot be mirrored, see the log": (REFUSED,),
    f"no longer published ({NOT_PUBLISHED})": (UNPUBLISHED,),
    "being copied": (WAITING, STALE),
}
"""Why tables are not current, what a person must do something about first."""


class View:
    """A mirror's counts, and the replica of its current session, or of the last one."""

    def __init__(self, stream: str, kind: str, counts: MirrorCounts, name: str = "") -> None:
        """`name` of the replica, without secrets."""
        self.stream, self.kind, self.counts, self.name = stream, kind, counts, name
        self.replica: Replica | None = None
        self._kept: KeptTables | None = None
        self.reason = "starting"

    def begin(self, replica: Replica, kept: KeptTables) -> None:
        """Show the replica of a session that has begun."""
        self.replica, self._kept, self.counts.connected, self.reason = replica, kept, True, ""

    @property
    def tokens(self) -> tuple[str, ...]:
        """The mirrored tables."""
        return self._kept.tokens if self._kept is not None else ()

    @property
    def states(self) -> list[tuple[str, str]]:
        """(token, state) of each mirrored table."""
        return [(t, self.replica.tables[t].state) for t in self.tokens] if self.replica is not None else []

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
        for words, reasons in _NOT_READY.items():
            tokens = [token for token, state in self.states if state in reasons]
            if tokens:
                return f"{words}: {', '.join(tokens[:5])}{' ...' if len(tokens) > 5 else ''}"
        return ""
