"""The watermark of a snapshot: the LSN that divides the changes in the snapshot from the changes after it.

The exact way is the consistent point of a temporary slot, whose exported snapshot the reading transaction adopts: an ordinary
snapshot may have no such LSN at all, because a commit is in the WAL before others see it. Creating the slot waits for writing
transactions. When that takes too long, the bridge takes an ordinary snapshot (`xmin:xmax:xip,...`), which sees a transaction
if and only if the xid is below xmax and not among those in progress. A comparison with the commit LSNs of the replication
stream (see `transaction_log`) then finds an LSN that divides the two kinds, or shows that another snapshot is needed.

https://www.postgresql.org/docs/18/protocol-replication.html#PROTOCOL-REPLICATION-CREATE-REPLICATION-SLOT
https://www.postgresql.org/docs/18/functions-info.html#FUNCTIONS-INFO-SNAPSHOT
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

import trio

from actors.clients.nats.bisection import Found, first_reached
from actors.clients.postgres.connection import PgConnection, PostgresError
from actors.clients.postgres.slots import export_snapshot
from actors.errors import SourceUnavailable
from actors.positions import NO_LSN, Lsn, parse_lsn
from actors.settings.config import PostgresConfig
from actors.snapshots.failures import NoWatermark, SnapshotFailed
from actors.snapshots.transaction_log import TransactionLog

SLOT_TIMEOUT_S = 5.0
"""How long the exact way may wait for writing transactions before an ordinary snapshot is taken."""
STREAM_CATCHES_UP_S = 20.0
_XID_MASK = 0xFFFF_FFFF


class XidSnapshot(NamedTuple):
    """The result of pg_current_snapshot(), with 64-bit xids."""

    xmin: int
    xmax: int
    in_progress: frozenset[int]

    def sees(self, xid: int) -> bool:
        """Return whether the snapshot sees the transaction; `xid` has 32 bits, as in the replication stream."""
        # the nearest 64-bit xid to the snapshot: all live xids are within 2^31 of each other
        full = (self.xmax & ~_XID_MASK) | xid
        if full - self.xmax > 1 << 31:
            full -= 1 << 32
        elif self.xmax - full > 1 << 31:
            full += 1 << 32
        return full < self.xmax and full not in self.in_progress


class Watermark(NamedTuple):
    """The LSN of an exported snapshot, or an ordinary snapshot whose LSN is still to be found."""

    lsn: Lsn | None
    """None when `xids` must be used to find it."""
    xids: XidSnapshot | None = None
    insert_lsn: Lsn = NO_LSN
    """Where the WAL ended after the ordinary snapshot was taken."""
    stalled_xids: frozenset[int] = frozenset()
    """Commits that are in the WAL and wait, not yet visible, for a synchronous standby."""
    system_id: str = ""
    timeline: int = 0


async def take_watermark(connection: PgConnection) -> Watermark:
    """Set the snapshot of the transaction that is open on `connection`; return its watermark.

    Raises PostgresError, and SourceUnavailable when PostgreSQL is away.
    """
    replication = await PgConnection.connect(connection.config, replication=True, application_name="walbridge snapshot")
    try:
        ((system_id, timeline, *_),) = await replication.query("IDENTIFY_SYSTEM")
        lsn, snapshot = await export_snapshot(replication, timeout_s=SLOT_TIMEOUT_S)
        await connection.query(f"SET TRANSACTION SNAPSHOT '{snapshot}'")
        return Watermark(lsn, system_id=system_id or "", timeline=int(timeline or 0))
    except (PostgresError, SourceUnavailable) as exc:
        if connection.is_standby:
            raise  # nothing else would do: it cannot say where its WAL ends, nor write to it
        # 53400 and 53300: no slot or sender is free; a timeout: a writing transaction is still open
        if isinstance(exc, PostgresError) and exc.sqlstate not in ("53400", "53300"):
            raise
    finally:
        replication.close()
    # the first query takes the snapshot; the end of the WAL and the waiting commits are read after it
    ((xids, insert_lsn),) = await connection.query("SELECT pg_current_snapshot(), pg_current_wal_insert_lsn()")
    stalled = await _stalled_commits(connection.config)
    return Watermark(
        None, parse_snapshot(xids or ""), parse_lsn(insert_lsn or "0/0"), stalled, system_id or "", int(timeline or 0)
    )


async def check_horizon(connection: PgConnection, horizon: int) -> None:
    """Check that all transactions that the open one does not see write to the table as it is published now.

    PostgreSQL decodes a change with the catalog of its time: what a transaction wrote before the table was published is neither
    in this snapshot nor ever in the stream. `horizon` is the first xid that the change of the publication came before. Raises
    NoWatermark.
    """
    rows = await connection.query(
        # an exported snapshot counts transactions that were rolled back as in progress
        "SELECT x.xid, (SELECT max(a.pid) FROM pg_stat_activity a WHERE a.backend_xid = x.xid::xid)"
        " FROM pg_snapshot_xip(pg_current_snapshot()) AS x (xid) WHERE x.xid < $1::xid8 AND pg_xact_status(x.xid) <> 'aborted'",
        (str(horizon),),
    )
    if rows:
        xid, pid = rows[0]
        who = f"transaction {xid}" + (f" (pid {pid})" if pid else "")
        raise NoWatermark(
            f"{who} has been open since before the table was published as it is now: what it wrote may be neither in the "
            "snapshot nor in the stream; request the snapshot again when it has ended"
        )


async def _stalled_commits(config: PostgresConfig) -> frozenset[int]:
    """Return commits that wait for a synchronous standby. Also write to the WAL, so that the stream soon passes its end."""
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
                hint="GRANT pg_read_all_stats TO CURRENT_USER;   -- as the bridge; or retry while no transaction is open",
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

    `commits`, (LSN, xid) in commit order, must reach `insert_lsn`, where the WAL ended after the snapshot was taken: the
    snapshot contains no commit from there on.
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

    Raises NoWatermark when there is no such LSN, SnapshotFailed when it cannot be determined.
    """
    if watermark.lsn is not None:
        return watermark.lsn
    assert watermark.xids is not None, "an ordinary snapshot has xids"
    if any(xid & _XID_MASK not in transactions for xid in watermark.stalled_xids):
        raise SnapshotFailed(
            "no_watermark", "a commit has waited for a synchronous standby since before this bridge started: it is in the "
            "WAL but not yet visible; request the snapshot again when the standby is back"
        )  # fmt: skip
    lsn = dividing_lsn(watermark.xids, transactions, watermark.insert_lsn)
    if lsn is None:
        raise NoWatermark
    return lsn


