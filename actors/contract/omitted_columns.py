"""Leaves out columns when an event is too large for a message (contract, section 4: `omitted`)."""

from __future__ import annotations

from actors.contract.event_encoder import EventEncoder, sent_size
from actors.messages import RowChange
from actors.wire.jetstream import OutMessage


def without_largest_columns(change: RowChange, encoder: EventEncoder, *, last: bool, size_max: int) -> OutMessage | None:
    """Encode a change without its largest columns, as few as make it fit into `size_max` bytes before compression.

    Return None if the columns that identify the row are too large alone.
    """
    protected = change.kind.table.protected
    sizes: dict[str, int] = {}
    for row in (change.data, change.old or {}):
        for name, value in row.items():
            if name not in protected:
                sizes[name] = sizes.get(name, 0) + encoder.value_size_bytes(value)
    omitted: list[str] = []
    data, old = dict(change.data), None if change.old is None else dict(change.old)
    excess = sent_size(encoder.row(change, last=last)) - size_max
    for name in sorted(sizes, key=lambda n: -sizes[n]):
        omitted.append(name)
        data.pop(name, None)
        if old is not None:
            old.pop(name, None)
        excess -= sizes[name]
        if excess <= 0:
            smaller = encoder.row(change._replace(data=data, old=old), last=last, omitted=tuple(omitted))
            excess = sent_size(smaller) - size_max
            if excess <= 0:
                return smaller
    return None
