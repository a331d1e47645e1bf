"""Locks of tables: who has locked some so that nobody can even read them, and our own. On ordinary connections."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from actors.clients.postgres.connection import PgConnection, PostgresError
from actors.clients.postgres.publications import PublishedTable
from actors.wire.sql_names import quoted


class TableLock(NamedTuple):
    """An ACCESS EXCLUSIVE lock on a table, or a session that waits for one: readers queue behind both."""

    relation_oid: int
    pid: int
    """0 for a prepared transaction."""
    open_for_s: int
    query: str


async def locked_tables(connection: PgConnection, relation_oids: Collection[int], *, longer_than_s: int) -> list[TableLock]:
    """Return the locks on these tables whose transactions are open for some time, the oldest first."""
    rows = await connection.query(
        """
        SELECT l.relation, coalesce(l.pid, 0), coalesce(extract(epoch FROM clock_timestamp() - a.xact_start)::int, 0),
          coalesce(a.query, 'a prepared transaction, see pg_prepared_xacts')
        FROM pg_locks l JOIN pg_database b ON b.oid = l.database LEFT JOIN pg_stat_activity a ON a.pid = l.pid
        WHERE l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock' AND b.datname = current_database()
        ORDER BY 3 DESC
        """
    )
    found = [TableLock(int(oid or 0), int(pid or 0), int(age or 0), query or "") for oid, pid, age, query in rows]
    oids = set(relation_oids)
    return [lock for lock in found if lock.relation_oid in oids and (lock.open_for_s >= longer_than_s or not lock.pid)]


async def begin_locked(connection: PgConnection, tables: Sequence[PublishedTable], *, timeout_s: float) -> PgConnection | None:
    """Begin a transaction that will read one snapshot, and lock tables against changes of their shape before it is taken.

    LOCK TABLE demands SELECT on all columns. For a role that may read the published ones alone, cursors lock the tables in
    a session of its own, since they would take the snapshot here: it is returned, and its end ends the locks.

    Raises PostgresError, and SourceUnavailable when a lock is not granted within `timeout_s`.
    """
    begin = (
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL row_security = off;"
        f" SET LOCAL lock_timeout = {int(timeout_s * 1000)}"
    )
    names = ", ".join(table.own for table in tables)
    try:
        await connection.query(begin + (f"; LOCK TABLE {names} IN ACCESS SHARE MODE" if names else ""), timeout_s=timeout_s + 5)
    except PostgresError as exc:
        if exc.sqlstate != "42501":
            raise
    else:
        return None
    await connection.query("ROLLBACK")
    await connection.query(begin)
    holder = await PgConnection.connect(connection.config, application_name="walbridge locks")
    try:
        cursors = [
            f"; DECLARE held_{i} CURSOR FOR SELECT {', '.join(map(quoted, table.columns))} FROM {table.own}"
            for i, table in enumerate(tables)
        ]
        await holder.query(begin + "".join(cursors), timeout_s=timeout_s + 5)
    except BaseException:
        await holder.abandon()
        raise
    return holder
