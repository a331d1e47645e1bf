"""What consumers read, as values: one NamedTuple for each kind of message (contract, sections 4 to 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Row = dict[str, Any]
"""Column to value, as docs/consumers.md lists them."""


class Raw(str):
    """A value that stayed PostgreSQL's text although its type has a native form."""

    __slots__ = ()


class Column(NamedTuple):
    """One column of a table as schemas and snapshots describe it."""

    name: str
    type: str
    """In PostgreSQL's words: `numeric(10,2)`."""
    pk: bool | None
    """None when the catalog had moved on before it was asked."""
    base: str = ""
    """What a domain, or an array of a domain, is made of."""

    @property
    def native(self) -> str:
        """The type whose values events have."""
        return self.base or self.type


class Insert(NamedTuple):
    """A new row."""

    token: str
    schema: str
    table: str
    lsn: int
    seq: int
    last: bool
    """The last event of its transaction."""
    xid: int
    commit_us: int
    """Commit time, microseconds since 1970 UTC."""
    key: tuple[str, ...]
    """Columns of the replica identity."""
    row: Row
    omitted: Sequence[str]
    """Columns left out because they are too large for a message: unknown, not null."""


class Update(NamedTuple):
    """A changed row: `row` is the new one, without `unchanged` and `omitted` columns."""

    token: str
    schema: str
    table: str
    lsn: int
    seq: int
    last: bool
    xid: int
    commit_us: int
    key: tuple[str, ...]
    row: Row
    omitted: Sequence[str]
    old: Row | None
    """The old key if it changed, or the whole old row under REPLICA IDENTITY FULL."""
    unchanged: Sequence[str]


class Delete(NamedTuple):
    """A row that is gone: `row` has its identity, and null for every other column."""

    token: str
    schema: str
    table: str
    lsn: int
    seq: int
    last: bool
    xid: int
    commit_us: int
    key: tuple[str, ...]
    row: Row
    omitted: Sequence[str]


class Truncate(NamedTuple):
    """A table was emptied."""

    token: str
    schema: str
    table: str
    lsn: int
    seq: int
    last: bool
    xid: int
    commit_us: int
    cascade: bool
    restart_identity: bool


class SchemaChange(NamedTuple):
    """The table's rows have another shape from here on."""

    token: str
    schema: str
    table: str
    lsn: int
    seq: int
    last: bool
    schema_id: int
    relation_id: int
    """The table's OID: another one is another table."""
    columns: tuple[Column, ...]


class Gap(NamedTuple):
    """Changes of these tables are lost permanently, or kept back (`from_lsn` equals `to_lsn`): copy them again."""

    lsn: int
    seq: int
    last: bool
    slot: str
    reason: str
    from_lsn: int
    to_lsn: int
    tables: tuple[str, ...]
    """Tokens."""
    of_table: bool
    """Only one table is concerned, and the gap has a place in the order as an event of it would."""


class Schema(NamedTuple):
    """What KV `schemas` and `init.schema.{table}` hold."""

    token: str
    schema: str
    table: str
    schema_id: int
    columns: tuple[Column, ...]


class SnapshotStart(NamedTuple):
    """A snapshot begins. With the array format two messages say so; both read as this."""

    token: str
    schema: str
    table: str
    snapshot_id: str
    snapshot_lsn: int
    stream_seq: int
    relation_id: int
    """The table's OID."""
    columns: tuple[Column, ...]
    format: str


class SnapshotChunk(NamedTuple):
    """Rows of a snapshot, as maps."""

    token: str
    snapshot_id: str
    chunk: int
    rows: list[Row]


class ArrayChunk(NamedTuple):
    """Rows of a snapshot, as arrays in the order of the start's columns; json as text."""

    token: str
    snapshot_id: str
    chunk: int
    rows: list[list[Any]]
    encoding: str
    """`msgpack` or `json`, as the bridge writes its events too."""


class SnapshotMeta(NamedTuple):
    """A snapshot is complete. Without this it does not count."""

    token: str
    snapshot_id: str
    snapshot_lsn: int
    stream_seq: int
    batch_count: int
    row_count: int


class SnapshotError(NamedTuple):
    """A snapshot ended without a meta, or did not begin."""

    token: str
    snapshot_id: str
    error_type: str
    error_message: str
    available_tables: tuple[str, ...]


Change = Insert | Update | Delete
Event = Insert | Update | Delete | Truncate | SchemaChange | Gap
Record = Event | Schema | SnapshotStart | SnapshotChunk | ArrayChunk | SnapshotMeta | SnapshotError
Body = Mapping[str, Any]
