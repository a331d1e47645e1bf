"""Converts and encodes blocks of a snapshot's rows: to the same values as in events, column by column.

Converting each value alone would cost as much as an event. Complete columns go through C: libpq's result to Python values
(psycopg's Transformer), timestamps as one string, rows into MessagePack or JSON (msgspec). `Converter.convert` of
`text_values` is the rule, and converts all values that the fast way of a type does not cover.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import msgspec
from psycopg import pq
from psycopg.adapt import Transformer

from actors.values.formats import Encoding, SnapshotFormat
from actors.values.text_values import BOOL, BYTEA, FLOAT, INT, JSON_FLOAT, JSON_INT, TEXT, TIMESTAMP, TIMESTAMPTZ, Converter

_BOOL_OID, _BYTEA_OID, _INT_OID, _TEXT_OID, _FLOAT_OID = 16, 17, 20, 25, 701
_LOADED_AS = {
    BOOL: _BOOL_OID, BYTEA: _BYTEA_OID, INT: _INT_OID, JSON_INT: _INT_OID, FLOAT: _FLOAT_OID, JSON_FLOAT: _FLOAT_OID
}  # fmt: skip
"""Types that psycopg converts while it reads libpq's result; all others arrive as text."""
_READY = frozenset({BOOL, BYTEA, INT, FLOAT, TEXT})
"""Converters whose values are final once loaded."""
_SAFE_INT_MAX = 2**53 - 1
_PLAIN_NAME = re.compile(r'[^"\\\x00-\x1f\x7f]+')

Column = tuple[Any, ...] | list[Any]


class Piece(NamedTuple):
    """Some encoded rows: the inside of an array."""

    body: bytes
    """Without the array's head or brackets."""
    rows: int
    raw: list[tuple[int, int]]
    """(row, column) of values that were kept as PostgreSQL's text although their type has a native form."""


class RowBlocks:
    """Turns query results of one table into pieces of a chunk. Owns nothing that must be closed.

    `columns` are the result's columns, in order; `to_utf8` converts the text of a session that passes bytes as they are. Raises
    ValueError for unreadable values (text that is not UTF-8).
    """

    def __init__(
        self, columns: Sequence[tuple[str, Converter]], encoding: Encoding, fmt: SnapshotFormat,
        to_utf8: Callable[[bytes], bytes] | None = None,
    ) -> None:  # fmt: skip
        self._to_utf8 = to_utf8
        self._converters = [converter for _, converter in columns]
        self._types = [_LOADED_AS.get(converter, _TEXT_OID) for converter in self._converters]
        self._fixes = [
            (i, _BLOCK_FIXES.get(converter), converter, self._types[i])
            for i, converter in enumerate(self._converters)
            if converter not in _READY
        ]
        self._encode = msgspec.msgpack.Encoder().encode if encoding == "msgpack" else msgspec.json.Encoder().encode
        self._encoding = encoding
        self._rows = _row_maker([name for name, _ in columns], fmt)

    def piece(self, result: pq.abc.PGresult) -> Piece:
        """Return all rows of one result, which has at least one."""
        if self._to_utf8 is not None:
            return self._recoded(result, self._to_utf8)
        count = result.ntuples
        transformer = Transformer()
        transformer.set_loader_types(self._types, pq.Format.TEXT)
        transformer.set_pgresult(result, set_loaders=False)
        rows = transformer.load_rows(0, count, tuple)
        columns: list[Column] = list(zip(*rows, strict=True)) if self._types else []
        raw: list[tuple[int, int]] = []
        for i, fix, converter, loaded_as in self._fixes:
            fixed = fix(columns[i]) if fix is not None else None
            columns[i] = fixed if fixed is not None else _one_by_one(columns[i], converter, loaded_as, i, raw)
        return Piece(self._encoded(self._rows(columns, count)), count, sorted(raw))

    def _recoded(self, result: pq.abc.PGresult, to_utf8: Callable[[bytes], bytes]) -> Piece:
        """As `piece`, value by value: psycopg's own loaders take text for UTF-8."""
        count = result.ntuples
        raw: list[tuple[int, int]] = []
        columns: list[Column] = []
        for i, converter in enumerate(self._converters):
            found = [result.get_value(row, i) for row in range(count)]
            texts = [None if value is None else to_utf8(value) for value in found]
            columns.append(_one_by_one(texts, converter, _TEXT_OID, i, raw))
        return Piece(self._encoded(self._rows(columns, count)), count, sorted(raw))

    def split(self, piece: Piece) -> list[Piece]:
        """Return one piece per row, for a block that is too large for the rest of a message."""
        return [
            Piece(self._encoded([value]), 1, [(0, column) for at, column in piece.raw if at == row])
            for row, value in enumerate(self._decoded(piece))
        ]

    def _encoded(self, rows: list[Any]) -> bytes:
        data = self._encode(rows)
        if self._encoding == "json":
            return data[1:-1]
        return data[1 if len(rows) < 16 else 3 if len(rows) < 65536 else 5 :]

    def _decoded(self, piece: Piece) -> list[Any]:
        if self._encoding == "json":
            return list(msgspec.json.decode(b"[" + piece.body + b"]"))
        return list(msgspec.msgpack.decode(array_head(piece.rows) + piece.body))


