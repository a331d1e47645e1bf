"""The whole benchmark: which runs there are, in which order, and their medians."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from statistics import median
from typing import TYPE_CHECKING, Literal, TypeVar

from bench.bridge import DrainRun, LatencyRun, Mode, drain, steady_load
from bench.compression import TableResult, run_compression
from bench.durable import DurableResults, run_durable
from bench.kinds import LOADS, KindResults, run_kind
from bench.machine import describe_machine
from bench.mirror import KINDS, ApplyRun, Kind, LagRun, applied_backlog, mirror_lag
from bench.recvlogical import ReaderRun, run_recvlogical
from bench.servers import Servers, open_servers
from bench.snapshots import FORMATS, CopyRun, SnapshotRun, copy_table, snapshot_table, snapshots_meanwhile, write_table
from bench.start import StartRun, start_bridge
from bench.usage import busy_cores
from bench.workload import Backlog, backlog, create_schema

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Run = TypeVar("Run", bound=DataclassInstance)

Part = Literal["bulk", "single", "latency", "snapshot", "mirror", "durable", "zstd", "kinds", "start"]
Say = Callable[[str], None]
MODES: tuple[Mode, ...] = ("fast", "plain")
BULK_ROWS_PER_TRANSACTION = 1_000
EVENTS_BESIDE_PER_S = 1_000
MIRROR_ROWS_PER_TRANSACTION = 100
MIRROR_EVENTS_PER_S = 2_000
IDLE_S = 30.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked for."""

    rows: int
    single_rows: int
    per_second: int
    seconds: int
    snapshot_rows: int
    mirror_rows: int
    repeat: int
    parts: frozenset[Part]


@dataclass(slots=True)
class DrainResults:
    """The same backlog read again and again, by both readers in turn."""

    rows: int
    rows_per_transaction: int
    reader: list[ReaderRun] = field(default_factory=list)
    bridge: dict[Mode, list[DrainRun]] = field(default_factory=lambda: {mode: [] for mode in MODES})

    def ratio(self, mode: Mode) -> float:
        """The bridge's speed by pg_recvlogical's: the median over the rounds, each compared within itself."""
        pairs = zip(self.bridge[mode], self.reader, strict=True)
        return median(bridge.events_per_s / reader.events_per_s for bridge, reader in pairs)


@dataclass(slots=True)
class ApplyResults:
    """The same backlog applied again and again: by PostgreSQL's own subscription and by mirrors in turn."""

    rows: int
    rows_per_transaction: int
    subscription: list[ApplyRun] = field(default_factory=list)
    mirror: dict[Kind, list[ApplyRun]] = field(default_factory=lambda: {kind: [] for kind in KINDS})

    def ratio(self, kind: Kind) -> float:
        """A mirror's speed by the subscription's: the median over the rounds, each compared within itself."""
        pairs = zip(self.mirror[kind], self.subscription, strict=True)
        return median(mirror.events_per_s / subscription.events_per_s for mirror, subscription in pairs)


@dataclass(slots=True)
class Results:
    """Every run of a benchmark and what it ran on."""

    plan: Plan
    machine: dict[str, str]
    drains: list[DrainResults] = field(default_factory=list)
    latency: dict[Mode, list[LatencyRun]] = field(default_factory=dict)
    copies: list[CopyRun] = field(default_factory=list)
    snapshots: dict[str, list[SnapshotRun]] = field(default_factory=dict)
    beside_snapshots: list[tuple[LatencyRun, LatencyRun]] = field(default_factory=list)
    """The same load without and with a snapshot of a large table running all the time."""
    applies: list[ApplyResults] = field(default_factory=list)
    lags: dict[Kind, list[LagRun]] = field(default_factory=dict)
    durable: DurableResults | None = None
    compression: list[TableResult] = field(default_factory=list)
    kinds: dict[str, KindResults] = field(default_factory=dict)
    starts: list[StartRun] = field(default_factory=list)
    others_cores: list[float] = field(default_factory=list)
    """How many cores the rest of the machine was using just before each round."""

    def share_of_copy(self, name: str) -> float:
        """A snapshot's speed by COPY's: the median over the rounds."""
        pairs = zip(self.snapshots[name], self.copies, strict=True)
        return median(run.rows_per_s / copied.rows_per_s for run, copied in pairs)


