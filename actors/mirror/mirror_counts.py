"""Counts of what a mirror has done so far: plain numbers that its log line and its metrics read."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from actors.mirror.track import CAUSES


@dataclass(slots=True)
class MirrorCounts:
    """The counts of one process. Durable state is in the replica.

    Written by the local transactions (`rows`, `commit_us`, `unknown_values`), the copies (`snapshots`, `snapshot_rows`), the
    follower (`is_behind`, `caught_up_at`) and the session (the rest); read by the log line and the metrics.
    """

    started_at: float = field(default_factory=time.time)
    connected: bool = False
    """Whether a session with NATS and the replica is open."""
    rows: dict[tuple[str, str], int] = field(default_factory=dict)
    """Committed changes by table and operation. A truncate is one change, however many rows it removed."""
    snapshots: int = 0
    snapshot_rows: int = 0
    resnapshots: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CAUSES, 0))
    """Tables that had to be copied again, by cause."""
    unknown_values: int = 0
    commit_us: int = 0
    """Commit time of the newest change that was applied."""
    is_behind: bool = True
    """Whether there is something left to apply, or nobody knows."""
    caught_up_at: float = 0.0
    """When the stream was last known to hold nothing more."""
    first_seq: int = 0
    last_seq: int = 0
    """The range of the stream's messages, read every few seconds."""
    wal_bytes: int = 0
    """Size of a SQLite replica's write-ahead log."""
    mismatched_keys: int = 0
    """Keys that `walbridge verify` found to differ."""
    verified_at: int = 0
    """The time since when every table is known to have been equal; 0 if some table never was."""

    @property
    def applied(self) -> int:
        """The number of all changes."""
        return sum(self.rows.values())

    def note_caught_up(self) -> None:
        """Note that everything in the stream is applied."""
        self.is_behind, self.caught_up_at = False, time.time()

    def lag_s(self, now_unix_s: float) -> float:
        """Seconds that the replica is at most behind the stream: 0 when everything is applied, growing while stuck."""
        if not self.is_behind:
            return 0.0
        return max(0.0, now_unix_s - (max(self.commit_us / 1e6, self.caught_up_at) or self.started_at))
