"""The replication stream: COPY BOTH on libpq, and what a replication connection tells before it.

https://www.postgresql.org/docs/18/protocol-replication.html
"""

from __future__ import annotations

import time
from typing import NamedTuple

import psycopg
import trio
from psycopg import generators, pq

from actors.clients.postgres import PgConnection, PostgresError, drive
from actors.config import PostgresConfig
from actors.errors import Fatal, SourceUnavailable
from actors.lsn import Lsn, format_lsn, parse_lsn
from actors.wire.replication import encode_status, parse_timeline_history


class SystemIdentity(NamedTuple):
    """IDENTIFY_SYSTEM: which cluster this is, on which timeline, and where its WAL ends."""

    system_id: str
    timeline: int
    wal_end: Lsn


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


async def identify_system(connection: PgConnection) -> SystemIdentity:
    """Ask a replication connection which server it is."""
    ((system_id, timeline, wal_end, *_),) = await connection.query("IDENTIFY_SYSTEM")
    return SystemIdentity(str(system_id), int(timeline or 0), parse_lsn(wal_end or "0/0"))


async def timeline_history(connection: PgConnection, timeline: int) -> list[tuple[int, Lsn]]:
    """(timeline, where it was left) of every ancestor of `timeline`, oldest first."""
    ((_, content),) = await connection.query(f"TIMELINE_HISTORY {timeline}")
    return parse_timeline_history(content or "")


async def slot_state(connection: PgConnection, slot: str) -> SlotState | None:
    """The slot as PostgreSQL has it, None when there is none. On an ordinary connection."""
    reason = "coalesce(invalidation_reason, '')" if connection.server_version >= 170000 else "''"
    rows = await connection.query(
        "SELECT coalesce(plugin, ''), slot_type, coalesce(database, ''), temporary, active, active_pid, restart_lsn,"
        f" confirmed_flush_lsn, coalesce(wal_status, ''), {reason} FROM pg_replication_slots WHERE slot_name = $1",
        (slot,),
    )
    if not rows:
        return None
    plugin, kind, database, temporary, active, pid, restart, confirmed, status, why = rows[0]
    return SlotState(
        plugin or "", kind or "", database or "", temporary == "t", active == "t", int(pid) if pid else None,
        parse_lsn(restart) if restart else None, parse_lsn(confirmed) if confirmed else None, status or "", why or "",
    )  # fmt: skip


async def create_slot(connection: PgConnection, slot: str) -> Lsn:
    """Make the slot, to be synchronized to standbys where the server can; returns its consistent point.

    Waits for transactions that write at this moment. On a replication connection.
    """
    options = ""
    if connection.server_version >= 170000:
        options = " (SNAPSHOT 'nothing', FAILOVER)"
    elif connection.server_version >= 150000:
        options = " (SNAPSHOT 'nothing')"
    else:
        options = " NOEXPORT_SNAPSHOT"
    ((_, consistent_point, *_),) = await connection.query(f"CREATE_REPLICATION_SLOT {_quoted(slot)} LOGICAL pgoutput{options}")
    return parse_lsn(consistent_point or "0/0")


async def drop_slot(connection: PgConnection, slot: str) -> None:
    """Drop a slot that can no longer be read. On an ordinary connection."""
    await connection.query("SELECT pg_drop_replication_slot($1)", (slot,))


