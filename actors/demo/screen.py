"""The demo's screen: a frame drawn four times per second on a terminal, one plain line per second anywhere else."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, NamedTuple, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

KEYS = "[k]ill bridge  [n]o NATS  [d]dl  [s]napshot  [+][-] rate  [v]erify  [q]uit"
STATES = {"streaming": "green", "down": "red", "stopped": "red"}
BARS = "▁▂▃▄▅▆▇█"
RATE_OVER_S = 2.0
LOG_LINES = 5
IN_FRAME = ("Page", "See changes")
"""The addresses that fit into 24 lines."""


class TableRows(NamedTuple):
    """One table on both sides."""

    name: str
    in_postgres: int
    stored: int
    """Events of the table since the demo began."""
    in_replica: int | None
    """None until the replica has the table."""


class Proof(NamedTuple):
    """The last time that both sides were compared."""

    equal: bool
    lsn: str
    at: float
    """In seconds since the demo began."""
    number: int
    """How many times they were compared so far."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What is shown."""

    state: str
    events: int
    lag_seconds: float | None
    """None while no bridge runs."""
    wal_held_bytes: int | None
    p50_ms: float | None
    p99_ms: float | None
    tables: Sequence[TableRows]
    latest: str
    seconds: float = 0.0
    bridge_killed: int = 0
    nats_stopped: int = 0
    log: Sequence[tuple[float, str]] = ()
    """What happened last, and when: seconds since the demo began."""
    proof: Proof | None = None
    next_proof_s: float | None = None
    left_s: float | None = None
    """Until the demo ends; None if a key ends it."""
    addresses: Mapping[str, str] = field(default_factory=dict)
    """What runs where, by label, for a reader who looks at it from another terminal."""
    ending: str = ""
    """What is being done at the end, when keys do nothing any more."""


class Screen(Protocol):
    """Where the demo shows itself."""

    def say(self, text: str) -> None:
        """Print words that stay."""

    def show(self, seen: Seen) -> None:
        """Show the present state."""


@contextmanager
def open_screen(out: IO[str]) -> Iterator[Screen]:
    """Open a full screen on a terminal, plain lines elsewhere. What was said and the last frame stay there."""
    console = Console(file=out, highlight=False)
    if not console.is_terminal:
        yield _Lines(out)
        return
    # on a screen of its own each frame is drawn from the top: a resized terminal wraps no remains of the last one
    live = Live(console=console, auto_refresh=False, screen=True)
    screen = _LiveScreen(console, live)
    with live:
        yield screen
    screen.leave()


@dataclass
class _Rate:
    """Events per second over the last two seconds, and the rates before."""

    seen: deque[tuple[float, int]] = field(default_factory=deque)
    history: deque[float] = field(default_factory=lambda: deque(maxlen=24))

    def add(self, seconds: float, events: int) -> float:
        self.seen.append((seconds, events))
        while len(self.seen) > 2 and seconds - self.seen[0][0] > RATE_OVER_S:
            self.seen.popleft()
        (first_at, first), (last_at, last) = self.seen[0], self.seen[-1]
        rate = (last - first) / (last_at - first_at) if last_at > first_at else 0.0
        self.history.append(rate)
        return rate

    def bars(self) -> str:
        most = max(self.history, default=0.0) or 1.0
        return "".join(BARS[min(len(BARS) - 1, int(value / most * (len(BARS) - 1)))] for value in self.history)


class _LiveScreen:
    def __init__(self, console: Console, live: Live) -> None:
        self._console, self._live, self._rate = console, live, _Rate()
        self._said: list[str] = []
        self._frame: Panel | None = None

    def say(self, text: str) -> None:
        self._said.append(text)

    def leave(self) -> None:
        """Print what was said, and the last frame."""
        for text in self._said:
            self._console.print(text, markup=False, soft_wrap=True)
        if self._frame is not None:
            self._console.print(self._frame)

    def show(self, seen: Seen) -> None:
        rate = self._rate.add(seen.seconds, seen.events)
        self._frame = _frame(seen, f"{rate:,.0f} changes/s {self._rate.bars()}")
        self._live.update(self._frame, refresh=True)


