"""`walbridge certify`: tries a consumer on a hostile history."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated

import trio
from cyclopts.validators import Number

from actors.certify.acts import ACTS, SHAPES
from actors.certify.port import SUBJECT
from actors.certify.run import certify as run_certify
from actors.certify.run import history_of, lines_of
from actors.certify.trial import Setting
from actors.errors import ConfigError
from actors.process import most_telling
from actors.settings.flags import option
from actors.settings.setting import OTHER, no_choice
from actors.telemetry.log import set_up_logging


def certify(
    *command: Annotated[str, option(OTHER, "the consumer's command, after --", "COMMAND")],
    seed: Annotated[int, option(OTHER, "decides the history: the same seed repeats it [1]", "N", validator=Number(gte=0))] = 1,
    rounds: Annotated[int, option(OTHER, "acts of the history [100]", "N", validator=Number(gte=1))] = 100,
    tables: Annotated[str, option(OTHER, "tables that the consumer keeps: users, orders or both [users]", "TABLES")] = "users",
    zstd: Annotated[bool, option(OTHER, "compress bodies")] = False,
    patience: Annotated[
        float,
        option(OTHER, "time within which the consumer's tables must be right [60]", "SECONDS", validator=Number(gt=0)),
    ] = 60.0,
    without: Annotated[str, option(OTHER, f"acts to leave out, some of {', '.join(ACTS)}", "ACTS")] = "",
    shrink: Annotated[bool, option(OTHER, "look for the smallest history that breaks it [yes]", negative="--no-shrink")] = True,
    output: Annotated[Path | None, option(OTHER, "write that history to a file", "FILE")] = None,
) -> int:
    """Prove that a consumer keeps its tables exact."""
    if not command:
        raise ConfigError("WB002", "certify: no consumer", fix="walbridge certify -- ./my-consumer users")
    if shutil.which(command[0]) is None:
        raise ConfigError("WB002", f"certify: no program {command[0]}", fix="give a path, or a program in PATH")
    names = tuple(dict.fromkeys(name.strip() for name in tables.split(",") if name.strip()))
    if not names or not set(names) <= SHAPES.keys():
        raise ConfigError("WB002", f"--tables: {tables!r} is not users, orders, or users,orders")
    left_out = tuple(kind.strip() for kind in without.split(",") if kind.strip())
    for kind in left_out:
        if kind not in ACTS:
            raise ConfigError("WB002", f"--without: {kind!r} {no_choice(kind, ACTS)}")
    if ACTS.keys() <= set(left_out):
        raise ConfigError("WB002", "--without: no act is left")
    set_up_logging("ERROR", "logfmt", ())
    setting = Setting(tuple(command), names, seed, zstd, left_out, patience)

    def tell(words: str) -> None:
        print(words, file=sys.stderr, flush=True)

    async def main() -> int:
        result = await run_certify(setting, rounds, shrinks=shrink, tell=tell)
        if result.is_exact:
            print(f"exact: {result.rounds} rounds of seed {seed}, {result.snapshots} snapshots")
            return 0
        if not result.verdict.answered:
            raise ConfigError(
                "WB528", f"the consumer, {shlex.join(command)}, has never told its tables: {result.verdict.wrong}",
                said=result.printed, means="nothing could be compared",
                fix=f"have it connect to the address in NATS_URL, and answer requests on {SUBJECT}: docs/certify.md",
            )  # fmt: skip
        print("\n".join(lines_of(result)))
        if output is not None:
            await trio.Path(output).write_bytes(history_of(result, setting))
        print(f"not exact after {result.rounds} rounds of seed {seed}")
        return 1

    try:
        return trio.run(main)
    except BaseExceptionGroup as group:
        raise most_telling(group) from group
