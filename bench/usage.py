"""What a process costs: CPU time and memory, looked at from outside."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Sample:
    """A process at one moment."""

    at: float
    """Seconds since 1970."""
    cpu_s: float
    """User and system time since its start; the kernel counts in steps of 10 ms."""
    rss_mb: float


def busy_cores() -> float:
    """How many cores the whole machine uses now; blocks for half a second."""
    return float(psutil.cpu_percent(interval=0.5)) / 100 * (psutil.cpu_count() or 1)


class UsageSampler:
    """Looks at one process again and again and remembers what it saw."""

    def __init__(self, pid: int) -> None:
        self._process: Any = psutil.Process(pid)
        self._samples: list[Sample] = []

    def sample(self) -> Sample:
        """Look now. Raises psutil.NoSuchProcess when the process is gone."""
        with self._process.oneshot():
            cpu, rss_bytes = self._process.cpu_times(), self._process.memory_info().rss
        self._samples.append(Sample(time.time(), cpu.user + cpu.system, rss_bytes / MB))
        return self._samples[-1]

    def last_before(self, at: float) -> Sample:
        """The newest sample from before a moment, or the oldest of all."""
        return next((sample for sample in reversed(self._samples) if sample.at <= at), self._samples[0])

    def peak_rss_mb(self) -> float:
        """The most memory it ever had (VmHWM); the most that was seen where there is no /proc."""
        try:
            status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="utf-8")
        except OSError:
            return max(sample.rss_mb for sample in self._samples)
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found is not None, "a running process has VmHWM"
        return int(found[1]) * 1024 / MB