def medians(runs: Sequence[Run]) -> Run:
    """The median of each figure on its own."""
    return replace(runs[0], **{f.name: median(getattr(run, f.name) for run in runs) for f in fields(runs[0])})


def run_benchmark(plan: Plan, say: Say) -> Results:
    """Run everything that the plan asks for; `say` gets a line after each run."""
    with open_servers() as servers:
        create_schema(servers)
        results = Results(plan, describe_machine(servers.postgres.bin_dir))
        for part, rows, each in (("bulk", plan.rows, BULK_ROWS_PER_TRANSACTION), ("single", plan.single_rows, 1)):
            if part in plan.parts:
                say(f"writing {rows:,} rows, {each:,} per transaction")
                with backlog(servers, rows, each) as written:
                    results.drains.append(DrainResults(rows, each))
                    _run_drains(servers, written, results, say)
        if "latency" in plan.parts:
            _run_latency(servers, results, say)
        if "snapshot" in plan.parts:
            _run_snapshots(servers, results, say)
        if "mirror" in plan.parts:
            _run_mirrors(servers, results, say)
        if "durable" in plan.parts:
            results.durable = run_durable(
                servers, plan.rows // 3, plan.single_rows // 3, plan.per_second, plan.seconds, plan.repeat, say,
                lambda: results.others_cores.append(busy_cores()),
            )  # fmt: skip
        if "kinds" in plan.parts:
            _run_kinds(servers, results, say)
        if "start" in plan.parts:
            say(f"starting the bridge, then {IDLE_S:.0f} s with nothing to do")
            for number in range(1, plan.repeat + 1):
                results.others_cores.append(busy_cores())
                results.starts.append(start_bridge(servers, IDLE_S))
                say(f"  {number}/{plan.repeat} first event after {results.starts[-1].first_event_s:.2f} s")
        if "zstd" in plan.parts:
            say("compressing events and chunks of three tables")
            results.others_cores.append(busy_cores())
            results.compression = run_compression(servers, say)
        return results


def _run_drains(servers: Servers, written: Backlog, everything: Results, say: Say) -> None:
    results, repeat = everything.drains[-1], everything.plan.repeat
    for number in range(1, repeat + 1):
        everything.others_cores.append(busy_cores())
        reader = run_recvlogical(servers, written)
        results.reader.append(reader)
        say(f"  {number}/{repeat} pg_recvlogical  {reader.events_per_s:>9,.0f} events/s")
        for mode in MODES:
            run = drain(servers, written, mode)
            results.bridge[mode].append(run)
            say(f"  {number}/{repeat} bridge, {mode:<6} {run.events_per_s:>9,.0f} events/s, "
                f"{run.cpu_us_per_event:.1f} us of CPU an event")  # fmt: skip


def _run_kinds(servers: Servers, results: Results, say: Say) -> None:
    say("draining backlogs of other kinds of changes")
    for name, load in LOADS.items():
        results.others_cores.append(busy_cores())
        done = results.kinds[name] = run_kind(servers, load, results.plan.rows, results.plan.repeat)
        run = medians(done.bridge)
        say(f"  {name:<25} {run.events_per_s:>9,.0f} events/s, {done.ratio:.2f} of pg_recvlogical, "
            f"{run.cpu_us_per_event:.1f} us of CPU an event")  # fmt: skip


