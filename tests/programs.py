"""Consumers as programs of their own: what the documents print, and what stands in `consumers/`."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers import HANG_S, ROOT


@contextmanager
def running(output: Path, nats_url: str, *command: str) -> Iterator[Path]:
    """A consumer at work; gives the file with what it prints. What its client says of faults is in another one."""
    with output.open("wb") as file, output.with_suffix(".err").open("wb") as errors:
        process = subprocess.Popen(
            command, stdout=file, stderr=errors, env={**os.environ, "NATS_URL": nats_url, "PYTHONPATH": str(ROOT)}
        )
        try:
            yield output
        finally:
            process.kill()
            process.wait()


def printed(output: Path, count: int) -> list[str]:
    """The lines that a consumer has printed, once there are `count` of them."""
    deadline = time.monotonic() + HANG_S
    while len(lines := output.read_text(encoding="utf-8").split("\n")[:-1]) < count:  # a line may be half written
        assert time.monotonic() < deadline, lines
        time.sleep(0.05)
    return lines
