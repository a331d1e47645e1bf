"""What the bridge and the mirror should reach, beside what this run measured, as a Markdown table."""

from __future__ import annotations

from statistics import median
from typing import NamedTuple

from bench.run import Results, medians


class Goal(NamedTuple):
    """One line of the table."""

    case: str
    measured: str
    goal: str


def markdown(results: Results) -> str:
    """Return the table of every goal whose part has run; medians over the rounds, ratios within each round."""
    goals = [
        *_drains(results), *_kinds(results), *_latency(results), *_snapshots(results), *_mirrors(results), *_idle(results),
    ]  # fmt: skip
    lines = ["| case | measured | goal |", "|---|---|---|", *(f"| {g.case} | {g.measured} | {g.goal} |" for g in goals)]
    machine = [f"* {name}: {value}" for name, value in results.machine.items()]
    others = results.others_cores
    if others:
        machine.append(f"* cores that others used: median {median(others):.1f}, at most {max(others):.1f}")
    return "\n".join([*lines, "", *machine])


def _drains(results: Results) -> list[Goal]:
    goals = {(1_000, "fast"): "0.88, 3.2 µs", (1_000, "plain"): "0.65, 7 µs", (1, "fast"): "0.95, 10 µs"}
    return [
        Goal(
            f"{drain.rows_per_transaction:,} rows per transaction, `{mode}`: of `pg_recvlogical`, CPU per event, peak memory",
            f"{drain.ratio(mode):.2f}, {medians(runs).cpu_us_per_event:.1f} µs, {medians(runs).rss_peak_mb:.0f} MB",
            goals.get((drain.rows_per_transaction, mode), ""),
        )
        for drain in results.drains
        for mode, runs in drain.bridge.items()
    ]


def _kinds(results: Results) -> list[Goal]:
    goals = {"--pack 500": "1.0, 2.5 µs", "TPC-B": "0.85", "--json": "0.9 of MessagePack"}
    found = []
    for name, kind in results.kinds.items():
        run = medians(kind.bridge)
        measured = f"{kind.ratio:.2f}, {run.cpu_us_per_event:.1f} µs, {run.events_per_s:,.0f} events/s"
        if name == "--json" and "inserts" in results.kinds:
            pairs = zip(kind.bridge, results.kinds["inserts"].bridge, strict=True)
            measured += f"; {median(a.events_per_s / b.events_per_s for a, b in pairs):.2f} of MessagePack"
        found.append(Goal(f"{name}: of `pg_recvlogical`, CPU per event", measured, goals.get(name, "")))
    return found


def _latency(results: Results) -> list[Goal]:
    found = []
    if "fast" in results.latency:
        run = medians(results.latency["fast"])
        case = f"commit to stored at {results.plan.per_second:,} transactions/s"
        found.append(Goal(case, f"p50 {run.p50_ms:.1f}, p99 {run.p99_ms:.1f} ms", "p50 0.8, p99 2.5 ms"))
    if results.beside_snapshots:
        beside = medians([run for _, run in results.beside_snapshots])
        found.append(Goal("event latency beside snapshots", f"p99 {beside.p99_ms:.1f} ms", "p99 5 ms"))
    return found


def _snapshots(results: Results) -> list[Goal]:
    if "map" not in results.snapshots:
        return []
    case = f"snapshot of {results.plan.snapshot_rows:,} rows, maps: of COPY"
    return [Goal(case, f"{results.share_of_copy('map'):.2f}", "0.65")]


def _mirrors(results: Results) -> list[Goal]:
    found = []
    for done in results.applies:
        goal = "150,000/s" if done.rows_per_transaction > 1 else ""
        for kind, runs in done.mirror.items():
            measured = f"{medians(runs).events_per_s:,.0f}/s, {done.ratio(kind):.2f} of a subscription"
            found.append(Goal(f"mirror to {kind}, {done.rows_per_transaction:,} rows per transaction", measured, goal))
    for kind, lags in results.lags.items():
        goal = "p99 5 ms" if kind == "sqlite" else "p99 6 ms"
        found.append(Goal(f"commit to visible in {kind}", f"p99 {medians(lags).p99_ms:.1f} ms", goal))
    return found


def _idle(results: Results) -> list[Goal]:
    if not results.starts:
        return []
    run = medians(results.starts)
    return [
        Goal("start to first event; CPU of the start", f"{run.first_event_s:.2f} s; {run.start_cpu_s:.2f} s", "0.9 s"),
        Goal("idle: CPU of a core, memory", f"{run.idle_cpu_percent:.2f} %, {run.idle_rss_mb:.0f} MB", "0.1 %, 60 MB"),
    ]
