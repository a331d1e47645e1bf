"""A replica in a SQLite file, on one connection that worker threads use, one call at a time.

Write-ahead mode with synchronous=NORMAL: after a power cut the last transactions may be gone, but rows and checkpoint together,
so they are applied again. Readers never wait and see whole transactions. https://www.sqlite.org/wal.html
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import trio

from actors.contract.bridge_record import BridgeRecord
from actors.contract.records import Column
from actors.errors import ConfigError
from actors.mirror.stores.binding import sqlite_type
from actors.mirror.stores.dialect import LATER_COLUMNS, Params, SqliteDialect, Statement
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

BUSY_TIMEOUT_S = 30.0
BLOCK_ROWS = 5_000
WAL_KEPT_BYTES = 16 * 1024 * 1024
"""Size to which SQLite cuts the write-ahead log when it begins from the start again."""
_DUPLICATES = (sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_ROWID)


class SqliteStore:
    """A store on an open file, made by `open`."""

    def __init__(self, connection: sqlite3.Connection, path: str) -> None:
        self.dialect = SqliteDialect()
        self._connection, self._path = connection, path
        self._claimed: int | None = None

    @classmethod
    async def open(cls, path: str, *, create: bool = True) -> SqliteStore:
        """Open or create the file. Raises ConfigError when it is no database or cannot be created."""
        if not create and not await trio.Path(path).exists():
            raise no_replica(path)
        try:
            store = cls(await trio.to_thread.run_sync(_connect, path), path)
        except sqlite3.Error as exc:
            raise ConfigError(
                "WB502",
                f"--to: cannot open {path}",
                said=str(exc),
                fix="give a SQLite file, or a new one, in a folder that can be written",
            ) from exc
        try:
            if not create and not await store.exists(("", "_walbridge_tables")):
                raise no_replica(path)
        except BaseException:
            await store.close()
            raise
        return store

    async def claim(self, source: BridgeRecord) -> None:
        # a separate file: closing another descriptor of the database's file would release SQLite's locks on it
        try:
            self._claimed = os.open(f"{self._path}-mirror", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as exc:
            raise ReplicaRefused(
                "WB504", f"cannot create {self._path}-mirror, the file that lets only one mirror write", said=str(exc),
                fix="give the replica a folder that can be written",
            ) from exc  # fmt: skip
        deadline = trio.current_time() + CLAIM_WITHIN_S
        while True:
            try:
                fcntl.flock(self._claimed, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as exc:
                if trio.current_time() > deadline:
                    raise in_use() from exc
            await trio.sleep(0.25)
        await self.run([Statement(sql, [()]) for sql in self.dialect.schema_statements()], commit=True)
        for table, name, kind in LATER_COLUMNS:
            if not await self.query("SELECT 1 FROM pragma_table_info(?) WHERE name = ?", (self.dialect.own(table), name)):
                await self.run([Statement(self.dialect.add_own_column(table, name, kind), [()])], commit=True)

    async def run(self, statements: Sequence[Statement], *, commit: bool) -> None:
        await trio.to_thread.run_sync(self._run, statements, commit)

    def _run(self, statements: Sequence[Statement], commit: bool) -> None:
        connection = self._connection
        token = ""
        try:
            if not connection.in_transaction:
                connection.execute("BEGIN IMMEDIATE")
            for sql, params, counted, token, _ in statements:
                cursor = connection.execute(sql, params[0]) if len(params) == 1 else connection.executemany(sql, params)
                if counted and cursor.rowcount != len(params):
                    if not token:
                        raise in_use()
                    raise ApplyConflict(token, f"{len(params)} changes met {cursor.rowcount} rows: {sql}")
            token = ""
            if commit:
                connection.commit()
        except sqlite3.IntegrityError as exc:
            if not token:
                raise self._refused(exc) from exc
            raise ApplyConflict(token, str(exc), is_duplicate=exc.sqlite_errorcode in _DUPLICATES) from exc
        except sqlite3.Error as exc:
            if token and isinstance(exc, sqlite3.OperationalError) and not _passes(exc):
                raise ApplyConflict(token, str(exc)) from exc
            raise self._refused(exc) from exc

    async def rollback(self) -> None:
        await trio.to_thread.run_sync(self._connection.rollback)

    async def query(self, sql: str, params: Params = ()) -> list[tuple[Any, ...]]:
        def read() -> list[tuple[Any, ...]]:
            return self._connection.execute(sql, params).fetchall()

        try:
            return await trio.to_thread.run_sync(read)
        except sqlite3.Error as exc:
            raise self._refused(exc) from exc

    async def rows(self, sql: str) -> AsyncGenerator[list[tuple[Any, ...]]]:
        try:
            cursor = await trio.to_thread.run_sync(self._connection.execute, sql)
            while block := await trio.to_thread.run_sync(cursor.fetchmany, BLOCK_ROWS):
                yield block
        except sqlite3.Error as exc:
            raise self._refused(exc) from exc

    async def local_types(self, columns: Sequence[Column]) -> tuple[str, ...]:
        return tuple(sqlite_type(column.native) for column in columns)

    async def exists(self, local: tuple[str, str]) -> bool:
        return bool(await self.query("SELECT 1 FROM sqlite_master WHERE lower(name) = lower(?)", (local[1],)))

    async def columns(self, local: tuple[str, str]) -> set[str]:
        return {str(name) for (name,) in await self.query("SELECT name FROM pragma_table_info(?)", (local[1],))}

    async def make_schema(self, local: tuple[str, str]) -> list[str]:
        return []

    async def write_ahead(self) -> WriteAhead:
        try:
            size_bytes = (await trio.Path(f"{self._path}-wal").stat()).st_size
        except FileNotFoundError:
            return NO_LOG
        if size_bytes <= WAL_KEPT_BYTES:
            return WriteAhead(size_bytes, 0)
        # copies what no reader needs, and says how much that is; waits for nobody
        ((_, pages, copied),) = await self.query("PRAGMA wal_checkpoint(PASSIVE)")
        ((page_bytes,),) = await self.query("PRAGMA page_size")
        return WriteAhead(size_bytes, (pages - copied) * page_bytes)

    async def close(self) -> None:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._connection.close)
        if self._claimed is not None:
            os.close(self._claimed)
            self._claimed = None

    def _refused(self, exc: sqlite3.Error) -> ReplicaUnavailable | ReplicaRefused:
        if isinstance(exc, sqlite3.OperationalError) and _passes(exc):
            return ReplicaUnavailable(
                "WB503", f"the replica {self._path} cannot be used now", said=str(exc), means="retrying",
                fix="end the program that holds a transaction on the file open, or free space on its disk",
            )  # fmt: skip
        return ReplicaRefused("WB504", f"the replica {self._path} refuses a statement", said=str(exc))


def _passes(exc: sqlite3.Error) -> bool:
    return any(word in str(exc) for word in ("locked", "busy", "disk is full", "disk I/O"))


def _connect(path: str) -> sqlite3.Connection:
    # isolation_level None: transactions begin only where `_run` says so; worker threads use the connection in turn
    connection = sqlite3.connect(
        path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, cached_statements=512
    )
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA cache_size = -32768")
        # otherwise the file keeps the size that it reached beside a long reader or in a large transaction
        connection.execute(f"PRAGMA journal_size_limit = {WAL_KEPT_BYTES}")
        # a table is replaced under its name, and views must keep referring to the name
        connection.execute("PRAGMA legacy_alter_table = ON")
    except BaseException:
        connection.close()
        raise
    return connection
