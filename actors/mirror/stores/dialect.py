"""The SQL of a replica's tables and of the mirror's own tables, in each database's dialect. No I/O.

Tables and columns have the source's names, quoted.
"""

from __future__ import annotations

import hashlib
import string
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from actors.mirror.stores.binding import Binder, postgres_binder, sqlite_binder
from actors.mirror.stores.shapes import TableShape
from actors.wire.sql_names import quoted

Params = Sequence[Any]

LATER_COLUMNS = (
    ("position", "message_seq", "bigint NOT NULL DEFAULT 0"),
    ("position", "message_id", "text NOT NULL DEFAULT ''"),
    ("tables", "version", "text NOT NULL DEFAULT ''"),
    ("tables", "told_version", "text NOT NULL DEFAULT ''"),
    ("tables", "told_seq", "bigint NOT NULL DEFAULT 0"),
    ("owner", "everything", "int NOT NULL DEFAULT 0"),
    ("owner", "format", "int NOT NULL DEFAULT 1"),
)
"""Columns of the mirror's own tables (table, column, type) that replicas made by earlier versions get when they are claimed."""

_ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


class Statement(NamedTuple):
    """One SQL statement that is executed once for each of `params`."""

    sql: str
    params: list[Params]
    counted: bool = False
    """Each execution must change exactly one row; else somebody else has changed the replica."""
    token: str = ""
    """The table whose rows it changes; empty for the mirror's own tables."""
    operation: str = ""
    """The operation in the source, for the counts: `insert`, `update`, `delete`, `truncate`; else empty."""


class Dialect(ABC):
    """The SQL of one kind of database."""

    scheme: str

    @abstractmethod
    def obstacle(self, columns: Sequence[str]) -> str:
        """Why a table with these columns cannot exist; empty when it can."""

    @abstractmethod
    def row_id(self, columns: Sequence[str]) -> str | None:
        """The column by which the database itself identifies rows; None when these columns hide it."""

    @abstractmethod
    def table(self, local: tuple[str, str]) -> str:
        """A table's quoted name."""

    @abstractmethod
    def local_name(self, schema: str, table: str) -> tuple[str, str]:
        """The schema and name of the copy of a source table."""

    @abstractmethod
    def own(self, name: str) -> str:
        """The quoted name of one of the mirror's own tables."""

    @abstractmethod
    def parameter(self, index: int) -> str:
        """The placeholder of parameter `index`, counted from 1."""

    @abstractmethod
    def is_same(self, name: str, local_type: str, index: int) -> str:
        """The condition that a column equals a parameter, where NULL equals NULL."""

    @abstractmethod
    def binder(self, words: str) -> Binder | None:
        """The conversion of a type's values for the driver; None when they need none."""

    @abstractmethod
    def schema_statements(self) -> Iterable[str]:
        """The statements that create the mirror's own tables where they are missing."""

    def add_own_column(self, table: str, name: str, kind: str) -> str:
        """Add a column to one of the mirror's own tables."""
        return f"ALTER TABLE {self.own(table)} ADD COLUMN {name} {kind}"

    def staging_name(self, local: tuple[str, str], token: str) -> tuple[str, str]:
        """The schema and name of the table in which a snapshot is gathered."""
        return local[0], "_walbridge_new_" + hashlib.sha256(token.encode()).hexdigest()[:12]

    def create_table(self, shape: TableShape) -> str:
        """Create a table with the shape's columns and key."""
        columns = [
            f"{quoted(name)} {kind}".rstrip() for name, kind in zip(shape.names, shape.local_types, strict=True)
        ]  # fmt: skip
        if shape.pk:
            columns.append(f"PRIMARY KEY ({column_list(shape.pk)})")
        return f"CREATE TABLE {self.table(shape.local)} ({', '.join(columns)})"

    def drop_table(self, local: tuple[str, str]) -> str:
        return f"DROP TABLE IF EXISTS {self.table(local)}"

    def rename_table(self, local: tuple[str, str], name: str) -> list[str]:
        return [f"ALTER TABLE {self.table(local)} RENAME TO {quoted(name)}"]

    def add_column(self, local: tuple[str, str], name: str, kind: str) -> str:
        return f"ALTER TABLE {self.table(local)} ADD COLUMN {quoted(name)} {kind}".rstrip()

    def drop_column(self, local: tuple[str, str], name: str) -> str:
        return f"ALTER TABLE {self.table(local)} DROP COLUMN {quoted(name)}"

    def refill(self, shape: TableShape, staging: tuple[str, str]) -> list[str]:
        """Replace a table's rows by the gathered ones, which keeps indexes and views that users made on it."""
        columns, live = column_list(shape.names), self.table(shape.local)
        return [
            f"DELETE FROM {live}",
            f"INSERT INTO {live} ({columns}) SELECT {columns} FROM {self.table(staging)}",
            self.drop_table(staging),
        ]

    def save(self, table: str, key: str, values: dict[str, Any]) -> Statement:
        """Insert or replace a row of one of the mirror's own tables."""
        names = list(values)
        marks = ", ".join(self.parameter(i) for i in range(1, len(names) + 1))
        sets = ", ".join(f"{name} = excluded.{name}" for name in names if name != key)
        sql = f"INSERT INTO {self.own(table)} ({', '.join(names)}) VALUES ({marks}) ON CONFLICT ({key}) DO UPDATE SET {sets}"
        return Statement(sql, [list(values.values())])


