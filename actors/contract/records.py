"""The values that consumers read: one NamedTuple per kind of message (contract, sections 4 to 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Row = dict[str, Any]
"""Maps columns to values, as docs/consumers.md lists them."""


AMBIGUOUS = "ambiguous"
"""The `error_type` that answers a request which named no bridge although several publish the table, and no other request."""


class Raw(str):
    """A value that was kept as PostgreSQL's text although its type has a native form."""

    __slots__ = ()


class Column(NamedTuple):
    """One column of a table, as schemas and snapshots describe it."""

    name: str
    type: str
    """As PostgreSQL prints it: `numeric(10,2)`."""
    pk: bool | None
    """None when the catalog had changed before the bridge could read it."""
    base: str = ""
    """The type under a domain, or under an array of a domain; else empty."""

    @property
    def native(self) -> str:
        """The type by which the column's values are rendered in events."""
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
    """Commit time in microseconds since 1970 UTC."""
    key: tuple[str, ...]
    """Columns of the replica identity."""
    row: Row
    omitted: Sequence[str]
    """Columns that were too large for a message: their values are unknown, not null."""
    unchanged: Sequence[str] = ()
    """Columns that PostgreSQL did not send. An INSERT with any is incomplete: see `IncompleteRow`."""


class Update(NamedTuple):
    """A changed row: `row` is the new row without its `unchanged` and `omitted` columns."""

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
    """The old key if it changed, or the complete old row under REPLICA IDENTITY FULL."""
    unchanged: Sequence[str]


class Delete(NamedTuple):
    """A deleted row: `row` has only the columns of its identity, since PostgreSQL does not send the others."""

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
    """A TRUNCATE of one table."""

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
    """A new shape of the table's rows from here on."""

    token: str
    schema: str
    table: str
    lsn: int
    seq: int
    last: bool
    schema_id: int
    relation_id: int
    """The table's OID: a different OID means a different table."""
    columns: tuple[Column, ...]


class Gap(NamedTuple):
    """Changes of these tables are permanently lost, or withheld (`from_lsn` equals `to_lsn`): copy the tables again."""

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
    """Whether the gap concerns one table and has a position in the order, as an event of that table has."""


class Published(NamedTuple):
    """A table is published, is no longer published, or is published differently from here on. Stands between transactions."""

    lsn: int
    seq: int
    token: str
    change: str
    """`added`, `changed` or `removed`."""
    version: str
    """How the table is published now, as a snapshot's `version`: a copy from a snapshot of another version is out of date.

    Empty when the table is not published.
    """
    reason: str
    """What changed, for people."""
    last: bool = True


class Schema(NamedTuple):
    """A table's schema, in KV `schemas` and on `init.schema.{table}`."""

    token: str
    schema: str
    table: str
    schema_id: int
    columns: tuple[Column, ...]


class SnapshotStart(NamedTuple):
    """The start of a snapshot. With the array format two messages announce it, and both decode to this."""

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
    stream: str
    """The CDC stream whose bridge took the snapshot, and that `stream_seq` is a sequence of: pass over other streams'."""
    version: str = ""
    """How the table was published when the snapshot was taken (see `Published`); empty from bridges that did not say."""


class SnapshotChunk(NamedTuple):
    """Rows of a snapshot as maps."""

    token: str
    snapshot_id: str
    chunk: int
    rows: list[Row]


class ArrayChunk(NamedTuple):
    """Rows of a snapshot as arrays, in the order of the start's columns; json is text."""

    token: str
    snapshot_id: str
    chunk: int
    rows: list[list[Any]]
    encoding: str
    """`msgpack` or `json`, as for the bridge's events."""


KeyText = tuple[str, ...]
"""A row's key as PostgreSQL's text of the key's columns."""


class RowRange(NamedTuple):
    """Rows whose key is beyond `after` and not beyond `through`, in PostgreSQL's order; None is no bound."""

    after: KeyText | None = None
    through: KeyText | None = None


class RangesStart(NamedTuple):
    """The start of a snapshot in rounds, or of an answer that has rows named by their keys. Each chunk has its own LSN."""

    token: str
    """With the suffix: `users+ranges`."""
    schema: str
    table: str
    snapshot_id: str
    mode: str
    """`ranges` or `keys`."""
    relation_id: int
    schema_id: int
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    """The columns that name a row, in events too."""
    stream: str
    version: str
    rows_expected: int
    """From PostgreSQL's statistics; 0 without statistics."""
    system_id: str
    """Of the PostgreSQL that is read."""
    timeline: int


class RangesChunk(NamedTuple):
    """Rows as of the chunk's own LSN. It comes right after the event `stream_seq`: see `ranges`."""

    token: str
    snapshot_id: str
    chunk: int
    snapshot_lsn: int
    stream_seq: int
    """The last message of the stream with `lsn < snapshot_lsn`. Never less than the chunk's before."""
    rows: list[Row]
    row_count: int
    """Rows of this chunk and of all before it."""
    left: tuple[RowRange, ...]
    """What no chunk has yet. For the bridge, which goes on there."""


class SnapshotMeta(NamedTuple):
    """The end of a complete snapshot. A snapshot without one does not count."""

    token: str
    snapshot_id: str
    snapshot_lsn: int
    stream_seq: int
    batch_count: int
    row_count: int
    stream: str


class SnapshotError(NamedTuple):
    """The end of a snapshot that failed, or that could not begin."""

    token: str
    snapshot_id: str
    error_type: str
    error_message: str
    available_tables: tuple[str, ...]
    stream: str
    streams: tuple[str, ...]
    """Of `ambiguous`, which answers a request that named no bridge: the streams to choose from."""


Change = Insert | Update | Delete
Event = Insert | Update | Delete | Truncate | SchemaChange | Gap | Published
Record = Event | Schema | SnapshotStart | SnapshotChunk | ArrayChunk | RangesStart | RangesChunk | SnapshotMeta | SnapshotError
Body = Mapping[str, Any]
