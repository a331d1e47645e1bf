"""Encodes row changes as messages: one map per event (contract, section 4), in MessagePack or JSON, compressed or not.

Most bytes of an event repeat: the fields that a table's operation shares are encoded once, those that a transaction shares once
per transaction, and only seq, id and row per event. That halves the cost of an event.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count, repeat
from typing import Any, NamedTuple

import msgpack
import msgspec
import orjson

from actors.contract.compression import Compressor
from actors.contract.message_ids import gap_id, message_id
from actors.contract.subjects import BRIDGE_TOKEN, CDC_GAP, CDC_PUBLISHED, cdc_event, cdc_schema
from actors.messages import (
    EventKind,
    Gap,
    Notes,
    PublishedChange,
    RowChange,
    RowRun,
    SchemaChange,
    Transaction,
    TransactionRun,
    Truncated,
)
from actors.values.row_blocks import array_head, map_head
from actors.wire.jetstream import OutMessage

NO_NOTES = Notes()
_ONLY_LAST = {"last": True}
HEADER_BYTES = len(b"NATS/1.0\r\nNats-Expected-Last-Sequence: 18446744073709551615\r\nWalbridge-Msg-Id: \r\n\r\n")
"""Bytes of each message as sent besides its id, body and own header lines, at most; they count against max_payload."""
_out_message = partial(tuple.__new__, OutMessage)  # what OutMessage(...) does, in half of the time


class _KindBytes(NamedTuple):
    """The encoded parts that all events of one kind share."""

    subject: bytes
    id_suffix: bytes
    head: bytes
    """The shared fields."""


class Packable(NamedTuple):
    """Consecutive events of one kind and transaction, for one message."""

    bodies: list[bytes]
    last_id: bytes
    """The id of the last one, which will be the message's."""
    size_bytes: int
    """Of all of them, as if each were sent alone."""


