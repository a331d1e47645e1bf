"""Shapes of tables in a replica, and kinds of PostgreSQL's types by their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import psycopg.postgres

from actors.contract.records import Column

INTEGERS = frozenset({"smallint", "integer", "bigint", "oid"})
FLOATS = frozenset({"real", "double precision"})
DOCUMENTS = frozenset({"json", "jsonb"})
BUILTIN = frozenset(info.regtype for info in psycopg.postgres.types) | {"bpchar", "character"}


def base_words(words: str) -> str:
    """The type's name without its modifier: `timestamp(3) with time zone` becomes `timestamp with time zone`."""
    head, bracket, tail = words.partition("(")
    if bracket and not words.startswith('"'):
        return (head + tail.partition(")")[2]).strip()
    return words


def element_words(words: str) -> str | None:
    """The name of an array's element type; None for a type that is no array."""
    return words[:-2] if words.endswith("[]") else None


@dataclass(frozen=True, slots=True)
class TableShape:
    """A table of the replica: the source table, the local name, and the columns."""

    token: str
    schema: str
    table: str
    """Schema and name in the source."""
    local: tuple[str, str]
    """Schema and name in the replica. The schema is empty in SQLite, which has none."""
    columns: tuple[Column, ...]
    local_types: tuple[str, ...]
    """The columns' types in the replica, as SQL."""
    relation_id: int
    """The source table's OID."""
    keyed: bool = True
    """Whether the replica's table has the source's primary key."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @property
    def pk(self) -> tuple[str, ...]:
        """Columns of the primary key; empty when rows are identified by all columns."""
        return tuple(column.name for column in self.columns if column.pk) if self.keyed else ()

    def lacks(self, other: TableShape) -> dict[str, str] | None:
        """The columns, with their types, that must be added before rows of `other` fit; None when more must change."""
        mine = dict(zip(self.columns, self.local_types, strict=True))
        theirs = dict(zip(other.columns, other.local_types, strict=True))
        if not mine or self.keyed != other.keyed or self.pk != other.pk or not mine.items() <= theirs.items():
            return None
        return {column.name: kind for column, kind in theirs.items() if column not in mine}


def encode_columns(columns: Sequence[Column]) -> str:
    """Encode columns for the mirror's own table `tables`."""
    return orjson.dumps([list(column) for column in columns]).decode()


def decode_columns(text: str) -> tuple[Column, ...]:
    """Decode what `encode_columns` made."""
    found: list[list[Any]] = orjson.loads(text)
    return tuple(Column(*column) for column in found)
