"""decoder: turns pgoutput into row changes; tracks relations and transactions; inserts schema changes before their rows."""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Awaitable, Callable
from itertools import groupby
from operator import attrgetter
from typing import Final, NamedTuple

from actors.channels import Receiver, Sender
from actors.contract.table_schema import Description, describe_table
from actors.errors import HistoryDiverged, MalformedMessage
from actors.messages import (
    LARGE_MESSAGE_BYTES,
    Block,
    Committed,
    EventKind,
    IdleMark,
    Item,
    LastStored,
    News,
    Notes,
    PublishedChange,
    RawMessage,
    RowChange,
    RowRun,
    SchemaChange,
    Table,
    TooLarge,
    Transaction,
    TransactionRun,
    Truncated,
)
from actors.positions import GAP_RANK, NO_LSN, ROW_RANK, SCHEMA_RANK, Lsn, Position, format_lsn
from actors.snapshots.transaction_log import TransactionLog
from actors.telemetry.telemetry import Telemetry
from actors.values.formats import Arrays, Encoding
from actors.values.large_values import sparing_row_decoder
from actors.values.row_compiler import CHANGE_AT, RUN_HEAD_END, RowDecoder, RunDecoder, compile_row_decoders
from actors.values.text_values import converter_for
from actors.wire import pgoutput
from actors.wire.pgoutput import Relation

_KEEPALIVE, _XLOGDATA = ord("k"), ord("w")
_BEGIN, _COMMIT, _INSERT, _UPDATE, _DELETE, _TRUNCATE, _RELATION = b"BCIUDTR"
_NEW, _OLD, _KEY = b"NOK"
_CHANGES = {_INSERT: (_NEW,), _UPDATE: (_NEW, _OLD, _KEY), _DELETE: (_OLD, _KEY)}
"""Markers that may stand before the first tuple of a change."""
_OPERATIONS = {_INSERT: "insert", _UPDATE: "update", _DELETE: "delete", _TRUNCATE: "truncate"}
_ONE_TUPLE = frozenset({b"IN", b"UN", b"DO", b"DK"})
"""Operations and markers of changes that consist of one tuple."""
_HEADER = CHANGE_AT  # XLogData: tag, start, end, send time
_POSTGRES_EPOCH_US = 946_684_800_000_000
_EVERYTHING: Final = 1 << 62

_u4 = struct.Struct(">I").unpack_from
_lsn = struct.Struct(">Q").unpack_from
_begin = struct.Struct(">QqI").unpack_from  # commit LSN, commit time, xid
_commit = struct.Struct(">QQq").unpack_from  # commit LSN, end LSN, commit time


class _Shape(NamedTuple):
    """A relation as the hot loop needs it."""

    table: Table
    decode: RowDecoder
    decode_run: RunDecoder
    decode_large: RowDecoder
    """For messages above LARGE_MESSAGE_BYTES: leaves out values that no message can carry."""
    kinds: dict[int, EventKind]
    """By message tag."""


_Append = Callable[[Item], None]
_Decode = Callable[[list[RawMessage], int, int, _Shape, Transaction, int, bytes, _Append], tuple[int, bytes]]
"""(block, start, stop, shape, transaction, seq, noted, append) -> (index after the changes that it has appended, noted).

`noted` is the head of the last change if that is no run of rows alone: one like it may be none, either.
"""


