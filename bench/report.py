"""Prints the results for people, or converts them to JSON."""

from __future__ import annotations

from dataclasses import asdict
from statistics import median
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from bench.bridge import LatencyRun, Mode
from bench.compression import SIZES_BYTES, TableResult
from bench.durable import SYNCS, DurableResults
from bench.kinds import KindResults
from bench.machine import cores
from bench.mirror import Kind, LagRun
from bench.run import ApplyResults, DrainResults, Results, medians
from bench.start import StartRun
from bench.workload import CONNECTIONS

METHOD = f"""\
Table bench (id bigint, name text, email text, age int, price numeric, created_at timestamptz), inserts only.
PostgreSQL with fsync=off, nats-server with its defaults (JetStream on disk, one replica), all on this machine.
Backlog: each reader gets a copy of one slot, so the same WAL; the readers take turns; the bridge gets an empty nats-server.
  pg_recvlogical  proto_version=1, to /dev/null; from its first byte of output to its last.
  bridge          python -m actors.main --publish fast | plain; from the first event stored to the last, by the
                  timestamps of the stored messages. start to end: from exec to the last event stored.
  of reader       the bridge's rate divided by pg_recvlogical's, within each round; the median of the rounds.
  CPU             of the bridge's process, from just before its first event to 0.3 s after its last, without imports.
  RSS             before: just before the first event. peak: VmHWM. MB are 10^6 bytes.
Latency: {CONNECTIONS} connections commit rows one by one at a steady rate, from loops inside the server. An event's latency
  is the timestamp of its JetStream message minus its commit_ts, PostgreSQL's time of commit: one clock, every event counted.
Snapshots: one snapshot of the table, by a bridge that does nothing else, from the request until its meta is stored (with
  the watermark, connections and catalog queries), beside psql -c "COPY bench TO STDOUT" > /dev/null in the same round.
  Events beside snapshots: the latency load while the same bridge repeatedly sends a table of as many rows.
Every figure is the median over the runs, each column separately."""
MIRROR_METHOD = f"""\
Mirrors: a table of the same columns, empty and live in the replica; then a backlog that the bridge has stored in the stream.
  Each run has a copy of the same replica. Rates count rows when they become visible there, from the first look that found
  rows to the look that found the last: max(id), every 10 ms, on its own connection. start to end: from exec to the last row.
  subscription    PostgreSQL's own: CREATE SUBSCRIPTION on a copy of the same slot, into a database of the same server.
  mirror          walbridge mirror --to sqlite:///... | postgresql://..., CPU and RSS of its process alone, the bridge stopped.
  of subscription the mirror's rate divided by the subscription's, within each round; the median of the rounds.
Lag: {CONNECTIONS} connections commit rows one by one, bridge and mirror running. From clock_timestamp() in the row, just before
  its commit, to the look that found the row in the replica: a look every 2 ms, every row counted.
  stored          the part of it from commit to stored in JetStream, by the stream's timestamps."""
DURABLE_METHOD = """\
Ways to publish: backlogs and latency as above; each round runs every way in turn. sync always: nats-server with sync_interval
  always, which writes to the disk before it acknowledges. fast and plain then sync each message, and get a tenth of the rows.
  alone           atomic batches of 1,000 messages of 268 bytes from a raw socket, four in flight, frames made beforehand.
  of fast, alone  divided by the rate of fast with the default sync, and by that of batches alone with the same sync."""
KINDS_METHOD = """\
Other changes: backlogs and readers as above, `fast`, MessagePack unless said; own tables, 1,000 rows per transaction.
  Fewer rows where they are large. TPC-B: three UPDATEs and an INSERT per transaction. --pack: as the bridge counts its events.
  1,000 tables: one row for each in every transaction; the bridge's first look at each table is part of it."""
START_METHOD = """\
Start: from exec to the timestamp of the first event, one row waiting, an empty nats-server; three seconds later 30 s idle."""
ZSTD_METHOD = """\
Each table has 40,000 made-up rows; 20,000 of them are sampled as `walbridge train` does. Each row gives an insert and an
  update, every second row a delete, in transactions of 1 to 9 changes, encoded as the bridge does; several events per message
  are inserts of one transaction, as with --pack; chunks are those of a snapshot, up to 1 MB.
Trained on one half of the rows, in both encodings; the figures are of the other half, with later LSNs and times. zstd level 1.
Saved: the share of the bodies' bytes, without -> with a dictionary of 16 KB. us: time to compress one message.
  As sent: with the dictionary, counting the header lines that name it."""


