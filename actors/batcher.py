"""batcher: encodes items and cuts them into batches; suspends a table whose row is too large, so that the rest continues."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from actors.channels import Receiver, Sender
from actors.contract.event_encoder import EventEncoder, sent_size
from actors.contract.omitted_columns import without_largest_columns
from actors.messages import (
    Batch,
    Committed,
    EventKind,
    Gap,
    IdleMark,
    Item,
    PublishedChange,
    RowChange,
    RowRun,
    SchemaChange,
    TooLarge,
    Truncated,
)
from actors.positions import NO_LSN, Position
from actors.suspensions import Suspensions, suspension_gap
from actors.telemetry.log import get_logger
from actors.telemetry.telemetry import Telemetry
from actors.wire.jetstream import OutMessage

log = get_logger("batcher")

_LIST_HEAD_BYTES = 5
_HUGE_BYTES = 16 * 1024 * 1024
_SHOWN_MAX = 200


class Limits(NamedTuple):
    """Upper limits of a batch; a smaller batch goes out when no more items wait."""

    messages_max: int = 500
    bytes_max: int = 256 * 1024
    pack: int = 1
    """Consecutive events of one transaction and subject that one message may hold."""
    payload_max: int = 1024 * 1024
    """Bytes of one message, headers included: the smaller of the server's max_payload and the stream's max_msg_size."""


class LeftOut(NamedTuple):
    """An event that was too large: which row, and the columns that it does not carry."""

    table: str
    row: str
    """Its key, or without a key its other columns; cut off if long."""
    columns: str
    has_huge_value: bool


class Batcher:
    """Decides which events go into which message and batch. No I/O, no trio.

    Only the batcher knows whether an event is its transaction's last: it holds the newest event back until the next item
    shows this, and then sets `last` in the event's body. Events of suspended tables are dropped before they are held back, so
    that the last published event carries the mark.
    """

    def __init__(self, encoder: EventEncoder, limits: Limits, slot: str, suspensions: Suspensions) -> None:
        self.omitting = 0
        """Number of events published without their largest columns."""
        self.left_out: list[LeftOut] = []
        """What to log of them. The batcher adds, its task takes away."""
        self._encoder, self._limits, self._slot, self._suspensions = encoder, limits, slot, suspensions
        self._packs = limits.pack > 1
        self._event_max = limits.payload_max - (_LIST_HEAD_BYTES if self._packs else 0)
        self._held: RowChange | Truncated | Gap | None = None
        self._group: list[OutMessage] = []  # events for the next message
        self._group_kind: EventKind | None = None
        self._group_bytes = 0
        self._start_batch()

    def _start_batch(self) -> None:
        self._messages: list[OutMessage] = []
        self._bytes = 0
        self._counts: dict[EventKind, int] = {}
        self._position: Position | None = None  # of the last message, unless that is `_newest`
        self._newest: RowChange | Truncated | None = None
        self._oldest_us = self._newest_us = 0
        self._end_lsn = NO_LSN
        self._schemas: list[SchemaChange] = []
        self._published: list[PublishedChange] = []

    def feed(self, items: list[Item]) -> Iterator[Batch]:
        """Encode items and yield each full batch. Record new suspensions before sending a batch."""
        for item in items:
            match item:
                case RowRun() if len(item.rows) == 1:
                    self._hold(item.change(0))
                case RowRun():
                    yield from self._add_rows(item)
                case Committed():
                    self._release(last=True)
                    self._close_group()
                    self._end_lsn = item.end_lsn
                case RowChange() | Truncated():
                    self._hold(item)
                case IdleMark():
                    assert self._held is None, "an idle mark comes between transactions"
                    self._end_lsn = item.wal_end
                case SchemaChange():
                    self._add_schema(item)
                case PublishedChange():
                    assert self._held is None, "what is published changes between transactions"
                    self._append(self._encoder.published(item), item.position)
                    self._published.append(item)
            if self._is_full():
                yield self._cut()

    def flush(self) -> Batch | None:
        """Return what has been gathered, or None. An event held back stays back: its transaction's end is still to come."""
        self._close_group()
        return self._cut() if self._messages or self._end_lsn else None

    # -- one item

    def _add_rows(self, run: RowRun) -> Iterator[Batch]:
        """Encode all rows of a run but the last together, and hold the last back.

        With packing or suspended tables every row is fed alone; so is a row that is too large.
        """
        limits, index, last = self._limits, 0, len(run.rows) - 1
        while index <= last:
            if index == last or self._packs or self._suspensions.tables:
                self._hold(run.change(index))
                index += 1
            elif self._held is not None:
                self._release(last=False)  # this may suspend the run's own table
            else:
                stop = min(last, index + limits.messages_max - len(self._messages))
                room = limits.bytes_max - self._bytes
                made, size = self._encoder.rows(run, index, stop, room, limits.payload_max)
                if made:
                    index += len(made)
                    self._add_sent(run, index - 1, made, size)
                else:  # the row is too large
                    self._hold(run.change(index))
                    index += 1
            if self._is_full():
                yield self._cut()

    def _add_sent(self, run: RowRun, newest: int, made: list[OutMessage], size: int) -> None:
        if not self._oldest_us:
            self._oldest_us = run.txn.commit_us
        self._messages += made
        self._bytes += size
        self._counts[run.kind] = self._counts.get(run.kind, 0) + len(made)
        self._newest = run.change(newest)

    def _hold(self, change: RowChange | Truncated) -> None:
        """Hold back the newest event, unless its table is suspended."""
        if self._is_published(change):
            self._held = change

    def _add_schema(self, change: SchemaChange) -> None:
        if self._is_published(change):
            self._append(self._encoder.schema(change), change.position)
            self._schemas.append(change)

    def _add_gap(self, gap: Gap, *, last: bool) -> None:
        self._append(self._encoder.gap(gap, last=last), gap.position)

    # -- the event that is held back

    def _is_published(self, item: RowChange | Truncated | SchemaChange) -> bool:
        """Return whether an item goes into the stream; if so, release the event held back before it, which is not the last."""
        while not (self._suspensions.tables and self._is_left_out(item)):
            if self._held is None:
                return True
            self._release(last=False)  # this may suspend the item's own table
        return False

    def _is_left_out(self, item: RowChange | Truncated | SchemaChange) -> bool:
        if isinstance(item, SchemaChange):
            return self._suspensions.covers(item.table.token, item.position)
        token, position = item.kind.table.token, Position(item.txn.commit_lsn, item.seq)
        if not self._suspensions.covers(token, position):
            return False
        if self._suspensions.begins_at(token, position):
            while self._held is not None:
                self._release(last=False)
            self._held = suspension_gap(token, position, self._slot)
        return True

    def _release(self, *, last: bool) -> None:
        """Add the event held back. If a change is too large, hold back a gap event in its place."""
        held, self._held = self._held, None
        if held is None:
            return
        if isinstance(held, Gap):
            self._add_gap(held, last=last)
        elif not self._add_change(held, last=last):
            token, position = held.kind.table.token, Position(held.txn.commit_lsn, held.seq)
            too_large = f"the key of a row alone is larger than {self._limits.payload_max} bytes"
            self._suspensions.suspend(token, position, too_large)
            gap = suspension_gap(token, position, self._slot)
            if last:
                self._add_gap(gap, last=True)
            else:
                self._held = gap

    def _add_change(self, change: RowChange | Truncated, *, last: bool) -> bool:
        """Add one change's event; return False when the row's identity alone is too large for a message."""
        if type(change) is RowChange:
            message, size = self._whole(change, last=last)
            if message is None or size > self._event_max:
                smaller = without_largest_columns(change, self._encoder, last=last, size_max=self._event_max)
                if smaller is None:
                    return False
                self.omitting += 1
                self.left_out.append(_left_out(change, smaller.omitted))
                message, size = self._sized(change.kind, smaller.message)
        else:
            message, size = self._sized(change.kind, self._encoder.truncated(change, last=last))  # type: ignore[arg-type]
        if self._packs:
            self._add_to_group(change.kind, message, size)
        else:
            self._messages.append(message)
            self._bytes += size
        counts = self._counts
        counts[change.kind] = counts.get(change.kind, 0) + 1
        self._newest = change
        if not self._oldest_us:
            self._oldest_us = change.txn.commit_us
        return True

    def _whole(self, change: RowChange, *, last: bool) -> tuple[OutMessage | None, int]:
        if change.notes is not None and change.notes.too_large:
            return None, 0
        return self._sized(change.kind, self._encoder.row(change, last=last))

    def _sized(self, kind: EventKind, event: OutMessage) -> tuple[OutMessage, int]:
        """Return an event and its size: as sent, or uncompressed if it will be packed and compressed together with others."""
        return (event, sent_size(event)) if self._packs else self._encoder.single(kind, event)

    # -- the batch

    def _append(self, message: OutMessage, position: Position) -> None:
        """Add a message that is not a row event."""
        self._close_group()
        self._messages.append(message)
        self._bytes += sent_size(message)
        self._settle()
        self._position = position

    def _settle(self) -> None:
        """Take position and times from the newest change: once per batch, not per event."""
        newest, self._newest = self._newest, None
        if newest is not None:
            self._position = Position(newest.txn.commit_lsn, newest.seq)
            self._newest_us = newest.txn.commit_us

    def _is_full(self) -> bool:
        return len(self._messages) >= self._limits.messages_max or self._bytes >= self._limits.bytes_max

    def _cut(self) -> Batch:
        self._close_group()
        self._settle()
        batch = Batch(
            self._messages, self._bytes, self._counts, self._position, self._end_lsn, self._oldest_us, self._newest_us,
            tuple(self._schemas), tuple(self._published),
        )  # fmt: skip
        self._start_batch()
        return batch

    # -- several events in a message

    def _add_to_group(self, kind: EventKind, event: OutMessage, size: int) -> None:
        full = len(self._group) >= self._limits.pack
        if self._group and (full or kind is not self._group_kind or self._group_bytes + size > self._limits.payload_max):
            self._close_group()
        if not self._group:
            self._group_kind, self._group_bytes = kind, _LIST_HEAD_BYTES
        self._group.append(event)
        self._group_bytes += size

    def _close_group(self) -> None:
        if self._group:
            assert self._group_kind is not None, "a group has a kind"
            message, size = self._encoder.packed(self._group_kind, self._group)
            self._messages.append(message)
            self._bytes += size
            self._group = []