class SqliteDialect(Dialect):
    """SQLite: it has no schemas, few types, and takes any value in any column."""

    scheme = "sqlite"

    def obstacle(self, columns: Sequence[str]) -> str:
        if len({name.translate(_ASCII_LOWER) for name in columns}) != len(columns):
            return "two of its columns differ only in upper and lower case, which SQLite cannot distinguish"
        return "" if self.row_id(columns) else "its columns have all the names by which SQLite identifies a row"

    def row_id(self, columns: Sequence[str]) -> str | None:
        # a column of the same name hides it: https://www.sqlite.org/rowidtable.html
        taken = {name.lower() for name in columns}
        return next((name for name in ("rowid", "_rowid_", "oid") if name not in taken), None)

    def table(self, local: tuple[str, str]) -> str:
        return quoted(local[1])

    def local_name(self, schema: str, table: str) -> tuple[str, str]:
        plain = schema == "public" and "." not in table and not table.lower().startswith(("sqlite_", "_walbridge_"))
        return "", table if plain else f"{schema}.{table}"

    def own(self, name: str) -> str:
        return f"_walbridge_{name}"

    def parameter(self, index: int) -> str:
        return "?"

    def is_same(self, name: str, local_type: str, index: int) -> str:
        return f"{quoted(name)} IS ?"

    def binder(self, words: str) -> Binder | None:
        return sqlite_binder(words)

    def schema_statements(self) -> Iterable[str]:
        return _own_tables(self)


class PostgresDialect(Dialect):
    """PostgreSQL: everything is as in the source except lengths of types."""

    scheme = "postgresql"

    def obstacle(self, columns: Sequence[str]) -> str:
        return ""

    def row_id(self, columns: Sequence[str]) -> str | None:
        return "ctid"

    def table(self, local: tuple[str, str]) -> str:
        return f"{quoted(local[0])}.{quoted(local[1])}"

    def local_name(self, schema: str, table: str) -> tuple[str, str]:
        return schema, table

    def rename_table(self, local: tuple[str, str], name: str) -> list[str]:
        """Rename the index of the key as well, to the name that PostgreSQL would give it, unless another has that name."""
        was, becomes = (quoted(_truncated(table) + "_pkey") for table in (local[1], name))
        index = f"ALTER INDEX IF EXISTS {quoted(local[0])}.{was} RENAME TO {becomes}"
        tag = "$walbridge$"
        while tag in index:
            tag = f"${tag.strip('$')}_$"
        unless_taken = f"DO {tag} BEGIN {index}; EXCEPTION WHEN duplicate_table THEN NULL; END {tag}"
        return [*super().rename_table(local, name), unless_taken]

    def own(self, name: str) -> str:
        return f"_walbridge.{name}"

    def parameter(self, index: int) -> str:
        return f"${index}"

    def is_same(self, name: str, local_type: str, index: int) -> str:
        # not every type has an equality operator, but each has a text form
        return f"{quoted(name)}::text IS NOT DISTINCT FROM (${index}::{local_type})::text"

    def binder(self, words: str) -> Binder | None:
        return postgres_binder(words)

    def schema_statements(self) -> Iterable[str]:
        return ["CREATE SCHEMA IF NOT EXISTS _walbridge", *_own_tables(self)]


def _truncated(table: str) -> str:
    """The part of a table's name that is left in the name of its key's index: names have 63 bytes."""
    return table.encode()[:58].decode("utf-8", "ignore")


def _own_tables(dialect: Dialect) -> list[str]:
    return [
        f"CREATE TABLE IF NOT EXISTS {dialect.own('position')} (id int PRIMARY KEY, stream text NOT NULL,"
        " created text NOT NULL, stream_seq bigint NOT NULL, lsn bigint NOT NULL, seq bigint NOT NULL, place int NOT NULL)",
        f"CREATE TABLE IF NOT EXISTS {dialect.own('tables')} (token text PRIMARY KEY, local_schema text NOT NULL,"
        " local_name text NOT NULL, state text NOT NULL, reason text NOT NULL, source_schema text NOT NULL,"
        " source_table text NOT NULL, relation_id bigint NOT NULL, columns text NOT NULL, keyed int NOT NULL,"
        " snapshot_id text NOT NULL, snapshot_lsn bigint NOT NULL, needed_seq bigint NOT NULL, init_seq bigint NOT NULL)",
        f"CREATE TABLE IF NOT EXISTS {dialect.own('verify')} (id text PRIMARY KEY, state text NOT NULL, lsn bigint NOT NULL,"
        " alive bigint NOT NULL)",
        f"CREATE TABLE IF NOT EXISTS {dialect.own('owner')} (id int PRIMARY KEY, session text NOT NULL)",
        f"CREATE TABLE IF NOT EXISTS {dialect.own('verified')} (token text PRIMARY KEY, checked_at bigint NOT NULL,"
        " equal_at bigint NOT NULL DEFAULT 0, mismatched bigint NOT NULL)",
        f"CREATE TABLE IF NOT EXISTS {dialect.own('rounds')} (token text PRIMARY KEY, snapshot_id text NOT NULL,"
        " created text NOT NULL, init_seq bigint NOT NULL, init_at bigint NOT NULL, chunks bigint NOT NULL,"
        " rows_done bigint NOT NULL, stream_seq bigint NOT NULL, lsn bigint NOT NULL, seq bigint NOT NULL,"
        " snapshot_lsn bigint NOT NULL, touched int NOT NULL)",
    ]


def column_list(names: Iterable[str]) -> str:
    return ", ".join(map(quoted, names))
