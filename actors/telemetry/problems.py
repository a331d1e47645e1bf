"""What users should know, as they see it: found by several checks, one card for each kind. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

from actors.contract.bridge_record import NotedGap
from actors.contract.subjects import snapshot_command
from actors.contract.table_token import split_token
from actors.positions import format_lsn
from actors.settings.config import HttpConfig
from actors.telemetry.log import get_logger
from actors.telemetry.quantities import counted, listed
from actors.telemetry.telemetry import Problem, Telemetry

log = get_logger("bridge")


def shown_problems(t: Telemetry) -> list[Problem]:
    """All problems, the most urgent first: why nothing streams, what was lost, what else is wrong, which tables are stopped."""
    return [*([t.fault] if t.fault else []), *t.gap_problems, *t.problems.values(), *_suspended(t)]


def _suspended(t: Telemetry) -> list[Problem]:
    """One problem for each kind: hundreds of tables may be suspended for one cause."""
    by_code: dict[str, dict[str, Problem]] = {}
    for token, problem in t.suspended_tables.items():
        by_code.setdefault(problem.code, {})[token] = problem
    return [_joined(code, tables) for code, tables in by_code.items()]


def _joined(code: str, tables: dict[str, Problem]) -> Problem:
    first = next(iter(tables.values()))
    if len(tables) == 1:
        return first
    return Problem(
        code, f"{counted(len(tables), 'table')} are suspended: {listed(sorted(tables))}", first.said, first.means, first.fix,
        min(problem.since_unix_s for problem in tables.values()),
    )  # fmt: skip


def gap_problem(gap: NotedGap, stream: str, http: HttpConfig) -> Problem:
    """What to say of a gap event that nobody has acknowledged. `http` is where the bridge takes the acknowledgement."""
    names = [".".join(split_token(token)) for token in gap.tables]
    first = [name.removeprefix("public.") for name in names[:3]]
    more = f"   # and {gap.table_count - len(first)} more" if gap.table_count > len(first) else ""
    path = f"gaps/{gap.seq}/acknowledge"
    token = ' -H "Authorization: Bearer $BRIDGE_HTTP_TOKEN"' if http.token else ""
    where = f" of {counted(gap.table_count, 'table')} ({listed(names)})" if names else ""
    return Problem(
        "WB152",
        f"changes from {format_lsn(gap.from_lsn)} to {format_lsn(gap.to_lsn)} were lost permanently",
        said=gap.reason,
        means=f"changes{where} are missing in stream {stream}; message {gap.seq} reports it to readers. Mirrors copy the "
        "tables again by themselves, other readers need a snapshot",
        fix="\n".join(snapshot_command(name, stream) for name in first) + more + f"\ncurl -X POST{token} http://127.0.0.1:{http.port}/{path}"
        "   # once every reader has copied its tables; this warning then disappears",
        since_unix_s=gap.unix_s,
        acknowledge=path,
    )  # fmt: skip


class ProblemBoard:
    """Shows what checks have found, each until the same check no longer finds it. Owned by the supervisor."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._found: dict[str, tuple[Problem, ...]] = {}

    def show(self, check: str, found: Sequence[Problem]) -> None:
        """Replace what a check has found; what is new is logged, and what stays keeps its first time."""
        known = self._telemetry.problems
        for problem in found:
            if problem.what not in known:
                log.warning(problem.what, code=problem.code, fix=problem.fix)
                self._telemetry.journal.note("problem", f"{problem.code} {problem.what}", "warn")
        for what in {p.what for p in self._found.get(check, ())} - {p.what for p in found}:
            known.pop(what, None)
            self._telemetry.journal.note("solved", f"no longer: {what}", "ok")
        for problem in found:
            known.setdefault(problem.what, problem)
        self._found[check] = tuple(found)