def _left_out(change: RowChange, omitted: tuple[str, ...]) -> LeftOut:
    table, known = change.kind.table, (change.old or {}) | change.data
    names = [c.name for c in table.relation.columns if c.name in known and c.name not in omitted]
    shown = [name for name in names if name in table.protected] or names
    row = ", ".join(f"{name}={str(known[name])[:_SHOWN_MAX]}" for name in shown)[:_SHOWN_MAX]
    values = [value for values in (change.data, change.old or {}) for value in values.values()]
    huge = any(isinstance(value, TooLarge) and value.size_bytes >= _HUGE_BYTES for value in values)
    return LeftOut(table.token, row, ", ".join(omitted), huge)


def _log_left_out(events: list[LeftOut]) -> None:
    """Name the rows: each one with a huge value; of the others one per table and minute, which the log sees to."""
    for event in events:
        row = {"reason": event.row} if event.has_huge_value else {"row": event.row}
        log.warning(
            "columns left out: the event is larger than a message may be", table=event.table, **row, omitted=event.columns
        )
    events.clear()


async def batch_items(
    items_in: Receiver[list[Item]],
    batches_out: Sender[Batch],
    batcher: Batcher,
    suspensions: Suspensions,
    telemetry: Telemetry,
) -> None:
    """Encode and cut until `items_in` ends. Send a batch when it is full, or when no more items wait.

    Owns both channel ends. Records a suspension before sending its gap event, so that no restart forgets it.
    """

    async def send(batch: Batch) -> None:
        _log_left_out(batcher.left_out)
        await suspensions.record()
        await batches_out.send(batch, batch.size_bytes)

    with items_in, batches_out:
        async for items in items_in:
            for batch in batcher.feed(items):
                await send(batch)
            _log_left_out(batcher.left_out)
            telemetry.events_omitting_columns = batcher.omitting
            if items_in.is_empty():
                rest = batcher.flush()
                if rest is not None:
                    await send(rest)
