"""The command line of the benchmark."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.servers import BridgeProcess, Servers, last_sequence, pg_recvlogical_s, read_stored, running_servers

METHOD = """\
Backlog: the rows are committed while the bridge is down; then pg_recvlogical reads them from a slot of its own into /dev/null
(wall time of the process), and the bridge drains its slot into one JetStream file stream (first to last stored message, by
JetStream's clock). CPU: of the bridge's process, less what an idle start takes. RSS: VmHWM of that process. Each figure is the
median of the runs; the ratio is taken run by run. Latency: JetStream's time of storing less PostgreSQL's time of commit, same
clock, every 10th of the messages. PostgreSQL, nats-server and the bridge share the machine."""
ROW = "i, 'User-' || i, 'user' || i || '@example.com', i % 90, 1.5 * i, now()"


def load(servers: Servers, rows: int, per_transaction: int) -> str:
    """Commit a backlog; returns where the WAL ends behind it."""
    servers.execute(
        f"""DO $$ BEGIN FOR t IN 0..{rows // per_transaction - 1} LOOP
          INSERT INTO users SELECT {ROW} FROM generate_series(t * {per_transaction} + 1, (t + 1) * {per_transaction}) i; COMMIT;
        END LOOP; END $$"""
    )
    ((lsn,),) = servers.execute("SELECT pg_current_wal_insert_lsn()::text")
    return str(lsn)


def drain(servers: Servers, mode: str, rows: int, idle_cpu_s: float) -> dict[str, float]:
    """Start a bridge on a backlog of `rows` and follow it to the end."""
    before = last_sequence(servers.nats.url)
    bridge = BridgeProcess(servers, mode)
    bridge.wait_ready()
    while (last := last_sequence(servers.nats.url)) < before + rows:
        time.sleep(0.1)
    cpu_s, peak = bridge.cpu_s() - idle_cpu_s, bridge.peak_rss_bytes()
    bridge.stop()
    first, end = read_stored(servers.nats.url, before + 1, last, max(1, last - before - 1))
    return {
        "events_per_s": rows / (end.stored_s - first.stored_s),
        "cpu_us_per_event": cpu_s / rows * 1e6,
        "peak_rss_mb": peak / 1e6,
    }


def backlog(servers: Servers, mode: str, rows: int, per_transaction: int, idle_cpu_s: float) -> dict[str, float]:
    """One run of both readers on the same rows."""
    servers.execute("SELECT pg_create_logical_replication_slot('limit', 'pgoutput')")
    end_lsn = load(servers, rows, per_transaction)
    limit = rows / pg_recvlogical_s(servers, "limit", end_lsn)
    servers.execute("SELECT pg_drop_replication_slot('limit')")
    figures = drain(servers, mode, rows, idle_cpu_s)
    return figures | {"pg_recvlogical_per_s": limit, "ratio": figures["events_per_s"] / limit}


def latency(servers: Servers, rate: int, seconds: int) -> dict[str, float]:
    """One-row transactions at a steady rate, from commit to stored."""
    bridge = BridgeProcess(servers, "auto")
    bridge.wait_ready()
    time.sleep(1)
    before, cpu_s, began = last_sequence(servers.nats.url), bridge.cpu_s(), time.perf_counter()
    rows = rate * seconds
    servers.execute(
        f"""DO $$ DECLARE began timestamptz := clock_timestamp(); BEGIN FOR i IN 1..{rows} LOOP
          INSERT INTO users SELECT {ROW}; COMMIT;
          IF i % 5 = 0 THEN
            PERFORM pg_sleep(greatest(0, {1 / rate} * i - extract(epoch FROM clock_timestamp() - began)));
          END IF;
        END LOOP; END $$"""
    )
    took = time.perf_counter() - began
    while last_sequence(servers.nats.url) < before + rows:
        time.sleep(0.05)
    cpu_s = bridge.cpu_s() - cpu_s
    bridge.stop()
    ages = sorted((s.stored_s - s.commit_s) * 1e3 for s in read_stored(servers.nats.url, before + 1, before + rows, 10))
    return {
        "events_per_s": rows / took,
        "p50_ms": ages[len(ages) // 2],
        "p99_ms": ages[int(len(ages) * 0.99)],
        "cpu_us_per_event": cpu_s / rows * 1e6,
    }


def idle(servers: Servers) -> tuple[float, float]:
    """CPU seconds of a start on nothing, and resident megabytes then. Makes slot and streams, too."""
    bridge = BridgeProcess(servers, "auto")
    bridge.wait_ready()
    time.sleep(0.5)
    figures = bridge.cpu_s(), bridge.rss_bytes() / 1e6
    bridge.stop()
    return figures


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """Of each figure."""
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rows", type=int, default=300_000, help="of a backlog [300000]")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each backlog [3]")
    parser.add_argument("--rate", type=int, default=5_000, help="transactions a second for latency [5000]")
    parser.add_argument("--seconds", type=int, default=10, help="of the latency run [10]")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args()
    console = Console(stderr=True)
    results: dict[str, Any] = {"machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"}
    with running_servers() as servers:
        results["postgresql"] = servers.execute("SHOW server_version")[0][0]
        idle_cpu_s, results["idle_rss_mb"] = idle(servers)
        for per_transaction in (1000, 1):
            for mode in ("fast", "plain"):
                name = f"{options.rows:,} rows, {per_transaction:,} a transaction, {mode}"
                console.print(f"measuring {name} ...")
                runs = [backlog(servers, mode, options.rows, per_transaction, idle_cpu_s) for _ in range(options.repeat)]
                results[name] = {"runs": runs, "median": medians(runs)}
        console.print(f"measuring latency at {options.rate:,} transactions/s ...")
        results["latency"] = latency(servers, options.rate, options.seconds)
    show(results)
    if options.json:
        options.json.write_text(json.dumps({"method": METHOD, **results}, indent=1))
    return 0


def show(results: dict[str, Any]) -> None:
    """The table, and how it was measured."""
    table = Table(
        title=f"Walbridge and pg_recvlogical > /dev/null   ({results['machine']}, PostgreSQL {results['postgresql']})"
    )
    for column in ("backlog", "events/s", "pg_recvlogical/s", "ratio", "CPU us/event", "peak RSS MB"):
        table.add_column(column, justify="left" if column == "backlog" else "right", no_wrap=True)
    for name, figures in results.items():
        if isinstance(figures, dict) and "median" in figures:
            m = figures["median"]
            table.add_row(
                name, f"{m['events_per_s']:,.0f}", f"{m['pg_recvlogical_per_s']:,.0f}", f"{m['ratio']:.2f}",
                f"{m['cpu_us_per_event']:.1f}", f"{m['peak_rss_mb']:.0f}",
            )  # fmt: skip
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    at_rate = results["latency"]
    console.print(
        f"latency at {at_rate['events_per_s']:,.0f} one-row transactions/s: p50 {at_rate['p50_ms']:.2f} ms, "
        f"p99 {at_rate['p99_ms']:.2f} ms, {at_rate['cpu_us_per_event']:.0f} us of CPU an event.   "
        f"idle RSS {results['idle_rss_mb']:.0f} MB\n\n{METHOD}"
    )


if __name__ == "__main__":
    sys.exit(main())
