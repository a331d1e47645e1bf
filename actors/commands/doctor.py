"""`walbridge doctor`: check PostgreSQL, NATS and the path between them, with the command that fixes each finding."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import orjson
import trio

from actors.doctor.run import examine
from actors.settings.config import SETTINGS, Config
from actors.settings.flags import EnvFile, Flags, option, takes_settings
from actors.settings.resolve import resolve
from actors.settings.setting import OTHER
from actors.telemetry.log import set_up_logging


@takes_settings(*(name for name, setting in SETTINGS.items() if setting.flag and name != "json"))
def doctor(
    flags: Flags,
    *,
    round_trip: Annotated[
        bool, option(OTHER, "also send a row through a table and a stream made for it, then remove both")
    ] = False,
    json: Annotated[bool, option(OTHER, "the report as JSON")] = False,
    env_file: EnvFile = None,
) -> int:
    """Check everything, and report."""
    return run_doctor(resolve(flags, os.environ, env_file), round_trip=round_trip, as_json=json)


def run_doctor(config: Config, *, round_trip: bool, as_json: bool) -> int:
    """Print the report. 0 when all is well, 1 with warnings or where something could not be checked, 2 when it cannot work."""
    set_up_logging("ERROR", config.log.format, config.secrets)  # the report has it all
    report = trio.run(lambda: examine(config, with_round_trip=round_trip))
    if as_json:
        print(orjson.dumps(report.as_json(), option=orjson.OPT_INDENT_2).decode())
    else:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        print("\n".join(report.lines(colour=colour)))
    return report.exit_code
