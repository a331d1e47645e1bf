"""Runs seeds: one plan from its beginning to its verdict."""

from __future__ import annotations

import shutil
import tempfile
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import trio

from property_tests.simulation import determinism
from property_tests.simulation.acts import ACTS
from property_tests.simulation.plan import STORM_S, Plan
from property_tests.simulation.trace import Trace
from property_tests.simulation.world import world_of
from tests.evidence import Evidence

SHARED_MEMORY = Path("/dev/shm")


@dataclass
class Outcome:
    """Of one run."""

    plan: Plan
    wrong: list[str]
    digest: str
    counts: Counter[str] = field(default_factory=Counter)
    """What was done and compared."""
    evidence: Evidence = field(default_factory=Evidence)
    """On which the verdict rests."""


def run(plan: Plan, *, shown: bool = False) -> Outcome:
    """Run a plan."""
    folder = Path(tempfile.mkdtemp(prefix="simulation-", dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None))
    try:
        return determinism.run(plan.seed, lambda: _run(plan, folder, shown=shown))
    except Exception as exc:  # a fault of bridge, mirror or models: the seed has found it
        return Outcome(plan, ["".join(traceback.format_exception(exc))[-3000:]], "")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _run(plan: Plan, folder: Path, *, shown: bool) -> Outcome:
    trace = Trace(shown=shown)
    counts: Counter[str] = Counter()
    async with world_of(plan, folder, trace) as world:
        for step in plan.steps:
            await trio.sleep_until(step.at_s)
            trace("world", f"act {step.number}: {step.act}")
            counts[step.act] += 1
            await ACTS[step.act].do(world, plan.dice_of(step))
        await trio.sleep_until(STORM_S)
        await world.heal()
        await world.settle()
        evidence = world.witness.evidence
        counts.update(
            events=len(evidence.expected), gaps=len(evidence.gaps), replicas=world.compared, bridges=world.bridge.runs,
            acts=len(plan.steps),
        )  # fmt: skip
        counts.update(world.witness.counts)
        return Outcome(plan, world.wrong, trace.digest, counts, evidence)
