"""Decodes pgoutput, protocol version 1: one logical replication message to one value.

https://www.postgresql.org/docs/18/protocol-logicalrep-message-formats.html. The decoder actor reads rows with code compiled
for each relation (`row_compiler`); this plain decoder reads every message, serves for the rare ones, and is the oracle of the
compiled code in tests.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from actors.errors import MalformedMessage
from actors.positions import Lsn
from actors.wire.replication import POSTGRES_EPOCH_US

_u1 = struct.Struct(">B").unpack_from
_u2 = struct.Struct(">H").unpack_from
_u4 = struct.Struct(">I").unpack_from
_i4 = struct.Struct(">i").unpack_from
_i8 = struct.Struct(">q").unpack_from
_u8 = struct.Struct(">Q").unpack_from


class Column(NamedTuple):
    """One column of a Relation message."""

    name: str
    type_oid: int
    typmod: int
    is_key: bool


@dataclass(frozen=True, slots=True)
class Relation:
    """A table's shape as pgoutput announces it: https://www.postgresql.org/docs/18/protocol-logicalrep-message-formats.html"""

    oid: int
    schema: str
    name: str
    replica_identity: str
    """`d` default, `n` nothing, `f` full, `i` index (pg_class.relreplident)."""
    columns: tuple[Column, ...]


class Begin(NamedTuple):
    final_lsn: Lsn
    """LSN of the transaction's commit record."""
    commit_us: int
    xid: int


class Commit(NamedTuple):
    commit_lsn: Lsn
    end_lsn: Lsn
    commit_us: int


class Origin(NamedTuple):
    commit_lsn: Lsn
    name: str


class Type(NamedTuple):
    oid: int
    schema: str
    name: str


class TupleValue(NamedTuple):
    """One column of a tuple."""

    kind: str
    """`n` null, `u` unchanged TOAST, `t` text, `b` binary."""
    data: bytes = b""


class Insert(NamedTuple):
    relation_oid: int
    new: tuple[TupleValue, ...]


class Update(NamedTuple):
    relation_oid: int
    old_kind: str
    """`K` the old key, `O` the complete old row, empty when neither was sent."""
    old: tuple[TupleValue, ...]
    new: tuple[TupleValue, ...]


class Delete(NamedTuple):
    relation_oid: int
    old_kind: str
    old: tuple[TupleValue, ...]


class Truncate(NamedTuple):
    relation_oids: tuple[int, ...]
    cascade: bool
    restart_identity: bool


class Message(NamedTuple):
    """What pg_logical_emit_message wrote."""

    transactional: bool
    lsn: Lsn
    prefix: str
    content: bytes


Decoded = Begin | Commit | Origin | Relation | Type | Insert | Update | Delete | Truncate | Message


class _Reader:
    """Reads fields one after another; every read checks that the field is present."""

    def __init__(self, message: bytes, offset: int) -> None:
        self.message, self.offset = message, offset

    def u1(self) -> int:
        value = int(_u1(self.message, self.offset)[0])
        self.offset += 1
        return value

    def u2(self) -> int:
        value = int(_u2(self.message, self.offset)[0])
        self.offset += 2
        return value

    def u4(self) -> int:
        value = int(_u4(self.message, self.offset)[0])
        self.offset += 4
        return value

    def i4(self) -> int:
        value = int(_i4(self.message, self.offset)[0])
        self.offset += 4
        return value

    def i8(self) -> int:
        value = int(_i8(self.message, self.offset)[0])
        self.offset += 8
        return value

    def lsn(self) -> Lsn:
        value = Lsn(int(_u8(self.message, self.offset)[0]))
        self.offset += 8
        return value

    def time_us(self) -> int:
        return self.i8() + POSTGRES_EPOCH_US

    def char(self) -> str:
        return chr(self.u1())

    def string(self) -> str:
        end = self.message.index(b"\0", self.offset)
        # names are bytes to PostgreSQL: in an SQL_ASCII database they need not be UTF-8
        value = self.message[self.offset : end].decode("utf-8", "surrogateescape")
        self.offset = end + 1
        return value

    def data(self, size: int) -> bytes:
        end = self.offset + size
        if end > len(self.message):
            raise IndexError(f"a field of {size} bytes in a message of {len(self.message)}")
        value = self.message[self.offset : end]
        self.offset = end
        return value

    def tuple_data(self) -> tuple[TupleValue, ...]:
        values: list[TupleValue] = []
        for _ in range(self.u2()):
            kind = self.char()
            if kind in "nu":
                values.append(TupleValue(kind))
            elif kind in "tb":
                values.append(TupleValue(kind, self.data(self.u4())))
            else:
                raise ValueError(f"tuple value of unknown kind {kind!r}")
        return tuple(values)


