"""The demo's screen: drawn four times per second on a terminal, one plain line per second anywhere else."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, NamedTuple, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

KEYS = "[k]ill the bridge  [n] NATS down  [d]dl  [s]napshot  [+] [-] rate  [v]erify  [q]uit"
BARS = "▁▂▃▄▅▆▇█"
RATE_OVER_S = 2.0


class TableRows(NamedTuple):
    """One table on both sides."""

    name: str
    in_postgres: int
    stored: int
    """Events of the table since the demo began."""
    in_replica: int | None
    """None until the replica has the table."""


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
    said: str = ""
    """What the last key did; shown for a moment."""
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
    """Open a live screen on a terminal, plain lines elsewhere."""
    console = Console(file=out)
    if not console.is_terminal:
        yield _Lines(out)
        return
    with Live(console=console, auto_refresh=False, transient=False) as live:
        yield _LiveScreen(console, live)


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

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def show(self, seen: Seen) -> None:
        rate = self._rate.add(seen.seconds, seen.events)
        table = Table(box=None, pad_edge=False, padding=(0, 3))
        for column in ("table", "in PostgreSQL", "events stored", "in replica", ""):
            table.add_column(
                column, justify="left" if column in ("table", "") else "right", style="bold" if column == "table" else ""
            )
        for rows in seen.tables:
            table.add_row(rows.name, f"{rows.in_postgres:,}", f"{rows.stored:,}", *_replica(rows))
        head = "   ".join(["Walbridge demo", f"{seen.seconds:.0f} s", seen.state, *_harm(seen)])
        width = self._console.width - 8
        self._live.update(
            Group(
                Text(head, style="bold"),
                Text(f"{rate:,.0f} changes/s {self._rate.bars()}"),
                Text("   ".join(_figures(seen))),
                Text(""),
                table,
                Text(f"latest  {seen.latest}"[:width], style="dim"),
                Text(seen.said, style="yellow"),
                Text(seen.ending or KEYS, style="bold"),
            ),
            refresh=True,
        )


class _Lines:
    """For pipes and logs: one line per second, without a moving cursor."""

    def __init__(self, out: IO[str]) -> None:
        self._out, self._rate, self._last = out, _Rate(), 0.0
        self._is_ending = False

    def say(self, text: str) -> None:
        print(text, file=self._out, flush=True)

    def show(self, seen: Seen) -> None:
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
        words = [f"{seen.seconds:4.0f} s", seen.state, f"{rate:,.0f} changes/s", *_figures(seen), *_harm(seen), tables]
        print("  ".join(words), file=self._out, flush=True)


def _figures(seen: Seen) -> list[str]:
    parts = []
    if seen.p50_ms is not None and seen.p99_ms is not None:
        parts.append(f"commit to stored p50 {_short(seen.p50_ms)} ms p99 {_short(seen.p99_ms)} ms")
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
