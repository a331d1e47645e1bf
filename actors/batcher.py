"""batcher: encodes items and cuts them into batches; keeps what is too large for the stream from stopping the rest."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import NamedTuple

from actors.channels import Receiver, Sender
from actors.contract.bridge_record import Suspended
from actors.contract.event_encoder import EventEncoder, compressed
from actors.contract.table_token import split_token
from actors.messages import Batch, Committed, EventKind, Gap, IdleMark, Item, RowChange, RowRun, SchemaChange, Truncated
from actors.positions import NO_LSN, Position
from actors.telemetry.telemetry import Problem, Telemetry
from actors.wire.jetstream import OutMessage

HEADER_BYTES = len(b"NATS/1.0\r\nNats-Expected-Last-Sequence: 18446744073709551615\r\nNats-Msg-Id: \r\n\r\n")
"""Of each message as sent, beside its id and body: they count against max_payload."""
_LIST_HEAD_BYTES = 5


def _size(message: OutMessage) -> int:
    """Bytes as sent that count against max_payload."""
    return len(message.body) + len(message.msg_id) + len(message.headers) + HEADER_BYTES


class Limits(NamedTuple):
    """Upper limits of a batch: whatever is there goes out at once when nothing more waits."""

    events_max: int = 500
    bytes_max: int = 256 * 1024
    pack: int = 1
    """Up to so many consecutive events of one transaction and subject in a message."""
    payload_max: int = 1024 * 1024
    """Of one message, headers included: the smaller of the server's max_payload and the stream's max_msg_size."""


class Suspension(NamedTuple):
    """From this change on a table's events are missing from the stream, until its next snapshot."""

    token: str
    position: Position
    reason: str


