"""The values that actors send to each other: made once, never changed.

NamedTuples for one value per row (they build in a third of a frozen dataclass's time), dataclasses for one per relation or
batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from actors.positions import Lsn, Position
from actors.wire.jetstream import OutMessage
from actors.wire.pgoutput import Relation

LARGE_MESSAGE_BYTES = 1024 * 1024
"""A replication message above this size is handed on as a memoryview and decoded without its largest values."""


class TooLarge(NamedTuple):
    """Stands in a row for a value that no message can carry. The value itself was not decoded."""

    size_bytes: int
    """Of the value's text; of a bytea, without the hex."""


class Notes(NamedTuple):
    """What a reader must know about a row besides its values."""

    unchanged: tuple[str, ...] = ()
    """TOASTed columns that PostgreSQL did not send because they did not change; absent from the row."""
    raw: tuple[str, ...] = ()
    """Columns whose value was kept as PostgreSQL's text although their type has a native form."""
    old_raw: tuple[str, ...] = ()
    """The same for an UPDATE's old row: a column may be text in one row and nested in the other."""
    too_large: tuple[str, ...] = ()
    """Columns with a TooLarge in one of the rows. Readers see them in `omitted`."""


RawMessage = bytes | memoryview


class Block(NamedTuple):
    """Raw messages from one read of the replication stream: `w` and `k` CopyData payloads."""

    messages: list[RawMessage]
    """Bytes; above LARGE_MESSAGE_BYTES possibly a memoryview, since a copy would double the memory."""
    size_bytes: int
    wal_end: Lsn
    """The furthest WAL position that PostgreSQL has named so far."""


class Transaction(NamedTuple):
    """One committed transaction, from pgoutput's Begin."""

    commit_lsn: Lsn
    xid: int
    commit_us: int
    """Commit time, microseconds since 1970 UTC."""


class LastStored(NamedTuple):
    """The transaction of the last stored event. Another one at its LSN is of another history."""

    commit_lsn: Lsn
    commit_us: int
    """As in `Transaction`."""


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A published table in one shape. Compared by identity: a new Relation message makes a new one."""

    relation: Relation
    token: str
    schema_id: int
    key: tuple[str, ...]
    """Columns of the replica identity: all of them under REPLICA IDENTITY FULL, none without one."""
    protected: frozenset[str]
    """Columns that identify the row; never left out, since an event without them would be useless."""


@dataclass(frozen=True, slots=True, eq=False)
class EventKind:
    """One operation on one table: what all events of the kind have in common."""

    table: Table
    operation: str
    """`insert`, `update`, `delete` or `truncate`."""


class RowRun(NamedTuple):
    """Consecutive changes of one kind in one transaction that look alike: all with an old row or none, and with equal notes.

    A run of many rows avoids a RowChange per row, which costs as much as decoding three columns.
    """

    kind: EventKind
    txn: Transaction
    seq: int
    """Of the first row; the others are numbered consecutively."""
    rows: list[dict[str, object]]
    """At least one."""
    olds: list[dict[str, object]] | None = None
    """The old row of each, if PostgreSQL sent old rows."""
    notes: Notes | None = None
    """What each row's reader must know."""

    def change(self, index: int) -> RowChange:
        """Return one row of the run as a change."""
        old = None if self.olds is None else self.olds[index]
        return RowChange(self.kind, self.txn, self.seq + index, self.rows[index], old, self.notes)


class TransactionRun(NamedTuple):
    """Consecutive transactions that look alike: each consists of one row, and all rows are of one kind.

    What is done once per transaction otherwise costs more than a row does.
    """

    kind: EventKind
    txns: list[Transaction]
    """At least two."""
    rows: list[dict[str, object]]
    """Of each transaction."""
    end_lsns: list[Lsn]
    """Of each transaction: everything below has been handed on with its row."""

    def change(self, index: int) -> RowChange:
        """Return the row of one transaction as a change."""
        return RowChange(self.kind, self.txns[index], 0, self.rows[index], None, None)


class RowChange(NamedTuple):
    """One row of one committed transaction."""

    kind: EventKind
    txn: Transaction
    seq: int
    """0-based index among the transaction's changes in the order in which PostgreSQL sent them."""
    data: dict[str, object]
    old: dict[str, object] | None
    """UPDATE: the old key, or the complete old row under REPLICA IDENTITY FULL; None when PostgreSQL sent none."""
    notes: Notes | None


class Truncated(NamedTuple):
    """One table of a TRUNCATE."""

    kind: EventKind
    txn: Transaction
    seq: int
    cascade: bool
    restart_identity: bool


class SchemaChange(NamedTuple):
    """A table's rows have a new shape from `position` on. `body` is what KV `schemas` holds (contract, section 6)."""

    table: Table
    position: Position
    body: dict[str, object]
    described: bool = True
    """False when the catalog had changed already and no longer described this shape."""
    is_complete: bool = True
    """False when the table was locked, so that `body` lacks the columns' defaults."""
    last: bool = False
    """True between two transactions: no event of the transaction before it follows."""


PublicationChange = Literal["added", "changed", "removed"]


class Gap(NamedTuple):
    """Changes that consumers will never see: `from_lsn` up to but not including `to_lsn`."""

    position: Position
    slot: str
    reason: str
    from_lsn: Lsn
    to_lsn: Lsn
    tables: tuple[str, ...]
    token: str = ""
    """The suspended table; empty when the gap concerns all tables."""
    number: int = 0
    """The stream's last sequence when the bridge's gap was decided: two gaps may have one position."""


class PublishedChange(NamedTuple):
    """A table is published, is no longer published, or is published differently. Comes between transactions."""

    position: Position
    token: str
    change: PublicationChange
    version: str
    """Empty when the table is not published any more."""
    reason: str
    txn: Transaction | None
    """The last transaction before it, if known."""


class News(NamedTuple):
    """A change that a look at the catalog has found. It is told once everything below `lsn` has been handed on."""

    lsn: Lsn
    token: str
    change: PublicationChange | None
    """None when only the table's shape has changed."""
    version: str = ""
    reason: str = ""
    schema: SchemaChange | None = None
    """The table's shape if it has changed, without a position yet."""


class Committed(NamedTuple):
    """The end of a transaction: everything below `end_lsn` has been handed on."""

    end_lsn: Lsn
    commit_us: int


class IdleMark(NamedTuple):
    """A position in idle WAL: PostgreSQL has no more changes below `wal_end`, and no transaction is open."""

    wal_end: Lsn


Item = RowRun | TransactionRun | RowChange | Truncated | SchemaChange | PublishedChange | Committed | IdleMark


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Messages that are published together, and what counts once all of them are stored."""

    messages: list[OutMessage]
    size_bytes: int
    counts: dict[EventKind, int]
    """Number of row events by kind; other messages do not count."""
    position: Position | None
    """Of the last message; None when there are none."""
    end_lsn: Lsn
    """Everything below has been handed on and may be confirmed once this batch is stored; 0 when there is nothing new."""
    oldest_commit_us: int
    """Commit time of the batch's oldest change; 0 when there is none."""
    newest_commit_us: int
    schema_changes: tuple[SchemaChange, ...] = ()
    published: tuple[PublishedChange, ...] = ()
    is_whole: bool = True
    """False when a transaction goes on in the next batch. Told only of batches that are cut at the ends of transactions."""
    transactions: int = 0
    """How many transactions with messages end in it; told likewise."""


class SentBatch(NamedTuple):
    """A batch that was sent: stored once the stream's sequence reaches `last_seq`."""

    batch: Batch
    last_seq: int
    sent_unix_s: float
