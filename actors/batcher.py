"""batcher: encodes items and cuts them into batches; suspends a table whose row is too large, so that the rest continues."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from actors.batches.draft import BatchDraft
from actors.batches.message_group import LIST_HEAD_BYTES, MessageGroup
from actors.channels import Receiver, Sender
from actors.contract.event_encoder import EventEncoder, Packable, sent_size
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
    TransactionRun,
    Truncated,
)
from actors.positions import NO_LSN, Lsn, Position
from actors.suspensions import Suspensions, suspension_gap
from actors.telemetry.log import get_logger
from actors.telemetry.telemetry import Telemetry
from actors.wire.jetstream import OutMessage

log = get_logger("batcher")

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
    at_ends: bool = False
    """Cut at the ends of transactions: only a transaction that is larger than a batch is divided, and none is sent before its
    end is known. The limits are then exact: only a message that is larger than `bytes_max` by itself exceeds them, alone."""


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
        self._event_max = limits.payload_max - (LIST_HEAD_BYTES if self._packs else 0)
        self._held: RowChange | Truncated | Gap | None = None
        self._group = MessageGroup()
        self._draft = BatchDraft()
        self._full: list[Batch] = []  # cut to make room, not handed on yet

    def feed(self, items: list[Item]) -> Iterator[Batch]:
        """Encode items and yield each full batch. Record new suspensions before sending a batch."""
        for item in items:
            match item:
                case RowRun() if len(item.rows) == 1:
                    self._hold(item.change(0))
                case RowRun():
                    yield from self._add_rows(item)
                case TransactionRun():
                    yield from self._add_transactions(item)
                case Committed():
                    self._commit(item.end_lsn)
                case RowChange() | Truncated():
                    self._hold(item)
                case IdleMark():
                    assert self._held is None, "an idle mark comes between transactions"
                    self._end_transaction(item.wal_end)
                case SchemaChange():
                    self._add_schema(item)
                case PublishedChange():
                    assert self._held is None, "what is published changes between transactions"
                    self._append(self._encoder.published(item), item.position)
                    self._draft.published.append(item)
                    self._end_transaction()
            yield from self._cut_full()

    def flush(self) -> Batch | None:
        """Return what has been gathered, or None. An event held back stays back: its transaction's end is still to come."""
        if self._limits.at_ends:
            return self._draft.cut_complete()
        self._close_group()
        return None if self._draft.is_empty else self._draft.cut()

    # -- one item

    def _add_rows(self, run: RowRun) -> Iterator[Batch]:
        """Encode all rows of a run but the last together, and hold the last back.

        With suspended tables every row is fed alone; so is a row that is too large.
        """
        index, last = 0, len(run.rows) - 1
        add = self._pack_some if self._packs else self._add_some
        while index <= last:
            if index == last or self._suspensions.tables:
                self._hold(run.change(index))
                index += 1
            elif self._held is not None:
                self._release(last=False)  # this may suspend the run's own table
            else:
                index = add(run, index, last)
            yield from self._cut_full()

    def _add_transactions(self, run: TransactionRun) -> Iterator[Batch]:
        """Encode transactions of one row together.

        They are fed alone where nothing is gained or each end matters: with packing, cuts at ends, suspended tables, and if a
        row is too large.
        """
        assert self._held is None, "transactions begin after the end of the one before"
        limits, draft, index, count = self._limits, self._draft, 0, len(run.rows)
        alone = self._packs or limits.at_ends
        while index < count:
            made: list[OutMessage] = []
            if not alone and not self._suspensions.tables:
                stop, room = min(count, index + limits.messages_max - len(draft.messages)), limits.bytes_max - draft.size_bytes
                made, size = self._encoder.transactions(run, index, stop, room, limits.payload_max)
            if made:
                draft.add_messages(made, size)
                draft.count_transactions(run, index, len(made))
                index += len(made)
                self._end_transaction(run.end_lsns[index - 1])
            else:
                self._hold(run.change(index))
                self._commit(run.end_lsns[index])
                index += 1
            yield from self._cut_full()

    def _commit(self, end_lsn: Lsn) -> None:
        """End a transaction: the event held back is its last."""
        self._release(last=True)
        self._close_group()
        self._end_transaction(end_lsn)

    def _add_some(self, run: RowRun, index: int, last: int) -> int:
        """Add messages of rows from `index` on, as many as the batch has room for; return where to continue."""
        limits, draft = self._limits, self._draft
        stop = min(last, index + limits.messages_max - len(draft.messages))
        room = limits.bytes_max - draft.size_bytes
        made, size = self._encoder.rows(run, index, stop, room, limits.payload_max)
        fits = bool(made)
        while limits.at_ends and size > room and made and (draft.messages or len(made) > 1):
            size -= sent_size(made.pop())
        if made:
            index += len(made)
            draft.count_rows(run, index - 1, len(made))
            draft.add_messages(made, size)
        elif fits or stop == index:
            self._cut_once()
        else:  # the row is too large
            self._hold(run.change(index))
            index += 1
        return index

    def _pack_some(self, run: RowRun, index: int, last: int) -> int:
        """Add rows from `index` on to the group, as many as its message has room for; return where to continue."""
        limits, draft, group = self._limits, self._draft, self._group
        if group and group.kind is not run.kind:
            self._close_group()
            return index
        room = limits.payload_max - group.size_bytes
        if limits.at_ends:
            room = min(room, limits.bytes_max - draft.size_bytes - group.size_bytes)
        stop = min(last, index + limits.pack - len(group))
        events = self._encoder.packable(run, index, stop, room, self._event_max)
        if events.bodies and (group or len(draft.messages) < limits.messages_max):
            index += len(events.bodies)
            group.add(run.kind, events)
            draft.count_rows(run, index - 1, len(events.bodies))
            if index < stop or len(group) == limits.pack:
                self._close_group()
        elif group:
            self._close_group()
        else:  # the batch has to be cut first, or the row is too large
            self._hold(run.change(index))
            index += 1
        return index

    def _hold(self, change: RowChange | Truncated) -> None:
        """Hold back the newest event, unless its table is suspended."""
        if self._is_published(change):
            self._held = change

    def _add_schema(self, change: SchemaChange) -> None:
        if self._is_published(change):
            self._append(self._encoder.schema(change), change.position)
            self._draft.schemas.append(change)
            if change.last:
                self._end_transaction()

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
            self._make_room_in_group(change.kind, size)
            self._group.add(change.kind, Packable([message.body], message.msg_id, size))
        else:
            self._make_room(size)
            self._draft.add_message(message, size)
        self._draft.count(change)
        if len(self._group) == self._limits.pack:
            self._close_group()
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
        size = sent_size(message)
        self._make_room(size)
        self._draft.add_other(message, size, position)

    def _end_transaction(self, end_lsn: Lsn = NO_LSN) -> None:
        """Note that no transaction is open, and that everything below `end_lsn` has been handed on."""
        self._draft.end_lsn = end_lsn or self._draft.end_lsn
        if self._limits.at_ends:
            self._draft.end_transaction()

    def _make_room(self, size: int) -> None:
        """Cut before a message of this size if the batch would be too large with it. For batches that are cut at ends."""
        limits, draft = self._limits, self._draft
        while (
            limits.at_ends
            and draft.messages
            and (len(draft.messages) >= limits.messages_max or draft.size_bytes + size > limits.bytes_max)
        ):
            self._cut_once()

    def _cut_once(self) -> None:
        """Cut after the last complete transaction; if there is none, the open transaction fills a batch, and more."""
        complete = self._draft.cut_complete()
        self._full.append(complete if complete is not None else self._draft.cut(is_whole=False))

    def _cut_full(self) -> Iterator[Batch]:
        """Yield what was cut to make room, and the batch itself if it has reached a limit."""
        if self._full:
            yield from self._full
            self._full = []
        if self._is_full:
            if not self._limits.at_ends:
                self._close_group()
                yield self._draft.cut()
            elif self._draft.is_complete:
                yield self._draft.cut()

    @property
    def _is_full(self) -> bool:
        limits, draft = self._limits, self._draft
        return len(draft.messages) >= limits.messages_max or draft.size_bytes >= limits.bytes_max

    # -- several events in a message

    def _make_room_in_group(self, kind: EventKind, size: int) -> None:
        """Close the group before an event of this size if the event does not fit, and cut the batch if it is full then."""
        limits, group = self._limits, self._group
        grown = group.size_bytes + size
        is_over = grown > limits.payload_max or (limits.at_ends and self._draft.size_bytes + grown > limits.bytes_max)
        if group and (is_over or kind is not group.kind):
            self._close_group()
            if self._is_full and not limits.at_ends:
                self._full.append(self._draft.cut())
        if not group:
            self._make_room(LIST_HEAD_BYTES + size)

    def _close_group(self) -> None:
        kind = self._group.kind
        if kind is not None:
            message, size = self._encoder.packed(kind, self._group.take())
            self._draft.add_message(message, size)


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
