"""The watermark of a snapshot: the LSN that divides the changes it has from those that come after it.

The exact way is the consistent point of a temporary slot, whose exported snapshot the reading transaction takes: for an
ordinary snapshot there may be no LSN at all that divides what it sees from what it does not (a commit is in the WAL before
others see it). Making the slot waits for transactions that write. When that takes too long, an ordinary snapshot
(`xmin:xmax:xip,...`) is taken: it sees a transaction if and only if its xid is below xmax and not among those in progress. Held
against the commit LSNs of the replication stream (see `transaction_log`), an LSN divides the two kinds, or there is none and
another snapshot must be taken.

https://www.postgresql.org/docs/18/protocol-replication.html#PROTOCOL-REPLICATION-CREATE-REPLICATION-SLOT
https://www.postgresql.org/docs/18/functions-info.html#FUNCTIONS-INFO-SNAPSHOT
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

import trio

from actors.clients.postgres.connection import PgConnection, PostgresError
from actors.clients.postgres.slots import export_snapshot
from actors.errors import SourceUnavailable
from actors.positions import NO_LSN, Lsn, parse_lsn
from actors.settings.config import PostgresConfig
from actors.snapshots.failures import NoWatermark, SnapshotFailed
from actors.snapshots.transaction_log import TransactionLog

SLOT_TIMEOUT_S = 5.0
"""How long the exact way may wait for transactions that write; then the other way is taken."""
STREAM_CATCHES_UP_S = 20.0
_XID_MASK = 0xFFFF_FFFF


class XidSnapshot(NamedTuple):
    """What pg_current_snapshot() returns; 64-bit xids."""

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


class Watermark(NamedTuple):
    """The exported snapshot's place in the WAL, or an ordinary snapshot whose place must be found."""

    lsn: Lsn | None
    """None: to be found with `xids`."""
    xids: XidSnapshot | None = None
    insert_lsn: Lsn = NO_LSN
    """Where the WAL ended after the ordinary snapshot was taken."""
    stalled_xids: frozenset[int] = frozenset()
    """Of commits that are in the WAL and wait, unseen, for a synchronous standby."""


async def take_watermark(config: PostgresConfig, connection: PgConnection) -> Watermark:
    """Set the snapshot of the transaction that is open on `connection`, and return what is known of its LSN.

    Raises PostgresError, and SourceUnavailable when PostgreSQL is away.
    """
    replication = await PgConnection.connect(config, replication=True, application_name="walbridge snapshot")
    try:
        lsn, snapshot = await export_snapshot(replication, f"snap_{secrets.token_hex(6)}", timeout_s=SLOT_TIMEOUT_S)
        await connection.query(f"SET TRANSACTION SNAPSHOT '{snapshot}'")
        return Watermark(lsn)
    except (PostgresError, SourceUnavailable) as exc:
        # 53400 and 53300: no slot or sender is free; a time-out: somebody writes, and has not ended yet
        if isinstance(exc, PostgresError) and exc.sqlstate not in ("53400", "53300"):
            raise
    finally:
        replication.close()
    # the first query takes the snapshot; where the WAL ends and which commits wait is asked after it
    ((xids, insert_lsn),) = await connection.query("SELECT pg_current_snapshot(), pg_current_wal_insert_lsn()")
    stalled = await _stalled_commits(config)
    return Watermark(None, parse_snapshot(xids or ""), parse_lsn(insert_lsn or "0/0"), stalled)


