"""The replication stream, COPY BOTH on libpq, and the queries of a replication connection.

https://www.postgresql.org/docs/18/protocol-replication.html
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import psycopg
import trio
from psycopg import generators, pq

from actors.clients.postgres import copy_data
from actors.clients.postgres.connection import IF_IT_LASTS, QUERY_TIMEOUT_S, PgConnection, PostgresError, drive
from actors.clients.postgres.detour import PORTION_BYTES, Detour, waiting_bytes
from actors.clients.postgres.slots import slot_state
from actors.errors import Fatal, SourceUnavailable, WalbridgeError
from actors.messages import LARGE_MESSAGE_BYTES, RawMessage
from actors.positions import NO_LSN, Lsn, format_lsn, parse_lsn
from actors.settings.config import PostgresConfig
from actors.telemetry.log import get_logger
from actors.wire.pgoutput_recoding import recoded
from actors.wire.replication import encode_status, parse_timeline_history
from actors.wire.sql_names import quoted

log = get_logger("postgres")

CLOSE_TIMEOUT_S = 2.0
SLOT_FREE_TIMEOUT_S = 5.0
RENEW_TIMEOUT_S = 10.0
NAMED_MAX = 20
"""Tables to name in a statement for a person."""
HUGE_BYTES = 8 * 1024 * 1024
"""A message above this size leaves libpq with a buffer that is worth giving back (`renew`)."""
_BULK_BYTES = 64 * 1024
_READS_MAX = 4
"""A message that is incomplete after one read may be large: its rest is read over a detour, if so many bytes wait, or if it
takes more reads than this."""


class SystemIdentity(NamedTuple):
    """The reply to IDENTIFY_SYSTEM: the cluster, its timeline, and where its WAL ends."""

    system_id: str
    timeline: int
    wal_end: Lsn
    database: str = ""


async def identify_system(connection: PgConnection) -> SystemIdentity:
    """Ask a replication connection which server it is."""
    ((system_id, timeline, wal_end, database),) = await connection.query("IDENTIFY_SYSTEM")
    return SystemIdentity(str(system_id), int(timeline or 0), parse_lsn(wal_end or "0/0"), database or "")


class Server(NamedTuple):
    """One run of one server: after a restart, or on a standby, something differs."""

    system_id: str
    timeline: int
    started_at: str


async def _server_of(connection: PgConnection) -> Server:
    identity = await identify_system(connection)
    ((started_at,),) = await connection.query("SELECT pg_postmaster_start_time()")
    return Server(identity.system_id, identity.timeline, started_at or "")


async def timeline_history(connection: PgConnection, timeline: int) -> list[tuple[int, Lsn]]:
    """Return (timeline, LSN where it was left) for every ancestor of `timeline`, oldest first."""
    ((_, content),) = await connection.query(f"TIMELINE_HISTORY {timeline}")
    return parse_timeline_history(content or "")


class ReplicationStream:
    """A slot that is being read, from `open_replication_stream`. One task reads; another may send status meanwhile.

    To hold PostgreSQL back, stop reading: the socket fills and the WAL is kept. Status must still be sent.
    """

    def __init__(
        self, connection: PgConnection, slot: str, publication: str, server: Server | None = None, tables: Sequence[str] = ()
    ) -> None:  # fmt: skip
        self._slot, self._publication, self._server, self._tables = slot, publication, server, tables
        self._detour: Detour | None
        self._has_large_buffer: bool
        self._use(connection)
        self._flushing = trio.Lock()
        self._closed = self._reading = False
        self._end: WalbridgeError | None = None
        self._received = NO_LSN  # as of the last status

    def _use(self, connection: PgConnection) -> None:
        self._detour, self._has_large_buffer = None, False
        self._connection, self._pgconn, self._socket = connection, connection.pgconn, connection.socket

    @property
    def is_renewable(self) -> bool:
        """Whether `renew` can work: the slot is not a temporary one, which its connection alone can read."""
        return self._server is not None

    async def read_block(self, messages_max: int, bytes_max: int) -> list[RawMessage]:
        """Return at least one CopyData payload (`w` or `k`), and all that have arrived already, up to the limits.

        One above LARGE_MESSAGE_BYTES may be a memoryview, whose memory is freed with its last slice. A cancelled call takes
        nothing. Raises SourceUnavailable when the connection ends, Fatal when the slot can no longer be read.
        """
        await trio.lowlevel.checkpoint()  # before anything is taken: a cancellation later would lose messages
        get_copy_data = self._pgconn.get_copy_data
        block: list[RawMessage] = []
        room, reads = bytes_max, 0
        try:
            if self._detour is not None:
                self._leave_detour()
            while self._end is None and len(block) < messages_max and room > 0:
                size, data = get_copy_data(1)
                if size > 0:
                    block.append(bytes(data))
                    room -= size
                elif size == 0:
                    if block:
                        break
                    await self._more(reads)
                    reads += 1
                    if self._detour is not None:
                        room -= await self._take_large(block)
                else:
                    self._end = await self._ended()
        except (psycopg.Error, trio.ClosedResourceError, OSError) as exc:
            self._end = self._end or self._lost(exc)
        if self._connection.notices and self._says_publication_missing():
            block = []  # changes may be missing in it already
        if self._end is not None and not block:
            if self._end.code == "WB106":
                self._end = await self._publication_fault(self._end)
            raise self._end  # messages before the end were returned first, so a stream that fails at one message gets up to it
        if self._connection.encoding.keeps_bytes:
            return [recoded(bytes(payload), self._connection.encoding) for payload in block]
        return block

    async def _take_large(self, block: list[RawMessage]) -> int:
        """Append a message that may be large, if all of it has arrived; return its size."""
        size, data = copy_data.get_copy_data(self._pgconn)
        if size > 0:
            block.append(data if size > LARGE_MESSAGE_BYTES else bytes(data))
            self._has_large_buffer |= size > HUGE_BYTES
        elif size < 0:
            self._end = await self._ended()
        return size

    async def _more(self, reads: int = 0) -> None:
        """Let libpq read more of a message that is incomplete after `reads` reads."""
        self._reading = True
        try:
            if self._detour is None:
                await trio.lowlevel.wait_readable(self._socket)
                is_long = reads and (reads >= _READS_MAX or waiting_bytes(self._socket) >= _BULK_BYTES)
                if is_long and not self._flushing.locked():
                    self._detour = Detour(self._socket)
            if self._detour is not None:
                await self._detour.portion()
                if reads == HUGE_BYTES // PORTION_BYTES:
                    # the last word of a bridge whose memory does not suffice
                    log.info(
                        "a large message is arriving: it needs twice its size in memory", after_lsn=format_lsn(self._received)
                    )
        finally:
            self._reading = False
        self._pgconn.consume_input()

    def _leave_detour(self) -> None:
        """Read directly again, unless libpq's buffer is large: then it would read too much at once."""
        assert self._detour is not None, "there is one"
        if not self._has_large_buffer and not self._flushing.locked():
            self._pgconn.consume_input()
            if self._detour.end():
                self._detour = None

    async def _end_detour(self) -> None:
        while self._detour is not None:
            self._pgconn.consume_input()
            if self._detour.end():
                self._detour = None
            await trio.lowlevel.checkpoint()

    def _lost(self, exc: BaseException | None = None) -> SourceUnavailable:
        if self._detour is not None:
            self._detour.close()
        return self._connection.lost(exc)

    async def renew(self, start_lsn: Lsn) -> bool:
        """Continue from `start_lsn`, the end of a transaction, on a new connection: libpq keeps its largest buffer otherwise.

        What was read beyond comes again. Return False, and keep the connection, if no other can be had now. Raises
        SourceUnavailable if another server answers, or the slot cannot be had: then the next start has to check everything.
        """
        try:
            connection = await PgConnection.connect(self._connection.config, application_name="walbridge", replication=True)
        except (SourceUnavailable, Fatal) as exc:
            log.info("keeping the connection with its large buffer: no second one to be had", reason=str(exc))
            return False
        try:
            if await _server_of(connection) != self._server:
                raise connection.lost(RuntimeError("another server answers, or it was restarted"))
            async with self._flushing:
                with trio.fail_after(RENEW_TIMEOUT_S) as deadline:
                    deadline.shield = True  # between two connections there is nothing to drain to
                    await self._move_to(connection, start_lsn)
        except trio.TooSlowError as exc:
            raise connection.lost(exc) from exc
        except BaseException:
            connection.close()
            raise
        return True

    async def _move_to(self, connection: PgConnection, start_lsn: Lsn) -> None:
        if self._end is not None:
            raise self._end
        try:
            with trio.move_on_after(CLOSE_TIMEOUT_S), suppress(psycopg.Error, trio.ClosedResourceError, OSError):
                await self._end_copy()
        finally:
            self._end = self._lost(RuntimeError("it was to be replaced by another one"))
        deadline = trio.current_time() + SLOT_FREE_TIMEOUT_S
        while True:
            try:
                await _start(connection, self._slot, self._publication, start_lsn)
                break
            except PostgresError as exc:  # if the stream has not ended in order, PostgreSQL takes a moment to notice
                if exc.sqlstate != "55006" or trio.current_time() > deadline:
                    raise connection.lost(exc) from exc
            await trio.sleep(0.1)
        self._use(connection)
        self._end = None

    async def send_status(self, received: Lsn, flushed: Lsn, applied: Lsn, *, reply_wanted: bool = False) -> None:
        """Report positions to PostgreSQL, and request a keepalive if wanted. Raises SourceUnavailable once the stream ended."""
        self._received = received
        status = encode_status(received, flushed, applied, time.time_ns() // 1000, reply_wanted=reply_wanted)
        async with self._flushing:
            if self._end is not None:
                raise self._end
            try:
                while self._pgconn.put_copy_data(status) == 0:
                    await trio.lowlevel.wait_writable(self._socket)
                await self._flush()
            except (psycopg.Error, trio.ClosedResourceError, OSError) as exc:
                self._end = self._end or self._lost(exc)
                raise self._end from exc

    async def _flush(self) -> None:
        while self._pgconn.flush():
            await trio.lowlevel.wait_writable(self._socket)
        if self._detour is not None:
            await self._detour.forward()

    async def close(self) -> None:
        """End the COPY cleanly so that the slot is free on return; give up after 2 s. A concurrent `read_block` raises."""
        if self._closed:
            return
        self._closed = True
        with trio.move_on_after(CLOSE_TIMEOUT_S) as deadline:
            deadline.shield = True
            try:
                if self._end is None and not self._reading:
                    async with self._flushing:
                        await self._end_copy()
            except (psycopg.Error, trio.ClosedResourceError, OSError):
                pass  # the stream has ended already
        self._end = self._end or self._lost()
        if self._detour is not None:
            self._detour.close()
        self._connection.close()

    async def _end_copy(self) -> None:
        self._pgconn.put_copy_end()
        await self._flush()
        while (size := self._pgconn.get_copy_data(1)[0]) >= 0:
            if size == 0:
                await self._more()
        await self._end_detour()
        await drive(generators.fetch_many(self._pgconn), self._socket)  # PostgreSQL releases the slot before its last reply

    async def _ended(self) -> WalbridgeError:
        """Return the error with which PostgreSQL has ended the COPY."""
        with trio.move_on_after(CLOSE_TIMEOUT_S) as deadline:
            deadline.shield = True
            async with self._flushing:
                await self._end_detour()
            for result in await drive(generators.fetch_many(self._pgconn), self._socket):
                try:
                    self._connection.check(result)
                except PostgresError as exc:
                    return stream_error(exc, self._slot, self._publication, streaming=True, standby=self._connection.is_standby)
                except SourceUnavailable as exc:
                    return exc
        return self._lost(RuntimeError("the server ended the replication stream"))

    def _says_publication_missing(self) -> bool:
        """Look through the notices; if one says so, the stream has ended."""
        notices, self._connection.notices = self._connection.notices, []
        for notice in notices:
            # PostgreSQL 18 warns "skipped loading publication", in the server's language, continues and drops the changes
            if notice.severity == "WARNING" and notice.sqlstate == "55000" and self._publication in notice.message:
                self._end = publication_missing(self._publication, f"{notice.sqlstate} {notice.message}")
                return True
        return False

    async def _publication_fault(self, fault: WalbridgeError) -> WalbridgeError:
        """Return the error with the fix that fits: the publication may have been created again since."""
        with trio.move_on_after(CLOSE_TIMEOUT_S):
            try:
                connection = await PgConnection.connect(self._connection.config, application_name="walbridge")
                try:
                    sql = "SELECT FROM pg_publication WHERE pubname = $1"
                    is_there, standby = bool(await connection.query(sql, (self._publication,))), connection.is_standby
                    if is_there:
                        return publication_too_new(self._publication, self._slot, fault.said, standby=standby)
                    missing = publication_missing(self._publication, fault.said, self._tables)
                    missing.fix += (
                        "\nthen start the bridge. If it ends with WB106 again, changes were made without the publication:\n"
                        + advance(self._slot, standby=standby)
                    )
                    return missing
                finally:
                    connection.close()
            except WalbridgeError as exc:
                log.debug("cannot see whether the publication exists", error=str(exc))
        return fault


async def open_replication_stream(
    config: PostgresConfig, *, slot: str, publication: str, start_lsn: Lsn, connection: PgConnection | None = None,
    tables: Sequence[str] = (),
) -> ReplicationStream:  # fmt: skip
    """Start reading a slot at `start_lsn` (0: at its confirmed LSN); end the stream with `close`.

    `tables` are the publication's, as SQL names, for the statement that makes it again. The stream owns `connection`, which
    created a temporary slot; without one it opens its own. Raises SourceUnavailable when the slot is in use, Fatal when the
    slot is lost or the publication is missing.
    """
    has_own_slot = connection is not None
    if connection is None:
        connection = await PgConnection.connect(config, application_name="walbridge", replication=True)
    try:
        server = None if has_own_slot else await _server_of(connection)
        try:
            await _start(connection, slot, publication, start_lsn)
        except PostgresError as exc:
            raise await _refusal(config, exc, slot, publication) from exc
        return ReplicationStream(connection, slot, publication, server, tables)
    except BaseException:
        connection.close()
        raise


async def _start(connection: PgConnection, slot: str, publication: str, start_lsn: Lsn) -> None:
    """Start the COPY. Raises PostgresError when PostgreSQL refuses, SourceUnavailable when the connection ends."""
    try:
        # libpq's buffer keeps the size of the largest message so far; a larger buffer makes larger blocks
        await connection.query("SELECT repeat('x', 1000000)")
        options = f"proto_version '1', publication_names {_literal(quoted(publication))}"
        start = f"START_REPLICATION SLOT {quoted(slot)} LOGICAL {format_lsn(start_lsn)} ({options})"
        connection.pgconn.send_query(connection.encoded(start))
        with trio.fail_after(QUERY_TIMEOUT_S):
            results = await drive(generators.execute(connection.pgconn), connection.socket)
        connection.check(results[-1])
        if results[-1].status != pq.ExecStatus.COPY_BOTH:
            raise connection.lost()
    except (psycopg.Error, trio.TooSlowError) as exc:
        raise connection.lost(exc) from exc


_UNSENDABLE = {
    "54000": "the row has more than 1 GiB as text",
    "22P05": "the row has a character that Unicode lacks",
    "22021": "the row has bytes that are no text in the database's encoding",
}
"""What is wrong with a row, by SQLSTATE."""


async def _refusal(config: PostgresConfig, error: PostgresError, slot: str, publication: str) -> SourceUnavailable | Fatal:
    """Return the error for a refused START_REPLICATION. 55000 has several causes; the slot's state shows whether it is lost."""
    if error.sqlstate == "55000":
        connection = await PgConnection.connect(config, application_name="walbridge startup")
        try:
            state = await slot_state(connection, slot)
        finally:
            connection.close()
        if state is not None and state.wal_status == "lost":
            return slot_lost(slot, error.said)
    return stream_error(error, slot, publication)


def stream_error(  # noqa: PLR0911  (a return for each SQLSTATE)
    error: PostgresError, slot: str, publication: str, *, streaming: bool = False, standby: bool = False
) -> SourceUnavailable | Fatal:
    """Return the error for a refusal or end of the stream: https://www.postgresql.org/docs/18/errcodes-appendix.html"""
    if error.sqlstate == "55006":
        return SourceUnavailable(
            "WB104", f"slot {slot} is read by another process", said=error.said,
            means="another bridge runs, or PostgreSQL has not yet noticed that a bridge is gone: waiting",
            fix="to see the reader: SELECT pid, application_name FROM pg_stat_replication\n"
            "if both are to run: walbridge run --slot NAME --stream NAME   # a slot and a stream of its own",
        )  # fmt: skip
    if error.sqlstate == "42704":  # at the start the slot is missing, later the publication
        if streaming:
            return publication_missing(publication, error.said)
        return SourceUnavailable("WB108", f"slot {slot} does not exist", said=error.said)
    if error.sqlstate.startswith("58"):  # system errors; 58P01 is a missing file
        if error.sqlstate == "58P01":
            return slot_lost(slot, error.said)
        return SourceUnavailable("WB118", f"PostgreSQL cannot read slot {slot} now", said=error.said, fix=IF_IT_LASTS)
    why = _UNSENDABLE.get(error.sqlstate)
    if why is not None:
        return Fatal(
            "WB109", f"slot {slot} is stuck at a row that PostgreSQL cannot send as text",
            said=f"{error.said}: {error.context}" if error.context else error.said,
            means=f"{why}; all changes committed from that row until now must be given up",
            fix=advance(slot, standby=standby),
        )  # fmt: skip
    return Fatal("WB105", f"PostgreSQL refuses to stream slot {slot}", said=error.said, fix=error.hint)


def slot_lost(slot: str, said: str) -> Fatal:
    """Return the error for a slot that can never be read again."""
    return Fatal(
        "WB107", f"slot {slot} can no longer be read", said=said,
        means="PostgreSQL removed WAL that the slot still needed: changes are permanently lost",
        fix="walbridge run --accept-gap   # stores cdc._bridge.gap and continues; replicas take new snapshots",
    )  # fmt: skip


def publication_missing(publication: str, said: str, tables: Sequence[str] = ()) -> Fatal:
    """Return the error for a missing publication: reading on would lose changes."""
    return Fatal(
        "WB106",
        f"publication {publication} does not exist",
        said=said,
        means="without it PostgreSQL drops the changes instead of sending them; those made until it is created again are lost",
        fix=f"CREATE PUBLICATION {quoted(publication)} FOR TABLE {_some(tables) or 'users, orders'};   -- your tables",
    )


def _some(tables: Sequence[str]) -> str:
    return ", ".join(tables[:NAMED_MAX]) + (", ..." if len(tables) > NAMED_MAX else "")


def publication_too_new(publication: str, slot: str, said: str, *, standby: bool) -> Fatal:
    """Return the error for a publication that did not exist yet at the LSN that is being read."""
    return Fatal(
        "WB106", f"publication {publication} was created again after the changes that are being read", said=said,
        means="PostgreSQL publishes each change by the publications of its time: changes made in between were never published",
        fix=advance(slot, standby=standby),
    )  # fmt: skip


def advance(slot: str, *, standby: bool) -> str:
    """Return the statement that gives up what the slot has not sent, and what follows."""
    end = "pg_last_wal_replay_lsn()" if standby else "pg_current_wal_lsn()"
    return (
        f"SELECT pg_replication_slot_advance({_literal(slot)}, {end});\n"
        "then start the bridge: it stores a gap event, and consumers copy their tables again"
    )


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