class Batcher:
    """Decides what goes into which message and batch. No I/O, no trio.

    The last event is held back until it is known whether its transaction goes on: `last` marks it. `suspended` holds the
    tables whose events are not published, by token, and the position from which on.
    """

    def __init__(self, encoder: EventEncoder, limits: Limits, slot: str, suspended: dict[str, Suspended]) -> None:
        self.suspended = dict(suspended)
        self.omitting = 0
        self._encoder, self._limits, self._slot = encoder, limits, slot
        self._event_max = limits.payload_max - HEADER_BYTES
        self._held: RowChange | Truncated | None = None
        self._group: list[OutMessage] = []
        self._group_kind: EventKind | None = None
        self._group_bytes = 0
        self._start_batch()

    def _start_batch(self) -> None:
        self._messages: list[OutMessage] = []
        self._bytes = 0
        self._counts: dict[EventKind, int] = {}
        self._position: Position | None = None  # of the last message, when `_newest` is not it
        self._newest: RowChange | Truncated | None = None
        self._oldest_us = self._newest_us = 0
        self._end_lsn = NO_LSN
        self._schemas: list[SchemaChange] = []

    def feed(self, items: list[Item]) -> Iterator[Batch | Suspension]:
        """Encode items; yields a batch whenever one is full, and a Suspension that must be recorded before going on."""
        for item in items:
            kind = type(item)
            if kind is RowRun and (self.suspended or self._limits.pack > 1):
                yield from self.feed([item.change(i) for i in range(len(item.rows))])  # type: ignore[union-attr]
                continue
            if self.suspended and self._left_out(item):
                continue
            held = self._held
            if held is not None:
                self._held = None
                yield from self._publish(held, last=kind is Committed)
            if kind is RowRun:
                yield from self._add_rows(item)  # type: ignore[arg-type]
            elif kind is RowChange or kind is Truncated:
                self._held = item  # type: ignore[assignment]
            elif kind is Committed:
                self._close_group()
                self._end_lsn = item.end_lsn  # type: ignore[union-attr]
            elif kind is IdleMark:
                self._end_lsn = item.wal_end  # type: ignore[union-attr]
            else:
                self._close_group()
                self._add_rare(item)

    def _publish(self, change: RowChange | Truncated, *, last: bool) -> Iterator[Batch | Suspension]:
        if not self._oldest_us:
            self._oldest_us = change.txn.commit_us
        suspension = self._emit(change, last=last)
        if suspension is not None:
            yield suspension
            self._add_gap(change, last=last)
        if self._is_full():
            yield self._cut()

    def _is_full(self) -> bool:
        return len(self._messages) >= self._limits.events_max or self._bytes >= self._limits.bytes_max

    def _add_rows(self, run: RowRun) -> Iterator[Batch | Suspension]:
        """All rows of a run but its last, which is held back. One that does not fit goes the long way, and those after it."""
        index, stop = 0, len(run.rows) - 1
        while index < stop:
            if not self._oldest_us:
                self._oldest_us = run.txn.commit_us
            most = min(stop, index + self._limits.events_max - len(self._messages))
            made, size = self._encoder.rows(run, index, most, self._limits.bytes_max - self._bytes, self._event_max)
            if made:
                compressor = self._encoder.compressor(run.kind)
                if compressor is not None:
                    made = [compressed(message, compressor) for message in made]
                    size = sum(_size(message) - HEADER_BYTES for message in made)
                self._messages += made
                self._bytes += size + HEADER_BYTES * len(made)
                self._counts[run.kind] = self._counts.get(run.kind, 0) + len(made)
                index += len(made)
                self._newest = run.change(index - 1)
                if self._is_full():
                    yield self._cut()
            else:
                yield from self.feed([run.change(i) for i in range(index, len(run.rows))])
                return
        self._held = run.change(stop)

    def flush(self) -> Batch | None:
        """What has been gathered, or None. An event held back stays: its transaction's end is on its way."""
        self._close_group()
        return self._cut() if self._messages or self._end_lsn else None

    def _cut(self) -> Batch:
        self._close_group()
        self._settle()
        batch = Batch(
            self._messages, self._bytes, self._counts, self._position, self._end_lsn, self._oldest_us, self._newest_us,
            tuple(self._schemas),
        )  # fmt: skip
        self._start_batch()
        return batch

    def _emit(self, change: RowChange | Truncated, *, last: bool) -> Suspension | None:
        """Add one change's event; a Suspension instead when no part of it that is of use fits."""
        if type(change) is RowChange:
            message = self._as_sent(change.kind, self._encoder.row(change, last=last))
            if _size(message) > self._limits.payload_max:
                smaller = self._without_largest(change, last=last)
                if smaller is None:
                    return self._suspend(change)
                message = smaller
        else:
            message = self._encoder.truncated(change, last=last)  # type: ignore[arg-type]
        if self._limits.pack > 1:
            self._add_to_group(change.kind, message, _size(message))
        else:
            self._messages.append(message)
            self._bytes += _size(message)
        counts = self._counts
        counts[change.kind] = counts.get(change.kind, 0) + 1
        self._newest = change
        return None

    def _as_sent(self, kind: EventKind, message: OutMessage) -> OutMessage:
        """Compressed, if this table's are; of several in a message all are compressed together."""
        compressor = self._encoder.compressor(kind) if self._limits.pack == 1 else None
        return message if compressor is None else compressed(message, compressor)

    def _append(self, message: OutMessage, position: Position) -> None:
        self._messages.append(message)
        self._bytes += _size(message)
        self._settle()
        self._position = position

    def _settle(self) -> None:
        """Take over position and times from the newest change: once a batch, not once an event."""
        newest, self._newest = self._newest, None
        if newest is not None:
            self._position = Position(newest.txn.commit_lsn, newest.seq)
            self._newest_us = newest.txn.commit_us

    def _add_rare(self, item: Item) -> None:
        if isinstance(item, SchemaChange):
            self._append(self._encoder.schema(item), item.position)
            self._schemas.append(item)
        elif isinstance(item, Gap):
            self._append(self._encoder.gap(item), item.position)

    # -- several events in a message

    def _add_to_group(self, kind: EventKind, message: OutMessage, size: int) -> None:
        full = len(self._group) >= self._limits.pack
        if self._group and (full or kind is not self._group_kind or self._group_bytes + size > self._limits.payload_max):
            self._close_group()
        if not self._group:
            self._group_kind, self._group_bytes = kind, _LIST_HEAD_BYTES
        self._group.append(message)
        self._group_bytes += size

    def _close_group(self) -> None:
        if self._group:
            body = self._encoder.pack([message.body for message in self._group])
            message = self._group[-1]._replace(body=body)
            compressor = self._encoder.compressor(self._group_kind) if self._group_kind is not None else None
            if compressor is not None:
                message = compressed(message, compressor)
            self._messages.append(message)
            self._bytes += _size(message)
            self._group = []

    # -- rows that are too large

    def _without_largest(self, change: RowChange, *, last: bool) -> OutMessage | None:
        """The event without its largest columns, so that it fits; None if what identifies the row is too large alone."""
        protected = change.kind.table.protected
        sizes: dict[str, int] = {}
        for row in (change.data, change.old or {}):
            for name, value in row.items():
                if name not in protected:
                    sizes[name] = sizes.get(name, 0) + self._encoder.value_size_bytes(value)
        omitted: list[str] = []
        data, old = dict(change.data), None if change.old is None else dict(change.old)
        excess = _size(self._encoder.row(change, last=last)) - self._limits.payload_max
        for name in sorted(sizes, key=lambda n: -sizes[n]):
            omitted.append(name)
            data.pop(name, None)
            if old is not None:
                old.pop(name, None)
            excess -= sizes[name]
            if excess <= 0:
                smaller = change._replace(data=data, old=old)
                message = self._encoder.row(smaller, last=last, omitted=tuple(omitted))
                excess = _size(message) - self._limits.payload_max
                if excess <= 0:
                    self.omitting += 1
                    return message
        return None

    # -- tables that cannot be served

    def resume(self, token: str) -> None:
        """A table's events go out again, from the next one that comes."""
        self.suspended.pop(token, None)

    def _suspend(self, change: RowChange) -> Suspension:
        token = change.kind.table.token
        position = Position(change.txn.commit_lsn, change.seq)
        self.suspended[token] = Suspended(position)
        return Suspension(token, position, f"the key of a row alone is larger than {self._limits.payload_max} bytes")

    def _left_out(self, item: Item) -> bool:
        """Whether `item` is of a suspended table, from the change on that did not fit.

        After a restart that very change may come again before its gap event is stored: the gap event takes its place.
        """
        if isinstance(item, RowChange | Truncated):
            token, position = item.kind.table.token, Position(item.txn.commit_lsn, item.seq)
        elif isinstance(item, SchemaChange):
            token, position = item.table.token, item.position
        else:
            return False
        for over in [t for t, s in self.suspended.items() if s.until and position.lsn >= s.until]:
            del self.suspended[over]
        suspended = self.suspended.get(token)
        if suspended is None or position < suspended.since:
            return False
        if position == suspended.since and isinstance(item, RowChange | Truncated):
            if self._held is not None:
                self._emit(self._held, last=False)
                self._held = None
            self._add_gap(item, last=False)
        return True

    def _add_gap(self, change: RowChange | Truncated, *, last: bool) -> None:
        """The event in place of a change that did not fit: its table is suspended from here on."""
        self._close_group()
        token, position = change.kind.table.token, Position(change.txn.commit_lsn, change.seq)
        reason = f"a row of {token} is larger than the stream takes, even without its largest columns: table suspended"
        gap = Gap(position, self._slot, reason, position.lsn, position.lsn, (token,), token)
        self._append(self._encoder.gap(gap, last=last), position)


