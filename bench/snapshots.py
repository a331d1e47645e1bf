"""A whole table as the bridge sends it, beside psql's COPY of it; and what a snapshot does to events meanwhile."""

from __future__ import annotations

import asyncio
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import nats
from nats.errors import Error as NatsError
from nats.js.errors import NotFoundError

from actors.embedded.nats import NatsServer
from bench.servers import Servers
from bench.usage import UsageSampler
from bench.workload import PUBLICATION, empty_table
from tests.servers import Bridge

PATIENCE_S = 300.0
FORMATS: dict[str, tuple[str, ...]] = {"map": (), "map, zstd": ("--zstd",), "array": ("--snapshot-format", "array")}


@dataclass(frozen=True, slots=True)
class CopyRun:
    """psql -c "COPY ... TO STDOUT" > /dev/null."""

    rows_per_s: float


@dataclass(frozen=True, slots=True)
class SnapshotRun:
    """One snapshot of a bridge that does nothing else."""

    rows_per_s: float
    """From the request to the meta stored: the watermark and all that is opened first count too."""
    cpu_us_per_row: float
    rss_idle_mb: float
    rss_peak_mb: float
    mb: float
    """Of chunks, as sent."""


def write_table(servers: Servers, rows: int) -> None:
    """Fill the table that both copy."""
    empty_table(servers)
    with servers.connect() as connection:
        connection.execute("SET synchronous_commit = off")
        connection.execute("CALL fill(%s, 10000)", [rows])
        connection.execute("VACUUM (ANALYZE) bench")
        connection.execute("CHECKPOINT")


def copy_table(servers: Servers, rows: int) -> CopyRun:
    """COPY it once."""
    psql = [str(servers.postgres.bin_dir / "psql"), servers.postgres.dsn(), "-qXc", "COPY bench TO STDOUT"]
    began = time.monotonic()
    subprocess.run(psql, stdout=subprocess.DEVNULL, check=True)
    return CopyRun(rows / (time.monotonic() - began))


def snapshot_table(servers: Servers, rows: int, flags: tuple[str, ...]) -> SnapshotRun:
    """Ask a new bridge on an empty nats-server for the table once."""
    with servers.new_slot() as slot, servers.new_nats() as server:
        bridge = Bridge(servers.postgres.dsn(), server, servers.folder, *flags, slot=slot, pub=PUBLICATION)
        try:
            bridge.start()
            assert bridge.process is not None
            time.sleep(0.5)
            usage = UsageSampler(bridge.process.pid)
            before = usage.sample()
            asked = time.time()
            bridge.post("/snapshot/bench")
            done = asyncio.run(_meta_stored_at(server, "bench"))
            after, peak = usage.sample(), usage.peak_rss_mb()
            (progress,) = bridge.status()["snapshots"]
            if progress["state"] != "done" or progress["rows"] != rows:
                raise RuntimeError(f"the snapshot is incomplete: {progress}; {bridge.log()[-4000:]}")
            return SnapshotRun(
                rows / (done - asked), (after.cpu_s - before.cpu_s) / rows * 1e6, before.rss_mb, peak, progress["bytes"] / 1e6
            )  # fmt: skip
        finally:
            bridge.kill()


@contextmanager
def snapshots_meanwhile(bridge: Bridge) -> Iterator[None]:
    """Ask for the big table again as soon as it is done, from a thread."""
    ended = threading.Event()

    def ask() -> None:
        while not ended.wait(0.05):
            running = {s["state"] for s in bridge.status().get("snapshots", [])}
            if not running & {"running", "waiting"}:
                bridge.post("/snapshot/bench_big")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


async def _meta_stored_at(server: NatsServer, token: str) -> float:
    client = await nats.connect(server.url, allow_reconnect=False)
    deadline = time.monotonic() + PATIENCE_S
    try:
        while time.monotonic() < deadline:
            try:
                message = await client.jetstream().get_last_msg("INIT", f"init.meta.{token}")
            except (NotFoundError, NatsError):
                await asyncio.sleep(0.05)
                continue
            assert message.time is not None
            return message.time.timestamp()
        raise RuntimeError("no snapshot within five minutes")
    finally:
        await client.close()