def print_report(results: Results, console: Console) -> None:
    """Print the tables, then how they were measured."""
    runs = results.plan.repeat
    if results.drains:
        console.print(_drain_table(results.drains, runs))
    if results.latency:
        console.print(_latency_table(results.latency, runs))
    if results.snapshots:
        console.print(_snapshot_table(results, runs))
    if results.beside_snapshots:
        console.print(_beside_table(results, runs))
    if results.applies:
        console.print(_apply_table(results.applies, runs))
    if results.lags:
        console.print(_lag_table(results.lags, runs))
    if results.durable is not None:
        for table in _durable_tables(results.durable, runs):
            console.print(table)
    if results.kinds:
        console.print(_kinds_table(results.kinds, runs))
    if results.starts:
        console.print(_start_table(results.starts, runs))
    if results.compression:
        console.print(_zstd_table(results.compression))
        console.print(_sizes_table(results.compression))
    for line in _method(results):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for name, value in (results.machine | {"other work": _other_work(results.others_cores)}).items():
        console.print(f"{name + ':':<13}{value}", highlight=False, markup=False, soft_wrap=True)


def as_json(results: Results) -> dict[str, Any]:
    """Convert to plain values: every run, the medians, the method, the machine."""
    return {
        "machine": results.machine,
        "others_cores": results.others_cores,
        "method": _method(results),
        "compression": [asdict(table) for table in results.compression],
        "plan": asdict(results.plan) | {"parts": sorted(results.plan.parts)},
        "drains": [
            asdict(drain)
            | {
                "median": {
                    "reader": asdict(medians(drain.reader)),
                    "bridge": {mode: asdict(medians(runs)) for mode, runs in drain.bridge.items()},
                    "ratio": {mode: drain.ratio(mode) for mode in drain.bridge},
                }
            }
            for drain in results.drains
        ],
        "latency": {
            mode: {"runs": [asdict(run) for run in runs], "median": asdict(medians(runs))}
            for mode, runs in results.latency.items()
        },
        "copies": [asdict(run) for run in results.copies],
        "snapshots": {
            name: {"runs": [asdict(run) for run in runs], "median": asdict(medians(runs)), "ratio": results.share_of_copy(name)}
            for name, runs in results.snapshots.items()
        },
        "applies": [
            asdict(done)
            | {
                "median": {
                    "subscription": asdict(medians(done.subscription)),
                    "mirror": {kind: asdict(medians(runs)) for kind, runs in done.mirror.items()},
                    "ratio": {kind: done.ratio(kind) for kind in done.mirror},
                }
            }
            for done in results.applies
        ],
        "lags": {
            kind: {"runs": [asdict(run) for run in runs], "median": asdict(medians(runs))}
            for kind, runs in results.lags.items()
        },
        "kinds": {name: asdict(kind) | {"ratio": kind.ratio} for name, kind in results.kinds.items()},
        "starts": [asdict(run) for run in results.starts],
        "durable": None if results.durable is None else _durable_as_json(results.durable),
        "beside_snapshots": [{"alone": asdict(a), "beside": asdict(b)} for a, b in results.beside_snapshots],
    }


def _method(results: Results) -> list[str]:
    measured = METHOD.splitlines() if results.drains or results.latency else []
    measured += DURABLE_METHOD.splitlines() if results.durable is not None else []
    measured += KINDS_METHOD.splitlines() if results.kinds else []
    measured += START_METHOD.splitlines() if results.starts else []
    measured += MIRROR_METHOD.splitlines() if results.applies else []
    return measured + (ZSTD_METHOD.splitlines() if results.compression else [])


def _other_work(others: list[float]) -> str:
    noise = "a quiet machine" if max(others) < 0.2 else "the figures are noisy, and worse than on a quiet machine"
    return (f"{median(others):.1f} of {cores()} cores (median), {min(others):.1f} to {max(others):.1f},"
            f" just before the rounds: {noise}")  # fmt: skip


LEFT = frozenset({"reader", "bridge", "changes", "table", "encoding", "to"})


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=SIMPLE, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, justify="left" if column in LEFT else "right")
    return table