def _begin(r: _Reader) -> Begin:
    return Begin(r.lsn(), r.time_us(), r.u4())


def _commit(r: _Reader) -> Commit:
    r.u1()  # flags: none are defined
    return Commit(r.lsn(), r.lsn(), r.time_us())


def _origin(r: _Reader) -> Origin:
    return Origin(r.lsn(), r.string())


def _relation(r: _Reader) -> Relation:
    oid, schema, name, identity = r.u4(), r.string(), r.string(), r.char()
    columns: list[Column] = []
    for _ in range(r.u2()):
        flags = r.u1()
        columns.append(Column(r.string(), r.u4(), r.i4(), bool(flags & 1)))
    # pgoutput writes pg_catalog as an empty name
    return Relation(oid, schema or "pg_catalog", name, identity, tuple(columns))


def _type(r: _Reader) -> Type:
    return Type(r.u4(), r.string() or "pg_catalog", r.string())


def _insert(r: _Reader) -> Insert:
    oid = r.u4()
    _expect(r, "N")
    return Insert(oid, r.tuple_data())


def _update(r: _Reader) -> Update:
    oid, kind = r.u4(), r.char()
    if kind == "N":
        return Update(oid, "", (), r.tuple_data())
    if kind not in "KO":
        raise ValueError(f"Update with a tuple of unknown kind {kind!r}")
    old = r.tuple_data()
    _expect(r, "N")
    return Update(oid, kind, old, r.tuple_data())


def _delete(r: _Reader) -> Delete:
    oid, kind = r.u4(), r.char()
    if kind not in "KO":
        raise ValueError(f"Delete with a tuple of unknown kind {kind!r}")
    return Delete(oid, kind, r.tuple_data())


def _truncate(r: _Reader) -> Truncate:
    count, flags = r.u4(), r.u1()
    # the relations' ids end the message, so a hostile count cannot exceed the bytes present
    if len(r.message) - r.offset != 4 * count:
        raise ValueError(f"Truncate of {count} relations with {len(r.message) - r.offset} bytes of ids")
    return Truncate(tuple(r.u4() for _ in range(count)), bool(flags & 1), bool(flags & 2))


def _message(r: _Reader) -> Message:
    flags, lsn, prefix = r.u1(), r.lsn(), r.string()
    return Message(bool(flags & 1), lsn, prefix, r.data(r.u4()))


def _expect(r: _Reader, kind: str) -> None:
    found = r.char()
    if found != kind:
        raise ValueError(f"a tuple of kind {found!r} where {kind!r} belongs")


DECODERS: dict[int, Callable[[_Reader], Decoded]] = {
    ord("B"): _begin,
    ord("C"): _commit,
    ord("O"): _origin,
    ord("R"): _relation,
    ord("Y"): _type,
    ord("I"): _insert,
    ord("U"): _update,
    ord("D"): _delete,
    ord("T"): _truncate,
    ord("M"): _message,
}


def decode(message: bytes, offset: int = 0) -> Decoded:
    """Decode the pgoutput message that begins at `offset` and fills the rest of `message`.

    Raises MalformedMessage for an unknown tag, a field that is cut short or too long, and bytes left over.
    """
    reader = _Reader(message, offset + 1)
    try:
        decoded = DECODERS[message[offset]](reader)
    except (KeyError, IndexError, ValueError, struct.error) as exc:
        raise MalformedMessage(f"pgoutput: cannot decode {message[offset : offset + 48]!r}: {exc}") from exc
    if reader.offset != len(message):
        raise MalformedMessage(f"pgoutput: {len(message) - reader.offset} bytes left over: {message[offset : offset + 48]!r}")
    return decoded
