"""One line per change for people, or one JSON object per change for programs."""

from __future__ import annotations

import base64
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import orjson

from actors.contract.records import Body, Delete, Event, Gap, Insert, Published, Row, SchemaChange, Truncate, Update
from actors.contract.table_token import table_name
from actors.positions import format_lsn
from actors.telemetry.quantities import escaped

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PLAIN = re.compile(r"(?!(?:null|true|false)$)[^\s\"'={}\[\],→]+")
_SAFE_INT = 2**53 - 1
OPERATION_WIDTH, TABLE_WIDTH, LSN_WIDTH = 8, 8, 11
_COLOURS = {"INSERT": "32", "UPDATE": "33", "DELETE": "31", "TRUNCATE": "35", "SCHEMA": "36", "PUBLISHED": "36", "GAP": "1;31"}
_DIM, _BOLD = "2", "1"
VALUE_MAX = 80
"""Characters of a value on a terminal."""


class LineMaker:
    """Makes lines whose columns stay aligned: a longer table name widens the lines after it."""

    def __init__(self, *, colour: bool, value_max: int | None = None) -> None:
        """`value_max`: characters of a value after which it is cut; None for never."""
        self._colour, self._value_max = colour, value_max
        self._table_width, self._seq_width = TABLE_WIDTH, 1

    @classmethod
    def for_stdout(cls) -> Self:
        """For a terminal with colours, unless NO_COLOR is set, and long values cut; for a pipe plain and complete."""
        on_terminal = sys.stdout.isatty()
        return cls(colour=on_terminal and not os.environ.get("NO_COLOR"), value_max=VALUE_MAX if on_terminal else None)

    def line(self, seq: int, stored_ns: int, event: Event) -> str:
        """The line of an event of the message `seq`, which was stored at `stored_ns` since 1970 UTC."""
        operation = _operation(event)
        commit_us = getattr(event, "commit_us", stored_ns // 1000)
        table = escaped(_table(event))
        self._table_width = max(self._table_width, min(len(table), 40))
        self._seq_width = max(self._seq_width, len(str(seq)))
        parts = [
            self._paint(_DIM, f"{seq:>{self._seq_width}} {format_lsn(event.lsn):<{LSN_WIDTH}} {_time(commit_us)}"),
            self._paint(_COLOURS[operation], f"{operation:<{OPERATION_WIDTH}}"),
            f"{table:<{self._table_width}}",
            *self._details(event),
        ]
        return " ".join(parts).rstrip()

    def _details(self, event: Event) -> Iterable[str]:
        if isinstance(event, Insert | Update | Delete):
            yield from self._row(event)
        elif isinstance(event, Truncate):
            more = {"cascade": event.cascade, "restart identity": event.restart_identity}
            yield ", ".join(word for word, said in more.items() if said)
        elif isinstance(event, SchemaChange):
            columns = (f"{escaped(c.name)} {escaped(c.type)}{' key' if c.pk else ''}" for c in event.columns)
            yield f"columns from here on: {', '.join(columns)}"
        elif isinstance(event, Published):
            yield escaped(f"{event.change}: {event.reason}" if event.reason else event.change)
        else:
            names = ", ".join(map(table_name, event.tables))
            lost = "" if event.from_lsn == event.to_lsn else f" from {format_lsn(event.from_lsn)} to {format_lsn(event.to_lsn)}"
            yield escaped(f"changes are lost{lost}: {event.reason}; copies of these are out of date: {names}")

    def _row(self, event: Insert | Update | Delete) -> Iterable[str]:
        old: Row = (event.old or {}) if isinstance(event, Update) else {}
        for name in event.key:
            if name in event.row or name in old:
                yield self._paint(_BOLD, self._column(name, event.row, old))
        for name in event.row:
            if name not in event.key:
                yield self._column(name, event.row, old)
        left_out = [(name, "unchanged") for name in getattr(event, "unchanged", ())]
        left_out += [(name, "too large for a message") for name in event.omitted]
        for name, why in left_out:
            yield self._paint(_DIM, f"{escaped(name)}=({why})")

    def _column(self, name: str, row: Row, old: Row) -> str:
        before = f"{self._value(old[name])}→" if name in old and old[name] != row.get(name) else ""
        return f"{escaped(name)}={before}{self._value(row[name] if name in row else old[name])}"

    def _value(self, value: object) -> str:
        text = shown_value(value)
        if self._value_max is not None and len(text) > self._value_max:
            return f"{text[: self._value_max]}…({len(text):,} characters)"
        return text

    def _paint(self, colour: str, text: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colour else text


def _operation(event: Event) -> str:
    return "SCHEMA" if isinstance(event, SchemaChange) else type(event).__name__.upper()


def _table(event: Event) -> str:
    if isinstance(event, Gap):
        return table_name(event.tables[0]) if event.of_table and event.tables else ""
    return table_name(event.token)


def _time(us: int) -> str:
    try:
        return (_EPOCH + timedelta(microseconds=us)).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    except OverflowError:
        return str(us)


def shown_value(value: object) -> str:
    """A value as a line has it: what could be taken for something else is in double quotes."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, bytes):
        return f"\\x{value.hex()}"
    if isinstance(value, dict | list):
        return escaped(orjson.dumps(plain(value), option=orjson.OPT_NON_STR_KEYS).decode())
    text = str(value)
    return escaped(text) if _PLAIN.fullmatch(text) else escaped(json.dumps(text, ensure_ascii=False))


def json_line(seq: int, body: Body) -> str:
    """An event as an object of JSON: its own fields as a bridge with `--json` writes them, and its message's sequence."""
    text = orjson.dumps({"stream_seq": seq, **plain(body)}, option=orjson.OPT_NON_STR_KEYS).decode()
    # what is not printable is within a string, and would steer a terminal
    return text if text.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def plain(value: Any) -> Any:
    """The value as a bridge with `--json` writes it: bytes in base64, large integers and what is no number as text."""
    if isinstance(value, Mapping):
        return {plain(name): plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # bytes that were no UTF-8 are surrogates
    is_other = isinstance(value, float) and not math.isfinite(value)
    if is_other or (isinstance(value, int) and abs(value) > _SAFE_INT):
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(str(value), str(value))
    return value


class KeyChoice:
    """Chooses the changes of one row: `7`, or `id=7`; several must all be so."""

    def __init__(self, words: Iterable[str]) -> None:
        self._words = tuple(words)

    def misses(self, event: Event) -> str:
        """Say which word can be of no row of the event's table: it names a column outside of the key. Empty if none does."""
        if not isinstance(event, Insert | Update | Delete):
            return ""
        names = {word: word.partition("=")[0] for word in self._words if "=" in word}
        missed = next((word for word, name in names.items() if name not in event.key), None)
        key = ", ".join(map(escaped, event.key))
        return f"--key {missed}: the key of {table_name(event.table)} is {key or 'no column'}" if missed else ""

    def takes(self, event: Event) -> bool:
        """Whether an event may concern the row: events that are not of a row concern all."""
        if not self._words or not isinstance(event, Insert | Update | Delete):
            return True
        rows = [event.row, *([event.old] if isinstance(event, Update) and event.old else [])]
        return any(all(_has(word, event.key, row) for word in self._words) for row in rows)


def _has(word: str, key: Iterable[str], row: Row) -> bool:
    named, equals, value = word.partition("=")
    for name in key:
        if name in row and (_as_text(row[name]) == word or (equals and name == named and _as_text(row[name]) == value)):
            return True
    return False


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else shown_value(value)