class EventEncoder(ABC):
    """Encodes events for one stream. Its only state is the bytes that recent events share; for one task.

    `publish_prefix` precedes the subject on the wire, not in the body: the stream removes it (contract, section 2).
    `compressors`, by table token, compress events as they are sent: `rows`, `transactions`, `single` and `packed` return
    messages as sent and their size; `row` and `truncated` return one event that is not compressed yet.
    """

    def __init__(self, publish_prefix: bytes = b"", compressors: Mapping[str, Compressor] | None = None) -> None:
        self._prefix = publish_prefix
        self._compressors = compressors or {}
        self._kinds: dict[EventKind, _KindBytes] = {}
        self._txn: Transaction | None = None
        self._heads: dict[EventKind, bytes] = {}
        self._id_head = b""
        self._fields_of_txn = b""

    def rows(self, run: RowRun, first: int, stop: int, bytes_max: int, size_max: int) -> tuple[list[OutMessage], int]:
        """Encode `run.rows[first:stop]`, without their transaction's last event; return messages as sent and their total size.

        Stops after the message that reaches `bytes_max`, and before an event that is larger than `size_max`; both limits
        apply to the size before compression.
        """
        subject = self._shared(run.kind, run.txn)[0].subject
        made: list[OutMessage] = []
        total = 0
        for msg_id, body in self._events(run, first, stop):
            size = len(msg_id) + len(body) + HEADER_BYTES
            if size > size_max:
                break
            made.append(_out_message((subject, msg_id, body, b"")))
            total += size
            if total >= bytes_max:
                break
        return self._as_sent(run.kind, made, total)

    def transactions(
        self, run: TransactionRun, first: int, stop: int, bytes_max: int, size_max: int
    ) -> tuple[list[OutMessage], int]:
        """Encode the rows of transactions `first` to `stop`, each its transaction's last event, as `rows` does."""
        kind = self._known(run.kind)
        made: list[OutMessage] = []
        total = 0
        for txn, row in zip(run.txns[first:stop], run.rows[first:stop], strict=True):
            msg_id = b"%x-0%b" % (txn.commit_lsn, kind.id_suffix)
            head = self._head(kind.head + self._txn_fields(txn))
            body = self._event(head, msg_id, 0, row, _ONLY_LAST)
            size = len(msg_id) + len(body) + HEADER_BYTES
            if size > size_max:
                break
            made.append(_out_message((kind.subject, msg_id, body, b"")))
            total += size
            if total >= bytes_max:
                break
        return self._as_sent(run.kind, made, total)

    def _as_sent(self, kind: EventKind, messages: list[OutMessage], size: int) -> tuple[list[OutMessage], int]:
        """Return messages of these bytes as sent, and their size."""
        compressor = self._compressors.get(kind.table.token)
        if compressor is None:
            return messages, size
        messages = [compressed(message, compressor) for message in messages]
        return messages, sum(map(sent_size, messages))

    def packable(self, run: RowRun, first: int, stop: int, bytes_max: int, size_max: int) -> Packable:
        """Encode as many of `run.rows[first:stop]` for one message as fit into `bytes_max`, each into `size_max`.

        As in `rows`, none of them is their transaction's last event, and sizes are those of events sent alone, uncompressed.
        """
        bodies: list[bytes] = []
        last_id, total = b"", 0
        for msg_id, body in self._events(run, first, stop):
            size = len(msg_id) + len(body) + HEADER_BYTES
            if size > size_max or total + size > bytes_max:
                break
            bodies.append(body)
            total += size
            last_id = msg_id
        return Packable(bodies, last_id, total)

    def single(self, kind: EventKind, event: OutMessage) -> tuple[OutMessage, int]:
        """Return one event as a message of its own, as sent, and its size."""
        compressor = self._compressors.get(kind.table.token)
        message = event if compressor is None else compressed(event, compressor)
        return message, sent_size(message)

    def packed(self, kind: EventKind, events: Packable) -> tuple[OutMessage, int]:
        """Return events of one kind as one message with the id of the last, as sent, and its size."""
        return self.single(kind, OutMessage(self._known(kind).subject, events.last_id, self.pack(events.bodies)))

    def row(self, change: RowChange, *, last: bool, omitted: tuple[str, ...] = ()) -> OutMessage:
        """Encode one row event; `last` marks its transaction's last event, `omitted` names columns that were left out."""
        kind, txn, seq, data, old, notes = change
        return self._message(kind, txn, seq, data, _extras(old, notes or NO_NOTES, omitted, last))

    def truncated(self, event: Truncated, *, last: bool) -> OutMessage:
        """Encode one table's TRUNCATE."""
        extras: dict[str, object] = {"cascade": event.cascade, "restart_identity": event.restart_identity}
        if last:
            extras["last"] = True
        return self._message(event.kind, event.txn, event.seq, {}, extras)

    def schema(self, change: SchemaChange) -> OutMessage:
        """Encode a SCHEMA event: the value of KV `schemas` plus its place in the stream."""
        token, position = change.table.token, change.position
        msg_id = message_id(position, token, "schema")
        place: dict[str, object] = {"operation": "SCHEMA", "msg_id": msg_id, "lsn": position.lsn, "seq": position.seq}
        if change.last:
            place["last"] = True
        subject = cdc_schema(token).encode()
        return OutMessage(self._prefix + subject, msg_id.encode(), self.document(change.body | place))

    def gap(self, gap: Gap, *, last: bool = False) -> OutMessage:
        """Encode a gap event, on the one subject for lost changes."""
        msg_id = message_id(gap.position, gap.token, "gap") if gap.token else gap_id(gap.position, gap.number)
        body: dict[str, object] = {
            "operation": "GAP",
            "msg_id": msg_id,
            "slot": gap.slot,
            "reason": gap.reason,
            "from_lsn": gap.from_lsn,
            "to_lsn": gap.to_lsn,
            "tables": list(gap.tables),
        }
        if last:
            body["last"] = True
        return OutMessage(self._prefix + CDC_GAP.encode(), msg_id.encode(), self.document(body))

    def published(self, change: PublishedChange) -> OutMessage:
        """Encode how a table is published from here on."""
        position = change.position
        msg_id = message_id(position, BRIDGE_TOKEN, "published")
        body: dict[str, object] = {
            "operation": "PUBLISHED",
            "msg_id": msg_id,
            "lsn": position.lsn,
            "seq": position.seq,
            "table": change.token,
            "change": change.change,
            "version": change.version,
            "reason": change.reason,
            "last": True,
        }
        if change.txn is not None:
            body |= {"xid": change.txn.xid, "commit_ts": change.txn.commit_us}
        return OutMessage(self._prefix + CDC_PUBLISHED.encode(), msg_id.encode(), self.document(body))

    @abstractmethod
    def document(self, body: Mapping[str, object]) -> bytes:
        """Encode any map of plain values, such as a schema or a snapshot's start."""

    @abstractmethod
    def read_document(self, body: bytes) -> object:
        """Decode what `document` returned; None when `body` is not in this encoding."""

    @abstractmethod
    def pack(self, bodies: list[bytes]) -> bytes:
        """Join several event bodies into one list."""

    @abstractmethod
    def join_rows(self, parts: Sequence[bytes], count: int) -> bytes:
        """Join parts of an array's inside (see `row_blocks`) into an array of `count` rows."""

    @abstractmethod
    def with_rows(self, fields: Mapping[str, object], parts: Sequence[bytes], count: int) -> bytes:
        """Encode a map with these fields and, as `data`, the array of `join_rows`."""

    @abstractmethod
    def value_size_bytes(self, value: object) -> int:
        """Return how many bytes one column's value adds to a body."""

    @abstractmethod
    def _fields(self, fields: Mapping[str, object]) -> bytes:
        """Return the inside of a map. Inside another map it may stand between and after other fields, not before them."""

    @abstractmethod
    def _head(self, fields: bytes) -> bytes:
        """Return an event's beginning, up to the value of `msg_id`; `fields` are the shared fields."""

    @abstractmethod
    def _run(
        self, head: bytes, id_head: bytes, id_suffix: bytes, first_seq: int, rows: Iterable[Mapping[str, object]],
        extras: int, ends: Iterable[bytes],
    ) -> Iterator[tuple[bytes, bytes]]:  # fmt: skip
        """Yield the id of each event and what `_event` returns for it; `ends` are its so many extras, encoded."""

    @abstractmethod
    def _event(self, head: bytes, msg_id: bytes, seq: int, data: Mapping[str, object], extras: Mapping[str, object]) -> bytes:
        """Return a complete event: the fields that every event has, and `extras`."""

    def _message(
        self, kind: EventKind, txn: Transaction, seq: int, data: Mapping[str, object], extras: Mapping[str, object]
    ) -> OutMessage:
        known, head = self._shared(kind, txn)
        msg_id = b"%b%d%b" % (self._id_head, seq, known.id_suffix)
        return _out_message((known.subject, msg_id, self._event(head, msg_id, seq, data, extras), b""))

    def _shared(self, kind: EventKind, txn: Transaction) -> tuple[_KindBytes, bytes]:
        """Return the parts that an event shares with its kind, and the beginning that it also shares with its transaction."""
        known = self._known(kind)
        if txn is not self._txn:
            self._begin(txn)
        head = self._heads.get(kind)
        if head is None:
            head = self._heads[kind] = self._head(known.head + self._fields_of_txn)
        return known, head

    def _events(self, run: RowRun, first: int, stop: int) -> Iterator[tuple[bytes, bytes]]:
        """Yield the ids and bodies of `run.rows[first:stop]`."""
        known, head = self._shared(run.kind, run.txn)
        rows = run.rows if stop - first == len(run.rows) else run.rows[first:stop]
        noted = {} if run.notes is None else _extras(None, run.notes, (), last=False)
        end = self._fields(noted) if noted else b""
        ends: Iterable[bytes] = repeat(end)
        if run.olds is not None:
            ends = (self._fields({"old": old}) + end for old in run.olds[first:stop])
        extras = len(noted) + (run.olds is not None)
        return self._run(head, self._id_head, known.id_suffix, run.seq + first, rows, extras, ends)

    def _known(self, kind: EventKind) -> _KindBytes:
        return self._kinds.get(kind) or self._remember(kind)

    def _remember(self, kind: EventKind) -> _KindBytes:
        # a kind lives as long as its table's shape; no publication has ten thousand shapes at once
        if len(self._kinds) >= 10_000:
            self._kinds.clear()
        table, operation = kind.table, kind.operation
        subject = cdc_event(table.token, operation)
        shared: dict[str, object] = {
            "subject": subject,
            "table": table.relation.name,
            "schema": table.relation.schema,
            "operation": operation.upper(),
            "relation_id": table.relation.oid,
            "key": table.key,
        }
        known = _KindBytes(self._prefix + subject.encode(), f"-{table.token}-{operation}".encode(), self._fields(shared))
        self._kinds[kind] = known
        return known

    def _begin(self, txn: Transaction) -> None:
        self._txn = txn
        self._heads = {}
        self._id_head = b"%x-" % txn.commit_lsn
        self._fields_of_txn = self._txn_fields(txn)

    def _txn_fields(self, txn: Transaction) -> bytes:
        return self._fields({"lsn": txn.commit_lsn, "xid": txn.xid, "commit_ts": txn.commit_us})


