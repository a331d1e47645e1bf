"""The statements that apply changes of rows to one table. No I/O.

A row is found by its key; in a table without a key, any one of the rows that are equal in every column is meant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

from actors.contract.records import Row
from actors.contract.rules import Identity
from actors.mirror.stores.dialect import Dialect, Params, column_list
from actors.mirror.stores.shapes import TableShape
from actors.wire.sql_names import quoted

DEFAULT_VALUES = " DEFAULT VALUES"


class UnknownColumn(Exception):
    """A change has a column that is missing in the table's shape."""


class RowStatements:
    """Makes the statements that change rows of one table. The SQL is built once per set of columns.

    Every method but `truncate` raises UnknownColumn.
    """

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
        """Insert a row."""
        names = tuple(row)
        known = self._inserts.get(names)
        if known is None:
            marks = ", ".join(self._dialect.parameter(i) for i in range(1, len(names) + 1))
            values = self._values(names)
            sql = f"INSERT INTO {self._table} ({column_list(names)}) VALUES ({marks})"
            if not names:
                sql = f"INSERT INTO {self._table}{DEFAULT_VALUES}"
            known = self._inserts[names] = (sql, values)
        return known[0], known[1](row)

    def update(self, row: Row, identity: Identity) -> tuple[str, Params]:
        """Update these columns of a row."""
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
        """Delete a row."""
        key = identity[0], identity[2]
        known = self._deletes.get(key)
        if known is None:
            values = self._values(identity.columns)
            known = self._deletes[key] = (f"DELETE FROM {self._table} WHERE {self._where(identity, 1)}", values)
        return known[0], known[1](identity.row)

    def truncate(self) -> tuple[str, Params]:
        """Delete all rows."""
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
