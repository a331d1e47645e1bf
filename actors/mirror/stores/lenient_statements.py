"""The statements that apply changes to a copy that may lack any row, while it comes in rounds. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from actors.contract.ranges import effect_of
from actors.contract.records import Change, Insert, Row, Truncate
from actors.contract.rules import Identity
from actors.mirror.stores.dialect import Dialect, Params, Statement, column_list
from actors.mirror.stores.row_statements import RowStatements
from actors.mirror.stores.shapes import TableShape
from actors.wire.sql_names import quoted


class LenientStatements:
    """Makes statements by the rule for snapshots in rounds. Rows are found by the primary key, which is that of events.

    Raises UnknownColumn and KeyError for a change that does not fit the shape.
    """

    def __init__(self, dialect: Dialect, shape: TableShape) -> None:
        self.shape = shape
        self.missing = (shape.local[0], shape.local[1].replace("_new_", "_missing_"))
        """The table of the keys of rows that lack values."""
        self._dialect = dialect
        self._rows = RowStatements(dialect, shape)
        kept = [shape.names.index(name) for name in shape.pk]
        self.missing_shape = TableShape(
            shape.token, shape.schema, shape.table, self.missing, tuple(shape.columns[i] for i in kept),
            tuple(shape.local_types[i] for i in kept), shape.relation_id,
        )  # fmt: skip
        self._missing = RowStatements(dialect, self.missing_shape)
        self._upserts: dict[tuple[str, str], str] = {}

    def of(self, change: Change | Truncate) -> Iterator[Statement]:
        """Make the statements of one event."""
        if isinstance(change, Truncate):
            yield self._statement(*self._rows.truncate())
            return
        pk = self.shape.pk
        effect = effect_of(change, pk)
        if effect.row is None:
            assert effect.old_key is not None, "what is removed has a key"
            yield self._statement(*self._rows.delete(Identity(pk, effect.old_key, False)))
            return
        row = effect.row | dict.fromkeys(effect.unknown)
        if isinstance(change, Insert):
            yield self._upsert(effect.row | dict.fromkeys(effect.missing), "UPDATE")
            lacks = bool(effect.missing)
        else:
            assert effect.old_key is not None, "an UPDATE has a key"
            yield self._statement(*self._rows.update(row, Identity(pk, effect.old_key, False)))
            if effect.is_moved:  # a row that was not there is written under its new key
                yield self._upsert(row | dict.fromkeys(effect.missing), "NOTHING")
            lacks = bool(effect.missing if effect.is_moved else effect.unknown)
        if lacks:
            yield self._note_missing(effect.row)

    def chunk(self, rows: Sequence[Row], *, is_touched: bool) -> Iterator[Statement]:
        """Make the statements of a chunk's rows. Until events have touched the copy, no row of a chunk can be there."""
        for row in rows:
            yield self._upsert(row, "UPDATE") if is_touched else self._statement(*self._rows.insert(row))

    def filled(self, rows: Sequence[Row]) -> Iterator[Statement]:
        """Remove a chunk's rows, which have all values, from the table of missing ones."""
        for row in rows:
            yield self._statement(*self._missing.delete(Identity(self.shape.pk, row, False)))

    def forget(self, keys: Sequence[Params]) -> list[Statement]:
        """Remove the rows of these keys, which were read from the table of missing ones, from both tables."""
        return [self._delete(self.shape.local, keys), self.not_missing(keys)]

    def not_missing(self, keys: Sequence[Params]) -> Statement:
        """Remove these keys from the table of missing ones alone: what their rows lack stays unknown."""
        return self._delete(self.missing, keys)

    def _delete(self, local: tuple[str, str], keys: Sequence[Params]) -> Statement:
        where = " AND ".join(f"{quoted(name)} = {self._dialect.parameter(i)}" for i, name in enumerate(self.shape.pk, 1))
        return Statement(f"DELETE FROM {self._dialect.table(local)} WHERE {where}", list(keys), token=self.shape.token)

    def _note_missing(self, row: Row) -> Statement:
        sql, params = self._missing.insert({name: row[name] for name in self.shape.pk})
        return self._statement(self._on_conflict(sql, "NOTHING", ()), params)

    def _upsert(self, row: Row, what: str) -> Statement:
        sql, params = self._rows.insert(row)
        return self._statement(self._on_conflict(sql, what, tuple(name for name in row if name not in self.shape.pk)), params)

    def _on_conflict(self, insert: str, what: str, names: Sequence[str]) -> str:
        known = self._upserts.get((insert, what))
        if known is None:
            sets = ", ".join(f"{quoted(name)} = excluded.{quoted(name)}" for name in names)
            then = f"UPDATE SET {sets}" if what == "UPDATE" and sets else "NOTHING"
            known = f"{insert} ON CONFLICT ({column_list(self.shape.pk)}) DO {then}"
            self._upserts[insert, what] = known
        return known

    def _statement(self, sql: str, params: Params) -> Statement:
        return Statement(sql, [params], False, self.shape.token)


def joined(statements: Iterable[Statement]) -> list[Statement]:
    """Join runs of one statement."""
    found: list[Statement] = []
    for one in statements:
        if found and found[-1].sql == one.sql:
            found[-1].params.extend(one.params)
        else:
            found.append(one)
    return found
