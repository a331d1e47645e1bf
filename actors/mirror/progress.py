"""What a mirror has done so far: plain numbers, read by its log line and its metrics."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from actors.mirror.track import CAUSES


@dataclass(slots=True)
class MirrorCounts:
    """One for the process; what is durable is the replica's."""

    started_at: float = field(default_factory=time.time)
    connected: bool = False
    """A session with NATS and the replica is open."""
    rows: dict[tuple[str, str], int] = field(default_factory=dict)
    """By table and operation: changes that are in the replica. A truncate is one, whatever it took away."""
    snapshots: int = 0
    snapshot_rows: int = 0
    resnapshots: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CAUSES, 0))
    """By cause: tables that had to be copied again."""
    unknown_values: int = 0
    commit_us: int = 0
    """Commit time of the newest change that was applied."""
    # how far it is behind
    is_behind: bool = True
    """There is something to apply, or nobody knows."""
    caught_up_at: float = 0.0
    """When it was last known that the stream held nothing more."""
    first_seq: int = 0
    last_seq: int = 0
    """What the stream holds, looked at now and then."""
    # what `walbridge verify` has left in the replica
    mismatched_keys: int = 0
    verified_at: float = 0.0
    """Since when every table is known to have been equal; 0 when one never was."""

    @property
    def applied(self) -> int:
        """All changes."""
        return sum(self.rows.values())

    def note_caught_up(self) -> None:
        """Everything that the stream holds is applied."""
        self.is_behind, self.caught_up_at = False, time.time()

    def lag_s(self, now_unix_s: float) -> float:
        """Seconds that the replica is behind the stream at most; 0 when it holds everything, grows while stuck."""
        if not self.is_behind:
            return 0.0
        return max(0.0, now_unix_s - (max(self.commit_us / 1e6, self.caught_up_at) or self.started_at))
