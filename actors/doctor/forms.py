"""The doctor's report for other readers than a person: Nagios, Prometheus, and a script of all fixes. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from actors.doctor.report import Level, Report, Row, printable
from actors.telemetry.quantities import listed

STATUS: Mapping[Level, int] = {"ok": 0, "note": 0, "warn": 1, "unknown": 1, "fail": 2}
"""As Nagios and the exit code have it."""
_STATES = ("OK", "WARNING", "CRITICAL")
_SQL = re.compile(r"(?:ALTER|CREATE|DROP|GRANT|REVOKE|SELECT|COMMIT|ROLLBACK|DELETE|UPDATE|SET|ANALYZE|VACUUM|REINDEX)\b")
_SHELL = re.compile(r"(?:nats|nsc|walbridge|pip|psql|createdb|openssl|chmod) ")

_HARMFUL = re.compile(r"[$`;|&<>\\]")


def nagios_line(report: Report) -> str:
    """Return one line as `nats server check` prints: the state, what is wrong, and counts as performance data."""
    wrong = [f"{row.check} {row.code}".strip() for row in report.rows if STATUS[row.level] == report.exit_code]
    words = listed(wrong) if report.exit_code else f"{len(report.rows)} checks"
    counts = [sum(STATUS[row.level] == status for row in report.rows) for status in range(3)]
    said = f"WALBRIDGE {_STATES[report.exit_code]} {words}".replace("|", "/")
    return _comment(f"{said} | ok={counts[0]} warnings={counts[1]} failures={counts[2]}")


def prometheus_lines(report: Report) -> Iterator[str]:
    """Yield the text format, for a textfile collector."""
    yield "# HELP bridge_check_status A check of walbridge doctor: 0 fine, 1 a warning or not checked, 2 cannot work."
    yield "# TYPE bridge_check_status gauge"
    worst: dict[tuple[str, str], int] = {}
    for row in report.rows:
        key = row.group, row.check
        worst[key] = max(worst.get(key, 0), STATUS[row.level])
    for (group, check), status in worst.items():
        yield f'bridge_check_status{{group="{_label(group)}",check="{_label(check)}"}} {status}'


def fix_script(report: Report) -> Iterator[str]:
    """Yield a shell script of the fixes, those that are sentences as comments. Who runs it reads it first."""
    yield "#!/bin/sh -e"
    yield "# Fixes that walbridge doctor proposes. Read each: some need an administrator's rights, a restart, or your names."
    yield "# Statements go to psql, which takes PGHOST, PGUSER and their like, or DATABASE_URL, of an administrator."
    fixes: dict[str, Row] = {}
    for row in report.rows:
        if row.fix:
            fixes.setdefault(row.fix, row)
    for fix, row in fixes.items():
        yield ""
        yield f"# {_comment(f'{row.code} {row.what}'.strip())}"
        yield from _commands(printable(fix))
    if not fixes:
        yield ""
        yield "# nothing to fix"


def _commands(fix: str) -> Iterator[str]:
    """Yield a fix as commands; as comments if it is a sentence, or has what a name from a database could do harm with."""
    lines = fix.splitlines() or [""]
    if _SQL.match(lines[0]) and not any(line.strip() == "SQL" or line.lstrip().startswith("\\") for line in lines):
        statements = [line for line in lines if not _is_words(line)]
        yield "psql ${DATABASE_URL:+\"$DATABASE_URL\"} -v ON_ERROR_STOP=1 <<'SQL'"
        yield from statements
        yield "SQL"
        yield from (f"# {line}" for line in lines if _is_words(line))
    elif _SHELL.match(lines[0]):
        yield from (line if _SHELL.match(line) and not _HARMFUL.search(line) else f"# {line}" for line in lines)
    else:
        yield from (f"# {line}" for line in lines)


def _is_words(line: str) -> bool:
    """Whether a line after a statement is neither one itself nor the rest of one."""
    return not _SQL.match(line) and not line.startswith((" ", "--")) and not line.rstrip().endswith((";", ","))


def _comment(text: str) -> str:
    return " ".join(printable(text).split())


def _label(text: str) -> str:
    return printable(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
