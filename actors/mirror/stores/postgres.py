"""A replica in PostgreSQL, on one trio connection. Statements are sent in pipelines, a whole batch per round trip, and many new
rows of a table by COPY. COMMIT is sent after every result was checked, so a change that met no row leaves nothing.

synchronous_commit is off: after a crash of the server the last transactions may be gone, but rows and checkpoint together, so
they are applied again. https://www.postgresql.org/docs/18/libpq-pipeline-mode.html and libpq-copy.html
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any, NamedTuple

import psycopg
import trio
from psycopg import pq

from actors.clients.postgres.connection import ENDING, PASSING, PgConnection, PostgresError, SourceRefused
from actors.contract.bridge_record import BridgeRecord
from actors.contract.records import Column
from actors.errors import ConfigError, SourceUnavailable
from actors.mirror.stores.copy_text import copy_lines, copy_of
from actors.mirror.stores.dialect import LATER_COLUMNS, Params, PostgresDialect, Statement
from actors.mirror.stores.store import (
    CLAIM_WITHIN_S,
    NO_LOG,
    ApplyConflict,
    ReplicaRefused,
    ReplicaUnavailable,
    WriteAhead,
    in_use,
    no_replica,
)
from actors.settings.config import PostgresConfig
from actors.wire.sql_names import quoted

PREPARED_MAX = 500
PIPELINE_MAX = 2_000
"""Commands sent before their results are read."""
BLOCK_ROWS = 1_000
CLAIM_KEY = 0x77616C6272696467
"""Key of the advisory lock that lets only one mirror use the database."""
COPY_ROWS_MIN = 20
"""New rows of a table in a row from which COPY is used: it takes two round trips, and a tenth of the work per row."""
_CHANGES_TABLES = ("ALTER", "CREATE", "DROP")
_UNIQUE_VIOLATION = "23505"
_PASSES = (*ENDING, *PASSING, "53", "58", "XX")
"""SQLSTATEs that are not about rows, so that no copy would help: also limits, I/O, and faults of PostgreSQL itself."""


class PostgresStore:
    """A store on an open connection, made by `open`."""

    def __init__(self, connection: PgConnection) -> None:
        self.dialect = PostgresDialect()
        self._connection = connection
        self._in_transaction = False
        self._prepared: dict[tuple[str, int], bytes] = {}
        self._serial = 0
        self._outdated = False

    @classmethod
    async def open(cls, url: str, *, create: bool = True) -> PostgresStore:
        """Connect. Raises ConfigError when the server refuses the role, ReplicaUnavailable when nobody answers."""
        try:
            psycopg.conninfo.conninfo_to_dict(url)
        except psycopg.ProgrammingError as exc:
            raise ConfigError("WB500", "--to: not a libpq connection string; give e.g. postgresql://user@host:5432/db") from exc
        try:
            connection = await PgConnection.connect(PostgresConfig(url), application_name="walbridge mirror", to_replica=True)
        except SourceRefused as exc:
            if exc.code == "WB119":
                raise ConfigError(exc.code, f"--to: {exc.what}", means=exc.means, fix=exc.fix) from exc
            raise _not_let_in(exc.said) from exc
        except SourceUnavailable as exc:
            raise _unavailable(exc) from exc
        store = cls(connection)
        try:
            await store.query("SET search_path = pg_catalog, public; SET synchronous_commit = off")
            if not create and not await store.exists(("_walbridge", "tables")):
                raise no_replica("the database of --to")
        except BaseException:
            await store.close()
            raise
        return store

    async def claim(self, source: BridgeRecord) -> None:
        is_source = await self.query(
            "SELECT 1 FROM pg_control_system() c JOIN pg_replication_slots s ON s.slot_name = $2"
            " WHERE c.system_identifier::text = $1 AND s.database = current_database()",
            (source.system_id, source.slot),
        )
        if is_source:
            raise ConfigError(
                "WB508", "--to: this is the bridge's own database, the source",
                means="a mirror would put copies of its tables beside them", fix="give --to another database",
            )  # fmt: skip
        deadline = trio.current_time() + CLAIM_WITHIN_S
        while await self.query(f"SELECT 1 WHERE NOT pg_try_advisory_lock({CLAIM_KEY})"):
            if trio.current_time() > deadline:
                raise in_use()
            await trio.sleep(0.25)
        await self.run([Statement(sql, [()]) for sql in self.dialect.schema_statements()], commit=True)
        for table, name, kind in LATER_COLUMNS:  # IF NOT EXISTS would wait for readers of the table, such as a dump
            own = self.dialect.own(table)
            has = "SELECT 1 FROM pg_attribute WHERE attrelid = $1::regclass AND attname = $2 AND NOT attisdropped"
            if not await self.query(has, (own, name)):
                await self.run([Statement(self.dialect.add_own_column(table, name, kind), [()])], commit=True)

    async def run(self, statements: Sequence[Statement], *, commit: bool) -> None:
        commands: list[_Command] = []
        if not self._in_transaction:
            commands.append(_Command("BEGIN", (), None))
            self._in_transaction = True
        for statement in statements:
            if statement.sql.startswith(_CHANGES_TABLES):
                self._outdated = True  # prepared parameters have the types of columns that may have changed
            copy = copy_of(statement.sql) if len(statement.params) >= COPY_ROWS_MIN else None
            if copy is not None:
                await self._send(commands)
                commands = []
                await self._copy(copy, statement)
                continue
            for params in statement.params:
                commands.append(_Command(statement.sql, params, statement))
                if len(commands) >= PIPELINE_MAX:
                    await self._send(commands)
                    commands = []
        await self._send(commands)
        if commit:  # sent alone: a change that met no row is no error to PostgreSQL, which would commit the rest
            await self._send([_Command("COMMIT", (), None)])
            self._in_transaction = False

    async def _send(self, commands: Sequence[_Command]) -> None:
        if not commands:
            return
        pgconn = self._connection.pgconn
        if len(self._prepared) > PREPARED_MAX or self._outdated:
            self._prepared.clear()
            self._outdated = False
            await self.query("DEALLOCATE ALL")
        expected: list[tuple[_Command, bool]] = []
        try:
            pgconn.enter_pipeline_mode()
            for command in commands:
                key = command.sql, len(command.params)
                name = self._prepared.get(key)
                if name is None:
                    self._serial += 1
                    name = self._prepared[key] = b"w%d" % self._serial
                    pgconn.send_prepare(name, command.sql.encode("utf-8", "surrogateescape"))
                    expected.append((command, True))
                pgconn.send_query_prepared(name, [_text(value) for value in command.params])
                expected.append((command, False))
            pgconn.pipeline_sync()
            results = await self._results()
            pgconn.exit_pipeline_mode()
        except (psycopg.Error, trio.ClosedResourceError) as exc:
            raise self._gone(exc) from exc
        except BaseException:
            self._connection.close()
            raise
        for (command, is_prepare), result in zip(expected, results, strict=True):
            self._check(command, result, is_prepare=is_prepare)

    async def _results(self) -> list[pq.abc.PGresult]:
        """Flush libpq's buffer and read one result per command, up to the result of the sync."""
        pgconn, sock = self._connection.pgconn, self._connection.socket
        results: list[pq.abc.PGresult] = []
        await self._flush()
        while True:
            if pgconn.is_busy():
                await trio.lowlevel.wait_readable(sock)
                pgconn.consume_input()
                continue
            result = pgconn.get_result()
            if result is None:  # between two commands
                continue
            if result.status == pq.ExecStatus.PIPELINE_SYNC:
                return results
            results.append(result)

    async def _copy(self, sql: str, statement: Statement) -> None:
        pgconn = self._connection.pgconn
        try:
            pgconn.send_query(sql.encode("utf-8", "surrogateescape"))
            (result,) = await self._results_of_query()
            if result.status == pq.ExecStatus.COPY_IN:
                for piece in copy_lines(statement.params):
                    while pgconn.put_copy_data(piece) == 0:
                        await self._flush()
                    await self._flush()
                while pgconn.put_copy_end() == 0:
                    await self._flush()
                (result,) = await self._results_of_query()
        except (psycopg.Error, trio.ClosedResourceError) as exc:
            raise self._gone(exc) from exc
        except BaseException:
            self._connection.close()
            raise
        self._check(_Command(sql, (), statement), result, is_prepare=False)

    async def _flush(self) -> None:
        """Flush libpq's buffer. The server may stop reading until its own output is read."""
        pgconn, sock = self._connection.pgconn, self._connection.socket
        while pgconn.flush():
            with trio.move_on_after(0.05):
                await trio.lowlevel.wait_writable(sock)
            pgconn.consume_input()

    async def _results_of_query(self) -> list[pq.abc.PGresult]:
        """Read all results of one query, or up to COPY_IN, where the server waits for data."""
        pgconn, sock = self._connection.pgconn, self._connection.socket
        await self._flush()
        results: list[pq.abc.PGresult] = []
        while True:
            while pgconn.is_busy():
                await trio.lowlevel.wait_readable(sock)
                pgconn.consume_input()
            result = pgconn.get_result()
            if result is None:
                return results
            results.append(result)
            if result.status == pq.ExecStatus.COPY_IN:
                return results

    def _check(self, command: _Command, result: pq.abc.PGresult, *, is_prepare: bool) -> None:
        statement = command.statement
        if result.status == pq.ExecStatus.FATAL_ERROR:
            self._prepared.clear()  # statements after the error were not prepared
            sqlstate = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
            said = f"{sqlstate} " + (result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b"").decode("utf-8", "replace")
            if sqlstate.startswith(_PASSES):
                raise self._gone(psycopg.OperationalError(said))
            if statement is not None and statement.token:
                raise ApplyConflict(statement.token, said, is_duplicate=sqlstate == _UNIQUE_VIOLATION)
            raise ReplicaRefused("WB504", "the replica refuses a statement", said=f"{said}: {command.sql[:200]}")
        if statement is not None and statement.counted and not is_prepare and (result.command_tuples or 0) != 1:
            if not statement.token:
                raise in_use()
            raise ApplyConflict(statement.token, f"a change met {result.command_tuples} rows: {statement.sql}")

    async def rollback(self) -> None:
        self._prepared.clear()
        self._in_transaction = False
        await self.query("ROLLBACK; DEALLOCATE ALL")

    async def query(self, sql: str, params: Params = ()) -> list[tuple[Any, ...]]:
        try:
            return list(await self._connection.query(sql, [None if p is None else str(p) for p in params]))
        except SourceUnavailable as exc:
            raise _unavailable(exc) from exc
        except PostgresError as exc:
            raise ReplicaRefused("WB504", "the replica refuses a statement", said=exc.said) from exc

    async def rows(self, sql: str) -> AsyncGenerator[list[tuple[Any, ...]]]:
        try:
            async for result in self._connection.blocks(sql, BLOCK_ROWS):
                yield [
                    tuple(_decoded(result.get_value(row, column)) for column in range(result.nfields))
                    for row in range(result.ntuples)
                ]
        except SourceUnavailable as exc:
            raise self._gone(exc) from exc

    async def local_types(self, columns: Sequence[Column]) -> tuple[str, ...]:
        # -1, not NULL: `character` alone would have length 1
        rows = [
            await self.query("SELECT coalesce(format_type(to_regtype($1), -1), 'text')", (column.type,)) for column in columns
        ]
        # regclass and its like are names of objects that may be missing here
        return tuple("text" if row[0][0].startswith(("-", "???", "reg")) else str(row[0][0]) for row in rows)

    async def exists(self, local: tuple[str, str]) -> bool:
        return bool(
            await self.query(
                "SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = $1 AND relname = $2",
                local,
            )
        )

    async def columns(self, local: tuple[str, str]) -> set[str]:
        found = await self.query(
            "SELECT attname::text FROM pg_attribute JOIN pg_class c ON c.oid = attrelid"
            " JOIN pg_namespace n ON n.oid = relnamespace"
            " WHERE nspname = $1 AND relname = $2 AND attnum > 0 AND NOT attisdropped",
            local,
        )
        return {str(name) for (name,) in found}

    async def make_schema(self, local: tuple[str, str]) -> list[str]:
        if await self.query("SELECT 1 FROM pg_namespace WHERE nspname = $1", (local[0],)):
            return []
        return [f"CREATE SCHEMA IF NOT EXISTS {quoted(local[0])}"]

    async def write_ahead(self) -> WriteAhead:
        return NO_LOG

    async def close(self) -> None:
        self._connection.close()

    def _gone(self, exc: BaseException) -> ReplicaUnavailable:
        self._connection.close()
        return _unavailable(exc)


