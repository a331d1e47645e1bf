"""What earlier benchmarks found: one line of JSON per run in `history.jsonl`, so that ratios can be compared across commits."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from bench.run import Results, medians

HISTORY = Path(__file__).with_name("history.jsonl")


def record(results: Results, file: Path = HISTORY) -> None:
    """Append a line."""
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(summary(results)) + "\n")


def summary(results: Results) -> dict[str, object]:
    """When, which commit, which machine, how busy, what was asked for, and medians. Only ratios compare across machines."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        **results.machine,
        "others_cores_max": max(results.others_cores, default=0.0),
        "plan": asdict(results.plan) | {"parts": sorted(results.plan.parts)},
        "ratios": {name: round(ratio, 3) for name, ratio in _ratios(results).items()},
        "cpu_us": {name: round(cpu_us, 2) for name, cpu_us in _cpu_us(results).items()},
        "p99_ms": {f"latency {mode}": round(medians(runs).p99_ms, 2) for mode, runs in results.latency.items()},
    }


def _ratios(results: Results) -> dict[str, float]:
    """By pg_recvlogical, by COPY, by PostgreSQL's own subscription."""
    found = {f"{drain.rows_per_transaction} a transaction, {mode}": drain.ratio(mode)
             for drain in results.drains for mode in drain.bridge}  # fmt: skip
    found |= {f"snapshot, {name}": results.share_of_copy(name) for name in results.snapshots}
    return found | {f"mirror, {done.rows_per_transaction} a transaction, {kind}": done.ratio(kind)
                    for done in results.applies for kind in done.mirror}  # fmt: skip


def _cpu_us(results: Results) -> dict[str, float]:
    """Of the bridge, or of the mirror, per event or row."""
    found = {f"{drain.rows_per_transaction} a transaction, {mode}": medians(runs).cpu_us_per_event
             for drain in results.drains for mode, runs in drain.bridge.items()}  # fmt: skip
    found |= {f"snapshot, {name}": medians(runs).cpu_us_per_row for name, runs in results.snapshots.items()}
    return found | {f"mirror, {done.rows_per_transaction} a transaction, {kind}": medians(runs).cpu_us_per_event
                    for done in results.applies for kind, runs in done.mirror.items()}  # fmt: skip


def _commit() -> str:
    """The checkout's commit, with `-dirty` after it when files differ; empty outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=HISTORY.parent, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()
