"""What happened in one run, line by line: two runs of a seed must write the same lines."""

from __future__ import annotations

import hashlib
import sys

import trio


class Trace:
    """Lines with the time. Only their hash and the newest are kept, unless they are shown."""

    def __init__(self, *, shown: bool = False) -> None:
        self._hash = hashlib.sha256()
        self.shown = shown
        self.lines = 0

    def __call__(self, who: str, what: str) -> None:
        line = f"{trio.current_time():10.4f} {who}: {what}"
        self._hash.update(line.encode("utf-8", "replace") + b"\n")
        self.lines += 1
        if self.shown:
            print(line[:400], file=sys.stderr)

    @property
    def digest(self) -> str:
        """Of all lines."""
        return f"{self.lines} lines {self._hash.hexdigest()[:16]}"