def _extras(old: dict[str, object] | None, notes: Notes, omitted: tuple[str, ...], last: bool) -> dict[str, object]:
    extras: dict[str, object] = {}
    if old is not None:
        extras["old"] = old
    if notes.unchanged:
        extras["unchanged"] = notes.unchanged
    if omitted:
        extras["omitted"] = omitted
    if notes.raw:
        extras["raw"] = notes.raw
    if notes.old_raw:
        extras["old_raw"] = notes.old_raw
    if last:
        extras["last"] = True
    return extras


# MessagePack headers: https://github.com/msgpack/msgpack/blob/master/spec.md
_STR_HEAD = [bytes([0xA0 | n]) if n < 32 else bytes([0xD9, n]) for n in range(256)]
_STR_HEAD += [b"\xda" + n.to_bytes(2, "big") for n in range(256, 4096)]
_SHARED_FIELDS = 12  # six of the kind, msg_id, three of the transaction, seq, data
_MAP_HEAD = [map_head(_SHARED_FIELDS + n) for n in range(10)]  # by the number of extras
_LAST = b"\xa4last\xc3"


class MsgpackEvents(EventEncoder):
    """Events as MessagePack maps."""

    def __init__(self, publish_prefix: bytes = b"", compressors: Mapping[str, Compressor] | None = None) -> None:
        super().__init__(publish_prefix, compressors)
        self._encode = msgspec.msgpack.Encoder().encode
        self._encode_any_text: Any = msgpack.Packer(autoreset=True, unicode_errors="surrogateescape").pack

    def _pack(self, value: object) -> bytes:
        """Encode any plain value. msgspec's encoder takes a third of msgpack's time, but refuses names that are not UTF-8."""
        try:
            return self._encode(value)
        except UnicodeEncodeError:
            return bytes(self._encode_any_text(value))

    def document(self, body: Mapping[str, object]) -> bytes:
        return self._pack(body)

    def read_document(self, body: bytes) -> object:
        try:
            return msgpack.unpackb(body)
        except ValueError:
            return None

    def pack(self, bodies: list[bytes]) -> bytes:
        return array_head(len(bodies)) + b"".join(bodies)

    def join_rows(self, parts: Sequence[bytes], count: int) -> bytes:
        return array_head(count) + b"".join(parts)

    def with_rows(self, fields: Mapping[str, object], parts: Sequence[bytes], count: int) -> bytes:
        head = map_head(len(fields) + 1) + self._fields(fields) + b"\xa4data" + array_head(count)
        return b"".join((head, *parts))

    def value_size_bytes(self, value: object) -> int:
        return len(self._pack(value))

    def _fields(self, fields: Mapping[str, object]) -> bytes:
        return self._pack(fields)[len(map_head(len(fields))) :]

    def _head(self, fields: bytes) -> bytes:
        return fields + b"\xa6msg_id"

    def _run(
        self, head: bytes, id_head: bytes, id_suffix: bytes, first_seq: int, rows: Iterable[Mapping[str, object]],
        extras: int, ends: Iterable[bytes],
    ) -> Iterator[tuple[bytes, bytes]]:  # fmt: skip
        encode, pack, join = self._encode, self._pack, b"".join
        head = _MAP_HEAD[extras] + head
        for seq, row, end in zip(count(first_seq), rows, ends):
            msg_id = b"%b%d%b" % (id_head, seq, id_suffix)
            try:
                data = encode(row)
            except UnicodeEncodeError:
                data = pack(row)
            yield msg_id, join((head, _STR_HEAD[len(msg_id)], msg_id, b"\xa3seq", encode(seq), b"\xa4data", data, end))

    def _event(self, head: bytes, msg_id: bytes, seq: int, data: Mapping[str, object], extras: Mapping[str, object]) -> bytes:
        more = b"" if not extras else _LAST if extras == _ONLY_LAST else self._fields(extras)
        return b"".join((
            _MAP_HEAD[len(extras)], head, _STR_HEAD[len(msg_id)], msg_id, b"\xa3seq", self._encode(seq), b"\xa4data",
            self._pack(data), more,
        ))  # fmt: skip


