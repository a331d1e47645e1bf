"""Transactions that the replication stream has brought, for a snapshot that knows only xids. No I/O."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from trio_util import AsyncValue

from actors.positions import NO_LSN, Lsn

REMEMBERED_MAX = 100_000


class TransactionLog:
    """The newest transactions of the replication stream, in commit order.

    Written by the decoder, read by a snapshot's watermark. Lives as long as the process: after a fault the next run continues
    it from where the stream restarts. Holds at least the last 100,000 transactions, in at most 2.4 MB.
    """

    def __init__(self) -> None:
        self.reached = AsyncValue(NO_LSN)
        """Every commit below has been added. Set once per block, to spare the hot path."""
        self._lsns, self._xids = array("Q"), array("I")

    def restart(self) -> None:
        """Note that the stream restarts: transactions that were added before may come a second time."""
        self.reached.value = NO_LSN

    def add(self, commit_lsn: Lsn, xid: int) -> None:
        """Add the next transaction; after a restart of the stream this replaces the transactions from `commit_lsn` on."""
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