class ReplicationStream:
    """A slot being read, from `open_replication_stream`. One task reads; another may send status meanwhile.

    Not reading is how to hold PostgreSQL back: its socket fills, its WAL stays. Status must still be sent.
    """

    def __init__(self, connection: PgConnection, slot: str, publication: str) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._slot, self._publication = slot, publication
        self._flushing = trio.Lock()
        self._closed = False

    async def read_block(self, messages_max: int, bytes_max: int) -> list[bytes]:
        """At least one CopyData payload (`w` or `k`), and as many more as are here already, up to the limits.

        A cancelled call has taken nothing. Raises SourceUnavailable when the connection ends, Fatal when it can't go on.
        """
        await trio.lowlevel.checkpoint()
        get_copy_data = self._pgconn.get_copy_data
        block: list[bytes] = []
        try:
            while True:
                room = bytes_max
                for _ in range(messages_max):
                    size, data = get_copy_data(1)
                    if size <= 0:
                        break
                    block.append(bytes(data))
                    room -= size
                    if room <= 0:
                        break
                else:
                    size = 1
                if self._connection.notices:
                    self._check_notices()
                if block:
                    return block
                if size < 0:
                    await self._ended()
                await trio.lowlevel.wait_readable(self._pgconn.socket)
                self._pgconn.consume_input()
        except (psycopg.OperationalError, trio.ClosedResourceError) as exc:
            raise self._connection.lost(exc) from exc

    async def send_status(self, received: Lsn, flushed: Lsn, applied: Lsn) -> None:
        """Tell PostgreSQL how far we are. Raises SourceUnavailable when the connection has ended."""
        status = encode_status(received, flushed, applied, time.time_ns() // 1000)
        try:
            async with self._flushing:
                if self._closed:
                    raise self._connection.lost()
                self._pgconn.put_copy_data(status)
                while self._pgconn.flush():
                    await trio.lowlevel.wait_writable(self._pgconn.socket)
        except (psycopg.OperationalError, trio.ClosedResourceError) as exc:
            raise self._connection.lost(exc) from exc

    async def close(self) -> None:
        """End the stream, in order if PostgreSQL answers within half a second."""
        if self._closed:
            return
        self._closed = True
        try:
            with trio.move_on_after(0.5) as deadline:
                deadline.shield = True
                self._pgconn.put_copy_end()
                while self._pgconn.flush():
                    await trio.lowlevel.wait_writable(self._pgconn.socket)
                while self._pgconn.get_copy_data(1)[0] >= 0:
                    self._pgconn.consume_input()
                    if self._pgconn.get_copy_data(1)[0] == 0:
                        await trio.lowlevel.wait_readable(self._pgconn.socket)
        except (psycopg.Error, trio.ClosedResourceError):
            pass  # the connection had ended: there is nothing to say good-bye to
        finally:
            self._connection.close()

    async def _ended(self) -> None:
        """PostgreSQL has ended the COPY: raise what it says about it."""
        results = await drive(generators.fetch_many(self._pgconn), self._pgconn.socket)
        for result in results:
            try:
                self._connection.check(result)
            except PostgresError as exc:
                raise stream_error(exc, self._slot, self._publication) from exc
        raise SourceUnavailable("WB102", f"PostgreSQL {self._connection.address} ended the replication stream")

    def _check_notices(self) -> None:
        notices, self._connection.notices = self._connection.notices, []
        for notice in notices:
            # PostgreSQL 18 goes on without the publication and drops its changes: never read on
            if "skipped loading publication" in notice.message:
                raise publication_missing(self._publication, f"{notice.sqlstate} {notice.message}")


async def open_replication_stream(
    config: PostgresConfig, *, slot: str, publication: str, start_lsn: Lsn
) -> ReplicationStream:
    """Start reading a slot at `start_lsn` (0: at its confirmed LSN). Owns a connection of its own; end it with `close`.

    Raises SourceUnavailable when the slot is taken, Fatal when it is lost or the publication is missing.
    """
    connection = await PgConnection.connect(config, application_name="walbridge", replication=True)
    try:
        # libpq's buffer keeps the size of the largest message it met, and a larger one makes larger blocks
        await connection.query("SELECT repeat('x', 1000000)")
        options = f"proto_version '1', publication_names {_literal(_quoted(publication))}"
        start = f"START_REPLICATION SLOT {_quoted(slot)} LOGICAL {format_lsn(start_lsn)} ({options})"
        connection.pgconn.send_query(start.encode())
        results = await drive(generators.execute(connection.pgconn), connection.pgconn.socket)
        try:
            connection.check(results[-1])
        except PostgresError as exc:
            raise stream_error(exc, slot, publication) from exc
        if results[-1].status != pq.ExecStatus.COPY_BOTH:
            raise connection.lost()
        return ReplicationStream(connection, slot, publication)
    except psycopg.OperationalError as exc:
        connection.close()
        raise connection.lost(exc) from exc
    except BaseException:
        connection.close()
        raise


def stream_error(error: PostgresError, slot: str, publication: str) -> SourceUnavailable | Fatal:
    """What a refusal of the stream means: https://www.postgresql.org/docs/18/errcodes-appendix.html"""
    if error.sqlstate == "55006":
        return SourceUnavailable(
            "WB104", f"slot {slot} is read by another process", said=error.said,
            means="another bridge works, or a dead one's connection is not noticed yet: waiting for it",
            fix="to see it: SELECT pid, application_name FROM pg_stat_replication",
        )  # fmt: skip
    if "publication" in error.message:
        return publication_missing(publication, error.said)
    if error.sqlstate == "55000" or error.sqlstate.startswith("58"):
        return Fatal(
            "WB107", f"slot {slot} can no longer be read", said=error.said,
            means="PostgreSQL removed WAL that the slot still needed: changes are lost for good",
            fix="walbridge run --accept-gap   # stores cdc._bridge.gap and goes on; replicas take new snapshots",
        )  # fmt: skip
    if error.sqlstate == "54000":
        return Fatal(
            "WB109", f"slot {slot} stands at a row that PostgreSQL cannot send as text", said=error.said,
            means="a row of more than 1 GiB in text form",
            fix=f"SELECT pg_replication_slot_advance('{slot}', ...) beyond it, then: walbridge run --accept-gap",
        )  # fmt: skip
    if error.sqlstate == "42704":
        return SourceUnavailable("WB108", f"slot {slot} does not exist", said=error.said)
    return Fatal("WB105", f"PostgreSQL refuses to stream slot {slot}", said=error.said, fix=error.hint)


def publication_missing(publication: str, said: str) -> Fatal:
    """The publication is not there (any more): nothing may be read past it."""
    return Fatal(
        "WB106",
        f"publication {publication} does not exist",
        said=said,
        means="without it PostgreSQL drops the changes instead of sending them",
        fix=f"CREATE PUBLICATION {_quoted(publication)} FOR TABLE users, orders;   -- your tables, or FOR ALL TABLES",
    )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


