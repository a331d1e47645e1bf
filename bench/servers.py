"""PostgreSQL 18 and nats-server for a benchmark, and the processes that are measured."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import nats
import psutil
import psycopg

from actors.tools.embedded_nats import NatsServer, find_nats_server
from actors.tools.embedded_postgres import PostgresServer, find_postgres_bin_dir, reachable_bin_dir
from actors.tools.server_process import free_port, unprivileged_account

SETTINGS = {"shared_buffers": "256MB", "max_wal_size": "4GB", "synchronous_commit": "off"}
TABLE = """
CREATE TABLE users (id bigint, name text, email text, age int, price numeric, created_at timestamptz);
CREATE PUBLICATION cdc_pub FOR TABLE users WITH (publish = 'insert');
"""


@dataclass(frozen=True, slots=True)
class Servers:
    """Both servers, with the table and the publication made."""

    postgres: PostgresServer
    nats: NatsServer
    bin_dir: Path

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """Run one statement on a connection of its own, each statement its own transaction."""
        with psycopg.connect(self.postgres.dsn(), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []


@contextmanager
def running_servers() -> Iterator[Servers]:
    """Both servers in a temporary folder, gone at the end."""
    with tempfile.TemporaryDirectory(prefix="walbridge-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o711)
        bin_dir = reachable_bin_dir(find_postgres_bin_dir(), unprivileged_account(), folder)
        postgres = PostgresServer(bin_dir, folder / "postgres", port=free_port(), settings=SETTINGS, password="bench")
        nats_server = NatsServer(find_nats_server(), folder / "nats", port=free_port())
        try:
            postgres.initdb()
            postgres.start()
            nats_server.start()
            servers = Servers(postgres, nats_server, bin_dir)
            for statement in TABLE.strip().split(";")[:-1]:
                servers.execute(statement)
            yield servers
        finally:
            nats_server.stop()
            postgres.stop("immediate")


class BridgeProcess:
    """One bridge under measurement: CPU seconds, memory, and what it has stored."""

    def __init__(self, servers: Servers, mode: str) -> None:
        self.port = free_port()
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "NATS_", "DATABASE_URL", "BRIDGE_"))}
        env |= {"DATABASE_URL": servers.postgres.dsn(), "NATS_URL": servers.nats.url, "LOG_LEVEL": "WARNING"}
        command = [sys.executable, "-m", "actors.main", "--publish", mode, "--port", str(self.port)]
        self._process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
        self._ps = psutil.Process(self._process.pid)

    def wait_ready(self) -> None:
        """Until it streams."""
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ready", timeout=5):
                    return
            except OSError:
                if self._process.poll() is not None:
                    raise RuntimeError(f"the bridge ended with {self._process.returncode}") from None
                time.sleep(0.02)

    def cpu_s(self) -> float:
        """User and system time so far."""
        times = self._ps.cpu_times()
        return float(times.user + times.system)

    def rss_bytes(self) -> int:
        """Resident memory now."""
        return int(self._ps.memory_info().rss)

    def peak_rss_bytes(self) -> int:
        """The most it ever was."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))

    def stop(self) -> None:
        """Drain and end."""
        self._process.terminate()
        self._process.wait()


def pg_recvlogical_s(servers: Servers, slot: str, end_lsn: str) -> float:
    """Seconds that pg_recvlogical takes to read the slot up to `end_lsn` into /dev/null."""
    command = [
        str(servers.bin_dir / "pg_recvlogical"), "-d", servers.postgres.dsn(), "-S", slot, "--start", "-f", "/dev/null",
        "-o", "proto_version=1", "-o", "publication_names=cdc_pub", "--endpos", end_lsn, "--no-loop",
    ]  # fmt: skip
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


@dataclass(frozen=True, slots=True)
class Stored:
    """One message: when JetStream stored it and when PostgreSQL committed it, unix seconds."""

    stored_s: float
    commit_s: float


def read_stored(url: str, first_seq: int, last_seq: int, every: int = 1) -> list[Stored]:
    """Messages of stream CDC from `first_seq` to `last_seq`, each `every`-th, by nats-py."""

    async def read() -> list[Stored]:
        connection = await nats.connect(url)
        found: list[Stored] = []
        for seq in range(first_seq, last_seq + 1, every):
            reply = await connection.request("$JS.API.DIRECT.GET.CDC", b'{"seq":%d}' % seq, timeout=10)
            stamp = (reply.headers or {})["Nats-Time-Stamp"]
            found.append(Stored(_unix_s(stamp), msgpack.unpackb(reply.data)["commit_ts"] / 1e6))
        await connection.close()
        return found

    return asyncio.run(read())


def last_sequence(url: str) -> int:
    """Of stream CDC; 0 when there is none."""

    async def read() -> int:
        connection = await nats.connect(url)
        try:
            return int((await connection.jetstream().stream_info("CDC")).state.last_seq)
        except nats.js.errors.NotFoundError:
            return 0
        finally:
            await connection.close()

    return asyncio.run(read())


def _unix_s(stamp: str) -> float:
    """RFC 3339 with nanoseconds."""
    whole, _, fraction = stamp.rstrip("Z").partition(".")
    seconds = time.mktime(time.strptime(whole + " UTC", "%Y-%m-%dT%H:%M:%S %Z")) - time.timezone
    return seconds + float("0." + (fraction or "0"))