class _Command(NamedTuple):
    """One execution of a statement; `statement` is None for BEGIN and COMMIT."""

    sql: str
    params: Params
    statement: Statement | None


_WAYS = (
    "export PGPASSWORD=...   # or a line in ~/.pgpass, mode 0600: HOST:PORT:DATABASE:USER:PASSWORD\n"
    "or in the URL, where other users of this machine can see it: --to postgresql://USER:PASSWORD@HOST/DATABASE"
)
_REFUSALS = (
    ("no password supplied", "the replica's PostgreSQL asks for a password, and none was given", _WAYS),
    ("28P01", "the replica's PostgreSQL does not accept this role and password",
     f"a password in --to comes first, then PGPASSWORD, then ~/.pgpass\n{_WAYS}"),
    ("3D000", "the replica's PostgreSQL has no such database", "createdb DATABASE   # or give --to one that exists"),
)  # fmt: skip
"""What the server or libpq says -> what it means, and what to type."""


def _not_let_in(said: str) -> ConfigError:
    what, fix = next(
        ((what, fix) for words, what, fix in _REFUSALS if words in said),
        (
            "the replica's PostgreSQL does not let the mirror in",
            "give --to a database that exists, and a role that may log in and create tables in it",
        ),
    )
    return ConfigError("WB502", f"--to: {what}", said=said, fix=fix)


def _unavailable(exc: BaseException) -> ReplicaUnavailable:
    return ReplicaUnavailable("WB503", "the replica cannot be used now", said=" ".join(str(exc).split()), means="retrying")


def _text(value: Any) -> bytes | None:
    return None if value is None else str(value).encode("utf-8", "surrogateescape")


def _decoded(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "surrogateescape")
