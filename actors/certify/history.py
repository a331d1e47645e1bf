"""Histories as data: what happens in NATS step by step, and what a consumer's copy must be then. No I/O.

The format is described in consumers/conformance/README.md, for ports in any language. This module is its Python form.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

import orjson

FORMAT = 1
LIVE, COPYING, UNPUBLISHED = "live", "copying", "unpublished"
SAFE_INTEGER = 2**53 - 1

Step = dict[str, Any]
Column = tuple[str, str]
"""Name and type, as PostgreSQL writes the type."""


class MalformedHistory(ValueError):
    """A file that is not a history of this format."""


@dataclass(frozen=True, slots=True)
class History:
    """One history."""

    name: str
    about: str
    rules: tuple[str, ...]
    """Ids of the rules that it tries, from the table in the README."""
    steps: tuple[Step, ...]
    tables: tuple[str, ...] = ()
    """Tokens of the tables that the consumer is to keep; empty for all that the bridge publishes."""
    needs: tuple[str, ...] = ()
    """What a consumer must be able to do for this history to concern it."""
    stream: str = "CDC"

    def encode(self) -> bytes:
        """Return the file's content: a head of several lines, then one line for each step."""
        head = {
            "format": FORMAT, "name": self.name, "about": self.about, "rules": self.rules, "needs": self.needs,
            "stream": self.stream, "tables": self.tables,
        }  # fmt: skip
        lines = [f"  {orjson.dumps(name).decode()}: {orjson.dumps(value).decode()}," for name, value in head.items()]
        steps = ",\n".join(f"    {orjson.dumps(step).decode()}" for step in self.steps)
        return ("{\n" + "\n".join(lines) + '\n  "steps": [\n' + steps + "\n  ]\n}\n").encode()

    @classmethod
    def decode(cls, data: bytes) -> History:
        """Read a file's content. Raises MalformedHistory."""
        try:
            raw = orjson.loads(data)
            if raw["format"] != FORMAT:
                raise MalformedHistory(f"a history of format {raw['format']}; this version reads format {FORMAT}")
            steps = tuple(dict(step) for step in raw["steps"])
            for step in steps:
                step["step"]
            return cls(
                str(raw["name"]), str(raw["about"]), tuple(raw["rules"]), steps, tuple(raw["tables"]), tuple(raw["needs"]),
                str(raw["stream"]),
            )  # fmt: skip
        except (LookupError, TypeError, AttributeError, ValueError) as exc:
            raise MalformedHistory(f"not a history: {exc!r}") from exc


class Held(NamedTuple):
    """What a copy of one table holds."""

    columns: tuple[str, ...]
    rows: Sequence[Sequence[Any]]
    """Values in the columns' order, as the JSON form of an event has them."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What must be true of a table at one `expect` step."""

    state: str
    columns: tuple[Column, ...] | None
    """None when the copy need not have the table."""
    rows: tuple[tuple[Any, ...], ...]

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Expected:
        """Read a table of an `expect` step."""
        columns = raw.get("columns")
        if columns is None:
            return cls(str(raw["state"]), None, ())
        return cls(
            str(raw["state"]), tuple((str(name), str(kind)) for name, kind in columns), tuple(map(tuple, raw["rows"]))
        )  # fmt: skip

    def difference(self, held: Held | None) -> str:
        """In words, how a copy differs; empty when it is equal. The order of rows and columns does not matter."""
        if self.columns is None:
            return "" if held is None or not held.rows else f"has {len(held.rows)} rows of a table that it cannot have yet"
        if held is None:
            return "is missing"
        names = [name for name, _ in self.columns]
        if sorted(held.columns) != sorted(names) and (held.rows or held.columns):
            return f"has the columns {', '.join(held.columns)}, not {', '.join(names)}"
        places = [held.columns.index(name) for name in names] if held.columns else []
        kinds = [kind for _, kind in self.columns]
        there = Counter(_comparable([row[i] for i in places], kinds) for row in held.rows)
        wanted = Counter(_comparable(row, kinds) for row in self.rows)
        lacking, extra = list((wanted - there).elements()), list((there - wanted).elements())
        words = [f"lacks {_shown(names, row)}" for row in lacking[:2]] + [f"has {_shown(names, row)}" for row in extra[:2]]
        more = len(lacking) + len(extra) - len(words)
        return "; ".join(words) + (f" and {more} more" if more > 0 else "")


def _shown(names: Sequence[str], row: Sequence[str]) -> str:
    text = ", ".join(f"{name}={value}" for name, value in zip(names, row, strict=True))
    return f"({text if len(text) <= 160 else text[:157] + '...'})"


def json_value(value: Any) -> Any:
    """Return a value as the JSON form of an event has it."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if type(value) is int and abs(value) > SAFE_INTEGER:
        return str(value)
    return value


def _comparable(row: Sequence[Any], kinds: Sequence[str]) -> tuple[str, ...]:
    return tuple(comparable(value, kind) for value, kind in zip(row, kinds, strict=True))


def comparable(value: Any, kind: str) -> str:
    """Return equal text for values that are the same value of a type, as the README allows copies to spell them."""
    if value is None:
        return "NULL"
    if isinstance(value, (dict, list)) and kind not in ("json", "jsonb"):
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    return _SPELLINGS.get(kind.partition(" ")[0], str)(value)


def _boolean(value: Any) -> str:
    return {1: "true", 0: "false", "t": "true", "f": "false", "1": "true", "0": "false"}.get(value, str(value).lower())


def _float(value: Any) -> str:
    try:
        return repr(float(value) + 0.0)
    except (TypeError, ValueError):
        return str(value)


def _timestamp(value: Any) -> str:
    text = str(value).replace(" ", "T", 1)
    return text.removesuffix("+00") + "Z" if text.endswith("+00") else text


def _document(value: Any) -> str:
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except ValueError:
            pass  # a string, as a nested document has it
    return orjson.dumps(_numbers(value), option=orjson.OPT_SORT_KEYS).decode()


def _numbers(value: Any) -> Any:
    """A document with 1.0 and 1 spelt alike."""
    if isinstance(value, dict):
        return {name: _numbers(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_numbers(one) for one in value]
    if isinstance(value, float) and value.is_integer():
        return int(Decimal(value))
    return value


_SPELLINGS: dict[str, Callable[[Any], str]] = {
    "boolean": _boolean, "real": _float, "double": _float, "json": _document, "jsonb": _document, "timestamp": _timestamp,
}  # fmt: skip
"""By the first word of a type."""


@dataclass(slots=True)
class Draft:
    """A history that is being written."""

    name: str
    about: str
    rules: tuple[str, ...]
    tables: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    steps: list[Step] = field(default_factory=list)

    def add(self, *steps: Step) -> None:
        """Let these happen next."""
        self.steps += steps

    def start(self) -> None:
        """Start the consumer, with whatever its copy holds."""
        self.add({"step": "start"})

    def stop(self) -> None:
        """Kill the consumer."""
        self.add({"step": "stop"})

    def done(self) -> History:
        """The finished history."""
        return History(self.name, self.about, self.rules, tuple(self.steps), self.tables, self.needs)
