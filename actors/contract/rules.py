"""The rules of docs/consumers.md that keep a copy equal to its source, as plain functions. No I/O.

A copy is a snapshot plus the events after the snapshot's `stream_seq` that count (`counts`). A copy's Position says which
events it contains; it is stored together with the rows, and an event that is not after it has been applied already.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

import orjson

from actors.contract.records import Change, Column, Delete, Event, Gap, Insert, Published, Row, SchemaChange, Truncate, Update
from actors.contract.stream_view import FoundMessage, LastMessage, Place, StreamView, why_out_of_date
from actors.positions import GAP_RANK, ROW_RANK, SCHEMA_RANK, Lsn, Position
from actors.wire.sql_names import quoted


def position_of(event: Event) -> Position:
    """An event's position: a schema change is before the row that needs it, the bridge's notices before everything there."""
    if isinstance(event, SchemaChange):
        rank = SCHEMA_RANK
    else:
        rank = GAP_RANK if isinstance(event, Published) or (isinstance(event, Gap) and not event.of_table) else ROW_RANK
    return Position(Lsn(event.lsn), event.seq, rank)


def counts(event: Event, snapshot_lsn: int) -> bool:
    """Return whether a snapshot's copy needs the event: the snapshot contains all commits below `snapshot_lsn`."""
    return event.lsn >= snapshot_lsn


class NamesNoRow(ValueError):
    """A change that does not identify its row, because the table has neither a key nor REPLICA IDENTITY FULL.

    Partitions send such changes when their root table has no key.
    """


class IncompleteRow(ValueError):
    """An INSERT lacks values that the stream never had: the table must be copied again.

    PostgreSQL sends an UPDATE that moves a row into the publication's row filter as an INSERT. Without REPLICA IDENTITY FULL
    the large values that the UPDATE did not change are missing.
    https://www.postgresql.org/docs/18/logical-replication-row-filter.html
    """


class Identity(NamedTuple):
    """The row that a change is about."""

    columns: tuple[str, ...]
    row: Row
    """The values of `columns` before the change."""
    whole: bool
    """Whether there is no key, so that the change means any one of the rows that are equal in all these columns."""


def identity_of(change: Update | Delete, pk: Sequence[str], column_count: int) -> Identity:
    """Find the row by its primary key if the change contains it, else by the replica identity.

    Raises NamesNoRow.
    """
    before = change.row if isinstance(change, Delete) or change.old is None else change.old
    key = change.key
    if pk and all(name in key for name in pk):
        if not all(name in before for name in pk):
            raise NamesNoRow(f"a change of {change.schema}.{change.table} lacks values of its key")
        return Identity(tuple(pk), before, False)
    known = tuple(name for name in key if name in before and name not in change.omitted)
    if not known:
        raise NamesNoRow(f"a change names no row: {change.schema}.{change.table} has neither a key nor REPLICA IDENTITY FULL")
    return Identity(known, before, len(key) >= column_count)


def written_columns(change: Insert | Update) -> Row:
    """The columns that a change writes: an omitted column becomes None until an event has its value.

    Unchanged columns of an UPDATE are absent, so a copy keeps the values that it has. Raises IncompleteRow for an INSERT that
    has such columns: there is nothing to keep, and None would be a wrong value.
    """
    if change.unchanged and isinstance(change, Insert):
        table = f"{change.schema}.{change.table}"
        raise IncompleteRow(
            f"an UPDATE moved a row into the row filter of {table}, and PostgreSQL did not send {', '.join(change.unchanged)};"
            f" to prevent it: ALTER TABLE {quoted(change.schema)}.{quoted(change.table)} REPLICA IDENTITY FULL"
        )
    return change.row | dict.fromkeys(change.omitted) if change.omitted else change.row


def key_of(row: Row, pk: Sequence[str]) -> Hashable:
    """Return the values of a row's primary key as a tuple that a mapping takes: arrays and documents can be keys too.

    Raises KeyError when the row lacks one of them.
    """
    return tuple(
        orjson.dumps(value, option=orjson.OPT_SORT_KEYS) if type(value) in (list, dict) else value
        for value in (row[name] for name in pk)
    )


def apply_to(rows: MutableMapping[Hashable, Row], change: Change | Truncate, pk: Sequence[str]) -> None:
    """Apply one event to rows that are stored under `key_of` their primary key `pk`.

    Raises KeyError for a change of a row that is missing: the copy is wrong. Raises IncompleteRow, and NamesNoRow, when only a
    new snapshot can tell what the table holds: within a transaction, two rows may have one key if it is deferrable.
    """
    if isinstance(change, Truncate):
        rows.clear()
        return
    held: Row = {}
    if not isinstance(change, Insert):
        before = identity_of(change, pk, len(change.row)).row
        held = rows.pop(key_of(before, pk))
    if not isinstance(change, Delete):
        row = held | written_columns(change)
        key = key_of(row, pk)
        if key in rows:
            raise NamesNoRow(f"two rows of {change.schema}.{change.table} have the key {key}: it is deferrable, or none")
        rows[key] = row


def is_out_of_date(
    stream_seq: int, created: str, stream_info: Mapping[str, Any], *, message_id: str = "", found_id: str | None = None
) -> str:
    """Return why a copy that contains everything up to `stream_seq` of the stream created at `created` cannot continue.

    Empty when the copy can continue. `stream_info` is JetStream's reply to STREAM.INFO asked with `{"deleted_details": true}`;
    without that, any deleted message counts as one that the copy lacks. An empty `created` matches any stream. `message_id` is
    the id that the message at `stream_seq` had when the copy read it, `found_id` the one there now, None when there is
    no message; both matter only if `message_id` is given.
    """
    read_last = LastMessage(stream_seq if message_id else 0, message_id)
    found = None if found_id is None else FoundMessage(found_id, "")
    return why_out_of_date(Place(stream_seq, created, read_last), StreamView.of(stream_info), found)


def is_other_version(version: str, published: str) -> bool:
    """Return whether a copy is out of date where the stream says how its table is published from there on.

    `version` is that of the copy's snapshot, `published` the event's (see `Published`). An unknown version is another one, and
    so is every version of a table that is not published any more. The events after a copy's place decide, whatever their LSN:
    `counts` is a rule for rows.
    """
    return not version or version != published


def is_certain(held: Sequence[Column], announced: Sequence[Column]) -> bool:
    """Return whether rows of shape `held` become rows of shape `announced` without the source: only if columns were dropped.

    No event has the old rows' values of a new column, or of a column whose type changed (a default may be gone again).
    PostgreSQL never reorders columns: a column that moved is a different column under the same name.
    """
    kept = {column.name for column in announced}
    same = [column[:2] for column in held if column.name in kept] == [column[:2] for column in announced]
    return same and all(column.name in kept or not column.pk for column in held)
