"""`walbridge doctor`: check PostgreSQL, NATS and the path between them, with the command that fixes each finding."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Literal

import orjson
import trio

from actors.commands.as_typed import carried, typed
from actors.commands.env_file_hints import NOT_LET_IN, NOT_THERE, with_hint
from actors.doctor.forms import fix_script as fix_script_lines
from actors.doctor.forms import nagios_line, prometheus_lines
from actors.doctor.report import GROUPS, Group, Report
from actors.doctor.run import examine
from actors.errors import ConfigError
from actors.settings.config import SETTINGS
from actors.settings.flags import EnvFile, Flags, option, takes_settings
from actors.settings.resolve import resolve
from actors.settings.setting import OTHER, no_choice
from actors.telemetry.log import set_up_logging

Form = Literal["text", "json", "nagios", "prometheus"]
SIDES: Mapping[str, Group] = {"postgres": "PostgreSQL", "nats": "NATS", "path": "Path"}


@takes_settings(*(name for name, setting in SETTINGS.items() if setting.flag and name != "json"))
def doctor(
    flags: Flags,
    *,
    round_trip: Annotated[
        bool, option(OTHER, "also send a row through a table and a stream made for it, then remove both")
    ] = False,
    only: Annotated[str, option(OTHER, "only these: postgres, nats, path; separated by commas [all]", "SIDES")] = "",
    fix_script: Annotated[bool, option(OTHER, "a shell script of all fixes instead of the report; read it first")] = False,
    format: Annotated[Form, option(OTHER, "of the report: text, json, nagios or prometheus [text]", "FORM")] = "text",
    json: Annotated[bool, option(OTHER, "the report as JSON")] = False,
    env_file: EnvFile = None,
) -> int:
    """Check everything, and report."""
    sides = _sides(only)
    config = resolve(flags, os.environ, env_file)
    set_up_logging("ERROR", config.log.format, config.secrets)  # the report has it all
    report = trio.run(lambda: examine(config, with_round_trip=round_trip, only=sides))
    report.rows = [replace(row, fix=carried(row.fix)) for row in report.rows]
    if not fix_script:  # which files to use is for a person to see
        report.rows = [
            replace(row, fix=with_hint(row.fix, row.code, typed())) if row.code in NOT_LET_IN | NOT_THERE else row
            for row in report.rows
        ]
    print(_shown(report, "script" if fix_script else "json" if json else format))
    return report.exit_code


def _sides(only: str) -> tuple[Group, ...]:
    wanted = [word.strip().lower() for word in only.split(",") if word.strip()]
    unknown = next((word for word in wanted if word not in SIDES), None)
    if unknown is not None:
        raise ConfigError("WB002", f"--only: {unknown!r} {no_choice(unknown, SIDES)}")
    return tuple(SIDES[word] for word in wanted) or GROUPS


def _shown(report: Report, form: Form | Literal["script"]) -> str:
    if form == "json":
        return orjson.dumps(report.as_json(), option=orjson.OPT_INDENT_2).decode()
    if form == "nagios":
        return nagios_line(report)
    if form == "prometheus":
        return "\n".join(prometheus_lines(report))
    if form == "script":
        return "\n".join(fix_script_lines(report))
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return "\n".join(report.lines(colour=colour))
