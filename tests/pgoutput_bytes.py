"""pgoutput messages as PostgreSQL writes them, for tests to feed: the other direction of the codec."""

from __future__ import annotations

import struct
from collections.abc import Sequence


def _string(text: str) -> bytes:
    return text.encode() + b"\0"


def tuple_data(values: Sequence[bytes | str | None]) -> bytes:
    """TupleData: bytes are text values, None is null, "u" is unchanged TOAST."""
    parts = [struct.pack(">H", len(values))]
    for value in values:
        if value is None:
            parts.append(b"n")
        elif isinstance(value, str):
            parts.append(b"u")
        else:
            parts.append(b"t" + struct.pack(">I", len(value)) + value)
    return b"".join(parts)


def begin(final_lsn: int, xid: int = 7, time_us: int = 0) -> bytes:
    return b"B" + struct.pack(">QqI", final_lsn, time_us, xid)


def commit(commit_lsn: int, end_lsn: int, time_us: int = 0) -> bytes:
    return b"C\0" + struct.pack(">QQq", commit_lsn, end_lsn, time_us)


def relation(
    oid: int, name: str, columns: Sequence[tuple[str, int, bool]], schema: str = "public", identity: str = "d"
) -> bytes:
    """Columns are (name, type OID, part of the key)."""
    parts = [b"R", struct.pack(">I", oid), _string(schema), _string(name), identity.encode(), struct.pack(">H", len(columns))]
    for column, type_oid, is_key in columns:
        parts.append(struct.pack(">B", is_key) + _string(column) + struct.pack(">Ii", type_oid, -1))
    return b"".join(parts)


def insert(oid: int, values: Sequence[bytes | str | None]) -> bytes:
    return b"I" + struct.pack(">I", oid) + b"N" + tuple_data(values)


def update(
    oid: int, new: Sequence[bytes | str | None], old: Sequence[bytes | str | None] | None = None, kind: str = "K"
) -> bytes:
    before = b"" if old is None else kind.encode() + tuple_data(old)
    return b"U" + struct.pack(">I", oid) + before + b"N" + tuple_data(new)


def delete(oid: int, old: Sequence[bytes | str | None], kind: str = "K") -> bytes:
    return b"D" + struct.pack(">I", oid) + kind.encode() + tuple_data(old)


def truncate(oids: Sequence[int], flags: int = 0) -> bytes:
    return b"T" + struct.pack(f">IB{len(oids)}I", len(oids), flags, *oids)


def xlog(payload: bytes, wal_end: int = 0) -> bytes:
    """One XLogData around a message."""
    return b"w" + struct.pack(">QQq", wal_end, wal_end, 0) + payload


def keepalive(wal_end: int, reply: bool = False) -> bytes:
    return b"k" + struct.pack(">Qqb", wal_end, 0, reply)
