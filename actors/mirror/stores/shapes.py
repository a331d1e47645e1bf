"""What a table looks like in a replica, and how PostgreSQL's types are told from their words."""

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
    """A type without its modifier: `timestamp(3) with time zone` is `timestamp with time zone`."""
    head, bracket, tail = words.partition("(")
    if bracket and not words.startswith('"'):
        return (head + tail.partition(")")[2]).strip()
    return words


def element_words(words: str) -> str | None:
    """The words of an array's element type, None for a type that is no array."""
    return words[:-2] if words.endswith("[]") else None


@dataclass(frozen=True, slots=True)
class TableShape:
    """A table of the replica: whose copy it is, what it is called here, its columns."""

    token: str
    schema: str
    table: str
    """Schema and name in the source."""
    local: tuple[str, str]
    """Schema and name here; SQLite has no schemas, there the first is empty."""
    columns: tuple[Column, ...]
    local_types: tuple[str, ...]
    """The columns' types here, as SQL."""
    relation_id: int
    """The source's OID of it."""
    keyed: bool = True
    """The primary key is one here too."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @property
    def pk(self) -> tuple[str, ...]:
        """Columns of the primary key, none when the rows are told apart by all columns."""
        return tuple(column.name for column in self.columns if column.pk) if self.keyed else ()

    def lacks(self, other: TableShape) -> dict[str, str] | None:
        """Columns, and their types here, that must be added before rows of `other` fit; None when that is not enough."""
        mine = dict(zip(self.columns, self.local_types, strict=True))
        theirs = dict(zip(other.columns, other.local_types, strict=True))
        if not mine or self.keyed != other.keyed or self.pk != other.pk or not mine.items() <= theirs.items():
            return None
        return {column.name: kind for column, kind in theirs.items() if column not in mine}


def encode_columns(columns: Sequence[Column]) -> str:
    """For the replica's own table of tables."""
    return orjson.dumps([list(column) for column in columns]).decode()


def decode_columns(text: str) -> tuple[Column, ...]:
    found: list[list[Any]] = orjson.loads(text)
    return tuple(Column(*column) for column in found)
