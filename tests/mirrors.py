"""A running mirror in a test's hands, and its replica read without it."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg

from actors.embedded import mirror as embedded_mirror
from actors.embedded.nats import NatsServer
from tests.compose_stack import ComposeNats
from tests.servers import HANG_S, ROOT


class MirrorProcess(embedded_mirror.MirrorProcess):
    """A mirror on a server of the tests' own or on the compose stack's, which has a user for mirrors."""

    def __init__(self, nats: NatsServer | str, to: str, folder: Path, *flags: str) -> None:
        env = nats.environment_of("mirror") if isinstance(nats, ComposeNats) else None
        super().__init__(nats, to, folder, *flags, env=env)

    def start_with(self, *flags: str) -> None:
        """Start it once with more flags, as its documents say for `--again`."""
        usual, self._flags = self._flags, (*self._flags, *flags)
        try:
            self.start()
        finally:
            self._flags = usual

    def verify(self, source: str, *flags: str) -> subprocess.CompletedProcess[str]:
        """Run `walbridge verify` against it."""
        env = {**self.env, "DATABASE_URL": source}
        command = [sys.executable, "-m", "actors.main", "verify", "--to", self.to, *flags]
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=4 * HANG_S, check=False)

    def assert_equal(self, source: str, *flags: str) -> None:
        """`verify` says that it equals its source."""
        done = self.verify(source, *flags)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{self.log()[-6000:]}"

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Ask the replica, over a connection of the test's own."""
        if self.to.startswith("sqlite"):
            with closing(sqlite3.connect(self.to.removeprefix("sqlite:///"), timeout=30)) as replica:
                return replica.execute(sql).fetchall()
        with psycopg.connect(self.to) as connection:
            return connection.execute(sql.encode()).fetchall()

    def change(self, sql: str) -> None:
        """Do to the replica what nobody should."""
        if self.to.startswith("sqlite"):
            with closing(sqlite3.connect(self.to.removeprefix("sqlite:///"), timeout=30)) as replica, replica:
                replica.execute(sql)
            return
        with psycopg.connect(self.to) as connection:
            connection.execute(sql.encode())

    def own(self, name: str) -> str:
        """One of the mirror's own tables."""
        return f"_walbridge_{name}" if self.to.startswith("sqlite") else f"_walbridge.{name}"

    def wait_live(self, count: int) -> None:
        """Until so many tables are live."""
        self.wait_until(lambda: self.query(f"SELECT count(*) FROM {self.own('tables')} WHERE state = 'live'") == [(count,)])

    def wait_for(self, sql: str, expected: list[tuple[Any, ...]]) -> None:
        """Until a query on the replica returns these rows."""
        self.wait_until(lambda: self.query(sql) == expected, lambda: f"{sql}: {self.query(sql)}, not {expected}")

    def wait_until(self, condition: Callable[[], bool], words: Callable[[], str] = lambda: "never came true") -> None:
        """Until it is so; an error of the replica's database counts as: not yet."""
        deadline = time.monotonic() + HANG_S
        while True:
            try:
                if condition():
                    return
            except (sqlite3.Error, psycopg.Error) as exc:
                words = lambda exc=exc: repr(exc)  # type: ignore[misc]  # noqa: E731
            assert self.process is None or self.process.poll() is None, self.log()[-6000:]
            assert time.monotonic() < deadline, f"{words()}\n{self.log()[-6000:]}"
            time.sleep(0.05)