def array_head(count: int) -> bytes:
    """Return MessagePack's head of an array."""
    if count < 16:
        return bytes([0x90 | count])
    return b"\xdc" + count.to_bytes(2, "big") if count < 65536 else b"\xdd" + count.to_bytes(4, "big")


def map_head(count: int) -> bytes:
    """Return MessagePack's head of a map."""
    if count < 16:
        return bytes([0x80 | count])
    return b"\xde" + count.to_bytes(2, "big") if count < 65536 else b"\xdf" + count.to_bytes(4, "big")


def _row_maker(names: Sequence[str], fmt: SnapshotFormat) -> Callable[[list[Column], int], list[Any]]:
    """Return (columns, number of rows) -> rows that msgspec encodes as arrays, or as maps in the columns' order."""
    if fmt == "array":
        return lambda columns, count: list(zip(*columns, strict=True)) if columns else [()] * count
    if names and all(map(_PLAIN_NAME.fullmatch, names)):
        # a struct is encoded twice as fast as a dict, but msgspec accepts only such field names
        fields = [(f"f{i}", Any) for i in range(len(names))]
        row = msgspec.defstruct("Row", fields, rename={f"f{i}": name for i, name in enumerate(names)}, gc=False)
        return lambda columns, _: list(map(row, *columns))
    return lambda columns, count: [
        dict(zip(names, values, strict=True)) for values in (zip(*columns, strict=True) if columns else repeat((), count))
    ]


def _one_by_one(column: Column, converter: Converter, loaded_as: int, index: int, raw: list[tuple[int, int]]) -> Column:
    """Convert a column value by value, by the rule itself."""
    values: list[Any] = []
    for row, value in enumerate(column):
        if value is None:
            values.append(None)
            continue
        converted, kept_as_text = converter.convert(_as_text(value, loaded_as))
        values.append(converted)
        if kept_as_text:
            raw.append((row, index))
    return values


def _as_text(value: Any, loaded_as: int) -> bytes:
    """Return PostgreSQL's text of a loaded value, as far as the converters of such columns need it."""
    if loaded_as == _FLOAT_OID:
        names = {math.inf: b"Infinity", -math.inf: b"-Infinity"}
        return b"NaN" if math.isnan(value) else names.get(value) or repr(value).encode()
    return value if isinstance(value, bytes) else str(value).encode()


def _fix_timestamptz(column: Column) -> Column | None:
    if None in column:
        return _among_nulls(column, _fix_timestamptz)
    text = "\n".join(column) + "\n"
    count = len(column)
    if text.count("+00\n") != count or text.count(" ") != count:  # infinity, BC
        return None
    return text.replace(" ", "T").replace("+00\n", "Z\n").split("\n")[:-1]


def _fix_timestamp(column: Column) -> Column | None:
    if None in column:
        return _among_nulls(column, _fix_timestamp)
    text = "\n".join(column)
    if "i" in text or "B" in text:  # infinity, BC
        return None
    return text.replace(" ", "T").split("\n")


def _among_nulls(column: Column, fix: Callable[[Column], Column | None]) -> Column | None:
    present = [value for value in column if value is not None]
    if not present:
        return column
    fixed = fix(present)
    if fixed is None:
        return None
    values = iter(fixed)
    return [None if value is None else next(values) for value in column]


def _fix_json_int(column: Column) -> Column | None:
    present = column if None not in column else [value for value in column if value is not None]
    return column if not present or (max(present) <= _SAFE_INT_MAX and min(present) >= -_SAFE_INT_MAX) else None


def _fix_json_float(column: Column) -> Column | None:
    present: Iterable[float] = column if None not in column else [value for value in column if value is not None]
    return column if all(map(math.isfinite, present)) else None


_BLOCK_FIXES: dict[Converter, Callable[[Column], Column | None]] = {
    TIMESTAMPTZ: _fix_timestamptz,
    TIMESTAMP: _fix_timestamp,
    JSON_INT: _fix_json_int,
    JSON_FLOAT: _fix_json_float,
}
"""Converts a complete column in one step; returns None when only the rule itself can convert its values."""
