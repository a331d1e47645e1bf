"""The simulation itself: 300 seeds, the same run for the same seed, a judge that sees what it must, and mutants that apply."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

from property_tests.simulation.acts import WEIGHTS
from property_tests.simulation.mutants import patches
from property_tests.simulation.plan import plan_of
from property_tests.simulation.running import Outcome, run
from tests.evidence import Evidence, GapSeen, judge, not_stored_below

ROOT = Path(__file__).parents[1]
PARTS = 3


def examples() -> int:
    """100, and 10 in the fast loop."""
    return settings.default.max_examples if settings.default is not None else 100


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_seeds_find_nothing(part: int) -> None:
    count = examples()
    command = [sys.executable, "-m", "property_tests.simulation", "--seeds", str(count), "--first", str(1 + part * count)]
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONHASHSEED": "0"}
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr[-3000:]


def test_a_seed_is_one_run() -> None:
    seeds = range(1, 1 + examples() // 5)
    digests = [[run(plan_of(seed, WEIGHTS)).digest for seed in seeds] for _ in range(2)]
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == len(seeds)


def test_a_copy_does_not_wait_for_an_lsn_of_a_history_that_a_gap_has_ended() -> None:
    """The server was restored from an older copy while the mirror waited for its live tables to come to a snapshot's LSN."""
    assert not run(plan_of(15, {"restore_a_volume": 1})).wrong


# -- the judge finds what is wrong with a run that was right


@cache
def right() -> Outcome:
    """A run in which changes were lost for good and told."""
    for seed in range(1, 200):
        outcome = run(plan_of(seed, {"drop_the_slot": 1, "kill_bridge": 1}))
        assert not outcome.wrong
        evidence = outcome.evidence
        if evidence.gaps and len({e.place for e in evidence.stored}) < len(evidence.expected) and len(evidence.stored) > 40:
            return outcome
    raise AssertionError("no seed loses changes")


def drop_one(evidence: Evidence, dice: random.Random) -> None:
    del evidence.stored[dice.randrange(len(evidence.stored))]


def double_one(evidence: Evidence, dice: random.Random) -> None:
    at = dice.randrange(len(evidence.stored))
    evidence.stored.append(evidence.stored[at]._replace(stream_seq=evidence.stored[-1].stream_seq + 1))


def swap_two(evidence: Evidence, dice: random.Random) -> None:
    at, stored = dice.randrange(len(evidence.stored) - 1), evidence.stored
    first, second = stored[at], stored[at + 1]
    stored[at], stored[at + 1] = second._replace(stream_seq=first.stream_seq), first._replace(stream_seq=second.stream_seq)


def change_a_value(evidence: Evidence, dice: random.Random) -> None:
    rows = [at for at, event in enumerate(evidence.stored) if event.data]
    at = dice.choice(rows)
    event = evidence.stored[at]
    evidence.stored[at] = event._replace(data={**event.data, dice.choice(sorted(event.data)): "another"})


def tell_a_false_gap(evidence: Evidence, dice: random.Random) -> None:
    event = dice.choice(evidence.stored)
    evidence.gaps.append(GapSeen(event.stream_seq, event.place[0], event.place[0] + 8, ("users",), 1000.0))


def tell_a_gap_twice(evidence: Evidence, dice: random.Random) -> None:
    gap = dice.choice(evidence.gaps)
    evidence.gaps.append(gap._replace(stream_seq=gap.stream_seq + 1, at_s=gap.at_s + 1))


def tell_a_smaller_gap(evidence: Evidence, dice: random.Random) -> None:
    stored = {event.place for event in evidence.stored}
    missing = [e.lsn for e in evidence.expected if (e.lsn, e.seq, e.operation, e.token) not in stored]
    lsn = dice.choice(missing)
    evidence.gaps = [gap._replace(from_lsn=lsn + 1) if gap.from_lsn <= lsn < gap.to_lsn else gap for gap in evidence.gaps]


def tell_no_gap(evidence: Evidence, _: random.Random) -> None:
    evidence.gaps.clear()


MUTATIONS = (
    drop_one, double_one, swap_two, change_a_value, tell_a_false_gap, tell_a_gap_twice, tell_a_smaller_gap, tell_no_gap,
)  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("seed", range(10))
def test_the_judge_finds_what_was_made_wrong(mutation: Callable[[Evidence, random.Random], None], seed: int) -> None:
    evidence = deepcopy(right().evidence)
    assert judge(evidence).faults == ()
    mutation(evidence, random.Random(seed))
    assert judge(evidence).faults != ()


@pytest.mark.parametrize("seed", range(10))
def test_the_judge_finds_what_was_confirmed_too_early(seed: int) -> None:
    evidence = right().evidence
    at = random.Random(seed).randrange(1, len(evidence.stored))
    held = {event.place for event in evidence.stored[:at]}
    first_missing = evidence.stored[at].place[0]
    assert not not_stored_below(evidence, first_missing, held)
    assert not_stored_below(evidence, first_missing + 1, held)


# -- mutants


@pytest.mark.parametrize("patch", patches(), ids=lambda patch: patch.stem)
def test_each_mutant_still_applies(patch: Path) -> None:
    """`python -m property_tests.simulation.mutants` runs them."""
    done = subprocess.run(["git", "apply", "--check", str(patch)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"make {patch.name} anew, for the code as it is now: {done.stderr}"
