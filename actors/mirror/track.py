"""Turns events into statements: selects those that the replica still needs, up to ends of transactions. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

from actors.contract.message_ids import id_in
from actors.contract.records import Change, Delete, Event, Gap, Insert, Published, SchemaChange, Truncate, Update
from actors.contract.rules import (
    IncompleteRow,
    NamesNoRow,
    counts,
    identity_of,
    is_certain,
    is_other_version,
    written_columns,
)
from actors.contract.stream_view import UNKNOWN_MESSAGE, LastMessage
from actors.mirror.stores.dialect import Dialect, Params, Statement
from actors.mirror.stores.row_statements import RowStatements, UnknownColumn
from actors.mirror.stores.shapes import TableShape
from actors.positions import ROW_RANK, SCHEMA_RANK, START, Lsn, Position
from actors.wire.nats import decode_headers


class Cursor(NamedTuple):
    """How far a copy is: it has read everything up to `stream_seq` and applied everything up to `position`."""

    stream_seq: int
    position: Position


@dataclass(slots=True)
class FollowedTable:
    """A table whose events are applied."""

    shape: TableShape
    snapshot_lsn: int
    statements: RowStatements
    version: str
    """The snapshot's: how the table was published then. Empty when unknown."""

    @classmethod
    def of(cls, dialect: Dialect, shape: TableShape, snapshot_lsn: int, version: str = "") -> FollowedTable:
        return cls(shape, snapshot_lsn, RowStatements(dialect, shape), version)


Cause = Literal["gap", "schema", "stream", "rows", "publication"]
"""Why a table is copied again, for the metrics: changes are permanently lost, its columns changed, the stream no longer holds
what comes next, a change conflicted with the replica's rows, or the table is published differently."""
CAUSES: tuple[Cause, ...] = get_args(Cause)


NEEDED_AS_BEFORE = 0
"""A `needed_seq` that leaves what a new snapshot must have reached as it was."""
NEEDED_NOTHING = -1
"""A `needed_seq` that any snapshot satisfies. It replaces an earlier one, which may be of another stream."""


class Stale(NamedTuple):
    """The reason why a table can no longer be followed."""

    reason: str
    needed_seq: int
    """The stream sequence that a new snapshot must have reached, or NEEDED_AS_BEFORE, or NEEDED_NOTHING."""
    cause: Cause


class Told(NamedTuple):
    """What the stream last said of how a table is published."""

    version: str
    """Empty when the table is not published any more."""
    seq: int
    """The stream's sequence where it said so."""
    reason: str


