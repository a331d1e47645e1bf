"""The command line of the simulation."""

from __future__ import annotations

import argparse
import multiprocessing
import time
import traceback
from collections import Counter
from dataclasses import replace
from functools import partial

from property_tests.simulation.acts import WEIGHTS
from property_tests.simulation.plan import Plan, plan_of
from property_tests.simulation.running import Outcome, run
from tests.evidence import Evidence


def main() -> int:
    """Run seeds; 0 when nothing was wrong."""
    parser = argparse.ArgumentParser(prog="python -m property_tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=300, help="how many")
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--seed", type=int, help="replay this one with its trace, and shrink it")
    parser.add_argument("--processes", type=int, default=1, help="how many seeds run side by side")
    parser.add_argument("--wrong-max", type=int, default=1, help="seeds that may fail before the command ends [1]")
    parser.add_argument("--only", default="", help="acts to choose from, separated by commas")
    given = parser.parse_args()
    if given.seeds < 1 or given.processes < 1:
        parser.error("--seeds and --processes are at least 1")
    if unknown := set(filter(None, given.only.split(","))) - WEIGHTS.keys():
        parser.error(f"--only: no act is called {', '.join(sorted(unknown))}; there are {', '.join(WEIGHTS)}")
    weights = {name: weight for name, weight in WEIGHTS.items() if not given.only or name in given.only.split(",")}
    if given.seed is not None:
        return _replay(plan_of(given.seed, weights))
    return _run_many(range(given.first, given.first + given.seeds), weights, given.wrong_max, given.processes)


def _run_many(seeds: range, weights: dict[str, int], wrong_max: int, processes: int) -> int:
    counts: Counter[str] = Counter()
    failed: list[int] = []
    began, cpu_s = time.monotonic(), 0.0
    with multiprocessing.Pool(processes) as pool:
        for outcome, spent_s in pool.imap(partial(_run_one, weights), seeds):
            counts.update(outcome.counts)
            counts["seeds"] += 1
            cpu_s += spent_s
            if outcome.wrong:
                failed.append(outcome.plan.seed)
                _say(outcome)
                if len(failed) >= wrong_max:
                    break
    seconds = time.monotonic() - began
    print(
        f"{counts['seeds']} seeds, {len(failed)} failed {failed or ''}, {seconds:.0f} s, {cpu_s / counts['seeds']:.3f} s CPU each"
    )
    print(", ".join(f"{name} {count}" for name, count in sorted(counts.items()) if name != "seeds"))
    return 1 if failed else 0


def _run_one(weights: dict[str, int], seed: int) -> tuple[Outcome, float]:
    """In a process of the pool: the outcome without its evidence, and the seconds of CPU."""
    began = time.process_time()
    try:
        outcome = run(plan_of(seed, weights))
    except BaseException as exc:
        # what is no Exception would end this process, and the pool would wait for its outcome for ever
        raise RuntimeError(f"seed {seed}: the simulation itself failed: {''.join(traceback.format_exception(exc))}") from None
    return replace(outcome, evidence=Evidence()), time.process_time() - began


def _say(outcome: Outcome) -> None:
    plan = outcome.plan
    print(f"seed {plan.seed}: {plan.flags}, sync {plan.sync_s} s, {plan.transactions} transactions")
    for step in plan.steps:
        print(f"  {step.at_s:7.3f} {step.act}")
    for one in outcome.wrong[:6]:
        print(f"  WRONG {one[:600]}")
    print(f"  again: python -m property_tests.simulation --seed {plan.seed}", flush=True)


def _replay(plan: Plan) -> int:
    outcome = run(plan, shown=True)
    _say(outcome)
    if not outcome.wrong:
        print("  nothing was wrong")
    else:
        smaller = shrunk(plan)
        if smaller != plan:
            print("smaller, with the same fault:")
            _say(run(smaller))
    return 1 if outcome.wrong else 0


def shrunk(plan: Plan) -> Plan:
    """A plan with fewer acts and transactions that still fails."""
    found = plan
    for step in plan.steps:
        fewer = replace(found, steps=tuple(one for one in found.steps if one != step))
        if run(fewer).wrong:
            found = fewer
    for transactions in (1, 3, 6, 12, 20):
        fewer = replace(found, transactions=transactions)
        if transactions < found.transactions and run(fewer).wrong:
            return fewer
    return found
