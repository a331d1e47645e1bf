"""Leaves out columns when an event is too large for a message (contract, section 4: `omitted`)."""

from __future__ import annotations

from typing import NamedTuple

from actors.contract.event_encoder import EventEncoder, sent_size
from actors.messages import Notes, RowChange, TooLarge
from actors.wire.jetstream import OutMessage


class Smaller(NamedTuple):
    """An event without some columns."""

    message: OutMessage
    omitted: tuple[str, ...]
    """Largest first."""


def without_largest_columns(change: RowChange, encoder: EventEncoder, *, last: bool, size_max: int) -> Smaller | None:
    """Encode a change without its largest columns, as few as make it fit into `size_max` bytes before compression.

    A column that was not decoded (TooLarge) is left out in any case. Return None if the columns that identify the row are too
    large alone.
    """
    protected = change.kind.table.protected
    notes = change.notes or Notes()
    if not protected.isdisjoint(notes.too_large):
        return None
    sizes: dict[str, int] = {}
    for row in (change.data, change.old or {}):
        for name, value in row.items():
            if name not in protected:
                size = value.size_bytes if isinstance(value, TooLarge) else encoder.value_size_bytes(value)
                sizes[name] = sizes.get(name, 0) + size
    by_size = sorted(sizes, key=lambda name: -sizes[name])
    count = 1 + max((by_size.index(name) for name in notes.too_large), default=-1)
    while True:
        omitted = tuple(by_size[:count])
        message = encoder.row(_without(change, notes, omitted), last=last, omitted=omitted)
        excess = sent_size(message) - size_max
        if excess <= 0:
            return Smaller(message, omitted)
        if count == len(by_size):
            return None
        while excess > 0 and count < len(by_size):
            excess -= sizes[by_size[count]] + _name_bytes_max(by_size[count])
            count += 1


def _name_bytes_max(name: str) -> int:
    """Return the most that naming a column can add to an event: in `data`, `old`, `raw` and `old_raw`, escaped."""
    return 4 * (6 * len(name) + 5)


def _without(change: RowChange, notes: Notes, names: tuple[str, ...]) -> RowChange:
    gone = frozenset(names)
    return change._replace(
        data={name: value for name, value in change.data.items() if name not in gone},
        old=None if change.old is None else {name: value for name, value in change.old.items() if name not in gone},
        notes=Notes(
            notes.unchanged,
            tuple(name for name in notes.raw if name not in gone),
            tuple(name for name in notes.old_raw if name not in gone),
        ),
    )
