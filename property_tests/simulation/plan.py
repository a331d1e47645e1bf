"""What one seed does: settings of the servers and of the bridge, and the acts with their times. Shrinking removes some acts."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

CALM_S, STORM_S = 2.0, 30.0
"""The faults come between these times."""


class Step(NamedTuple):
    """One act at a time, with dice of its own."""

    at_s: float
    act: str
    number: int


class Flags(NamedTuple):
    """How a bridge is started."""

    mode: str
    hold: bool
    pack: int
    json: bool


@dataclass(frozen=True)
class Plan:
    """What is fixed before a run begins."""

    seed: int
    sync_s: float
    """Of nats-server: what is older survives a power cut. 0 for `always`."""
    visible_after_s: float
    slow_s: float
    flags: Flags
    transactions: int
    steps: tuple[Step, ...]

    def dice_of(self, step: Step) -> random.Random:
        return random.Random(f"{self.seed} {step.number} {step.act}")


def plan_of(seed: int, weights: Mapping[str, int]) -> Plan:
    """The plan of a seed; `weights` are those of the acts."""
    dice = random.Random(f"plan {seed}")
    names, shares = list(weights), list(weights.values())
    # a seed has few kinds of acts: what they do together shows more than everything at once
    kinds = dice.choices(names, shares, k=dice.randint(1, 5))
    count = dice.choice((0, 1, 2, 3, 4, 6, 9))
    times = sorted(dice.uniform(CALM_S, STORM_S) for _ in range(count))
    steps = tuple(Step(round(at, 3), dice.choice(kinds), number) for number, at in enumerate(times))
    return Plan(
        seed, dice.choice((0.0, 2.0, 2.0)), dice.choice((0.0, 0.0, 0.3)), dice.choice((0.0, 0.002, 0.02)), flags_of(dice),
        dice.choice((10, 30, 60)), steps,
    )  # fmt: skip


def flags_of(dice: random.Random) -> Flags:
    """Some way to start a bridge."""
    return Flags(
        dice.choice(("auto", "fast", "durable", "plain")), dice.random() < 0.3, dice.choice((1, 1, 4)), dice.random() < 0.2
    )