class Decoder:
    """Turns raw messages of one replication stream into items, in order. No I/O, no trio.

    Changes up to `skip`, the position of the stream's last message, are stored already: they are counted, since `seq` counts
    what PostgreSQL sends, but neither decoded nor handed on. `known_schemas` (table token -> schema_id) are the shapes that
    the stream's readers know at that position; a SchemaChange precedes a row in any other shape. Every transaction is added
    to `log`. A value that cannot fit into `payload_max` bytes is TooLarge, if its message is large and the last of its block.
    Nothing is handed on before the `expected` transaction has come, so that nothing of another history is
    confirmed.
    """

    def __init__(
        self,
        skip: Position,
        known_schemas: dict[str, int],
        *,
        encoding: Encoding,
        arrays: Arrays,
        payload_max: int = 1024 * 1024,
        log: TransactionLog | None = None,
        expected: LastStored | None = None,
    ) -> None:
        self.told: list[tuple[Lsn, float]] = []
        """Transactions with changes to hand on, by commit LSN and time in unix seconds, for the caller to take out."""
        self.wanted: Relation | None = None
        """A relation that `feed` has met: describe it and call `define` before the next `feed`."""
        self._skip, self._expected = skip, expected
        self._log = TransactionLog() if log is None else log
        self._log.restart()
        self._known = dict(known_schemas)
        self._encoding, self._arrays, self._payload_max = encoding, arrays, payload_max
        self._shapes: dict[int, _Shape] = {}
        self._unannounced: dict[int, SchemaChange] = {}
        self._txn: Transaction | None = None
        self._seq = 0
        self._first_seq = 0  # the open transaction's changes below this seq are stored already
        self._first_schema_seq = 0
        self._is_told = True  # the open transaction, or it has brought nothing but what is stored already
        self.transactions = 0
        self.largest_transaction = 0
        self.last_commit_us = 0
        self._handed_on = NO_LSN  # everything below, unless a transaction is open
        self._last: Transaction | None = None
        self._next_seq = skip.seq + 1  # after the last transaction's changes, and what was told there

    def define(self, relation: Relation, description: Description) -> SchemaChange:
        """Register a relation's shape, so that its rows can be decoded; return its schema, without a position yet."""
        change = describe_table(relation, description)
        table = change.table
        columns = [
            (c.name, converter_for(c.type_oid, description.types, self._encoding, self._arrays)) for c in relation.columns
        ]
        kinds = {tag: EventKind(table, operation) for tag, operation in _OPERATIONS.items()}
        decode, decode_run = compile_row_decoders(columns)
        sparing = sparing_row_decoder(columns, decode, self._payload_max)
        self._shapes[relation.oid] = _Shape(table, decode, decode_run, sparing, kinds)
        if self._known.get(table.token) == table.schema_id:
            self._unannounced.pop(relation.oid, None)
        else:
            self._unannounced[relation.oid] = change
        self.wanted = None
        return change

    def passed(self, wal_end: Lsn) -> None:
        """Note that every message up to `wal_end` has been fed."""
        self._log.reached.value = wal_end

    def tell(self, news: deque[News], items: list[Item]) -> None:
        """Move news into `items` once the stream has passed what they are about, and no transaction is open.

        They stand after the changes of the last transaction, numbered like further changes of it.
        """
        while news and self._txn is None and self._expected is None and news[0].lsn <= self._handed_on:
            if self._last is not None:
                lsn = self._last.commit_lsn
            elif self._skip.rank == ROW_RANK or self._skip.seq > 0:
                lsn = self._skip.lsn
            elif self._handed_on - 1 > self._skip.lsn:  # nothing is stored yet, or a gap that is before everything at its LSN
                lsn = Lsn(self._handed_on - 1)
                self._skip, self._next_seq = Position(lsn, 1, GAP_RANK), 1
            else:
                return
            self._tell(news.popleft(), lsn, items)

    def _tell(self, news: News, lsn: Lsn, items: list[Item]) -> None:
        if news.change is not None:
            position = Position(lsn, self._next_seq, GAP_RANK)
            self._next_seq += 1
            items.append(PublishedChange(position, news.token, news.change, news.version, news.reason, self._last))
        schema = news.schema
        if schema is not None and self._known.get(news.token) != schema.table.schema_id:
            items.append(schema._replace(position=Position(lsn, self._next_seq, SCHEMA_RANK), last=True))
            self._next_seq += 1
            self._known[news.token] = schema.table.schema_id
            self._unannounced.pop(schema.table.relation.oid, None)

    def feed(self, block: list[RawMessage], start: int, items: list[Item]) -> int:
        """Decode `block` from index `start` on into `items`; return the index to continue from.

        Stops early, with `wanted` set, after a Relation message; also before a large message. Raises MalformedMessage, and
        HistoryDiverged if the expected transaction does not come.
        """
        append, shapes, unannounced = items.append, self._shapes, self._unannounced
        txn, seq, first_seq = self._txn, self._seq, self._first_seq
        index, noted, (stop, decode) = start, b"", _part(block, start)
        try:
            while index < stop:
                message = block[index]
                tag = message[_HEADER] if message[0] == _XLOGDATA else message[0]
                if tag in _CHANGES:
                    if txn is None:
                        raise MalformedMessage("pgoutput: a change outside of a transaction")
                    if unannounced:
                        self._announce(_u4(message, 26)[0], seq, append)
                    if seq >= first_seq:
                        shape = shapes[_u4(message, 26)[0]]
                        after, noted = decode(block, index, stop, shape, txn, seq, noted, append)
                        seq += after - index
                        index = after
                        continue
                    seq += 1
                elif tag == _BEGIN:
                    if (after := self._alike(block, index, stop, append)) > index:
                        index = after
                        continue
                    txn = self._begin(message)
                    seq, first_seq = 0, self._first_seq
                elif tag == _COMMIT:
                    committed = self._commit(message, txn, seq)
                    if self._expected is None:
                        append(committed)
                    self._txn = txn = None
                elif tag == _KEEPALIVE:
                    if txn is None:
                        self._pass_idle(Lsn(_lsn(message, 1)[0]), append)
                else:
                    seq = self._other(message, txn, seq, first_seq, append)
                    if self.wanted is not None:
                        stop = index
                index += 1
        except (KeyError, IndexError, struct.error) as exc:
            raise MalformedMessage(f"pgoutput: cannot decode {bytes(block[index][25:64])!r}: {exc!r}") from exc
        self._seq = seq
        if not self._is_told and txn is not None:
            self._tell_of(txn, seq)
        return index

    def _alike(self, block: list[RawMessage], start: int, stop: int, append: Callable[[Item], None]) -> int:
        """Decode transactions that look alike, if there are several from `start` on; return the index after them."""
        if start + 5 >= stop or block[start + 2][25:26] != b"C" or self._expected is not None or self._unannounced:
            return start
        head = block[start + 1][25:RUN_HEAD_END]
        if len(head) < RUN_HEAD_END - CHANGE_AT:  # a keepalive within the transaction
            return start
        shape = self._shapes.get(_u4(head, 1)[0])
        if shape is None or head[:6:5] not in _ONE_TUPLE or block[start + 4][25:RUN_HEAD_END] != head:
            return start
        txns: list[Transaction] = []
        rows: list[dict[str, object]] = []
        end_lsns: list[Lsn] = []
        skipped, decode_run, told, add = self._skip.lsn, shape.decode_run, self.told.append, self._log.add
        for at in range(start, stop - 2, 3):
            begin, commit = block[at], block[at + 2]
            if begin[25:26] != b"B" or commit[25:26] != b"C":
                break
            commit_lsn, commit_time, xid = _begin(begin, 26)
            again, end_lsn, _ = _commit(commit, 27)
            if again != commit_lsn or commit_lsn <= skipped or decode_run(block, at + 1, at + 2, head, rows) == at + 1:
                break
            txn = Transaction(commit_lsn, xid, commit_time + _POSTGRES_EPOCH_US)
            txns.append(txn)
            end_lsns.append(end_lsn)
            add(commit_lsn, xid)
            told((commit_lsn, txn.commit_us / 1e6))
        if txns:
            self._last, self._next_seq, self._handed_on, self._is_told = txns[-1], 1, end_lsns[-1], True
            self.transactions += len(txns)
            self.largest_transaction = max(self.largest_transaction, 1)
            self.last_commit_us = txns[-1].commit_us
            append(TransactionRun(shape.kinds[head[0]], txns, rows, end_lsns))
        return start + 3 * len(txns)

    def _begin(self, message: RawMessage) -> Transaction:
        commit_lsn, commit_time, xid = _begin(message, 26)
        self._txn = txn = Transaction(Lsn(commit_lsn), xid, commit_time + _POSTGRES_EPOCH_US)
        self._log.add(txn.commit_lsn, xid)
        if self._expected is not None and commit_lsn >= self._expected.commit_lsn:
            self._check_history(txn)
        skip = self._skip
        self._is_told = commit_lsn != skip.lsn
        if commit_lsn > skip.lsn:
            self._first_seq = self._first_schema_seq = 0
            self.told.append((txn.commit_lsn, txn.commit_us / 1e6))
        elif commit_lsn < skip.lsn:
            self._first_seq = self._first_schema_seq = _EVERYTHING
        else:
            self._first_seq = skip.seq + (skip.rank >= ROW_RANK)
            self._first_schema_seq = skip.seq + (skip.rank >= SCHEMA_RANK)
        return txn

    def _tell_of(self, txn: Transaction, seq: int) -> None:
        """Tell of a transaction of which a part is stored, once there is more of it than that."""
        if seq > self._first_seq:
            self._is_told = True
            self.told.append((txn.commit_lsn, txn.commit_us / 1e6))

    def _pass_idle(self, wal_end: Lsn, append: Callable[[Item], None]) -> None:
        self._handed_on = wal_end
        if self._expected is None:
            append(IdleMark(wal_end))
        elif wal_end > self._expected.commit_lsn:
            self._check_history(None)

    def _check_history(self, found: Transaction | None) -> None:
        """Compare what came in the place of the expected transaction. Raises HistoryDiverged."""
        expected, self._expected = self._expected, None
        if expected is not None and (found is None or expected != (found.commit_lsn, found.commit_us)):
            raise HistoryDiverged(
                "WB151", f"PostgreSQL does not send the last stored transaction, at {format_lsn(expected.commit_lsn)}, again",
                said="nothing in its place" if found is None else
                f"another one, {found.xid} at {format_lsn(found.commit_lsn)}",
                means="the server's history is not the stream's; nothing is confirmed to it",
            )  # fmt: skip

    def _commit(self, message: RawMessage, txn: Transaction | None, seq: int) -> Committed:
        commit_lsn, end_lsn, commit_time = _commit(message, 27)
        if txn is None or txn.commit_lsn != commit_lsn:
            raise MalformedMessage(f"pgoutput: Commit at {format_lsn(commit_lsn)} of no open transaction")
        if not self._is_told:
            self._tell_of(txn, seq)
            self._is_told = True
        # the stream may already hold news after a transaction that is sent again
        told = self._skip.seq + 1 if commit_lsn == self._skip.lsn else 0
        self._last, self._next_seq, self._handed_on = txn, max(seq, told), Lsn(end_lsn)
        self.transactions += 1
        self.largest_transaction = max(self.largest_transaction, seq)
        self.last_commit_us = commit_time + _POSTGRES_EPOCH_US
        return Committed(Lsn(end_lsn), self.last_commit_us)

    def _announce(self, oid: int, seq: int, append: Callable[[Item], None]) -> None:
        """Append a new shape before its first row, unless the stream has it already; remember it in both cases."""
        change = self._unannounced.pop(oid, None)
        if change is None:
            return
        self._known[change.table.token] = change.table.schema_id
        txn = self._txn
        if seq >= self._first_schema_seq and txn is not None:
            append(change._replace(position=Position(txn.commit_lsn, seq, SCHEMA_RANK)))

    def _other(
        self, message: RawMessage, txn: Transaction | None, seq: int, first_seq: int, append: Callable[[Item], None]
    ) -> int:
        """Decode a rare message with the plain decoder; return the next seq."""
        decoded = pgoutput.decode(bytes(message), _HEADER)
        if isinstance(decoded, Relation):
            self.wanted = decoded
        elif isinstance(decoded, pgoutput.Truncate):
            for oid in decoded.relation_oids:
                self._announce(oid, seq, append)
                if seq >= first_seq and txn is not None:
                    shape = self._shapes[oid]
                    append(Truncated(shape.kinds[_TRUNCATE], txn, seq, decoded.cascade, decoded.restart_identity))
                seq += 1
        # events show nothing of Origin and Type; Message is not requested
        return seq


