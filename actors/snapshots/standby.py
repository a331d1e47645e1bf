"""A standby from which snapshots read rows instead of the primary: of the same server, and as recent as the request.

Its WAL is the primary's, so the consistent point of a slot on the standby divides the changes as one on the primary would. Two
things could make a snapshot from there wrong: a server with another history (another cluster, or another timeline after a
failover), and one that is behind, whose snapshot would be older than what readers have, or than a gap. The first is refused.
For the second the snapshot waits until the standby has replayed what the primary had written when the snapshot was asked for.

https://www.postgresql.org/docs/18/logicaldecoding-explanation.html#LOGICALDECODING-REPLICATION-SLOTS
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing

import trio

from actors.clients.postgres.connection import PgConnection
from actors.clients.postgres.replication import SystemIdentity, identify_system
from actors.clients.postgres.slots import STANDBY_TIMEOUT_S, export_snapshot
from actors.errors import SourceUnavailable, WalbridgeError
from actors.positions import Lsn, parse_lsn
from actors.settings.config import PostgresConfig
from actors.snapshots.watermark import Watermark
from actors.telemetry.log import get_logger
from actors.telemetry.quantities import human_bytes

log = get_logger("snapshotter")

OLDEST_VERSION = 160000
"""The first in which a slot can be made on a standby."""
CATCHES_UP_S = 10.0
LOOK_EVERY_S = 0.01
NOTE_AFTER_S = 0.02
NOTE_EVERY_S = 0.3
WAL_END = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END"
"""On a standby what it has replayed; on a primary what it may have sent. Where the next record goes may be beyond the header of
a page, which no standby reaches before there is one."""


async def caught_up(primary: PostgresConfig, connection: PgConnection) -> None:
    """Wait until the server of `connection` has replayed what `primary` has now.

    No transaction may be open on `connection`: its locks could stop the replay. Raises SourceUnavailable when the server is not
    a standby of `primary`, is behind, or when one of them is away.
    """
    async with _both(primary, connection) as (asked, standby):
        await same_server(asked, standby)
        lsn = reached = await wal_end(asked)
        with trio.move_on_after(CATCHES_UP_S) as deadline:
            while (reached := await wal_end(standby)) < lsn:  # noqa: ASYNC110  (another server's)
                await trio.sleep(LOOK_EVERY_S)
        if deadline.cancelled_caught:
            raise behind(connection.address, lsn - reached)


async def standby_watermark(primary: PostgresConfig, connection: PgConnection) -> Watermark:
    """Set the snapshot of the transaction that is open on `connection`, to a standby of `primary`; return its watermark.

    Raises as `caught_up` does, and PostgresError when the standby has no free slot.
    """
    async with _both(primary, connection) as (asked, standby):
        lsn, snapshot = await _export(asked, standby)
        await connection.query(f"SET TRANSACTION SNAPSHOT '{snapshot}'")
        # now: promoted before, it could have transactions that the primary has not
        identity = await same_server(asked, standby)
        return Watermark(lsn, system_id=identity.system_id, timeline=identity.timeline)


@asynccontextmanager
async def _both(primary: PostgresConfig, connection: PgConnection) -> AsyncGenerator[tuple[PgConnection, PgConnection]]:
    """A replication connection to the primary, and one to the server of `connection`."""
    asked = await PgConnection.connect(primary, application_name="walbridge snapshot", replication=True)
    with closing(asked):
        standby = await PgConnection.connect(connection.config, application_name="walbridge snapshot", replication=True)
        with closing(standby):
            yield asked, standby


async def same_server(primary: PgConnection, standby: PgConnection) -> SystemIdentity:
    """Return the identity of both, on replication connections. Raises SourceUnavailable unless `standby` may be read."""
    if standby.is_standby and standby.server_version < OLDEST_VERSION:
        raise _unusable(standby, "is a standby before version 16, on which no slot can be made")
    here, there = await identify_system(primary), await identify_system(standby)
    if there.system_id != here.system_id:
        said = f"system id {there.system_id}, not {here.system_id}"
        raise _unusable(standby, f"is another server than {primary.address}", said)
    if there.timeline != here.timeline:
        said = f"timeline {there.timeline}, not {here.timeline}"
        raise _unusable(standby, f"has another history than {primary.address}: one of them was promoted", said)
    return here


async def wal_end(connection: PgConnection) -> Lsn:
    """Return up to where a server has WAL (see `WAL_END`)."""
    ((lsn,),) = await connection.query(WAL_END)
    return parse_lsn(lsn or "0/0")


def _unusable(standby: PgConnection, what: str, said: str = "") -> SourceUnavailable:
    return SourceUnavailable(
        "WB140", f"PostgreSQL at {standby.address}, from which snapshots are to be read, {what}", said=said,
        means="its rows may differ from what the stream says: nothing is read there, and snapshots wait",
        fix="restart the bridge with a standby of the server that it reads in SNAPSHOT_DATABASE_URL, or without it",
    )  # fmt: skip


def behind(address: str, lag_bytes: int) -> SourceUnavailable:
    """Return the error of a standby that has not replayed what the primary has written."""
    return SourceUnavailable(
        "WB141", f"the standby at {address} is {human_bytes(lag_bytes)} of WAL behind its primary",
        means="a snapshot from there would be older than its request: snapshots wait",
        fix="SELECT status, last_msg_receipt_time FROM pg_stat_wal_receiver; SELECT pg_is_wal_replay_paused();   -- there",
    )  # fmt: skip


async def _export(primary: PgConnection, standby: PgConnection) -> tuple[Lsn, str]:
    """Export a snapshot on the standby, and have the primary note meanwhile which transactions run, without which it waits."""
    exported: tuple[Lsn, str] | None = None
    failure: WalbridgeError | None = None
    async with trio.open_nursery() as nursery:
        if standby.is_standby and not primary.is_standby:
            nursery.start_soon(_note_transactions, primary.config)
        try:
            exported = await export_snapshot(standby, timeout_s=STANDBY_TIMEOUT_S)
        except WalbridgeError as exc:  # raised in the nursery, the error would be wrapped in a group
            failure = exc
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    assert exported is not None, "it is one or the other"
    return exported


async def _note_transactions(primary: PostgresConfig) -> None:
    """Make a slot on the primary, and end it, until cancelled: pg_log_standby_snapshot() is for superusers alone."""
    await trio.sleep(NOTE_AFTER_S)  # what was noted before the standby's slot was begun does not count
    while True:
        try:
            connection = await PgConnection.connect(primary, application_name="walbridge snapshot", replication=True)
            with closing(connection):
                await export_snapshot(connection, timeout_s=STANDBY_TIMEOUT_S)
        except WalbridgeError as exc:  # no free slot, say: the primary notes its transactions every 15 s, too
            log.debug("the primary cannot be made to note its transactions", error=str(exc))
        await trio.sleep(NOTE_EVERY_S)
