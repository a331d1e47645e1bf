"""What actors say to each other. Everything here is a value: made once, never changed.

NamedTuples where there is one a row (they build in a third of a frozen dataclass's time), dataclasses where there is one a
relation or a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from actors.lsn import Lsn

GAP_RANK, SCHEMA_RANK, ROW_RANK = -1, 0, 1
BRIDGE_TOKEN = "_bridge"


class Position(NamedTuple):
    """The place of a message in the stream's order: commit LSN, change within the transaction, rank at that change.

    A gap stands before everything at its place, a schema event before the row that needs it.
    """

    lsn: Lsn
    seq: int
    rank: int = ROW_RANK


START = Position(Lsn(0), -1, GAP_RANK)
"""Before everything: nothing is skipped."""


class Column(NamedTuple):
    """One column of a Relation message."""

    name: str
    type_oid: int
    typmod: int
    is_key: bool


@dataclass(frozen=True, slots=True)
class Relation:
    """A table's shape as pgoutput announces it: https://www.postgresql.org/docs/18/protocol-logicalrep-message-formats.html"""

    oid: int
    schema: str
    name: str
    replica_identity: str
    """`d` default, `n` nothing, `f` full, `i` index (pg_class.relreplident)."""
    columns: tuple[Column, ...]


class Notes(NamedTuple):
    """What a reader must know of a row beside its values."""

    unchanged: tuple[str, ...] = ()
    """TOASTed columns that PostgreSQL did not send since they did not change; absent from the row."""
    raw: tuple[str, ...] = ()
    """Columns whose value stayed PostgreSQL's text although their type has a native form."""