def _part(block: list[RawMessage], start: int) -> tuple[int, _Decode]:
    """Return the end of the part of a block that is decoded alike, and how: a large message ends its block."""
    if len(block[-1]) <= LARGE_MESSAGE_BYTES:
        return len(block), _decode_run
    return (len(block) - 1, _decode_run) if start < len(block) - 1 else (len(block), _decode_large)


def _decode_run(
    block: list[RawMessage], start: int, stop: int, shape: _Shape, txn: Transaction, seq: int, noted: bytes, append: _Append
) -> tuple[int, bytes]:
    message = block[start]
    head = bytes(message[CHANGE_AT:RUN_HEAD_END])
    if head != noted and head[:6:5] in _ONE_TUPLE:
        rows: list[dict[str, object]] = []
        after = shape.decode_run(block, start, stop, head, rows)
        if rows:
            append(RowRun(shape.kinds[head[0]], txn, seq, rows))
            return after, b""
    changes, index, plain = list[RowChange](), start, None
    while index < stop and plain is None and message[CHANGE_AT:RUN_HEAD_END] == head:
        change = _decode_change(message, head[0], shape, txn, seq + index - start)
        if isinstance(change, RowRun):
            plain = change
        else:
            changes.append(change)
        index += 1
        if index < stop:
            message = block[index]
    for _, group in groupby(changes, _notes_of):
        append(_run_of(list(group)))
    if plain is None:
        return index, head
    append(plain)
    return index, b""