def _run_latency(servers: Servers, results: Results, say: Say) -> None:
    plan = results.plan
    results.latency = {mode: [] for mode in MODES}
    say(f"committing {plan.per_second:,} rows per second for {plan.seconds} s, one per transaction")
    for number in range(1, plan.repeat + 1):
        results.others_cores.append(busy_cores())
        for mode in MODES:
            run = steady_load(servers, mode, plan.per_second, plan.seconds)
            results.latency[mode].append(run)
            say(f"  {number}/{plan.repeat} bridge, {mode:<6} {run.events_per_s:>9,.0f} events/s, "
                f"p50 {run.p50_ms:.2f} ms, p99 {run.p99_ms:.2f} ms")  # fmt: skip


def _run_snapshots(servers: Servers, results: Results, say: Say) -> None:
    plan = results.plan
    say(f"writing {plan.snapshot_rows:,} rows")
    write_table(servers, plan.snapshot_rows)
    results.snapshots = {name: [] for name in FORMATS}
    for number in range(1, plan.repeat + 1):
        results.others_cores.append(busy_cores())
        copied = copy_table(servers, plan.snapshot_rows)
        results.copies.append(copied)
        say(f"  {number}/{plan.repeat} psql COPY            {copied.rows_per_s:>11,.0f} rows/s")
        for name, flags in FORMATS.items():
            run = snapshot_table(servers, plan.snapshot_rows, flags)
            results.snapshots[name].append(run)
            say(f"  {number}/{plan.repeat} snapshot, {name:<10} {run.rows_per_s:>11,.0f} rows/s, "
                f"{run.cpu_us_per_row:.2f} us of CPU a row")  # fmt: skip
    with servers.connect() as connection:
        connection.execute("INSERT INTO bench_big SELECT * FROM bench")
        connection.execute("VACUUM (ANALYZE) bench_big")
    for number in range(1, plan.repeat + 1):
        alone, beside = (
            steady_load(servers, "fast", EVENTS_BESIDE_PER_S, plan.seconds, meanwhile=meanwhile)
            for meanwhile in (None, snapshots_meanwhile)
        )
        results.beside_snapshots.append((alone, beside))
        say(f"  {number}/{plan.repeat} {EVENTS_BESIDE_PER_S:,} events/s, p99 {alone.p99_ms:.2f} ms; "
            f"beside snapshots {beside.p99_ms:.2f} ms")  # fmt: skip


def _run_mirrors(servers: Servers, results: Results, say: Say) -> None:
    plan = results.plan
    for rows, each in ((plan.mirror_rows, MIRROR_ROWS_PER_TRANSACTION), (plan.mirror_rows // 4, 1)):
        say(f"writing {rows:,} rows for mirrors, {each:,} per transaction")
        done = ApplyResults(rows, each)
        results.applies.append(done)
        with applied_backlog(servers, rows, each) as written:
            for number in range(1, plan.repeat + 1):
                results.others_cores.append(busy_cores())
                done.subscription.append(written.by_subscription())
                say(f"  {number}/{plan.repeat} subscription       {done.subscription[-1].events_per_s:>9,.0f} events/s")
                for kind in KINDS:
                    run = written.by_mirror(kind)
                    done.mirror[kind].append(run)
                    say(f"  {number}/{plan.repeat} mirror, {kind:<10} {run.events_per_s:>9,.0f} events/s, "
                        f"{run.cpu_us_per_event:.1f} us of CPU an event")  # fmt: skip
    say(f"committing {MIRROR_EVENTS_PER_S:,} rows per second for {plan.seconds} s, one per transaction")
    results.lags = {kind: [] for kind in KINDS}
    for number in range(1, plan.repeat + 1):
        results.others_cores.append(busy_cores())
        for kind in KINDS:
            lag = mirror_lag(servers, kind, MIRROR_EVENTS_PER_S, plan.seconds)
            results.lags[kind].append(lag)
            say(f"  {number}/{plan.repeat} mirror, {kind:<10} p50 {lag.p50_ms:.1f} ms, p99 {lag.p99_ms:.1f} ms")
