"""The command: `python -m tests.node_figures [--rows 100000] [--rate 500] [--stores node-sqlite,better-sqlite3,pglite]`.

The JavaScript client in Node: how fast each store takes a copy and a backlog, and how long a change is on its way. In a store that
is not installed there is nothing to measure: better-sqlite3 is not among the client's packages.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from actors.embedded.nats import NatsServer, find_nats_server
from actors.embedded.postgres import PostgresServer, find_postgres_bin_dir, reachable_bin_dir
from actors.embedded.process import free_port, unprivileged_account
from tests.node_replicas import CLIENT, node_with_sqlite
from tests.servers import Bridge, Database, wait_until_drained
from tests.tab_amid_kills import changing
from tests.tabs import SCHEMA

READY_S = 300.0
ROWS_PER_TRANSACTION = 100
QUIET_S = 10.0


class Started:
    """A replica in a process, from its start until it is current."""

    def __init__(self, node: str, kind: str, path: Path, nats: NatsServer) -> None:
        argv = [node, "--no-warnings", str(CLIENT / "test" / "replica_process.js"), kind, str(path)]
        began = time.monotonic()
        self._process = subprocess.Popen(argv, env={**os.environ, "NATS_URL": nats.url}, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        while (line := self._process.stdout.readline().strip()) != "ready":
            if not line or time.monotonic() - began > READY_S:
                self._process.kill()
                raise RuntimeError(f"the replica is not ready: {line}")
        self.seconds = time.monotonic() - began

    def stop(self) -> dict[str, Any]:
        """End it; return what it says of the changes that it has applied."""
        self._process.send_signal(signal.SIGTERM)
        out, _ = self._process.communicate(timeout=READY_S)
        found: dict[str, Any] = json.loads(out.splitlines()[-1])
        return found


def measure(kind: str, rows: int, rate: int, folder: Path) -> str:
    """A line of the table."""
    programs = reachable_bin_dir(find_postgres_bin_dir(), unprivileged_account(), folder)
    postgres = PostgresServer(programs, folder / "postgres", port=free_port(), settings={}, password="figures")
    postgres.initdb()
    nats = NatsServer(find_nats_server(), folder / "nats", port=free_port())
    node = node_with_sqlite() if kind == "node-sqlite" else "node"
    with ExitStack() as stack:
        for server in (postgres, nats):
            server.start()
            stack.callback(server.stop)
        database = Database(postgres, "figures")
        stack.callback(database.close)
        database.execute(SCHEMA)
        database.execute(f"INSERT INTO users SELECT g, 'user ' || g, g * 1.5 FROM generate_series(1, {rows}) g")
        bridge = Bridge(database.dsn, nats, folder)
        bridge.start()
        stack.callback(bridge.kill)
        path = folder / "replica"
        copying = Started(node, kind, path, nats)
        copying.stop()
        idle = Started(node, kind, path, nats)
        idle.stop()
        with database.connect() as connection:
            for first in range(1_000_000, 1_000_000 + 2 * rows, ROWS_PER_TRANSACTION):
                many = "INSERT INTO users SELECT g, 'burst', 1 FROM generate_series(%s::int, %s) g"
                connection.execute(many.encode(), [first, first + ROWS_PER_TRANSACTION - 1])
        wait_until_drained(bridge, database)
        catching_up = Started(node, kind, path, nats)
        catching_up.stop()
        current = Started(node, kind, path, nats)
        with changing(database, rate):
            time.sleep(QUIET_S)
        said = current.stop()
        changes_per_s = 2 * rows / (catching_up.seconds - idle.seconds)
        return (
            f"| {kind} | {rows / (copying.seconds - idle.seconds):,.0f} | {changes_per_s:,.0f} | p50 {said['p50_ms']} ms, "
            f"p99 {said['p99_ms']} ms | {said['rss_mb']} MB |"
        )


def main() -> int:
    """Measure each store and print a Markdown table."""
    parser = argparse.ArgumentParser(prog="python -m tests.node_figures", description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rate", type=int, default=500)
    parser.add_argument("--stores", default="node-sqlite,pglite")
    arguments = parser.parse_args()
    print(
        f"| store | rows/s copied | changes/s of a backlog | at {arguments.rate} transactions/s | memory |\n|---|---|---|---|---|"
    )
    for kind in arguments.stores.split(","):
        with tempfile.TemporaryDirectory(prefix="walbridge-figures-") as folder:
            Path(folder).chmod(0o755)
            print(measure(kind, arguments.rows, arguments.rate, Path(folder)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