_notes_of = attrgetter("notes")


def _run_of(changes: list[RowChange]) -> RowRun | RowChange:
    """Return changes with the same head and notes as a run."""
    first = changes[0]
    if len(changes) == 1:
        return first
    olds = [change.old for change in changes if change.old is not None]  # the same head: all have an old row, or none has
    return RowRun(first.kind, first.txn, first.seq, [change.data for change in changes], olds or None, first.notes)


def _decode_large(
    block: list[RawMessage], index: int, _stop: int, shape: _Shape, txn: Transaction, seq: int, _noted: bytes, append: _Append
) -> tuple[int, bytes]:
    message = block[index]
    change = _decode_change(message, message[_HEADER], shape._replace(decode=shape.decode_large), txn, seq)
    if isinstance(change, RowRun):
        change = change.change(0)
    rows = (change.data, change.old or {})
    too_large = tuple(dict.fromkeys(name for row in rows for name, value in row.items() if type(value) is TooLarge))
    if too_large:
        change = change._replace(notes=(change.notes or Notes())._replace(too_large=too_large))
    append(change)
    return index + 1, b""


def _decode_change(message: RawMessage, tag: int, shape: _Shape, txn: Transaction, seq: int) -> RowRun | RowChange:
    marker = message[30]
    if tag == _UPDATE and marker != _NEW:
        return _decode_update(message, shape, txn, seq)
    row, end, notes = shape.decode(message, 31)
    if end != len(message) or marker not in _CHANGES[tag]:
        raise MalformedMessage(f"pgoutput: a change does not end where it should: {bytes(message[25:64])!r}")
    kind = shape.kinds[tag]
    return RowRun(kind, txn, seq, [row]) if notes is None else RowChange(kind, txn, seq, row, None, notes)