RecordSuspension = Callable[[Suspension], Awaitable[None]]


async def batch_items(
    items_in: Receiver[list[Item]],
    batches_out: Sender[Batch],
    batcher: Batcher,
    record_suspension: RecordSuspension,
    telemetry: Telemetry,
) -> None:
    """Encode and cut until `items_in` ends. A batch goes out when it is full, or at once when nothing more waits.

    Owns both channel ends. A suspension is recorded before the stream's gap event is sent, so that no restart forgets it.
    """
    with items_in, batches_out:
        async for items in items_in:
            for made in batcher.feed(items):
                if isinstance(made, Suspension):
                    await record_suspension(made)
                    telemetry.suspended_tables[made.token] = suspension_problem(made.token, made.reason)
                else:
                    await batches_out.send(made, made.size_bytes)
            telemetry.events_omitting_columns = batcher.omitting
            if items_in.is_empty():
                batch = batcher.flush()
                if batch is not None:
                    await batches_out.send(batch, batch.size_bytes)


def suspension_problem(token: str, reason: str) -> Problem:
    """What a person should know of a suspended table."""
    schema, table = split_token(token)
    return Problem(
        "WB301",
        f"table {schema}.{table} is suspended: {reason}",
        means="its changes are left out of the stream; the other tables go on",
        fix=f"raise max_payload (and the stream's max_msg_size) or shorten the key of {token}, then resume the table: "
        "walbridge help WB301",
    )
