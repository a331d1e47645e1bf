"""The bodies of events about rows: read straight into their fields, whose types are checked on the way. No I/O.

Half of what a reader spends on an event would otherwise be a map of the body, which is looked into field by field.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from actors.contract.records import Delete, Insert, Raw, Row, Truncate, Update


class _Body(msgspec.Struct, tag_field="operation", gc=False):
    subject: str
    schema: str
    table: str
    lsn: int
    seq: int
    xid: int
    commit_ts: int

    def token(self, operation: str) -> str:
        """The table's token, which is in the subject `cdc.{token}.{operation}`."""
        return self.subject[4 : -1 - len(operation)]


class _InsertBody(_Body, tag="INSERT"):
    key: tuple[str, ...]
    data: Row
    last: bool = False
    raw: Sequence[str] = ()
    omitted: Sequence[str] = ()
    unchanged: Sequence[str] = ()

    def record(self) -> Insert:
        return Insert(
            self.token("insert"), self.schema, self.table, self.lsn, self.seq, self.last, self.xid, self.commit_ts, self.key,
            _marked(self.data, self.raw), self.omitted, self.unchanged,
        )  # fmt: skip


class _UpdateBody(_Body, tag="UPDATE"):
    key: tuple[str, ...]
    data: Row
    last: bool = False
    old: Row | None = None
    raw: Sequence[str] = ()
    old_raw: Sequence[str] = ()
    omitted: Sequence[str] = ()
    unchanged: Sequence[str] = ()

    def record(self) -> Update:
        old = None if self.old is None else _marked(self.old, self.old_raw)
        return Update(
            self.token("update"), self.schema, self.table, self.lsn, self.seq, self.last, self.xid, self.commit_ts, self.key,
            _marked(self.data, self.raw), self.omitted, old, self.unchanged,
        )  # fmt: skip


class _DeleteBody(_Body, tag="DELETE"):
    key: tuple[str, ...]
    data: Row
    last: bool = False
    raw: Sequence[str] = ()
    omitted: Sequence[str] = ()

    def record(self) -> Delete:
        row = self.data
        if len(row) != len(self.key):  # the nulls of the other columns are no values
            row = {name: row[name] for name in self.key if name in row}
        return Delete(
            self.token("delete"), self.schema, self.table, self.lsn, self.seq, self.last, self.xid, self.commit_ts, self.key,
            _marked(row, self.raw), self.omitted,
        )  # fmt: skip


class _TruncateBody(_Body, tag="TRUNCATE"):
    cascade: bool
    restart_identity: bool
    last: bool = False

    def record(self) -> Truncate:
        return Truncate(
            self.token("truncate"), self.schema, self.table, self.lsn, self.seq, self.last, self.xid, self.commit_ts,
            self.cascade, self.restart_identity,
        )  # fmt: skip


_AnyBody = _InsertBody | _UpdateBody | _DeleteBody | _TruncateBody
RowEvent = Insert | Update | Delete | Truncate
OPERATIONS = ("INSERT", "UPDATE", "DELETE", "TRUNCATE")
"""The values of `operation` in these bodies."""
_one = msgspec.msgpack.Decoder(_AnyBody).decode
_several = msgspec.msgpack.Decoder(list[_AnyBody]).decode


def decode_row_events(body: bytes) -> list[RowEvent] | None:
    """Read a MessagePack body of one event or of several; None if it is anything but events about rows."""
    try:
        if 0x80 <= body[0] <= 0x8F or body[0] in (0xDE, 0xDF):  # a map
            return [_one(body).record()]
        return [one.record() for one in _several(body)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, IndexError):
        return None


def row_event(body: Any) -> RowEvent:
    """Read an event about a row from a decoded body. Raises ValueError, with what does not fit."""
    try:
        found: _InsertBody | _UpdateBody | _DeleteBody | _TruncateBody = msgspec.convert(body, _AnyBody)
    except (msgspec.ValidationError, RecursionError) as exc:
        raise ValueError(str(exc)) from exc
    return found.record()


def _marked(row: Row, raw: Sequence[str]) -> Row:
    for name in raw:
        if name in row:  # a column that was too large for the message is absent
            row[name] = Raw(row[name])
    return row
