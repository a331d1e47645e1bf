"""Compares two sides of a table by counts and by sums of hashes, whatever the order of rows. No I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.values.canonical import Canonical, digest

BUCKETS = 4096
LOOKED_AT_MAX = 64
"""Buckets whose rows are compared one by one, unless more keys are asked for."""
VALUE_MAX = 100
"""Characters that are shown of a key's value."""
_NUMBERS = (20, 21, 23, 26, 700, 701, 1700)
"""OIDs of PostgreSQL's built-in types of numbers."""
_BOOL = 16
Values = Sequence[str | None]


class Side:
    """The rows of one side: their number, and per bucket of keys the sum of their hashes."""

    def __init__(self, canonical: Sequence[Canonical], key: Sequence[int]) -> None:
        """`canonical` has a conversion per column; `key` has the indexes of the key's columns, all when there is no key."""
        self._canonical, self._key = canonical, key
        self.rows = 0
        self.sums = [0] * BUCKETS

    def values(self, row: Sequence[Any]) -> list[str | None]:
        """The row's values in the form that is compared."""
        return [None if v is None else c(v) for c, v in zip(self._canonical, row, strict=True)]

    def bucket(self, values: Values) -> int:
        """The bucket of a row. Equal keys have the same bucket on both sides."""
        return int.from_bytes(digest([values[i] for i in self._key])[:2], "big") % BUCKETS

    def add(self, rows: Iterable[Sequence[Any]]) -> None:
        """Add rows to the count and the sums."""
        for row in rows:
            values = self.values(row)
            self.sums[self.bucket(values)] += int.from_bytes(digest(values), "big")
            self.rows += 1

    def hash(self) -> str:
        """The hash of all rows. Equal tables have equal hashes."""
        return f"{sum(self.sums) & (1 << 128) - 1:032x}"

    def pick(self, rows: Iterable[Sequence[Any]], buckets: frozenset[int], into: Rows) -> None:
        """Put the rows of some buckets into `into`, by key."""
        for row in rows:
            values = self.values(row)
            if self.bucket(values) in buckets:
                into.setdefault(tuple(values[i] for i in self._key), []).append(values)


Rows = dict[tuple[str | None, ...], list[list[str | None]]]


def differing_buckets(a: Side, b: Side) -> list[int]:
    """The buckets in which the sides differ. Each has at least one key that differs."""
    return [i for i in range(BUCKETS) if a.sums[i] != b.sums[i]]


@dataclass(slots=True)
class TableReport:
    """The result for one table."""

    table: str
    source_rows: int = 0
    replica_rows: int = 0
    source_hash: str = ""
    replica_hash: str = ""
    problem: str = ""
    """Why the table could not be compared; else empty."""
    mismatched_keys: int = 0
    """The least number of keys whose rows differ; 1 for a table whose columns differ."""
    keys: list[dict[str, object]] = field(default_factory=list)
    """Some of the rows that differ: `key`, `row` (the key as people write it), `difference`."""
    all_counted: bool = True
    """Whether every row that may differ was compared, so that `mismatched_keys` is exact."""

    @property
    def is_equal(self) -> bool:
        same = (self.source_rows, self.source_hash) == (self.replica_rows, self.replica_hash)
        return not self.problem and same


def differences(
    source: Rows, replica: Rows, columns: Sequence[str], types: Sequence[int], key: Sequence[int], limit: int
) -> tuple[list[dict[str, object]], int]:
    """The first `limit` keys whose rows differ, with the difference, and the number of all. `types` are the columns' OIDs."""
    found: list[dict[str, object]] = []
    count = 0
    for one in sorted(source.keys() | replica.keys(), key=lambda one: _order(one, [types[i] for i in key])):
        mine, theirs = sorted(source.get(one, []), key=repr), sorted(replica.get(one, []), key=repr)
        if mine == theirs:
            continue
        count += 1
        if count > limit:
            continue
        if len(mine) > len(theirs):
            words = "missing in the replica"
        elif len(mine) < len(theirs):
            words = "only in the replica"
        else:
            names = [columns[i] for a, b in zip(mine, theirs, strict=True) for i in range(len(columns)) if a[i] != b[i]]
            words = "differs in " + ", ".join(dict.fromkeys(names))
        values = {columns[i]: value for i, value in zip(key, one, strict=True)}
        row = ", ".join(f"{_name(columns[i])}={_value(value, types[i])}" for i, value in zip(key, one, strict=True))
        found.append({"key": values, "row": row, "difference": words})
    return found, count


def _order(key: Sequence[str | None], types: Sequence[int]) -> list[tuple[bool, float, str]]:
    """A sort key by which numbers are ordered by value."""
    return [
        (v is None, float(v) if v is not None and _is_number(v, t) else 0.0, v or "") for v, t in zip(key, types, strict=True)
    ]


def _is_number(value: str, type_oid: int) -> bool:
    return type_oid in _NUMBERS and re.fullmatch(r"-?\d+(\.\d+)?(e[+-]?\d+)?", value) is not None


def _name(column: str) -> str:
    return column if re.fullmatch(r"[a-z_][a-z0-9_]*", column) else _quoted(column)


def _value(value: str | None, type_oid: int) -> str:
    if value is None:
        return "null"
    if _is_number(value, type_oid):
        return value
    if type_oid == _BOOL and value in ("t", "f"):
        return "true" if value == "t" else "false"
    return _quoted(value) if len(value) <= VALUE_MAX else _quoted(value[:VALUE_MAX]) + "..."


def _quoted(text: str) -> str:
    """Quote text as JSON does; characters that would move a terminal's cursor are escaped."""
    return json.dumps(text, ensure_ascii=not text.isprintable())
