"""The command: `python -m bench.rounds --rows 20000000`: what a snapshot in rounds costs, and what kills add to it.

First the table is sent once by a bridge that is killed several times: how many rows PostgreSQL has read by its own
statistics, how old a transaction of the bridge was at any sample, how much memory the bridge had. Then rows per second of
`+ranges` with 1, 2 and 4 connections are compared with the complete snapshot and with `pg_dump | psql`, in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import nats
import nats.errors
import nats.js.errors
import psutil
import psycopg

from actors.contract.decoding import decode_message
from actors.contract.records import RangesChunk
from actors.contract.subjects import RANGES, snapshot_of_table
from actors.embedded.bridge import Bridge
from actors.embedded.nats import NatsServer
from bench.servers import Servers, open_servers

TABLE, PUBLICATION = "narrow", "narrow_pub"
PATIENCE_S = 7200.0
SAMPLE_S = 0.05
AGE = (
    "SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0)::float8 FROM pg_stat_activity"
    " WHERE application_name = 'walbridge snapshot' AND state <> 'idle'"
)
READ = f"SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_user_tables WHERE relname = '{TABLE}'"


def main() -> int:
    """Measure and print; 1 when a bound was not kept."""
    parser = argparse.ArgumentParser(prog="python -m bench.rounds", description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--round-s", type=int, default=2)
    parser.add_argument("--rate-rows", type=int, default=2_000_000, help="rows of the table whose rates are compared")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    with open_servers() as servers:
        _fill(servers, options.rows)
        killed = _killed(servers, options.rows, options.kills, options.round_s)
        rates: dict[str, list[float]] = {}
        if options.repeat:
            _fill(servers, options.rate_rows)
            ways = {f"rounds, {n} connections": ("--snapshot-parallel", str(n)) for n in (1, 2, 4)}
            for _ in range(options.repeat):
                for name, flags in ways.items():
                    rates.setdefault(name, []).append(_rate(servers, options.rate_rows, flags, in_rounds=True))
                rates.setdefault("complete snapshot", []).append(_rate(servers, options.rate_rows, (), in_rounds=False))
                rates.setdefault("pg_dump | psql", []).append(_dump(servers, options.rate_rows))
    print(f"{options.rows:,} rows, --snapshot-round-s {options.round_s}, {options.kills} kills")
    print(f"  rows read by PostgreSQL: {killed.rows_read / options.rows:.3f} of the table (at most 1.05)")
    print(f"  oldest transaction of the bridge: {killed.oldest_s:.1f} s (at most 5)")
    print(f"  memory above idle: {killed.rss_over_mb:.0f} MB (at most 40)")
    print(f"  {killed.seconds:.0f} s, {killed.rounds} rounds")
    for name, found in rates.items():
        print(f"  {name:<24} {statistics.median(found):>12,.0f} rows/s")
    return 0 if killed.rows_read <= 1.05 * options.rows and killed.oldest_s <= 5 and killed.rss_over_mb <= 40 else 1


def _fill(servers: Servers, rows: int) -> None:
    with servers.connect() as connection:
        connection.execute(f"DROP PUBLICATION IF EXISTS {PUBLICATION}".encode())
        connection.execute(f"DROP TABLE IF EXISTS {TABLE}".encode())
        connection.execute(f"CREATE TABLE {TABLE} (id bigint PRIMARY KEY, v int)".encode())
        connection.execute(f"INSERT INTO {TABLE} SELECT g, g FROM generate_series(1, {rows}) g".encode())
        connection.execute(f"VACUUM (ANALYZE, FREEZE) {TABLE}".encode())
        connection.execute(f"CREATE PUBLICATION {PUBLICATION} FOR TABLE {TABLE}".encode())
        connection.execute("CHECKPOINT")


@dataclass
class Killed:
    """One snapshot amid kills."""

    rows_read: int = 0
    oldest_s: float = 0.0
    rss_over_mb: float = 0.0
    seconds: float = 0.0
    rounds: int = 0
    """That were seen."""
    places: set[int] = field(default_factory=set)


def _killed(servers: Servers, rows: int, kills: int, round_s: int) -> Killed:
    found = Killed()
    with servers.new_slot() as slot, servers.new_nats() as server:
        flags = ("--snapshot-round-s", str(round_s))
        bridge = Bridge(servers.postgres.dsn(), server, servers.folder, *flags, slot=slot, pub=PUBLICATION)
        with _sampled(servers, bridge, found), _ended(bridge):
            bridge.start()
            time.sleep(1)  # idle
            with servers.connect() as connection:
                connection.execute("SELECT pg_stat_reset()")
            began = time.monotonic()
            bridge.post(f"/snapshot/{TABLE}?rounds=yes")
            for number in range(1, kills + 1):
                _wait_for_rows(server, number * rows // (kills + 1), found)
                bridge.kill()
                bridge.start()
            _wait_for_rows(server, rows, found)
            found.seconds = time.monotonic() - began
        time.sleep(2)  # a backend that ends reports what it has read
        with servers.connect() as connection:
            ((read,),) = connection.execute(READ.encode()).fetchall()
            found.rows_read = int(read)
    found.rounds = len(found.places)
    return found


@contextmanager
def _ended(bridge: Bridge) -> Iterator[None]:
    """End the bridge after the body."""
    try:
        yield
    finally:
        bridge.kill()


@contextmanager
def _sampled(servers: Servers, bridge: Bridge, into: Killed) -> Iterator[None]:
    """Look at the age of the bridge's transactions and at its memory, in a thread."""
    ended, idle_mb = threading.Event(), dict[int, float]()

    def look() -> None:
        with servers.connect() as connection:
            while not ended.wait(SAMPLE_S):
                ((age,),) = connection.execute(AGE.encode()).fetchall()
                into.oldest_s = max(into.oldest_s, float(age))
                process = bridge.process
                if process is None or process.poll() is not None:
                    continue
                with suppress(psutil.Error):
                    mb = psutil.Process(process.pid).memory_info().rss / 1e6
                    if not idle_mb and bridge.get("/ready")[0] == 200:
                        idle_mb[0] = mb
                    if idle_mb:
                        into.rss_over_mb = max(into.rss_over_mb, mb - idle_mb[0])

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _wait_for_rows(server: NatsServer, rows: int, found: Killed) -> None:
    """Until chunks with so many rows are stored; for all of them, until the snapshot has ended."""

    async def wait() -> None:
        client = await nats.connect(server.url, allow_reconnect=False)
        try:
            deadline = time.monotonic() + PATIENCE_S
            while time.monotonic() < deadline:
                with suppress(nats.js.errors.NotFoundError, nats.errors.Error):
                    last: Any = await client.jetstream().get_last_msg("INIT", snapshot_of_table(TABLE + RANGES)[1])
                    (chunk,) = decode_message(last.subject, last.headers or {}, last.data)
                    assert isinstance(chunk, RangesChunk)
                    found.places.add(chunk.snapshot_lsn)
                    if chunk.row_count >= rows:
                        return
                await asyncio.sleep(0.05)
            raise RuntimeError(f"fewer than {rows:,} rows within {PATIENCE_S:g} s")
        finally:
            await client.close()

    asyncio.run(wait())