def _drain_table(drains: list[DrainResults], runs: int) -> Table:
    table = _table(f"Draining a backlog, medians of {runs}", "rows", "per transaction", "reader", "events/s", "of reader",
                   "start to end", "CPU us/event",
                   "RSS before", "RSS peak")  # fmt: skip
    for results in drains:
        reader = medians(results.reader)
        table.add_row(f"{results.rows:,}", f"{results.rows_per_transaction:,}", "pg_recvlogical",
                      f"{reader.events_per_s:,.0f}", "", f"{reader.wall_s:.2f} s", "", "", "")  # fmt: skip
        for mode, done in results.bridge.items():
            run = medians(done)
            table.add_row("", "", f"bridge, {mode}", f"{run.events_per_s:,.0f}", f"{results.ratio(mode):.2f}",
                          f"{run.wall_s:.2f} s", f"{run.cpu_us_per_event:.1f}", f"{run.rss_before_mb:.0f} MB",
                          f"{run.rss_peak_mb:.0f} MB")  # fmt: skip
    return table


def _kinds_table(kinds: dict[str, KindResults], runs: int) -> Table:
    table = _table(f"Draining backlogs of other changes, medians of {runs}", "changes", "events", "events/s", "of reader",
                   "CPU us/event", "RSS peak")  # fmt: skip
    for name, kind in kinds.items():
        run = medians(kind.bridge)
        table.add_row(name, f"{kind.events:,}", f"{run.events_per_s:,.0f}", f"{kind.ratio:.2f}",
                      f"{run.cpu_us_per_event:.1f}", f"{run.rss_peak_mb:.0f} MB")  # fmt: skip
    return table


def _start_table(starts: list[StartRun], runs: int) -> Table:
    table = _table(f"Start with one row waiting, then nothing to do, medians of {runs}", "first event", "CPU of the start",
                   "idle CPU", "RSS idle")  # fmt: skip
    run = medians(starts)
    table.add_row(f"{run.first_event_s:.2f} s", f"{run.start_cpu_s:.2f} s", f"{run.idle_cpu_percent:.2f} %",
                  f"{run.idle_rss_mb:.0f} MB")  # fmt: skip
    return table


def _latency_table(latency: dict[Mode, list[LatencyRun]], runs: int) -> Table:
    table = _table(f"Commit to stored, one row per transaction, medians of {runs}", "bridge", "events/s", "p50", "p99", "max",
                   "CPU us/event", "RSS idle", "RSS peak")  # fmt: skip
    for mode, done in latency.items():
        run = medians(done)
        table.add_row(mode, f"{run.events_per_s:,.0f}", f"{run.p50_ms:.2f} ms", f"{run.p99_ms:.2f} ms", f"{run.max_ms:.1f} ms",
                      f"{run.cpu_us_per_event:.0f}", f"{run.rss_idle_mb:.0f} MB", f"{run.rss_peak_mb:.0f} MB")  # fmt: skip
    return table


def _snapshot_table(results: Results, runs: int) -> Table:
    table = _table(f"Snapshot of {results.plan.snapshot_rows:,} rows, medians of {runs}", "reader", "rows/s", "of COPY",
                   "CPU us/row", "RSS idle", "RSS peak", "sent")  # fmt: skip
    table.add_row("psql COPY", f"{medians(results.copies).rows_per_s:,.0f}", "", "", "", "", "")
    for name, done in results.snapshots.items():
        run = medians(done)
        table.add_row(f"snapshot, {name}", f"{run.rows_per_s:,.0f}", f"{results.share_of_copy(name):.2f}",
                      f"{run.cpu_us_per_row:.2f}", f"{run.rss_idle_mb:.0f} MB", f"{run.rss_peak_mb:.0f} MB",
                      f"{run.mb:.0f} MB")  # fmt: skip
    return table


def _beside_table(results: Results, runs: int) -> Table:
    table = _table(f"Commit to stored beside snapshots, medians of {runs}", "bridge", "events/s", "p50", "p99", "max")
    for name, done in zip(("alone", "beside snapshots"), zip(*results.beside_snapshots, strict=True), strict=True):
        run = medians(done)
        table.add_row(name, f"{run.events_per_s:,.0f}", f"{run.p50_ms:.2f} ms", f"{run.p99_ms:.2f} ms", f"{run.max_ms:.1f} ms")
    return table


def _apply_table(applies: list[ApplyResults], runs: int) -> Table:
    table = _table(f"Applying a backlog, medians of {runs}", "rows", "per transaction", "to", "events/s", "of subscription",
                   "start to end", "CPU us/event", "RSS peak")  # fmt: skip
    for results in applies:
        own = medians(results.subscription)
        table.add_row(f"{results.rows:,}", f"{results.rows_per_transaction:,}", "subscription", f"{own.events_per_s:,.0f}", "",
                      f"{own.wall_s:.2f} s", "", "")  # fmt: skip
        for kind, done in results.mirror.items():
            run = medians(done)
            table.add_row("", "", f"mirror, {kind}", f"{run.events_per_s:,.0f}", f"{results.ratio(kind):.2f}",
                          f"{run.wall_s:.2f} s", f"{run.cpu_us_per_event:.1f}", f"{run.rss_peak_mb:.0f} MB")  # fmt: skip
    return table


