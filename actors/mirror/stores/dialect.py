"""The SQL of a replica: tables, changes of rows, and the mirror's own tables. No I/O.

Names of tables and columns are the source's, quoted. A row is found by its key; without one, one of the rows that are equal in
every column is taken.
"""

from __future__ import annotations

import hashlib
import string
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from actors.contract.records import Row
from actors.contract.rules import Identity
from actors.mirror.stores.binding import Binder, postgres_binder, sqlite_binder
from actors.mirror.stores.shapes import TableShape
from actors.wire.sql_names import quoted

Params = Sequence[Any]

_DEFAULT_VALUES = " DEFAULT VALUES"
_ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


class Statement(NamedTuple):
    """One SQL statement for each of `params`."""

    sql: str
    params: list[Params]
    counted: bool = False
    """Each must change exactly one row: else the replica is not what the mirror made of it."""
    token: str = ""
    """Whose rows it changes; empty for the mirror's own tables."""
    operation: str = ""
    """What the source did, for those who count: `insert`, `update`, `delete`, `truncate`."""


class Dialect(ABC):
    """How one kind of database is spoken to."""

    scheme: str

    @abstractmethod
    def obstacle(self, columns: Sequence[str]) -> str:
        """Why a table with these columns cannot be here; empty when it can."""

    @abstractmethod
    def row_id(self, columns: Sequence[str]) -> str | None:
        """The database's own name of a row in a table with these columns; None when they leave it none."""

    @abstractmethod
    def table(self, local: tuple[str, str]) -> str:
        """A table's name, quoted."""

    @abstractmethod
    def local_name(self, schema: str, table: str) -> tuple[str, str]:
        """What the copy of a table is called here."""

    @abstractmethod
    def own(self, name: str) -> str:
        """One of the mirror's own tables, quoted."""

    @abstractmethod
    def parameter(self, index: int) -> str:
        """Placeholder of the parameter `index`, from 1."""

    @abstractmethod
    def is_same(self, name: str, local_type: str, index: int) -> str:
        """A column equals a parameter, NULL equals NULL."""

    @abstractmethod
    def binder(self, words: str) -> Binder | None:
        """How values of a type are given to the driver."""

    @abstractmethod
    def schema_statements(self) -> Iterable[str]:
        """What makes the mirror's own tables, where they are missing."""

    def staging_name(self, local: tuple[str, str], token: str) -> tuple[str, str]:
        """Where a snapshot is gathered."""
        return local[0], "_walbridge_new_" + hashlib.sha256(token.encode()).hexdigest()[:12]

    def create_table(self, shape: TableShape) -> str:
        """A table with the shape's columns and key."""
        columns = [
            f"{quoted(name)} {kind}".rstrip() for name, kind in zip(shape.names, shape.local_types, strict=True)
        ]  # fmt: skip
        if shape.pk:
            columns.append(f"PRIMARY KEY ({_list(shape.pk)})")
        return f"CREATE TABLE {self.table(shape.local)} ({', '.join(columns)})"

    def drop_table(self, local: tuple[str, str]) -> str:
        return f"DROP TABLE IF EXISTS {self.table(local)}"

    def rename_table(self, local: tuple[str, str], name: str) -> str:
        return f"ALTER TABLE {self.table(local)} RENAME TO {quoted(name)}"

    def add_column(self, local: tuple[str, str], name: str, kind: str) -> str:
        return f"ALTER TABLE {self.table(local)} ADD COLUMN {quoted(name)} {kind}".rstrip()

    def drop_column(self, local: tuple[str, str], name: str) -> str:
        return f"ALTER TABLE {self.table(local)} DROP COLUMN {quoted(name)}"

    def refill(self, shape: TableShape, staging: tuple[str, str]) -> list[str]:
        """Replace a table's rows by those gathered: indexes and views that others made on it stay."""
        columns, live = _list(shape.names), self.table(shape.local)
        return [
            f"DELETE FROM {live}",
            f"INSERT INTO {live} ({columns}) SELECT {columns} FROM {self.table(staging)}",
            self.drop_table(staging),
        ]

    def save(self, table: str, key: str, values: dict[str, Any]) -> Statement:
        """Write a row of one of the mirror's own tables."""
        names = list(values)
        marks = ", ".join(self.parameter(i) for i in range(1, len(names) + 1))
        sets = ", ".join(f"{name} = excluded.{name}" for name in names if name != key)
        sql = f"INSERT INTO {self.own(table)} ({', '.join(names)}) VALUES ({marks}) ON CONFLICT ({key}) DO UPDATE SET {sets}"
        return Statement(sql, [list(values.values())])


class UnknownColumn(Exception):
    """A change has a column that the table's shape does not have."""


