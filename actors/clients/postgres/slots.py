"""Creates, inspects and drops replication slots. `replication` reads them.

https://www.postgresql.org/docs/18/protocol-replication.html
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import NamedTuple

import trio

from actors.clients.postgres.connection import PgConnection, PostgresError
from actors.clients.postgres.slot_waits import say_waits, waits_for_primary
from actors.errors import ConfigError, SourceUnavailable, WalbridgeError
from actors.positions import NO_LSN, Lsn, parse_lsn
from actors.telemetry.telemetry import Problem, SlotHealth
from actors.wire.sql_names import quoted

STANDBY_TIMEOUT_S = 60.0
"""How long a standby may take to export a snapshot: its primary, unless idle, notes its transactions every 15 s."""


class SlotState(NamedTuple):
    """A row of pg_replication_slots."""

    plugin: str
    slot_type: str
    database: str
    temporary: bool
    active: bool
    active_pid: int | None
    restart_lsn: Lsn | None
    confirmed_flush_lsn: Lsn | None
    wal_status: str
    invalidation_reason: str
    transactions_read: int
    """From PostgreSQL's statistics, which a crash resets: 0 does not prove that the slot was never read."""


async def slot_state(connection: PgConnection, slot: str) -> SlotState | None:
    """Return a slot's state; None when there is no such slot. On an ordinary connection."""
    reason = "coalesce(invalidation_reason, '')" if connection.server_version >= 170000 else "''"
    rows = await connection.query(
        "SELECT coalesce(plugin, ''), slot_type, coalesce(database, ''), temporary, active, active_pid, restart_lsn,"
        f" confirmed_flush_lsn, coalesce(wal_status, ''), {reason}, coalesce((SELECT total_txns"
        " FROM pg_stat_replication_slots t WHERE t.slot_name = s.slot_name), 0)"
        " FROM pg_replication_slots s WHERE s.slot_name = $1",
        (slot,),
    )
    if not rows:
        return None
    plugin, kind, database, temporary, active, pid, restart, confirmed, status, why, txns = rows[0]
    return SlotState(
        plugin or "", kind or "", database or "", temporary == "t", active == "t", int(pid) if pid else None,
        parse_lsn(restart) if restart else None, parse_lsn(confirmed) if confirmed else None, status or "", why or "",
        int(txns or 0),
    )  # fmt: skip


async def export_snapshot(connection: PgConnection, *, timeout_s: float) -> tuple[Lsn, str]:
    """Create a temporary slot and export the snapshot of its consistent point; return both.

    The snapshot contains exactly the transactions that commit below that LSN, whatever else happens meanwhile. The slot ends
    with `connection`, a replication connection; the snapshot can be imported only until then. Waits for all transactions that
    are writing now. Raises PostgresError or SourceUnavailable when the slot cannot be created within `timeout_s`, on a standby
    within at least 60 s.
    """
    name = f"snap_{secrets.token_hex(6)}"
    standby = connection.is_standby
    options = "(SNAPSHOT 'export')" if connection.server_version >= 150000 else "EXPORT_SNAPSHOT"
    try:
        ((_, point, snapshot, *_),) = await connection.query(
            f"CREATE_REPLICATION_SLOT {quoted(name)} TEMPORARY LOGICAL pgoutput {options}",
            timeout_s=max(timeout_s, STANDBY_TIMEOUT_S) if standby else timeout_s,
        )
    except SourceUnavailable as exc:
        raise (waits_for_primary(exc) if standby else exc) from exc
    return parse_lsn(point or "0/0"), snapshot or ""


async def create_slot(
    connection: PgConnection, slot: str, *, temporary: bool = False, show: Callable[[Problem], None] = lambda _: None
) -> Lsn:
    """Create the slot, synchronized to standbys if the server supports that; return its consistent point.

    A temporary slot ends with `connection`, which alone can read it.

    Waits for all transactions that are writing now, however long; after 5 s they are logged and shown. A cancelled call leaves
    no slot and ends the connection. On a replication connection. Raises ConfigError when no slot is free, and
    SourceUnavailable when another process has just made it.
    """
    if connection.server_version >= 170000 and not temporary and not connection.is_standby:
        options = " (SNAPSHOT 'nothing', FAILOVER)"
    elif connection.server_version >= 150000:
        options = " (SNAPSHOT 'nothing')"
    else:
        options = " NOEXPORT_SNAPSHOT"
    consistent_point, refused = "", None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(say_waits, connection, slot, show)
        try:
            ((_, point, *_),) = await connection.query(
                f"CREATE_REPLICATION_SLOT {quoted(slot)}{' TEMPORARY' if temporary else ''} LOGICAL pgoutput{options}",
                timeout_s=float("inf"),
            )
            consistent_point = point or "0/0"
        except WalbridgeError as exc:  # raised in the nursery, the error would be wrapped in a group
            refused = exc
        nursery.cancel_scope.cancel()
    if isinstance(refused, PostgresError) and refused.sqlstate == "53400":
        raise ConfigError(
            "WB113", "PostgreSQL has no free replication slot", said=refused.said,
            fix="ALTER SYSTEM SET max_replication_slots = 20;   -- then restart PostgreSQL; or drop unused slots: "
            "SELECT slot_name, active FROM pg_replication_slots",
        ) from refused  # fmt: skip
    if isinstance(refused, PostgresError) and refused.sqlstate == "42710":
        raise SourceUnavailable(
            "WB104", f"slot {slot} was made by another process just now", said=refused.said,
            means="two bridges began at once: one of them reads the slot, the other waits for it",
            fix="to see the reader: SELECT pid, application_name FROM pg_stat_replication",
        ) from refused  # fmt: skip
    if refused is not None:
        raise refused
    return parse_lsn(consistent_point)


async def drop_slot(connection: PgConnection, slot: str) -> None:
    """Drop a slot that can no longer be read. On an ordinary connection."""
    await connection.query("SELECT pg_drop_replication_slot($1)", (slot,))


async def slot_health(connection: PgConnection, slot: str) -> SlotHealth | None:
    """Return how much WAL is held for the slot and how safe the slot is; None when there is no such slot."""
    rows = await connection.query(
        """
        SELECT s.active, CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
          s.restart_lsn, s.confirmed_flush_lsn, coalesce(s.wal_status, ''), s.safe_wal_size,
          current_setting('max_slot_wal_keep_size') <> '-1', coalesce(age(s.catalog_xmin), 0), coalesce(r.spill_bytes, 0)
        FROM pg_replication_slots s LEFT JOIN pg_stat_replication_slots r ON r.slot_name = s.slot_name
        WHERE s.slot_name = $1
        """,
        (slot,),
    )
    if not rows:
        return None
    active, current, restart, confirmed, status, safe, limited, age, spilled = rows[0]
    lsn = [parse_lsn(text) if text else NO_LSN for text in (current, restart, confirmed)]
    return SlotHealth(
        active == "t", lsn[0], lsn[1], lsn[2], status or "", int(safe) if safe else None, limited == "t",
        int(age or 0), int(spilled or 0),
    )  # fmt: skip
