"""`walbridge verify`: parameters, report and exit code. The proof is in actors/verification/."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import orjson
import trio
from cyclopts.validators import Number

from actors.contract.table_token import table_name
from actors.errors import Fatal, WalbridgeError
from actors.positions import format_lsn
from actors.process import most_telling
from actors.settings.flags import EnvFile, Flags, option, takes_settings
from actors.settings.replica import names_of, secrets_of
from actors.settings.resolve import resolve
from actors.settings.setting import OTHER, REPLICA
from actors.telemetry.log import set_up_logging
from actors.telemetry.quantities import counted
from actors.verification.hold_row import VerifyFailed
from actors.verification.proof import Request, Result
from actors.verification.proof import verify as prove
from actors.verification.repair import Repaired, verify_and_repair


@takes_settings("nats_context", stream="the bridge's stream")
def verify(
    flags: Flags,
    *,
    to: Annotated[str, option(REPLICA, "the replica, as given to mirror, which must be running", "URL")],
    tables: Annotated[str, option(REPLICA, "tables, separated by commas [all of the replica]", "TABLES")] = "",
    limit: Annotated[int, option(REPLICA, "keys to show of rows that differ [20]", "N", validator=Number(gte=0))] = 20,
    timeout: Annotated[
        int, option(REPLICA, "seconds until the mirror must have reached the LSN [120]", "SECONDS", validator=Number(gte=1))
    ] = 120,
    repair: Annotated[bool, option(REPLICA, "ask the bridge for the rows that differ, and make just these right")] = False,
    json: Annotated[bool, option(OTHER, "the report as JSON")] = False,
    env_file: EnvFile = None,
) -> int:
    """Prove that a replica equals its source at one LSN."""
    return run_verify(to, tables, flags, env_file, keys_max=limit, timeout_s=float(timeout), as_json=json, is_repair=repair)


def run_verify(
    to: str, tables: str, flags: Mapping[str, object], env_file: Path | None, *, keys_max: int, timeout_s: float, as_json: bool,
    is_repair: bool = False,
) -> int:  # fmt: skip
    """Compare, perhaps repair, print the report, and return the exit code. Raises Fatal when tables cannot be compared."""
    config = resolve(flags, os.environ, env_file)
    set_up_logging("WARNING", config.log.format, config.secrets + secrets_of(to))
    try:
        request = Request(config, to, names_of(tables), keys_max, timeout_s, _tell)
        result, repaired = trio.run(verify_and_repair, request) if is_repair else (trio.run(prove, request), Repaired())
    except BaseExceptionGroup as group:
        raise _final(most_telling(group)) from group
    except WalbridgeError as exc:
        raise _final(exc) from exc
    reports = result.reports
    equal = bool(reports) and all(report.is_equal for report in reports)
    if as_json:
        compared = [asdict(r) | {"equal": r.is_equal} for r in reports]
        body = {"equal": equal, "lsn": format_lsn(result.lsn), "tables": compared, "not_mirrored": result.not_mirrored}
        if is_repair:
            body |= {"repaired": repaired.rows, "not_repaired": repaired.refused}
        print(orjson.dumps(body).decode())
    else:
        for token, rows in sorted(repaired.rows.items()):
            print(f"{table_name(token)}: {counted(rows, 'row')} made right")
        for token, reason in sorted(repaired.refused.items()):
            print(f"{table_name(token)}: not repaired: {reason}")
        show(result)
    return 0 if equal else 1


def _final(error: BaseException) -> BaseException:
    """A transient error ends the command as well, which does not retry."""
    if isinstance(error, WalbridgeError) and not isinstance(error, Fatal):
        return VerifyFailed(error.code, error.what, said=error.said, means=error.means, fix=error.fix)
    return error


def show(result: Result) -> None:
    """Print a line per table, and a line per row that differs."""
    reports, deleted = result.reports, result.deleted
    print(f"compared at LSN {format_lsn(result.lsn)}")
    names = [table_name(report.table) for report in reports]
    width = max(map(len, names))
    for name, report in zip(names, reports, strict=True):
        if report.problem:
            print(f"{name:<{width}}  not compared: {report.problem}")
            continue
        verdict = "equal" if report.is_equal else "DIFFERENT"
        counts = f"{report.source_rows:>12,} {'row ' if report.source_rows == 1 else 'rows'}" + (
            "" if report.is_equal else f" in the source, {report.replica_rows:,} in the replica"
        )
        print(f"{name:<{width}} {counts}   {verdict}")
        for one in report.keys:
            print(f"  {one['row']}: {one['difference']}")
        if more := report.mismatched_keys - len(report.keys):
            print(f"  ... and {'' if report.all_counted else 'at least '}{more:,} more (--limit shows more)")
    if result.not_mirrored:
        print(f"published, but not among the tables of this mirror: {', '.join(map(table_name, result.not_mirrored))}")
    different = [table_name(report.table) for report in reports if not report.is_equal and not report.problem]
    if different:
        if deleted:
            holes = f"{deleted:,} {'message was' if deleted == 1 else 'messages were'} deleted in the middle of the stream"
            print(f"{holes} (WB224): a replica may lack them")
        print("causes: a value that was too large for a message, a change that causes no event, another writer to the replica")
        print("fix: run walbridge verify again with --repair, which makes just these rows right; or copy all rows again:")
        print(f"     stop the mirror, then start it once with --again {shlex.quote(','.join(different))}")


def _tell(words: str) -> None:
    print(f"walbridge verify: {words}", file=sys.stderr, flush=True)