def _lag_table(lags: dict[Kind, list[LagRun]], runs: int) -> Table:
    table = _table(f"Commit to visible in the replica, one row per transaction, medians of {runs}", "to", "events/s", "p50",
                   "p99", "max", "stored p50", "stored p99", "CPU us/event")  # fmt: skip
    for kind, done in lags.items():
        run = medians(done)
        table.add_row(f"mirror, {kind}", f"{run.events_per_s:,.0f}", f"{run.p50_ms:.1f} ms", f"{run.p99_ms:.1f} ms",
                      f"{run.max_ms:.1f} ms", f"{run.stored_p50_ms:.1f} ms", f"{run.stored_p99_ms:.1f} ms",
                      f"{run.cpu_us_per_event:.0f}")  # fmt: skip
    return table


def _durable_tables(durable: DurableResults, runs: int) -> list[Table]:
    rates = _table(f"Ways to publish, draining a backlog, medians of {runs}", "bridge", "rows per transaction", "events/s",
                   "of fast", "of batches alone", "CPU us/event", "RSS peak")  # fmt: skip
    for sync in SYNCS:
        rates.add_row(f"atomic batches alone, sync {sync}", "", f"{median(durable.raw_per_s[sync]):,.0f}", "", "", "", "")
    for each, ways in durable.drains.items():
        for way, done in ways.items():
            run = medians(done)
            rates.add_row(str(way), f"{each:,}", f"{run.events_per_s:,.0f}", f"{durable.of_fast(each, way):.2f}",
                          f"{durable.of_raw(each, way):.2f}", f"{run.cpu_us_per_event:.1f}",
                          f"{run.rss_peak_mb:.0f} MB")  # fmt: skip
    times = _table(
        f"Ways to publish, commit to stored, medians of {runs}", "bridge", "events/s", "p50", "p99", "max", "CPU us/event"
    )
    for way, timed in durable.latency.items():
        lag = medians(timed)
        times.add_row(str(way), f"{lag.events_per_s:,.0f}", f"{lag.p50_ms:.2f} ms", f"{lag.p99_ms:.2f} ms",
                      f"{lag.max_ms:.1f} ms", f"{lag.cpu_us_per_event:.0f}")  # fmt: skip
    return [rates, times]


def _durable_as_json(durable: DurableResults) -> dict[str, Any]:
    return {
        "alone_per_s": durable.raw_per_s,
        "drains": [
            {"rows_per_transaction": each, "way": str(way), "runs": [asdict(run) for run in done],
             "of_fast": durable.of_fast(each, way), "of_alone": durable.of_raw(each, way)}
            for each, ways in durable.drains.items() for way, done in ways.items()
        ],
        "latency": [{"way": str(way), "runs": [asdict(run) for run in done]} for way, done in durable.latency.items()],
    }  # fmt: skip


def _zstd_table(tables: list[TableResult]) -> Table:
    table = _table("Saved by zstd, without -> with a dictionary", "table", "encoding", "bytes per event", "1 event",
                   "us", "as sent", "10 per message", "100 per message", "1 MB chunk")  # fmt: skip
    for result in tables:
        for i, encoding in enumerate(("msgpack", "json")):
            measured = [one for one in [*result.events, *result.chunks] if one.encoding == encoding]
            single = measured[0]
            saved = [f"{one.saved(one.zstd_bytes):.0%} -> {one.saved(one.dictionary_bytes):.0%}" for one in measured]
            table.add_row("" if i else result.table, encoding, f"{single.plain_bytes / single.messages:.0f}", saved[0],
                          f"{single.zstd_us:.1f} -> {single.dictionary_us:.1f}",
                          f"{single.saved(single.sent_bytes):.0%}", *saved[1:])  # fmt: skip
    return table


def _sizes_table(tables: list[TableResult]) -> Table:
    table = _table("Saved on single MessagePack events, by dictionary size", "table",
                   *(f"{size // 1024} KB" for size in SIZES_BYTES))  # fmt: skip
    for result in tables:
        table.add_row(result.table, *(f"{result.sizes[size]:.1%}" for size in SIZES_BYTES))
    return table
