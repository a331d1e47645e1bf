"""How far the bridge is behind: what PostgreSQL has told of and JetStream has not stored. No I/O, no trio."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from actors.positions import NO_LSN, Lsn

UNREAD_MIN_BYTES = 64 * 1024
"""WAL that an idle PostgreSQL writes for itself, and that nobody is sent before something follows, is not a backlog."""
CATCHING_UP_S = 5.0
"""While changes come late, a pipeline that is empty for less than this waits for PostgreSQL's next ones, which are late too."""
LATE_S = 1.0
"""A change that is older than this when it arrives comes late."""
ENDS_MAX = 600


class Backlog:
    """Committed changes that PostgreSQL has told of, until they are stored, and how far its WAL reached when. Unix seconds.

    The decoder calls `told`, the acker `stored`, the start of a run `begin`, the wal_monitor `wal_ends`.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[Lsn, float]] = deque()  # (commit LSN, commit time), oldest first
        self._newest = (NO_LSN, 0.0, False)  # commit LSN, commit time, whether it came late: of the newest told change
        self._told_at = 0.0
        self._before: deque[tuple[Lsn, float]] = deque()  # what earlier runs have left, until this run has stored it
        self._reach = NO_LSN  # where that is proven at the latest
        self._ends: deque[tuple[Lsn, float]] = deque()  # (end of the WAL, when), oldest first

    def begin(self, skip_lsn: Lsn, wal_end: Lsn, now_unix_s: float) -> None:
        """Begin a run that continues after `skip_lsn`, while the WAL ends at `wal_end`.

        PostgreSQL will send again what earlier runs did not store. Until then its age is remembered.
        """
        self._before = deque(sorted({one for one in (*self._before, *self._waiting) if one[0] > skip_lsn}))
        self._reach = wal_end
        self._waiting.clear()
        self._newest, self._told_at = (Lsn(skip_lsn - 1), 0.0, False), 0.0
        self._ends.clear()  # another server's, perhaps
        self._ends.append((wal_end, now_unix_s))

    def told(self, commits: Iterable[tuple[Lsn, float]], now_unix_s: float) -> None:
        """Note transactions with changes to store, by commit LSN and commit time, in PostgreSQL's order."""
        for lsn, at in commits:
            if lsn > self._newest[0]:
                self._waiting.append((lsn, at))
                self._newest, self._told_at = (lsn, at, now_unix_s - at > LATE_S), now_unix_s

    def stored(self, end_lsn: Lsn) -> None:
        """Note that JetStream has stored everything below `end_lsn`."""
        for waiting in (self._waiting, self._before):
            while waiting and waiting[0][0] < end_lsn:
                waiting.popleft()
        if self._reach <= end_lsn:
            self._before.clear()

    def wal_ends(self, lsn: Lsn, received_lsn: Lsn, now_unix_s: float) -> None:
        """Note how far PostgreSQL's WAL reaches, and how much of it has been sent."""
        while self._ends and self._ends[0][0] <= received_lsn:
            self._ends.popleft()
        if self._ends and lsn <= self._ends[-1][0]:
            return  # nothing was written, or the server is another one
        if len(self._ends) == ENDS_MAX:
            self._ends.pop()
        self._ends.append((lsn, now_unix_s))

    @property
    def is_waiting(self) -> bool:
        """Whether a change that PostgreSQL has told of is not stored."""
        return bool(self._open())

    def unread_bytes(self, received_lsn: Lsn) -> int:
        """WAL that PostgreSQL has written and not sent, as of the last look; 0 for what an idle PostgreSQL writes."""
        unread = self._ends[-1][0] - received_lsn if self._ends and received_lsn else 0
        return unread if unread >= UNREAD_MIN_BYTES else 0

    def unread_s(self, received_lsn: Lsn, now_unix_s: float) -> float:
        """For how long PostgreSQL has had WAL, at least, that it has not sent; 0 if there is none."""
        if not self.unread_bytes(received_lsn):
            return 0.0
        since = next((at for lsn, at in self._ends if lsn >= received_lsn + UNREAD_MIN_BYTES), now_unix_s)
        return max(0.0, now_unix_s - since)

    def unstored_s(self, received_lsn: Lsn, now_unix_s: float) -> float:
        """The age of the oldest change that PostgreSQL has told of and JetStream has not stored; 0 if there is none.

        It falls when something is stored, and not because the pipeline is empty for a moment: while changes come late and
        PostgreSQL has more WAL, the next change is about as old as the last one.
        """
        oldest = min((at for _, at in self._open()), default=0.0)
        if not oldest and self._newest[2] and now_unix_s - self._told_at < CATCHING_UP_S and self.unread_bytes(received_lsn):
            oldest = self._newest[1]
        return max(0.0, now_unix_s - oldest) if oldest else 0.0

    def _open(self) -> list[tuple[Lsn, float]]:
        """The oldest of each kind: each is in order."""
        return [waiting[0] for waiting in (self._before, self._waiting) if waiting]