async def _stalled_commits(config: PostgresConfig) -> frozenset[int]:
    """Commits that wait for a synchronous standby. Also writes to the WAL, so that the stream soon passes its present end."""
    connection = await PgConnection.connect(config, application_name="walbridge snapshot")
    try:
        ((synchronous, privileged),) = await connection.query(
            "SELECT current_setting('synchronous_standby_names') <> '', pg_has_role('pg_read_all_stats', 'USAGE')"
        )
        await connection.query("SELECT pg_logical_emit_message(false, 'walbridge', 'snapshot')")
        if synchronous != "t":
            return frozenset()
        if privileged != "t":
            raise PostgresError(
                "42501", "cannot see which commits wait for a synchronous standby",
                hint="GRANT pg_read_all_stats TO CURRENT_USER;   -- of the bridge; or ask again when no transaction is open",
            )  # fmt: skip
        rows = await connection.query(
            "SELECT backend_xid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND backend_xid IS NOT NULL"
        )
        return frozenset(int(xid or 0) for (xid,) in rows)
    finally:
        connection.close()


# -- the LSN of an ordinary snapshot


def parse_snapshot(text: str) -> XidSnapshot:
    """Read `xmin:xmax:xip,xip`. Raises ValueError."""
    xmin, xmax, in_progress = text.split(":")
    return XidSnapshot(int(xmin), int(xmax), frozenset(map(int, filter(None, in_progress.split(",")))))


def dividing_lsn(snapshot: XidSnapshot, commits: Iterable[tuple[Lsn, int]], insert_lsn: Lsn) -> Lsn | None:
    """Return the LSN below which all commits are in the snapshot and from which on none is; None when there is no such LSN.

    `commits`, (LSN, xid) in commit order, must reach up to `insert_lsn`, where the WAL ended after the snapshot was taken: the
    snapshot has nothing that commits there or later.
    """
    first_unseen, last_seen = insert_lsn, NO_LSN
    for lsn, xid in commits:
        if lsn >= insert_lsn:
            break
        if snapshot.sees(xid):
            last_seen = lsn
        elif first_unseen == insert_lsn:
            first_unseen = lsn
    return first_unseen if last_seen < first_unseen else None


def find_lsn(watermark: Watermark, transactions: TransactionLog) -> Lsn:
    """Return the LSN that divides an ordinary snapshot, once `transactions` has reached the snapshot's `insert_lsn`.

    Raises NoWatermark when there is none, SnapshotFailed when none can be known.
    """
    if watermark.lsn is not None:
        return watermark.lsn
    assert watermark.xids is not None, "an ordinary snapshot has xids"
    if any(xid & _XID_MASK not in transactions for xid in watermark.stalled_xids):
        raise SnapshotFailed(
            "no_watermark", "a commit waits for a synchronous standby since before this bridge started: it is in the WAL, "
            "and nobody sees it; ask again when the standby is back"
        )  # fmt: skip
    lsn = dividing_lsn(watermark.xids, transactions, watermark.insert_lsn)
    if lsn is None:
        raise NoWatermark
    return lsn


async def wait_for_lsn(watermark: Watermark, transactions: TransactionLog) -> Lsn:
    """Wait until the stream has passed the snapshot, and find its LSN. Raises SourceUnavailable while the bridge is behind."""
    if watermark.lsn is None:
        with trio.move_on_after(STREAM_CATCHES_UP_S) as deadline:
            await transactions.reached.wait_value(lambda reached: reached >= watermark.insert_lsn)
        if deadline.cancelled_caught:
            raise SourceUnavailable(
                "WB320", "cannot choose a snapshot LSN while the bridge is catching up",
                means="transactions that write hold up the exact way, and the stream is behind",
            )  # fmt: skip
    return find_lsn(watermark, transactions)


class Stored(NamedTuple):
    """A message of the stream, as the bisection looks at it."""

    seq: int
    lsn: Lsn


async def sequence_before(lsn: Lsn, first: int, last: int, look_up: Callable[[int], Awaitable[Stored | None]]) -> int:
    """Return the last of the stream's sequences `first` to `last` that stands before the first event of `lsn` or later.

    A bisection, since LSNs only grow along the stream. `look_up` returns the first message at a sequence or after it: some may
    have been deleted.
    """
    low, high = first, last + 1
    while low < high:
        middle = (low + high) // 2
        found = await look_up(middle)
        if found is None or found.lsn >= lsn:
            high = middle
        else:
            low = found.seq + 1
    return low - 1
