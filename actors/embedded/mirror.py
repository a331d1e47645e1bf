"""A mirror in a process of its own, for tests and the benchmark. Reading its replica is up to the caller."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from actors.embedded.bridge import HANG_S, clean_environment, nats_environment
from actors.embedded.nats import NatsServer
from actors.embedded.process import free_port


class MirrorProcess:
    """`walbridge mirror` as users run it, with a log file. Owns the process; `running` kills what is left."""

    def __init__(
        self, nats: NatsServer | str, to: str, folder: Path, *flags: str, env: Mapping[str, str] | None = None
    ) -> None:
        """`nats` is a server (its credentials are passed on) or a URL; `env` is added to, and beats, what we set."""
        self.to = to
        self.env = {**clean_environment(), **nats_environment(nats), **(env or {})}
        self.log_path = folder / f"mirror-{free_port()}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._flags = flags

    def start(self) -> None:
        """Start, or start again with the same log."""
        argv = [sys.executable, "-m", "walbridge", "mirror", "--to", self.to, *self._flags]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(argv, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)

    def kill(self) -> None:
        """kill -9, if it still runs."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> int:
        """SIGTERM; returns the exit code of the ordered stop."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(HANG_S)

    def log(self) -> str:
        """Everything it wrote so far, over all starts."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Start it, and kill it at the end."""
        self.start()
        try:
            yield self
        finally:
            self.kill()
