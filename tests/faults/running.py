"""Runs scenarios: those of one setting take turns in one world, which is replaced after anything was wrong."""

from __future__ import annotations

import random
import re
import sys
import time
from collections import Counter

import nats.errors
import psycopg

from tests.faults.quiet import Quiet
from tests.faults.scenarios import Scenario
from tests.faults.setting import Setting
from tests.faults.small_disk import NoSmallDisk
from tests.faults.tally import Tally
from tests.faults.world import World

LONGEST_PAUSE_S = 1.5


class Runner:
    """Of some scenarios; `tallies` is what came of them so far."""

    def __init__(self, scenarios: list[Scenario], seed: int, *, only_acts: frozenset[str], keep: bool) -> None:
        """`only_acts` leaves out all other acts; `keep` leaves the logs of worlds in which nothing was wrong too."""
        self.tallies = {scenario.name: Tally(scenario) for scenario in scenarios}
        self._dice, self._seed, self._only_acts, self._keep = random.Random(f"faults {seed}"), seed, only_acts, keep
        self._refused: Counter[str] = Counter()
        self._worlds = 0

    @property
    def wrong(self) -> int:
        """Findings so far."""
        return sum(tally.wrong.total() for tally in self.tallies.values())

    def run(self, setting: Setting, seconds: float, runs_max: int) -> None:
        """Give the scenarios of a setting their time: each at least one run, and at most `runs_max`."""
        tallies = [tally for tally in self.tallies.values() if tally.scenario.setting == setting]
        deadline = time.monotonic() + seconds
        while waiting := [t for t in tallies if t.runs < min(runs_max, t.scenario.runs_max) and not t.not_run]:
            if time.monotonic() > deadline and not (waiting := [t for t in waiting if not t.runs]):
                return
            try:
                self._in_a_world(setting, waiting, deadline, runs_max)
            except NoSmallDisk as exc:
                say(f"{setting.name}: not run: {exc}")
                for tally in tallies:
                    tally.not_run = str(exc)

    def _in_a_world(self, setting: Setting, tallies: list[Tally], deadline: float, runs_max: int) -> None:
        self._worlds += 1
        world = World(f"{self._seed} {self._worlds}", setting)
        say(f"{setting.name}: seed {self._seed}, logs in {world.folder}")
        fine = False
        try:
            quiet = Quiet(world)
            fine = self._settles(tallies[0], quiet)
            while fine and tallies:
                for tally in sorted(tallies, key=lambda one: one.runs):
                    fine = self._run_once(tally, world, quiet)
                    if not fine or (time.monotonic() > deadline and all(one.runs for one in tallies)):
                        return
                tallies = [one for one in tallies if one.runs < min(runs_max, one.scenario.runs_max)]
        finally:
            say(f"{setting.name}: ended by themselves: {dict(world.ended)}; writers refused: {world.writers.refused};"
                f" refused: {dict(self._refused)}")  # fmt: skip
            world.close(keep=self._keep or not fine)

    def _settles(self, tally: Tally, quiet: Quiet) -> bool:
        """Whether a world in which nothing has happened is as it should be."""
        found = quiet.look()
        _report(tally, found)
        return not found

    def _run_once(self, tally: Tally, world: World, quiet: Quiet) -> bool:
        """Acts, then a verdict; return whether nothing was wrong."""
        before = quiet.judged.copy()
        found: list[str] = []
        for _ in range(tally.scenario.acts_per_run):
            world.writers.go_on()
            time.sleep(self._dice.uniform(0.1, LONGEST_PAUSE_S))
            act = tally.scenario.choose(self._dice, self._only_acts)
            if act is None:
                break
            say(f"{tally.scenario.name}: {act.__name__}")
            try:
                world.heal()
                act(world, self._dice)
            except (psycopg.Error, nats.errors.Error) as exc:
                self._refused[f"{act.__name__} {getattr(exc, 'sqlstate', None) or type(exc).__name__}"] += 1
            except AssertionError as exc:
                found.append(f"{act.__name__}: {exc}")
                break
            else:
                tally.faults += 1
        found += quiet.look()
        tally.runs += 1
        judged = quiet.judged - before
        tally.events += judged["expected"]
        tally.gaps += judged["gaps"]
        tally.told.update({reason: count for key, count in judged.items() if (reason := key.removeprefix("missing, ")) != key})
        tally.codes.update(world.codes())
        if judged["gaps"] and not tally.scenario.allows_gaps:
            found.append(f"{judged['gaps']} gap events, though nothing was to be lost\n{world.bridge.log()[-3000:]}")
        self._note_conflicts(world)
        _report(tally, found)
        say(f"{tally.scenario.name}: {tally.runs} runs, {world.writers.committed} transactions, {dict(judged)}")
        return not found

    def _note_conflicts(self, world: World) -> None:
        tables = Counter(re.findall(r"table=(\S+)", "\n".join(world.noticed())))
        if tables:
            say(f"conflicts that made a mirror copy again, before the bridge had looked at the publication: {dict(tables)}")


def _report(tally: Tally, found: list[str]) -> None:
    tally.condemn(found)
    for words in found:
        say(f"WRONG in {tally.scenario.name}: {words}")


def say(words: str) -> None:
    """With the time, so that logs can be read beside it."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {words}\n")
    sys.stdout.flush()