class Track:
    """Follows the tables that share one cursor, and gathers the statements of their events.

    For one task. A rollback makes it invalid: a new track begins at the stored cursor.
    """

    def __init__(
        self, dialect: Dialect, cursor: Cursor, tables: Mapping[str, FollowedTable], *,
        voids: Mapping[int, int] | None = None, stale_from: Mapping[str, tuple[int, Stale]] | None = None,
        last_message: LastMessage = UNKNOWN_MESSAGE,
    ) -> None:  # fmt: skip
        """`last_message` is at the cursor; `voids` are transactions that a gap has cut off, each with the sequence of that gap.

        Events of a table in `stale_from` count below that LSN only.
        """
        self._dialect = dialect
        self.tables = dict(tables)
        self.closed = cursor
        """The end of the last complete transaction that was taken."""
        self.open_lsn: int | None = None
        """LSN of the transaction of which more may come; None between transactions."""
        self.gathered = 0
        """Number of changes since the last `drain`."""
        self.stale: dict[str, Stale] = {}
        self.told: dict[str, Told] = {}
        """How tables are published, followed here or not; what was told of them since this was last emptied."""
        self.reshaped: set[str] = set()
        """Tables whose columns changed; the new ones must be stored together with the rows."""
        self.unknown_values = 0
        """Number of values that the bridge omitted because they were too large for a message."""
        self.applied: dict[tuple[str, str], int] = {}
        """Changes that were drained, by table and operation."""
        self.commit_us = 0
        """Commit time of the newest change that was taken."""
        self._voids, self._stale_from = dict(voids or {}), dict(stale_from or {})
        self._seq = cursor.stream_seq
        self._headers = b""
        self._last_message, self._closed_by = last_message, (0, b"")
        self._position: tuple[int, int, int] = cursor.position  # a plain tuple: building a Position per event is slower
        self._dirty = False
        self._runs: dict[str, list[Statement]] = {}
        self._touched: dict[str, int] = {}

    @property
    def head_seq(self) -> int:
        """The stream sequence of the last message that was taken."""
        return self._seq

    @property
    def is_dirty(self) -> bool:
        """Whether anything was taken since the last `drain`."""
        return self._dirty

    @property
    def last_message(self) -> LastMessage:
        """The message at `closed`."""
        seq, headers = self._closed_by
        if headers:  # read when a local transaction ends, not per message
            self._last_message, self._closed_by = LastMessage(seq, id_in(decode_headers(headers)) or ""), (0, b"")
        return self._last_message

    def leaves_out(self, lsn: int, stream_seq: int) -> bool:
        """Whether the message at `stream_seq` belongs to a transaction of `lsn` that a gap after it has cut off."""
        return stream_seq < self._voids.get(lsn, 0)

    def take(self, stream_seq: int, events: Sequence[Event], headers: bytes = b"") -> None:
        """Take the events of one message with its raw headers.

        Raises CutOff when a table must keep the rows from before the open transaction.
        """
        self._seq, self._headers, self._dirty = stream_seq, headers, True
        for event in events:
            kind = type(event)
            if kind is Gap and not event.of_table:  # type: ignore[union-attr]
                self._gap(event)  # type: ignore[arg-type]
                continue
            if kind is Published:
                self._published(event)  # type: ignore[arg-type]
                continue
            position = (event.lsn, event.seq, SCHEMA_RANK if kind is SchemaChange else ROW_RANK)
            # else it was applied already, or will never be complete
            if position > self._position and not (self._voids and self.leaves_out(event.lsn, stream_seq)):
                self._position = position
                self._apply(event)  # type: ignore[arg-type]
            self.open_lsn = event.lsn
            if event.last:
                self.close()

    def close(self) -> None:
        """Note that the open transaction is complete."""
        self.open_lsn = None
        lsn, seq, rank = self._position
        self.closed = Cursor(self._seq, Position(Lsn(lsn), seq, rank))
        self._closed_by = self._seq, self._headers

    def advance(self, stream_seq: int, last_message: LastMessage = UNKNOWN_MESSAGE) -> None:
        """Move on to `stream_seq`, where `last_message` is; nothing up to there concerns these tables."""
        assert self.open_lsn is None, "only between transactions"
        self._seq, self._headers, self._dirty = stream_seq, b"", True
        self.close()
        self._last_message = last_message

    def drain(self) -> list[Statement]:
        """Hand over the gathered statements, which must run in this order."""
        statements = [statement for runs in self._runs.values() for statement in runs]
        for statement in statements:  # one step per run of equal statements, not per row
            if statement.operation:
                key = statement.token, statement.operation
                self.applied[key] = self.applied.get(key, 0) + len(statement.params)
        self._runs = {}
        self.gathered = 0
        self._dirty = False
        return statements

    def _apply(self, event: Change | Truncate | SchemaChange | Gap) -> None:
        if isinstance(event, Gap):
            for token in event.tables:
                self._set_stale(token, event.reason, event.lsn, "gap")
            return
        table = self.tables.get(event.token)
        if table is None or not counts(event, table.snapshot_lsn):
            return
        token = event.token
        if token in self._stale_from:
            since, stale = self._stale_from[token]
            if event.lsn >= since >= table.snapshot_lsn:
                self._drop(token, stale)
                return
        if isinstance(event, SchemaChange):
            self._reshape(table, event)
            return
        try:
            self._gather(table, event)
        except UnknownColumn as exc:  # without its schema event the rows here cannot be right
            self._set_stale(token, f"a change has a column {exc} that no schema has", event.lsn, "schema")
            return
        except (NamesNoRow, IncompleteRow) as exc:
            self._set_stale(token, str(exc), event.lsn, "rows")
            return
        self.commit_us = event.commit_us
        self._touched[token] = event.lsn

    def _gather(self, table: FollowedTable, event: Change | Truncate) -> None:
        token, statements = event.token, table.statements
        if isinstance(event, Insert):
            if event.omitted:
                self.unknown_values += len(event.omitted)
            sql, params = statements.insert(written_columns(event))
            self._add(token, sql, params, "insert")
        elif isinstance(event, Update):
            if event.omitted:
                self.unknown_values += len(event.omitted)
            row = written_columns(event)
            if row:
                sql, params = statements.update(row, identity_of(event, table.shape.pk, len(table.shape.columns)))
                self._add(token, sql, params, "update", counted=True)
        elif isinstance(event, Delete):
            sql, params = statements.delete(identity_of(event, table.shape.pk, len(table.shape.columns)))
            self._add(token, sql, params, "delete", counted=True)
        else:
            self._add(token, *statements.truncate(), "truncate")

    def _add(self, token: str, sql: str, params: Params, operation: str, *, counted: bool = False) -> None:
        self.gathered += 1
        runs = self._runs.get(token)
        if runs is None:
            self._runs[token] = [Statement(sql, [params], counted, token, operation)]
        elif runs[-1].sql is sql:
            runs[-1].params.append(params)
        else:
            runs.append(Statement(sql, [params], counted, token, operation))

    def _reshape(self, table: FollowedTable, change: SchemaChange) -> None:
        shape = table.shape
        if change.relation_id != shape.relation_id:
            self._set_stale(change.token, "another table has this name now", change.lsn, "schema")
            return
        held = {column.name: column.type for column in shape.columns}
        told = {column.name: column.type for column in change.columns}
        if list(held.items()) == list(told.items()):
            return
        if not is_certain(shape.columns, change.columns):
            words = ", ".join(
                f"{name} {told.get(name, '(dropped)')}" for name in sorted(held | told) if held.get(name) != told.get(name)
            )
            self._set_stale(change.token, f"its columns changed: {words or 'their order'}", change.lsn, "schema")
            return
        kept = [i for i, column in enumerate(shape.columns) if column.name in told]
        columns = tuple(shape.columns[i] for i in kept)
        types = tuple(shape.local_types[i] for i in kept)
        for name in held.keys() - told.keys():
            self._add(change.token, self._dialect.drop_column(shape.local, name), (), "")
        table.shape = replace(shape, columns=columns, local_types=types)
        table.statements = RowStatements(self._dialect, table.shape)
        self.reshaped.add(change.token)

    def _published(self, event: Published) -> None:
        """Stop following a table whose copy the event makes out of date. It comes between transactions."""
        self.close()
        version = "" if event.change == "removed" else event.version
        self.told[event.token] = Told(version, self._seq, event.reason)
        table = self.tables.get(event.token)
        if table is not None and is_other_version(table.version, version):
            # what was told, and not a sequence alone, decides which snapshots are new enough
            self._drop(event.token, Stale(f"it is published differently: {event.reason}", NEEDED_AS_BEFORE, "publication"))

    def _gap(self, gap: Gap) -> None:
        """Stop following the tables that a gap names. Positions after a gap may be lower than before it."""
        self._position = START
        for token in gap.tables or tuple(self.tables):
            self._set_stale(token, f"changes are permanently lost: {gap.reason}", -1, "gap")
        self.close()

    def _set_stale(self, token: str, reason: str, lsn: int, cause: Cause) -> None:
        if token not in self.tables:
            return
        stale = Stale(reason, self._seq, cause)
        if lsn >= 0 and self._touched.get(token) == lsn:
            # a part of this transaction is gathered already: the table must keep the rows from before it
            raise CutOff(token, lsn, stale)
        self._drop(token, stale)

    def _drop(self, token: str, stale: Stale) -> None:
        del self.tables[token]
        self.stale[token] = stale


class CutOff(Exception):
    """A table cannot be followed from the middle of a transaction on. Start again with the table in `stale_from`."""

    def __init__(self, token: str, lsn: int, stale: Stale) -> None:
        super().__init__(token)
        self.token, self.lsn, self.stale = token, lsn, stale
