"""The rule for a snapshot in rounds (contract, section 5), on rows in memory. No I/O.

Each chunk is what the table holds at its own LSN and comes right after the event `stream_seq`. In between, a copy has rows of
some ranges and not of others, so an event of a row that is not there says nothing: a chunk to come has what the event did. No
key is ever compared with another but for equality: the order of PostgreSQL's collations is not the reader's concern.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from actors.contract.records import Change, Delete, Insert, Row, Truncate, Update
from actors.contract.rules import key_of


class Effect(NamedTuple):
    """What a change does to a copy that may lack any row."""

    old_key: Row | None
    """The row to find, by the key's columns; None for a new row, which is written whether or not its key is there."""
    row: Row | None
    """The columns to write; None when the row is removed."""
    missing: tuple[str, ...]
    """Columns that the row lacks if it was not there before: the stream never had their values."""
    unknown: tuple[str, ...]
    """Columns whose values are unknown even if the row was there: they were too large for a message."""
    is_moved: bool = False
    """The key changes: a row that is not there is written under the new key."""


def effect_of(change: Change, key: Sequence[str]) -> Effect:
    """Return what a change does to rows that are kept under the columns `key` of the snapshot's start.

    Raises KeyError for a change that lacks a column of the key.
    """
    omitted = tuple(change.omitted)
    if isinstance(change, Delete):
        return Effect({name: change.row[name] for name in key}, None, (), ())
    missing = tuple(dict.fromkeys((*change.unchanged, *omitted)))
    if isinstance(change, Insert):
        return Effect(None, change.row, missing, omitted)
    new = {name: change.row[name] for name in key}
    before = new if change.old is None else {name: change.old[name] for name in key}
    return Effect(before, change.row, missing, omitted, key_of(before, key) != key_of(new, key))


class RowsInRounds:
    """A table's rows while they come in rounds. Give it events and chunks in the order of the rule.

    That order: a chunk right after the event `stream_seq`; no event beyond the newest chunk's `stream_seq` before the next
    chunk or the meta is there.
    """

    def __init__(self, key: Sequence[str]) -> None:
        self.key = tuple(key)
        self.rows: dict[Hashable, Row] = {}
        self.missing: dict[Hashable, set[str]] = {}
        """By key, the columns whose values no event or chunk had: None in the row. At the meta, ask for these rows."""

    def apply(self, change: Change | Truncate) -> None:
        """Apply one event."""
        if isinstance(change, Truncate):
            self.rows.clear()
            self.missing.clear()
            return
        effect = effect_of(change, self.key)
        held: Row | None = None
        lacked: set[str] = set()
        if effect.old_key is not None:
            before = key_of(effect.old_key, self.key)
            held, lacked = self.rows.pop(before, None), self.missing.pop(before, set())
        if effect.row is None or (held is None and isinstance(change, Update) and not effect.is_moved):
            return
        if held is None:
            self._write(effect.row | dict.fromkeys(effect.missing), set(effect.missing))
        else:
            unknown = set(effect.unknown)
            self._write(held | effect.row | dict.fromkeys(unknown), (lacked - effect.row.keys()) | unknown)

    def chunk(self, rows: Sequence[Row]) -> None:
        """Write the rows of a chunk over what is there."""
        for row in rows:
            self._write(row, set())

    def answer(self, asked: Sequence[Hashable], rows: Sequence[Row]) -> None:
        """Take the answer to `keys` that were asked for: one that is not among the rows does not exist."""
        for key in asked:
            self.rows.pop(key, None)
            self.missing.pop(key, None)
        self.chunk(rows)

    def _write(self, row: Row, missing: set[str]) -> None:
        key = key_of(row, self.key)
        self.rows[key] = row
        if missing:
            self.missing[key] = missing
        else:
            self.missing.pop(key, None)
