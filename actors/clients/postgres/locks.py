"""Who has locked tables so that nobody can even read them. On ordinary connections."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from actors.clients.postgres.connection import PgConnection


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