class RowStatements:
    """The statements that change rows of one table, made once for each set of columns. Each raises UnknownColumn."""

    def __init__(self, dialect: Dialect, shape: TableShape) -> None:
        self.shape = shape
        self._dialect = dialect
        self._table = dialect.table(shape.local)
        self._types = dict(zip(shape.names, shape.local_types, strict=True))
        self._binders = {column.name: dialect.binder(column.native) for column in shape.columns}
        self._inserts: dict[tuple[str, ...], tuple[str, Callable[[Row], Params]]] = {}
        self._updates: dict[tuple[Any, ...], tuple[str, Callable[[Row], Params], Callable[[Row], Params]]] = {}
        self._deletes: dict[tuple[Any, ...], tuple[str, Callable[[Row], Params]]] = {}

    def insert(self, row: Row) -> tuple[str, Params]:
        """Add a row."""
        names = tuple(row)
        known = self._inserts.get(names)
        if known is None:
            marks = ", ".join(self._dialect.parameter(i) for i in range(1, len(names) + 1))
            values = self._values(names)
            sql = f"INSERT INTO {self._table} ({_list(names)}) VALUES ({marks})"
            if not names:
                sql = f"INSERT INTO {self._table}{_DEFAULT_VALUES}"
            known = self._inserts[names] = (sql, values)
        return known[0], known[1](row)

    def update(self, row: Row, identity: Identity) -> tuple[str, Params]:
        """Write these columns of a row."""
        names = tuple(row)
        key = (names, identity.columns, identity.whole)
        known = self._updates.get(key)
        if known is None:
            values, keys = self._values(names), self._values(identity.columns)
            sets = ", ".join(f"{quoted(name)} = {self._dialect.parameter(i)}" for i, name in enumerate(names, 1))
            sql = f"UPDATE {self._table} SET {sets} WHERE {self._where(identity, len(names) + 1)}"
            known = self._updates[key] = (sql, values, keys)
        return known[0], (*known[1](row), *known[2](identity.row))

    def delete(self, identity: Identity) -> tuple[str, Params]:
        """Take a row away."""
        key = identity[0], identity[2]
        known = self._deletes.get(key)
        if known is None:
            values = self._values(identity.columns)
            known = self._deletes[key] = (f"DELETE FROM {self._table} WHERE {self._where(identity, 1)}", values)
        return known[0], known[1](identity.row)

    def truncate(self) -> tuple[str, Params]:
        """Take all rows away."""
        return f"DELETE FROM {self._table}", ()

    def _where(self, identity: Identity, first: int) -> str:
        numbered = list(enumerate(identity.columns, first))
        if not identity.whole:
            return " AND ".join(f"{quoted(name)} = {self._dialect.parameter(i)}" for i, name in numbered)
        same = " AND ".join(self._dialect.is_same(name, self._types[name], i) for i, name in numbered)
        row_id = self._dialect.row_id(self.shape.names)
        return f"{row_id} = (SELECT {row_id} FROM {self._table} WHERE {same} LIMIT 1)"

    def _values(self, names: Sequence[str]) -> Callable[[Row], Params]:
        for name in names:
            if name not in self._binders:
                raise UnknownColumn(name)
        binders = [(name, self._binders[name]) for name in names]
        if any(binder is not None for _, binder in binders):
            return lambda row: [row[name] if bind is None else bind(row[name]) for name, bind in binders]
        if len(names) > 1:
            return itemgetter(*names)
        return lambda row: [row[name] for name in names]


class SqliteDialect(Dialect):
    """SQLite: no schemas, few types, any value in any column."""

    scheme = "sqlite"

    def obstacle(self, columns: Sequence[str]) -> str:
        if len({name.translate(_ASCII_LOWER) for name in columns}) != len(columns):
            return "two of its columns differ only in upper and lower case, which SQLite cannot tell apart"
        return "" if self.row_id(columns) else "its columns have all the names by which SQLite tells a row"

    def row_id(self, columns: Sequence[str]) -> str | None:
        # a column of that name is found instead: https://www.sqlite.org/rowidtable.html
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
    """PostgreSQL: everything as in the source, but for widths."""

    scheme = "postgresql"

    def obstacle(self, columns: Sequence[str]) -> str:
        return ""

    def row_id(self, columns: Sequence[str]) -> str | None:
        return "ctid"

    def table(self, local: tuple[str, str]) -> str:
        return f"{quoted(local[0])}.{quoted(local[1])}"

    def local_name(self, schema: str, table: str) -> tuple[str, str]:
        return schema, table

    def own(self, name: str) -> str:
        return f"_walbridge.{name}"

    def parameter(self, index: int) -> str:
        return f"${index}"

    def is_same(self, name: str, local_type: str, index: int) -> str:
        # not every type has an operator for equality, every one has a text
        return f"{quoted(name)}::text IS NOT DISTINCT FROM (${index}::{local_type})::text"

    def binder(self, words: str) -> Binder | None:
        return postgres_binder(words)

    def schema_statements(self) -> Iterable[str]:
        return ["CREATE SCHEMA IF NOT EXISTS _walbridge", *_own_tables(self)]


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
    ]


def copy_of(insert: str) -> str | None:
    """PostgreSQL's COPY of the rows that an INSERT of `RowStatements` is for; None for others, and without columns."""
    if not insert.startswith("INSERT INTO ") or insert.endswith(_DEFAULT_VALUES):
        return None
    return f"COPY {insert.removeprefix('INSERT INTO ').rpartition(' VALUES (')[0]} FROM STDIN"


def _list(names: Iterable[str]) -> str:
    return ", ".join(map(quoted, names))
