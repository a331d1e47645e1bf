"""A bridge in a process of its own, for tests and the benchmark: started, asked over HTTP, stopped or killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from actors.embedded.nats import NatsServer
from actors.embedded.process import free_port

HANG_S = 60.0
"""A wait of this length is a hang, and what waits fails with the log: never a measure of speed."""


def clean_environment() -> dict[str, str]:
    """This process's environment without what configures a bridge, a mirror or a client of PostgreSQL."""
    ours = ("SNAPSHOT_", "PG", "NATS_", "POSTGRES_", "DATABASE_URL", "BRIDGE_", "LOG_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def nats_environment(server: NatsServer | str) -> dict[str, str]:
    """The variables with which a bridge or a mirror connects to a server, or to a URL."""
    if isinstance(server, str):
        return {"NATS_URL": server}
    env = {"NATS_URL": server.url}
    if server.token is not None:
        env["NATS_TOKEN"] = server.token
    for name, password in list(server.users.items())[:1]:
        env |= {"NATS_BRIDGE_USER": name, "NATS_BRIDGE_PASSWORD": password}
    return env


class Bridge:
    """The bridge as users run it: `python -m walbridge` in a process of its own, with a log file.

    Owns the process from `start` to `stop` or `kill`; a context manager starts it, waits until it is ready, and kills
    what is left at the end. `start` again after either continues with the same port and the same log.
    """

    def __init__(
        self, database_url: str, nats: NatsServer | str, folder: Path, *flags: str,
        slot: str = "cdc_slot", pub: str = "cdc_pub", env: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """`nats` is a server (its credentials are passed on) or a URL; `env` is added to, and beats, what we set."""
        self.port = free_port()
        self.log_path = folder / f"bridge-{self.port}.log"
        self.argv = [sys.executable, "-m", "walbridge", "--slot", slot, "--pub", pub,
                     "--port", str(self.port), *flags]  # fmt: skip
        self.env = {**clean_environment(), "DATABASE_URL": database_url, **nats_environment(nats), **(env or {})}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, ready: bool = True) -> None:
        """Start the process and, with `ready`, wait until it streams."""
        if self.process is not None and self.process.poll() is None:
            raise RuntimeError("already running")
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.argv, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        if ready:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Return when GET /ready answers 200; AssertionError with the log when the process ends or hangs instead."""
        deadline = time.monotonic() + HANG_S
        while self.get("/ready")[0] != 200:
            if self.exit_code is not None or time.monotonic() > deadline:
                raise AssertionError(f"not ready, exit code {self.exit_code}:\n{self.log()[-4000:]}")
            time.sleep(0.02)

    @property
    def exit_code(self) -> int | None:
        """None while the process runs, negative when a signal ended it."""
        return self.process.poll() if self.process is not None else None

    def signal(self, sig: signal.Signals) -> None:
        """Send a signal to the process."""
        assert self.process is not None
        self.process.send_signal(sig)

    def wait(self) -> int:
        """Wait for the process's own end and return its exit code."""
        assert self.process is not None
        try:
            return self.process.wait(HANG_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"did not end:\n{self.log()[-4000:]}") from None

    def stop(self) -> int:
        """SIGTERM; returns the exit code of the ordered stop."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """kill -9, if it still runs."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def log(self) -> str:
        """Everything it wrote so far, over all starts."""
        return self.log_path.read_text(encoding="utf-8", errors="replace") if self.log_path.exists() else ""

    def get(self, path: str) -> tuple[int, str]:
        """GET: status code and body; status 0 when nobody answers."""
        return self._request(urllib.request.Request(f"http://127.0.0.1:{self.port}{path}"))

    def post(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
        """POST without a body: status code and body; status 0 when nobody answers."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=b"", headers=dict(headers or {}))
        return self._request(request)

    def status(self) -> dict[str, Any]:
        """GET /status."""
        return dict(json.loads(self.get("/status")[1]))

    def metrics(self) -> str:
        """GET /metrics, Prometheus text."""
        return self.get("/metrics")[1]

    def __enter__(self) -> Bridge:
        self.start()
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None,
                 _trace: TracebackType | None) -> None:  # fmt: skip
        self.kill()

    @staticmethod
    def _request(request: urllib.request.Request) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""