async def wait_for_lsn(watermark: Watermark, transactions: TransactionLog) -> Lsn:
    """Wait until the stream has passed the snapshot, and return its LSN. Raises SourceUnavailable if that takes 20 s."""
    if watermark.lsn is None:
        with trio.move_on_after(STREAM_CATCHES_UP_S) as deadline:
            await transactions.reached.wait_value(lambda reached: reached >= watermark.insert_lsn)
        if deadline.cancelled_caught:
            raise SourceUnavailable(
                "WB320", "cannot choose a snapshot LSN while the bridge is catching up",
                means="writing transactions delay the temporary slot, and the replication stream is behind",
            )  # fmt: skip
    return find_lsn(watermark, transactions)


class Stored(NamedTuple):
    """A message of the stream, as the bisection needs it."""

    seq: int
    lsn: Lsn


async def sequence_before(lsn: Lsn, first: int, last: int, look_up: Callable[[int], Awaitable[Stored | None]]) -> int:
    """Return the last of the sequences `first` to `last` that comes before the first event at `lsn` or later.

    Bisects, since LSNs only grow along the stream. `look_up` returns the first message at or after a sequence. Sequences begin
    at 1, but JetStream says 0 for `first` of a new stream.
    """

    async def look(seq: int) -> Found | None:
        found = await look_up(seq)
        return None if found is None else Found(found.seq, found.lsn >= lsn)

    return await first_reached(max(first, 1), last + 1, look) - 1
