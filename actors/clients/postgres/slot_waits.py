"""What a new slot waits for: every transaction that was writing when its creation began, or, on a standby, the primary.

https://www.postgresql.org/docs/18/logicaldecoding-explanation.html#LOGICALDECODING-REPLICATION-SLOTS
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from actors.clients.postgres.connection import PgConnection
from actors.errors import SourceUnavailable, WalbridgeError
from actors.telemetry.log import get_logger
from actors.telemetry.telemetry import Problem

log = get_logger("postgres")

SAY_AFTER_S = 5.0
LOOK_EVERY_S = 5.0
ON_THE_PRIMARY = "SELECT pg_log_standby_snapshot();   -- on the primary, once no long transaction is open there"


async def say_waits(creating: PgConnection, slot: str, show: Callable[[Problem], None]) -> None:
    """Log and show, from 5 s on and until cancelled, what keeps `creating` from making the slot."""
    await trio.sleep(SAY_AFTER_S)
    while True:
        try:
            watching = await PgConnection.connect(creating.config, application_name="walbridge startup")
            try:
                found = await slot_waits(watching, slot, creating.backend_pid)
            finally:
                watching.close()
            for problem in found:
                log.warning(problem.what, code=problem.code, said=problem.said, fix=problem.fix)
            if found:
                show(found[0])
        except WalbridgeError as exc:
            log.debug("cannot see what the new slot waits for", error=str(exc))
        await trio.sleep(LOOK_EVERY_S)


async def slot_waits(connection: PgConnection, slot: str, creating_pid: int) -> list[Problem]:
    """Return what the backend `creating_pid` waits for now while it makes a slot: one problem per transaction."""
    if connection.is_standby:
        return [_waits(slot, "for the primary", PRIMARY_MEANS, ON_THE_PRIMARY)]
    rows = await connection.query(_BLOCKERS, (creating_pid,))
    found = [
        _waits(
            slot, f"for process {pid} to end its transaction", "",
            f"SELECT pg_terminate_backend({pid});   -- or let it end", said=f"open for {seconds} s: {query}",
        )
        for pid, seconds, query in rows
    ]  # fmt: skip
    rows = await connection.query(_PREPARED, (creating_pid,))
    return found + [_waits_for_prepared(slot, *row) for row in rows]


OLD_S = 60
"""A transaction that has been open for so long may stay open."""


async def writers_before_slot(connection: PgConnection, slot: str) -> list[Problem]:
    """Return what a slot that is made now would wait for, apart from transactions that will soon end."""
    if connection.is_standby:
        return []
    rows = await connection.query(_WRITERS, (OLD_S,))
    found = [
        _waits(
            slot, f"for process {pid} to end its transaction", "",
            f"SELECT pg_terminate_backend({pid});   -- or let it end", said=f"open for {seconds} s: {query}",
        )
        for pid, seconds, query in rows
    ]  # fmt: skip
    return found + [_waits_for_prepared(slot, *row) for row in await connection.query(_ALL_PREPARED)]


def _waits_for_prepared(slot: str, gid: str | None, literal: str | None, database: str | None, seconds: str | None) -> Problem:
    return _waits(
        slot, f"for the prepared transaction {gid} of database {database}",
        "a prepared transaction stays open without a session, over restarts too",
        f"COMMIT PREPARED {literal};   -- or: ROLLBACK PREPARED {literal}; in database {database}",
        said=f"prepared {seconds} s ago",
    )  # fmt: skip


PRIMARY_MEANS = (
    "on a standby a slot begins where the primary has noted which transactions run, and an idle primary notes nothing"
)

# a prepared transaction has no process: pg_blocking_pids gives 0
_BLOCKERS = """
SELECT b.pid, extract(epoch FROM now() - a.xact_start)::int, left(a.query, 200)
FROM unnest(pg_blocking_pids($1::int)) b(pid) JOIN pg_stat_activity a ON a.pid = b.pid
"""
_PREPARED = """
SELECT p.gid, quote_literal(p.gid), p.database, extract(epoch FROM now() - p.prepared)::int
FROM pg_locks l JOIN pg_prepared_xacts p ON p.transaction = l.transactionid WHERE l.pid = $1::int AND NOT l.granted
"""
_WRITERS = """
SELECT pid, extract(epoch FROM now() - xact_start)::int, left(query, 200) FROM pg_stat_activity
WHERE backend_xid IS NOT NULL AND xact_start < now() - make_interval(secs => $1::int) ORDER BY xact_start LIMIT 3
"""  # of other roles' sessions, a role without pg_read_all_stats sees no start
_ALL_PREPARED = """
SELECT gid, quote_literal(gid), database, extract(epoch FROM now() - prepared)::int
FROM pg_prepared_xacts ORDER BY prepared LIMIT 3
"""


def _waits(slot: str, what: str, means: str, fix: str, *, said: str = "") -> Problem:
    return Problem("WB124", f"new slot {slot} waits {what}", said=said, means=means, fix=fix)


def waits_for_primary(exc: SourceUnavailable) -> SourceUnavailable:
    """Return the error for a temporary slot that a standby has not made in time."""
    return SourceUnavailable(
        "WB124", "a slot for the snapshot waits for the primary: there, SELECT pg_log_standby_snapshot();",
        said=str(exc), means=PRIMARY_MEANS, fix=ON_THE_PRIMARY,
    )  # fmt: skip
