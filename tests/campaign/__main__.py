"""The command: `python -m tests.campaign --faults 500 --seed 1 [--minutes 60] [--quiet-every 50] [--only NAME,...] [--keep]`."""

from __future__ import annotations

import argparse
import logging
import random
import re
import sys
import time
from collections import Counter

import psycopg

from tests.campaign.database_people import DATABASE_PEOPLE, THERE_AND_BACK
from tests.campaign.kills import KILLS
from tests.campaign.nats_people import NATS_PEOPLE
from tests.campaign.operators import OPERATORS
from tests.campaign.quiet import Quiet
from tests.campaign.world import Act, World

PEOPLE: dict[str, Act] = THERE_AND_BACK | {act.__name__: act for act in (*DATABASE_PEOPLE, *NATS_PEOPLE, *OPERATORS)}
PROCESSES: dict[str, Act] = {act.__name__: act for act in KILLS}
LONGEST_PAUSE_S = 1.5


def main() -> int:
    """Run a campaign; 0 when nothing was wrong."""
    options = _options()
    logging.getLogger("nats").setLevel(logging.CRITICAL)  # servers are killed all the time
    dice = random.Random(f"campaign {options.seed}")
    began = time.monotonic()
    world = World(str(options.seed))
    say(f"seed {options.seed}, logs in {world.folder}")
    done: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    noticed: Counter[str] = Counter()
    wrong: list[str] = []
    quiet = Quiet(world)

    def look() -> None:
        found = quiet.look()
        for one in found:
            say(f"WRONG after {done.total()} faults: {one}")
        wrong.extend(found)
        noticed.update(re.findall(r"table=(\S+)", "\n".join(world.noticed())))
        say(f"{done.total()} faults, {world.writers.committed} transactions, {dict(quiet.judged)}")

    try:
        look()  # without a fault
        while (
            done.total() < options.faults and time.monotonic() < began + options.minutes * 60 and len(wrong) < options.wrong_max
        ):
            world.writers.go_on()
            time.sleep(dice.uniform(0.1, LONGEST_PAUSE_S))
            world.heal()
            name, act = choose(dice, options.only)
            say(f"{done.total() + 1} {name}")
            try:
                act(world, dice)
            except psycopg.Error as exc:
                refused[f"{name} {exc.sqlstate}"] += 1
            else:
                done[name] += 1
            if done.total() % options.quiet_every == 0:
                look()
        look()
    finally:
        world.close(keep=options.keep or bool(wrong))
    say(f"faults: {dict(done)}")
    say(f"refused: {dict(refused)}; ended by themselves: {dict(world.ended)}; writers refused: {world.writers.refused}")
    say(f"conflicts that made a mirror copy again, before the bridge had looked at the publication: {dict(noticed)}")
    say(f"seed {options.seed}: {done.total()} faults in {time.monotonic() - began:.0f} s, {len(wrong)} wrong")
    return 1 if wrong else 0


def choose(dice: random.Random, only: str) -> tuple[str, Act]:
    """Half of the faults are those of processes, half are acts of people."""
    acts = PEOPLE | PROCESSES
    if only:
        name = dice.choice(only.split(","))
        return name, acts[name]
    names = [act.__name__ for act in KILLS] if dice.random() < 0.5 else sorted(PEOPLE)
    name = dice.choice(names)
    return name, acts[name]


def say(words: str) -> None:
    """With the time, so that logs can be read beside it."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {words}\n")
    sys.stdout.flush()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--faults", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=600, help="end earlier, after the fault at hand")
    parser.add_argument("--quiet-every", type=int, default=50, help="faults between two comparisons")
    parser.add_argument("--wrong-max", type=int, default=5, help="end after so many faults of the product")
    parser.add_argument("--only", default="", help=f"of {', '.join(sorted(PEOPLE | PROCESSES))}")
    parser.add_argument("--keep", action="store_true", help="keep logs and data even if nothing was wrong")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