def _rate(servers: Servers, rows: int, flags: tuple[str, ...], *, in_rounds: bool) -> float:
    """Rows per second, from the request until the bridge says that the snapshot is complete."""
    with servers.new_slot() as slot, servers.new_nats() as server:
        bridge = Bridge(servers.postgres.dsn(), server, servers.folder, *flags, slot=slot, pub=PUBLICATION)
        with _ended(bridge):
            bridge.start()
            time.sleep(0.5)
            began = time.monotonic()
            bridge.post(f"/snapshot/{TABLE}" + ("?rounds=yes" if in_rounds else ""))
            while not (snapshots := bridge.status()["snapshots"]) or snapshots[0]["state"] in ("waiting", "running"):
                time.sleep(0.05)
            seconds = time.monotonic() - began
            if snapshots[0]["rows"] != rows:
                raise RuntimeError(f"the snapshot is incomplete: {snapshots[0]}; {bridge.log()[-4000:]}")
            return rows / seconds


def _dump(servers: Servers, rows: int) -> float:
    """Rows per second of `pg_dump | psql` into another database of the same server."""
    with servers.connect() as connection:
        connection.execute("DROP DATABASE IF EXISTS copy_of_it WITH (FORCE)")
        connection.execute("CREATE DATABASE copy_of_it TEMPLATE template0")
    folder, began = servers.postgres.bin_dir, time.monotonic()
    dump = subprocess.Popen(
        [str(folder / "pg_dump"), "-d", servers.postgres.dsn(), "-t", TABLE, "--no-publications"], stdout=subprocess.PIPE
    )
    psql = [str(folder / "psql"), servers.postgres.dsn("copy_of_it"), "-qX", "-v", "ON_ERROR_STOP=1"]
    subprocess.run(psql, stdin=dump.stdout, stdout=subprocess.DEVNULL, check=True)
    if dump.wait():
        raise RuntimeError(f"pg_dump ended with {dump.returncode}")
    seconds = time.monotonic() - began
    with psycopg.connect(servers.postgres.dsn("copy_of_it")) as copy:
        if copy.execute(f"SELECT count(*) FROM {TABLE}".encode()).fetchall() != [(rows,)]:
            raise RuntimeError("pg_dump | psql has not copied all rows")
    return rows / seconds


if __name__ == "__main__":
    sys.exit(main())
