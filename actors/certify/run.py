"""The body of `walbridge certify`: rounds of acts against one consumer, and the smallest history that breaks it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from actors.certify.acts import ACTS, Act, plan
from actors.certify.history import History, Step
from actors.certify.shrinking import shrink
from actors.certify.trial import Setting, Verdict, run_trial
from actors.embedded.nats import NatsServer, find_nats_server
from actors.embedded.process import free_port

ROUNDS_PER_TRIAL = 50
"""Rounds that one consumer lives through on the same streams."""
TRIALS_MAX = 40
"""Shorter histories that are tried when one has broken the consumer."""
BODY_MAX = 600


@dataclass(frozen=True, slots=True)
class Result:
    """What came of all rounds."""

    rounds: int
    """Rounds in which the consumer was exact."""
    snapshots: int
    verdict: Verdict
    """Of the smallest history that breaks the consumer, or without a fault."""
    acts: tuple[Act, ...] = ()
    """Of that history."""
    printed: str = ""
    """The last lines that the consumer printed in it."""

    @property
    def is_exact(self) -> bool:
        """Whether the consumer was exact in all rounds."""
        return not self.verdict.wrong


async def certify(setting: Setting, rounds: int, *, shrinks: bool, tell: Callable[[str], None]) -> Result:
    """Try a consumer on an own nats-server. `tell` is told how far it is."""
    with tempfile.TemporaryDirectory(prefix="walbridge-nats-") as folder:
        server = NatsServer(find_nats_server(), Path(folder) / "nats", port=free_port())
        server.start()
        try:
            return await _certify(setting, server, rounds, shrinks=shrinks, tell=tell)
        finally:
            server.stop()


async def _certify(
    setting: Setting, server: NatsServer, rounds: int, *, shrinks: bool, tell: Callable[[str], None]
) -> Result:  # fmt: skip
    acts = plan(setting.seed, rounds, setting.without)
    done = snapshots = 0
    while done < rounds:
        part = acts[done : done + ROUNDS_PER_TRIAL]
        verdict, printed = await run_trial(setting, server, part)
        snapshots += verdict.asked
        if verdict.wrong:
            if verdict.answered:
                tell(f"round {done + verdict.at}: {verdict.wrong}")
            found = tuple(part[: verdict.at])
            if shrinks and len(found) > 1:
                tell("looking for the smallest history that breaks it")
                found, verdict, printed = await _smallest(setting, server, found, (verdict, printed))
            return Result(done + max(0, verdict.at - 1), snapshots, verdict, found, printed)
        done += len(part)
        tell(f"{done} of {rounds} rounds")
    return Result(done, snapshots, Verdict())


async def _smallest(
    setting: Setting, server: NatsServer, acts: Sequence[Act], of_all: tuple[Verdict, str]
) -> tuple[tuple[Act, ...], Verdict, str]:
    best: list[tuple[tuple[Act, ...], Verdict, str]] = [(tuple(acts), *of_all)]

    async def breaks(candidate: Sequence[Act]) -> bool:
        verdict, printed = await run_trial(setting, server, candidate)
        if verdict.wrong:
            best.append((tuple(candidate[: verdict.at]), verdict, printed))
        return bool(verdict.wrong)

    await shrink(list(acts), breaks, TRIALS_MAX)
    return best[-1]


def lines_of(result: Result) -> list[str]:
    """The history that breaks a consumer, for people."""
    lines = [f"  {ACTS[act.kind][1]}" for act in result.acts] or ["  nothing but a copy"]
    lines = ["The smallest history that breaks it:", *lines, "", "Its messages and what else happened:"]
    lines += [f"  {line}" for step in result.verdict.steps if (line := _line(step))]
    lines += ["", f"Then: {result.verdict.wrong}"]
    if result.printed:
        lines += ["", "What the consumer printed last:", *(f"  {line}" for line in result.printed.splitlines())]
    return lines


def _line(step: Step) -> str:
    match step["step"]:
        case "message":
            body = orjson.dumps(step.get("shows")).decode()
            shown = body if len(body) <= BODY_MAX else body[:BODY_MAX] + "..."
            return f"{step['stream']} {step['seq']} {step['subject']} {shown}"
        case "kv":
            return ""
        case "start" | "stop":
            return f"-- the consumer: {'started' if step['step'] == 'start' else 'killed'}"
        case kind:
            rest: dict[str, Any] = {name: value for name, value in step.items() if name != "step"}
            return f"-- {kind}" + (f" {orjson.dumps(rest).decode()}" if rest else "")


def history_of(result: Result, setting: Setting) -> bytes:
    """The history that breaks a consumer, as a file."""
    about = f"walbridge certify --seed {setting.seed}: {result.verdict.wrong}"
    return History(f"certify-{setting.seed}", about, (), tuple(result.verdict.steps), setting.tables).encode()
