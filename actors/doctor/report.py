"""The report of `walbridge doctor`: one row per check, its form in a terminal and as JSON, and the exit code. No I/O."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from typing import Literal

from actors import __version__
from actors.errors import WalbridgeError
from actors.telemetry.quantities import counted
from actors.telemetry.telemetry import Problem

Group = Literal["PostgreSQL", "NATS", "Path"]
GROUPS: tuple[Group, ...] = ("PostgreSQL", "NATS", "Path")
Level = Literal["ok", "note", "warn", "unknown", "fail"]
"""`note`: nothing to judge. `unknown`: it could not be checked, which counts as a warning."""
SHOWN: dict[Level, str] = {"ok": "ok", "note": "-", "warn": "warn", "unknown": "?", "fail": "FAIL"}
COLOURS: dict[Level, str] = {"ok": "32", "note": "2", "warn": "33", "unknown": "33", "fail": "31"}
WIDTH = 118
"""Columns of a terminal that `means` and the words of a row are broken to fit. Commands are never broken."""


@dataclass(frozen=True, slots=True)
class Row:
    """What one check has found. `what` is the complete sentence for an ok row, and for a finding that of its problem."""

    group: Group
    check: str
    level: Level
    what: str
    code: str = ""
    said: str = ""
    means: str = ""
    fix: str = ""

    @classmethod
    def of_problem(cls, group: Group, check: str, level: Level, problem: Problem | WalbridgeError) -> Row:
        """Make the row of a finding."""
        return cls(group, check, level, problem.what, problem.code, problem.said, problem.means, problem.fix)


@dataclass(slots=True)
class Report:
    """All rows, in the order in which the checks were made."""

    setup: dict[str, str]
    """What was checked, for the first line: `postgres`, `nats`, `slot`, `publication`, `stream`."""
    rows: list[Row] = field(default_factory=list)
    servers: dict[Group, str] = field(default_factory=dict)
    """What answers there, for the group's title."""

    def add(self, *rows: Row) -> None:
        self.rows += rows

    @property
    def exit_code(self) -> int:
        """0: fine. 1: warnings, or something could not be checked. 2: the bridge cannot work, or the application fails."""
        levels = {row.level for row in self.rows}
        return 2 if "fail" in levels else 1 if levels & {"warn", "unknown"} else 0

    def lines(self, *, colour: bool = False) -> Iterator[str]:
        """Yield the lines for a terminal."""
        setup = self.setup
        yield f"Walbridge {__version__}   {setup['postgres']} -> {setup['nats']}"
        yield f"slot {setup['slot']}, publication {setup['publication']} -> stream {setup['stream']}"
        for group in dict.fromkeys(row.group for row in self.rows):
            rows = list(_merged(row for row in self.rows if row.group == group))
            yield ""
            yield self.servers.get(group, group)
            width = max(len(row.check) for row in rows)
            for row in rows:
                yield from _row_lines(row, width, colour=colour)
        yield ""
        yield self._verdict()

    def _verdict(self) -> str:
        count = Counter(row.level for row in self.rows)
        words = [f"{count['ok']} ok"]
        words += [counted(count["warn"], "warning")] if count["warn"] else []
        words += [f"{count['unknown']} not checked"] if count["unknown"] else []
        words += [counted(count["fail"], "failure")] if count["fail"] else []
        ready = "Ready, with warnings." if count["warn"] else "Ready, as far as it could be checked."
        said = {0: "Ready.", 1: ready, 2: "Not ready."}
        coded = next((row.code for row in sorted(self.rows, key=_worst_first) if row.code), "")
        explain = f"   Explain one: walbridge help {coded}" if coded else ""
        return f"{', '.join(words)}. {said[self.exit_code]}{explain}"

    def as_json(self) -> dict[str, object]:
        """Return the report for a script."""
        return {
            "version": __version__,
            **self.setup,
            "servers": self.servers,
            "exit_code": self.exit_code,
            "checks": [asdict(row) for row in self.rows],
        }


def _merged(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield the rows, those that could not be checked for one reason as one row."""
    for _, alike in groupby(rows, key=lambda row: row.what if row.level == "unknown" else object()):
        first, *others = alike
        names = ", ".join(row.check for row in (first, *others))
        yield replace(first, check=f"{len(others) + 1} checks", what=f"{first.what} ({names})") if others else first


def _worst_first(row: Row) -> int:
    return -list(SHOWN).index(row.level)


def _row_lines(row: Row, width: int, *, colour: bool) -> Iterator[str]:
    mark = f"{SHOWN[row.level]:<4}"
    shown = f"\x1b[{COLOURS[row.level]}m{mark}\x1b[0m" if colour else mark
    indent = " " * (width + 10)
    first, *rest = _wrapped(f"{row.code} {row.what}" if row.code else row.what, len(indent))
    yield f"  {shown}  {row.check:<{width}}  {first}"
    for line in rest:
        yield indent + line
    for label, text in (("said", row.said), ("means", row.means)):
        if text:
            for i, line in enumerate(_wrapped(text, len(indent) + 7)):
                yield f"{indent}{label if i == 0 else '':<7}{line}"
    for i, line in enumerate(printable(row.fix).splitlines()):
        yield f"{indent}{'fix' if i == 0 else '':<7}{line}"


def _wrapped(text: str, indent: int) -> Sequence[str]:
    return textwrap.wrap(printable(text), WIDTH - indent, break_long_words=False, break_on_hyphens=False) or [""]


def printable(text: str) -> str:
    """Replace what would steer the terminal: names come from databases."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