def _frame(seen: Seen, rate: str) -> Panel:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for column in ("table", "in PostgreSQL", "events stored", "in replica", ""):
        table.add_column(
            column, justify="left" if column in ("table", "") else "right", no_wrap=True, header_style="dim",
            style="bold" if column == "table" else "",
        )  # fmt: skip
    for rows in seen.tables:
        count, words = _replica(rows)
        table.add_row(
            rows.name, f"{rows.in_postgres:,}", f"{rows.stored:,}", count,
            Text(words, style="green" if words.startswith("✓") else "yellow"),
        )  # fmt: skip
    head = Text.assemble(
        (seen.state, f"bold {STATES.get(seen.state, 'yellow')}"),
        *(f"   {words}" for words in (*_harm(seen), f"{seen.seconds:.0f} s", *_left(seen))),
    )
    lines: list[Text | Table] = [
        head,
        Text(rate, style="cyan"),
        Text("   ".join(_figures(seen))),
        Text(""),
        table,
        Text(""),
        _proof(seen),
        Text(f"latest    {seen.latest}", style="dim"),
        *(Text(f"{at:>6.0f} s  {words}", style="yellow") for at, words in seen.log),
        *(Text("") for _ in range(1 + LOG_LINES - len(seen.log))),
        Text(seen.ending or KEYS, style="bold"),
    ]
    for line in lines:
        if isinstance(line, Text):
            line.no_wrap, line.overflow = True, "ellipsis"
    # these may be copied, so nothing of them is cut
    lines += [
        Text.assemble((f"{label:<12}", "dim"), text, overflow="fold")
        for label, text in seen.addresses.items()
        if label in IN_FRAME
    ]
    return Panel(Group(*lines), title="Walbridge demo", title_align="left", expand=True)


def _left(seen: Seen) -> list[str]:
    return [f"ends in {max(0.0, seen.left_s):.0f} s"] if seen.left_s is not None else []


def _proof(seen: Seen) -> Text:
    proof = seen.proof
    if proof is None:
        return Text("proof     the first one follows the first copy", style="dim")
    verdict = ("0 lost, 0 doubled", "bold green") if proof.equal else ("NOT EQUAL: see below", "bold red")
    rest = f"   row by row, {seen.seconds - proof.at:.0f} s ago; {proof.number} so far"
    after = (
        "" if seen.next_proof_s is None else f", next in {seen.next_proof_s:.0f} s" if seen.next_proof_s >= 1 else ", one runs"
    )
    return Text.assemble("proof     ", verdict, rest, after)


class _Lines:
    """For pipes and logs: one line per second, without a moving cursor."""

    def __init__(self, out: IO[str]) -> None:
        self._out, self._rate, self._last = out, _Rate(), 0.0
        self._is_begun = self._is_ending = False

    def say(self, text: str) -> None:
        print(text, file=self._out, flush=True)

    def show(self, seen: Seen) -> None:
        if not self._is_begun:
            self._is_begun = True
            self.say("\n".join(f"{label + ':':<13}{text}" for label, text in seen.addresses.items()))
        rate = self._rate.add(seen.seconds, seen.events)
        if seen.ending and not self._is_ending:
            self._is_ending = True
            self.say(seen.ending)
        if time.monotonic() - self._last < 1:
            return
        self._last = time.monotonic()
        tables = ", ".join(
            f"{t.name} {t.in_postgres:,}/{'-' if t.in_replica is None else f'{t.in_replica:,}'}" for t in seen.tables
        )
        proved = [f"{seen.proof.number}x proved: 0 lost, 0 doubled"] if seen.proof is not None and seen.proof.equal else []
        rate_words = f"{rate:,.0f} changes/s"
        words = [f"{seen.seconds:4.0f} s", seen.state, rate_words, *_figures(seen), *_harm(seen), *_left(seen), tables, *proved]
        print("  ".join(words), file=self._out, flush=True)


def _figures(seen: Seen) -> list[str]:
    parts = []
    if seen.p50_ms is not None and seen.p99_ms is not None:
        parts.append(f"commit to stored p50 {_short(seen.p50_ms)} p99 {_short(seen.p99_ms)} ms (1 min)")
    if seen.lag_seconds is not None:
        parts.append(f"lag {seen.lag_seconds:.1f} s")
    if seen.wal_held_bytes is not None:
        parts.append(f"WAL held {seen.wal_held_bytes / 1e6:.1f} MB")
    return parts


def _short(number: float) -> str:
    return f"{number:.1f}" if number < 100 else f"{number:,.0f}"


def _harm(seen: Seen) -> list[str]:
    done = (("bridge", seen.bridge_killed), ("NATS", seen.nats_stopped))
    return [f"{whom} killed {number}x" for whom, number in done if number]


def _replica(rows: TableRows) -> tuple[str, str]:
    if rows.in_replica is None:
        return "-", "first copy ..."
    behind = rows.in_postgres - rows.in_replica
    return (
        f"{rows.in_replica:,}",
        "✓ equal count" if behind == 0 else f"… {abs(behind):,} {'behind' if behind > 0 else 'to delete'}",
    )