def _decode_update(message: RawMessage, shape: _Shape, txn: Transaction, seq: int) -> RowChange:
    offset = 31
    old: dict[str, object] | None = None
    old_notes: Notes | None = None
    marker = message[30]
    if marker != _NEW:
        old, offset, old_notes = shape.decode(message, offset)
        if message[offset] != _NEW:
            raise MalformedMessage(f"pgoutput: an Update without a new row: {bytes(message[25:64])!r}")
        offset += 1
    data, end, notes = shape.decode(message, offset)
    if end != len(message) or marker not in (_NEW, _OLD, _KEY):
        raise MalformedMessage(f"pgoutput: an Update does not end where it should: {bytes(message[25:64])!r}")
    if old is not None:
        if marker == _KEY:
            old = {name: old[name] for name in shape.table.key if name in old}
        if notes is not None and notes.unchanged:
            data, notes = _filled(shape, data, notes, old, old_notes)
        if old_notes is not None and old_notes.raw:
            notes = (notes or Notes())._replace(old_raw=tuple(n for n in old_notes.raw if n in old))
    return RowChange(shape.kinds[_UPDATE], txn, seq, data, old, notes)


def _filled(
    shape: _Shape, data: dict[str, object], notes: Notes, old: dict[str, object], old_notes: Notes | None
) -> tuple[dict[str, object], Notes | None]:
    """Fill in unchanged TOASTed values from the old row: all of them under REPLICA IDENTITY FULL, else the key's."""
    complete = old | data
    found = {c.name: complete[c.name] for c in shape.table.relation.columns if c.name in complete}
    raw = notes.raw + tuple(n for n in (old_notes.raw if old_notes else ()) if n in notes.unchanged)
    unchanged = tuple(n for n in notes.unchanged if n not in old)
    return found, Notes(unchanged, raw) if unchanged or raw else None


Describe = Callable[[Relation], Awaitable[Description]]
"""Asks the catalog for what a Relation message leaves out."""


async def decode_blocks(
    blocks: Receiver[Block],
    items_out: Sender[list[Item]],
    decoder: Decoder,
    describe: Describe,
    defined: Callable[[SchemaChange], None],
    news: deque[News],
    telemetry: Telemetry,
) -> None:
    """Decode each block and hand its items on.

    `defined` is called for every relation that PostgreSQL announces, new shape or not: the catalog entry may have changed.
    `news` are taken out and handed on in their place.
    Owns both channel ends; ends when `blocks` ends. Raises MalformedMessage and what `describe` raises.
    """
    decoded_before = telemetry.transactions  # in the runs before this one
    with blocks, items_out:
        async for block in blocks:
            began = time.perf_counter()
            items: list[Item] = []
            index = 0
            while index < len(block.messages):
                index = decoder.feed(block.messages, index, items)
                telemetry.backlog.told(decoder.told, time.time())
                decoder.told.clear()
                if decoder.wanted is not None:
                    defined(decoder.define(decoder.wanted, await describe(decoder.wanted)))
            if news:
                decoder.tell(news, items)
            telemetry.transactions = decoded_before + decoder.transactions
            telemetry.largest_transaction_events = max(telemetry.largest_transaction_events, decoder.largest_transaction)
            if decoder.last_commit_us:
                telemetry.last_commit_at = decoder.last_commit_us / 1e6
            decoder.passed(block.wal_end)
            telemetry.decoded_lsn = block.wal_end
            telemetry.last_processing_time_us = round((time.perf_counter() - began) * 1e6 / len(block.messages))
            size_bytes = block.size_bytes
            del block  # so that a large message is gone before the next block arrives
            await items_out.send(items, size_bytes)
