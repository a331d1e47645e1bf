"""Makes checks one after another: each has a deadline, and a check that cannot be made does not prevent the others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, TypeVar

import trio

from actors.clients.nats.connection import SinkRefused
from actors.clients.postgres.connection import PostgresError
from actors.doctor.report import Group, Level, Report, Row
from actors.errors import Fatal, WalbridgeError
from actors.process import most_telling
from actors.telemetry.telemetry import Problem

C = TypeVar("C")

CHECK_S = 5.0
"""How long one check may take."""
GROUP_S = 20.0
"""How long the checks of one group may take together."""
CONNECT_S = 6.0


SILENT: Mapping[Group, str] = {"PostgreSQL": "WB101", "NATS": "WB200", "Path": ""}
"""The code of a server that does not answer."""


class Found(NamedTuple):
    """What a check has found: words for an ok row, and what is wrong."""

    words: str
    problems: Sequence[tuple[Level, Problem | WalbridgeError]] = ()
    level: Level = "ok"
    """Of a row without problems."""


def warned(words: str, *problems: Problem | WalbridgeError | None) -> Found:
    """Return a check's finding with these problems, those that there are, as warnings."""
    return Found(words, [("warn", problem) for problem in problems if problem is not None])


class NotChecked(Exception):
    """The check cannot be made, and why."""


async def check_alone(report: Report, group: Group, name: str, check: Callable[[], Awaitable[Found]]) -> None:
    """Make a check that needs no connection."""

    async def ignoring(_: None) -> Found:
        return await check()

    await _make(report, group, name, ignoring, None, trio.current_time() + GROUP_S)


Check = Callable[[C], Awaitable[Found]]


async def make_checks(
    report: Report,
    group: Group,
    checks: Mapping[str, Check[C]],
    opened: Callable[[], AbstractAsyncContextManager[C]],
) -> bool:
    """Make the checks on a connection, and on a new one after one that has ended; return whether any could be opened.

    A connection that cannot be opened is a failure, and the remaining checks one row.
    """
    left = list(checks)
    until = trio.current_time() + GROUP_S
    has_opened = False
    while left:
        is_open = False
        try:
            with trio.fail_after(max(0.0, min(CONNECT_S, until - trio.current_time()))) as connecting:
                async with opened() as connection:
                    connecting.deadline, is_open, has_opened = float("inf"), True, True
                    while left and await _make(report, group, left[0], checks[left[0]], connection, until):
                        left.pop(0)
                    left = left[1:]
        except trio.TooSlowError:
            if not has_opened:
                fix = "see that address and port are right, and that no firewall drops what is sent to them"
                report.add(Row(group, "connection", "fail", f"no answer within {CONNECT_S:g} s", SILENT[group], fix=fix))
            leave(report, group, left, "the time was up" if has_opened else "there is no connection")
            return has_opened
        except (WalbridgeError, BaseExceptionGroup) as exc:
            error = most_telling(exc)
            if not isinstance(error, WalbridgeError):
                raise
            if not is_open:
                report.add(Row.of_problem(group, "connection", "fail", error))
                leave(report, group, left, "there is no connection")
                return has_opened
            if left:  # the connection ended during the check
                level: Level = "fail" if isinstance(error, SinkRefused) else "unknown"  # the bridge's would end like that
                report.add(Row.of_problem(group, left.pop(0), level, error))
    return has_opened


async def _make(report: Report, group: Group, name: str, check: Check[C], connection: C, until: float) -> bool:
    """Make one check; return whether the connection is good for another one."""
    seconds = min(CHECK_S, until - trio.current_time())
    try:
        with trio.fail_after(max(0.0, seconds)):
            report.add(*_rows(group, name, await check(connection)))
    except trio.TooSlowError:
        report.add(Row(group, name, "unknown", f"could not be checked: no answer within {max(0.0, seconds):.1f} s"))
        return False
    except NotChecked as exc:
        report.add(Row(group, name, "unknown", f"could not be checked: {exc}"))
    except PostgresError as exc:  # a statement of the check itself was refused
        report.add(Row(group, name, "unknown", f"could not be checked: {exc.said}"))
    except Fatal as exc:
        report.add(Row.of_problem(group, name, "fail", exc))
    except WalbridgeError as exc:
        report.add(Row.of_problem(group, name, "unknown", exc))
        return False
    return True


def _rows(group: Group, name: str, found: Found) -> list[Row]:
    if not found.problems:
        return [Row(group, name, found.level, found.words)]
    return [Row.of_problem(group, name, level, problem) for level, problem in found.problems]


def leave(report: Report, group: Group, left: Sequence[str], why: str) -> None:
    """Report checks that are not made."""
    report.add(*(Row(group, name, "unknown", f"could not be checked: {why}") for name in left))