class JsonEvents(EventEncoder):
    """Events as JSON objects."""

    def document(self, body: Mapping[str, object]) -> bytes:
        return orjson.dumps(body)

    def read_document(self, body: bytes) -> object:
        try:
            return orjson.loads(body)
        except ValueError:
            return None

    def pack(self, bodies: list[bytes]) -> bytes:
        return b"[" + b",".join(bodies) + b"]"

    def join_rows(self, parts: Sequence[bytes], count: int) -> bytes:
        return b"[" + b",".join(parts) + b"]"

    def with_rows(self, fields: Mapping[str, object], parts: Sequence[bytes], count: int) -> bytes:
        return b'{%b,"data":[%b]}' % (self._fields(fields)[1:], b",".join(parts))

    def value_size_bytes(self, value: object) -> int:
        return len(orjson.dumps(value))

    def _fields(self, fields: Mapping[str, object]) -> bytes:
        return b"," + orjson.dumps(fields)[1:-1]

    def _head(self, fields: bytes) -> bytes:
        return b"{" + fields[1:] + b',"msg_id":"'

    def _run(
        self, head: bytes, id_head: bytes, id_suffix: bytes, first_seq: int, rows: Iterable[Mapping[str, object]],
        extras: int, ends: Iterable[bytes],
    ) -> Iterator[tuple[bytes, bytes]]:  # fmt: skip
        for seq, row, end in zip(count(first_seq), rows, ends):
            msg_id = b"%b%d%b" % (id_head, seq, id_suffix)
            yield msg_id, b'%b%b","seq":%d,"data":%b%b}' % (head, msg_id, seq, orjson.dumps(row), end)

    def _event(self, head: bytes, msg_id: bytes, seq: int, data: Mapping[str, object], extras: Mapping[str, object]) -> bytes:
        # a message id needs no escapes: hex, digits, dashes and a table's token
        more = self._fields(extras) if extras else b""
        return b'%b%b","seq":%d,"data":%b%b}' % (head, msg_id, seq, orjson.dumps(data), more)


def sent_size(message: OutMessage) -> int:
    """Return the bytes of a message as sent that count against max_payload."""
    return len(message.body) + len(message.msg_id) + len(message.headers) + HEADER_BYTES


def compressed(message: OutMessage, compressor: Compressor) -> OutMessage:
    """Return the message with its body compressed, if that makes it smaller."""
    packed = compressor.compress(message.body)
    if len(packed) + len(compressor.header_lines) >= len(message.body):
        return message
    return OutMessage(message.subject, message.msg_id, packed, compressor.header_lines)


def event_encoder(
    encoding: str, publish_prefix: bytes = b"", compressors: Mapping[str, Compressor] | None = None
) -> EventEncoder:
    """Return the encoder for `msgpack` or `json`."""
    return (JsonEvents if encoding == "json" else MsgpackEvents)(publish_prefix, compressors)


def read_any_document(body: bytes) -> object:
    """Decode what an encoder's `document` returned, in either encoding; None when `body` is neither."""
    return MsgpackEvents().read_document(body) or JsonEvents().read_document(body)
