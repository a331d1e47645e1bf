"""How far a snapshot in rounds is, shown on a terminal by a bar that is drawn over, elsewhere by lines."""

from __future__ import annotations

from collections import deque
from typing import TextIO

from actors.contract.records import RangesChunk
from actors.telemetry.quantities import counted

WIDTH = 24
RATE_OVER_S = 30.0
"""The rate is that of this time."""


class ProgressBar:
    """Shows one snapshot after another. No I/O but writing."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self.is_drawn_over = out.isatty()
        self._seen: deque[tuple[float, int]] = deque()
        self._snapshot_id, self._places = "", set[int]()
        self._round_since_s = 0.0
        """When a chunk of the present round was first seen."""
        self._drawn = 0

    def show(self, name: str, chunk: RangesChunk, expected: int, now_s: float) -> None:
        """Show that a snapshot has come to its chunk `chunk`; `now_s` is by a monotonic clock."""
        if chunk.snapshot_id != self._snapshot_id:
            self._snapshot_id, self._places = chunk.snapshot_id, set()
            self._seen.clear()
        if chunk.snapshot_lsn not in self._places:
            self._places.add(chunk.snapshot_lsn)
            self._round_since_s = now_s
        self._seen.append((now_s, chunk.row_count))
        while len(self._seen) > 2 and now_s - self._seen[1][0] >= RATE_OVER_S:
            self._seen.popleft()
        words = f"{name}: {self._words(chunk, expected)}"
        if self.is_drawn_over:
            self._out.write("\r" + words.ljust(self._drawn))
            self._drawn = len(words)
        else:
            self._out.write(words + "\n")
        self._out.flush()

    def end(self) -> None:
        """Leave the bar as it is: something else is written next."""
        if self._drawn:
            self._out.write("\n")
            self._out.flush()
        self._drawn = 0

    def _words(self, chunk: RangesChunk, expected: int) -> str:
        done, words = chunk.row_count, counted(chunk.row_count, "row")
        (first_s, first), (last_s, last) = self._seen[0], self._seen[-1]
        rate = (last - first) / (last_s - first_s) if last_s > first_s else 0.0
        if expected > done:
            share = done / expected
            bar = f"[{'#' * int(share * WIDTH):<{WIDTH}}] " if self.is_drawn_over else ""
            words = f"{bar}{words} of about {expected:,} ({int(100 * share)} %)"
            words += f", {(expected - done) / rate:.0f} s left" if rate >= 1 else ""
        words += f", {rate:,.0f} rows/s" if rate else ""
        held_s = last_s - self._round_since_s
        words += f", VACUUM held back for about {held_s:.0f} s" if held_s >= 1 else ""
        return f"{words}, {counted(len(self._places), 'round')} seen, {chunk.snapshot_id}"
