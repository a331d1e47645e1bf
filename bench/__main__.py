"""The command line of the benchmark."""

from __future__ import annotations

import json as jsonlib
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.validators import Number
from rich.console import Console

from bench import history
from bench.goals import markdown
from bench.report import as_json, print_report
from bench.run import Part, Plan, run_benchmark

app = App(name="python -m bench", version_flags=[], help_format="plaintext", result_action="return_value")
Positive = Number(gte=1)
USUAL: tuple[Part, ...] = ("bulk", "single", "latency", "snapshot", "mirror")
GOALS: tuple[Part, ...] = (*USUAL, "kinds", "start")


@app.default
def main(
    *,
    rows: Annotated[int, Parameter(validator=Positive, help="rows of the backlog with 1,000 rows per transaction")] = 300_000,
    single_rows: Annotated[int, Parameter(validator=Positive, help="rows of the backlog with 1 row per transaction")] = 100_000,
    rate: Annotated[int, Parameter(validator=Positive, help="one-row transactions per second, for latency")] = 5_000,
    seconds: Annotated[int, Parameter(validator=Positive, help="duration of the latency load, in seconds")] = 8,
    snapshot_rows: Annotated[int, Parameter(validator=Positive, help="rows of the table that snapshots send")] = 1_000_000,
    mirror_rows: Annotated[int, Parameter(validator=Positive, help="rows that mirrors apply, 100 per transaction")] = 200_000,
    repeat: Annotated[int, Parameter(validator=Positive, help="runs of each part; the report shows medians")] = 3,
    only: Annotated[
        list[Part] | None,
        Parameter(
            negative="",
            help="bulk, single, latency, snapshot, mirror, durable, zstd, kinds or start; several times for "
            "several [the first five]",
        ),
    ] = None,
    goals: Annotated[
        bool,
        Parameter(negative="", help="print a Markdown table with the goals; also runs kinds and start"),
    ] = False,
    record: Annotated[
        bool, Parameter(negative="", help="also append machine, commit and ratios to bench/history.jsonl, for comparison later")
    ] = False,
    json: Annotated[Path | None, Parameter(help="also write every run, and what it ran on, to this file")] = None,
) -> int:
    """Measure the bridge beside pg_recvlogical on its own PostgreSQL and nats-server. Takes some minutes."""
    plan = Plan(
        rows, single_rows, rate, seconds, snapshot_rows, mirror_rows, repeat, frozenset(only or (GOALS if goals else USUAL))
    )
    progress = Console(stderr=True)
    results = run_benchmark(plan, lambda line: progress.print(line, highlight=False, markup=False))
    if goals:
        print(markdown(results))
    else:  # a pipe has no width: choose one that wraps nothing
        print_report(results, Console(width=None if sys.stdout.isatty() else 160))
    if json is not None:
        json.write_text(jsonlib.dumps(as_json(results), indent=2) + "\n", encoding="utf-8")
    if record:
        history.record(results)
    return 0


if __name__ == "__main__":
    sys.exit(app())
