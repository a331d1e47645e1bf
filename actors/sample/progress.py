"""How far a load on the sample tables has come: a progress bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from actors.sample.mixed_load import Counts

PLAIN_EVERY_S = 5.0


@dataclass(slots=True)
class Work:
    """One load's progress: a bar, or a plain line now and then."""

    doing: str
    total: int | None
    counts: Counts = field(default_factory=Counts)
    started: float = field(default_factory=time.monotonic)
    _bar: Progress | None = None
    _stopping: bool = False
    _waits: bool = False
    _said: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.monotonic() - self.started

    def show(self, done: int) -> None:
        """Show the progress after a transaction. Raises KeyboardInterrupt when the user asked to stop."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done)
        elif time.monotonic() - self._said >= PLAIN_EVERY_S:
            self._said = time.monotonic()
            of = f" of {self.total:,}" if self.total else ""
            print(
                f"{self.doing}: {done:,}{of}, {self.counts.changes / self.seconds:,.0f} changes/s", file=sys.stderr, flush=True
            )
        if self._stopping:
            raise KeyboardInterrupt

    def wait_until(self, when: float) -> None:
        """Sleep until then. Ctrl-C ends the sleep at once."""
        self._waits = True
        try:
            ahead_s = when - time.monotonic()
            if ahead_s > 0 and not self._stopping:
                time.sleep(ahead_s)
        finally:
            self._waits = False

    def _interrupt(self, *_: object) -> None:
        """On Ctrl-C finish the transaction first: psycopg must not be cut off between two messages."""
        if self._waits or self._stopping:
            raise KeyboardInterrupt
        self._stopping = True
        print("stopping after this transaction; Ctrl-C again stops at once", file=sys.stderr, flush=True)

    @contextmanager
    def shown(self) -> Iterator[Work]:
        """Show a bar while the work goes on. Ctrl-C ends the work, not its report."""
        console = Console(stderr=True)
        before = signal.signal(signal.SIGINT, self._interrupt)
        try:
            if not console.is_terminal:
                yield self
                return
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            with Progress(*columns, console=console, transient=True) as self._bar:
                self._bar.add_task(self.doing, total=self.total)
                yield self
        except KeyboardInterrupt:
            self.counts.stopped = True
        finally:
            self._bar = None
            signal.signal(signal.SIGINT, before)
