"""Which transactions the replication stream has told of, and what that says of a snapshot that knows xids only. No I/O.

A snapshot of PostgreSQL (`xmin:xmax:xip,...`) sees a transaction if and only if its xid is below xmax and not among those in
progress. Held against the commit LSNs of the stream, an LSN divides the two kinds, or there is none and another snapshot must
be taken: https://www.postgresql.org/docs/18/functions-info.html#FUNCTIONS-INFO-SNAPSHOT
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import NamedTuple

from actors.positions import NO_LSN, Lsn

REMEMBERED_MAX = 100_000
_XID_MASK = 0xFFFF_FFFF


class XidSnapshot(NamedTuple):
    """What pg_current_snapshot() tells; 64-bit xids."""

    xmin: int
    xmax: int
    in_progress: frozenset[int]

    def sees(self, xid: int) -> bool:
        """Whether a transaction with this xid, of 32 bits as the replication stream has them, had ended for the snapshot."""
        # the 64-bit xid that is nearest to the snapshot: all xids alive are within 2^31 of each other
        whole = (self.xmax & ~_XID_MASK) | xid
        if whole - self.xmax > 1 << 31:
            whole -= 1 << 32
        elif self.xmax - whole > 1 << 31:
            whole += 1 << 32
        return whole < self.xmax and whole not in self.in_progress


class TransactionLog:
    """The newest transactions of the replication stream, in commit order. Written by the decoder alone.

    Holds at least the last 100,000 of them, in 2.4 MB at most.
    """

    def __init__(self) -> None:
        self._lsns, self._xids = array("Q"), array("I")

    def add(self, commit_lsn: Lsn, xid: int) -> None:
        """One more; of a stream that begins anew, those told before come again."""
        lsns = self._lsns
        while lsns and lsns[-1] >= commit_lsn:
            lsns.pop()
            self._xids.pop()
        lsns.append(commit_lsn)
        self._xids.append(xid)
        if len(lsns) > 2 * REMEMBERED_MAX:
            del lsns[:REMEMBERED_MAX], self._xids[:REMEMBERED_MAX]

    def __contains__(self, xid: object) -> bool:
        return xid in self._xids

    def __iter__(self) -> Iterator[tuple[Lsn, int]]:
        return ((Lsn(lsn), xid) for lsn, xid in zip(self._lsns, self._xids, strict=True))


def parse_snapshot(text: str) -> XidSnapshot:
    """`xmin:xmax:xip,xip`. Raises ValueError."""
    xmin, xmax, in_progress = text.split(":")
    return XidSnapshot(int(xmin), int(xmax), frozenset(map(int, filter(None, in_progress.split(",")))))


def dividing_lsn(snapshot: XidSnapshot, log: TransactionLog, insert_lsn: Lsn) -> Lsn | None:
    """The LSN below which all commits are in the snapshot and from which on none is; None when there is no such LSN.

    The log must reach up to `insert_lsn`, where the WAL ended after the snapshot was taken: whatever commits there or later
    is not in it.
    """
    first_unseen, last_seen = insert_lsn, NO_LSN
    for lsn, xid in log:
        if lsn >= insert_lsn:
            break
        if snapshot.sees(xid):
            last_seen = lsn
        elif first_unseen == insert_lsn:
            first_unseen = lsn
    return first_unseen if last_seen < first_unseen else None
