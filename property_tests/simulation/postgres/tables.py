"""Tables, rows and one publication: what the catalog holds at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from actors.wire.pgoutput import Column as RelationColumn
from actors.wire.pgoutput import Relation

INT4, INT8, TEXT = 23, 20, 25
TYPE_WORDS = {INT4: "integer", INT8: "bigint", TEXT: "text"}
TOASTED_FROM = 60
"""Characters of a value that is stored out of line."""

Value = bytes | None
Row = Mapping[str, Value]


class Column(NamedTuple):
    """A column; its number is never given twice."""

    name: str
    type_oid: int
    number: int


@dataclass(frozen=True)
class Table:
    """A table. Its primary key is `id`."""

    oid: int
    name: str
    columns: tuple[Column, ...]
    identity: str = "d"
    filenode: int = 0
    attributes_xid: int = 0
    next_number: int = 0
    schema: str = "public"

    @property
    def by_name(self) -> dict[str, Column]:
        return {column.name: column for column in self.columns}


class Entry(NamedTuple):
    """A table of the publication."""

    oid: int
    columns: frozenset[int] | None = None
    """Numbers of the listed columns; None for all."""
    min_id: int | None = None
    """The row filter: `id >= min_id`."""


@dataclass(frozen=True)
class Publication:
    """The publication `cdc_pub`."""

    oid: int
    xmin: int
    entries: Mapping[int, Entry] = field(default_factory=dict)
    """By the table's OID."""

    @property
    def options(self) -> str:
        """As the statement of `publications` shows them; PostgreSQL 18 ends them with `pubgencols`."""
        return f"{self.oid} {self.xmin} 11110 n"


@dataclass
class Database:
    """Catalog and rows."""

    tables: dict[int, Table] = field(default_factory=dict)
    rows: dict[int, dict[bytes, Row]] = field(default_factory=dict)
    """By table, then by key."""
    publication: Publication | None = None

    def copy(self) -> Database:
        """A copy that later changes leave alone."""
        return Database(dict(self.tables), {oid: dict(rows) for oid, rows in self.rows.items()}, self.publication)

    def named(self, name: str) -> Table | None:
        return next((table for table in self.tables.values() if table.name == name), None)

    def entry(self, oid: int) -> Entry | None:
        return None if self.publication is None else self.publication.entries.get(oid)

    def published(self) -> list[tuple[Table, Entry]]:
        """The published tables, ordered by name."""
        found = [(t, e) for t in self.tables.values() if (e := self.entry(t.oid)) is not None]
        return sorted(found, key=lambda one: one[0].name)

    def sent_columns(self, table: Table) -> list[Column]:
        """The columns that are published."""
        entry = self.entry(table.oid)
        return [c for c in table.columns if entry is None or entry.columns is None or c.number in entry.columns]

    def relation(self, table: Table) -> Relation:
        """As a Relation message describes the table."""
        full = table.identity == "f"
        columns = [RelationColumn(c.name, c.type_oid, -1, full or c.name == "id") for c in self.sent_columns(table)]
        return Relation(table.oid, table.schema, table.name, table.identity, tuple(columns))

    def published_rows(self, table: Table) -> dict[bytes, Row]:
        """The rows that a copy of the table must have."""
        entry = self.entry(table.oid)
        assert entry is not None
        names = [column.name for column in self.sent_columns(table)]
        return {
            key: {name: row.get(name) for name in names}
            for key, row in self.rows.get(table.oid, {}).items() if passes(entry, row)
        }  # fmt: skip

    def with_table(self, table: Table, rows: dict[bytes, Row] | None = None) -> None:
        self.tables[table.oid] = table
        self.rows.setdefault(table.oid, {})
        if rows is not None:
            self.rows[table.oid] = rows

    def publish(self, oid: int, entry: Entry | None) -> None:
        """Change the publication's entry for a table; None takes the table out."""
        assert self.publication is not None
        entries = dict(self.publication.entries)
        entries.pop(oid, None)
        if entry is not None:
            entries[oid] = entry
        self.publication = replace(self.publication, entries=entries)


def passes(entry: Entry, row: Row) -> bool:
    """Whether the row filter lets a row through."""
    return entry.min_id is None or int(row["id"] or b"0") >= entry.min_id
