"""How a copy is kept equal to its source: the rules of docs/consumers.md as plain functions. No I/O.

A copy is a snapshot and the events behind the snapshot's `stream_seq` that count (`counts`). Where the copy is in the order is
its Position, kept together with the rows; what is not after it has been applied already.
"""

from __future__ import annotations

from collections.abc import Hashable, MutableMapping, Sequence
from typing import NamedTuple

from actors.contract.records import Change, Column, Delete, Event, Gap, Insert, Row, SchemaChange, Truncate, Update
from actors.positions import GAP_RANK, ROW_RANK, SCHEMA_RANK, Lsn, Position


def position_of(event: Event) -> Position:
    """Where an event stands: a schema change before the row that it precedes, the bridge's own gap before everything there."""
    if isinstance(event, SchemaChange):
        rank = SCHEMA_RANK
    else:
        rank = GAP_RANK if isinstance(event, Gap) and not event.of_table else ROW_RANK
    return Position(Lsn(event.lsn), event.seq, rank)


def counts(event: Event, snapshot_lsn: int) -> bool:
    """Whether a snapshot's copy needs the event: what committed below `snapshot_lsn` is in the snapshot already."""
    return event.lsn >= snapshot_lsn


class NamesNoRow(ValueError):
    """A change of a table that has neither a key nor REPLICA IDENTITY FULL; so are partitions whose root has no key."""


class Identity(NamedTuple):
    """Which row a change is about."""

    columns: tuple[str, ...]
    row: Row
    """Holds the values of `columns`, as they were before the change."""
    whole: bool
    """There is no key: one of the rows that are equal in all these columns."""


def identity_of(change: Update | Delete, pk: Sequence[str], column_count: int) -> Identity:
    """Find the row by its primary key if the change tells it, else by the replica identity.

    Raises NamesNoRow.
    """
    before = change.row if isinstance(change, Delete) or change.old is None else change.old
    key = change.key
    if pk and all(name in key for name in pk):
        return Identity(tuple(pk), before, False)
    known = tuple(name for name in key if name in before and name not in change.omitted)
    if not known:
        raise NamesNoRow(f"a change names no row: {change.schema}.{change.table} has neither a key nor REPLICA IDENTITY FULL")
    return Identity(known, before, len(key) >= column_count)


def is_out_of_date(stream_seq: int, created: str, stream_info: dict[str, object]) -> str:
    """Why a copy that has read up to `stream_seq` of the stream made at `created` cannot go on; empty when it can.

    `stream_info` is JetStream's reply to STREAM.INFO.
    """
    state = stream_info["state"]
    assert isinstance(state, dict), "state is a map"
    if created and stream_info["created"] != created:
        return "the stream was made anew"
    if int(state["last_seq"]) < stream_seq:
        return "the stream was cut short"
    if int(state["first_seq"]) > stream_seq + 1:
        return "the stream no longer holds what comes next"
    return ""


def apply_to(rows: MutableMapping[Hashable, Row], change: Change | Truncate, pk: Sequence[str]) -> None:
    """Apply one event to rows kept by the values of their primary key `pk`.

    Raises KeyError for a change of a row that is not there: the copy is wrong.
    """
    if isinstance(change, Truncate):
        rows.clear()
        return
    if isinstance(change, Insert):
        rows[tuple(change.row[name] for name in pk)] = change.row | dict.fromkeys(change.omitted)
        return
    before = identity_of(change, pk, len(change.row)).row
    held = rows.pop(tuple(before[name] for name in pk))
    if isinstance(change, Update):
        row = held | change.row | dict.fromkeys(change.omitted)  # what is unchanged stays as it was held
        rows[tuple(row[name] for name in pk)] = row


def is_certain(held: Sequence[Column], told: Sequence[Column]) -> bool:
    """Whether rows of one shape become rows of another without a look at the source: only if columns were dropped.

    A new column has values that no event tells (its default may be gone again), and a new type new values. Columns keep their
    order for life: one that stands elsewhere is another one under that name.
    """
    kept = {column.name for column in told}
    same = [column[:2] for column in held if column.name in kept] == [column[:2] for column in told]
    return same and all(column.name in kept or not column.pk for column in held)
