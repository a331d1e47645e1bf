"""The doctor's report and how its checks are made: levels, exit codes, words, deadlines; no servers."""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from actors.clients.nats.connection import SinkRefused
from actors.clients.postgres.connection import PostgresError
from actors.doctor.checking import CHECK_S, GROUP_S, Check, Found, NotChecked, make_checks, warned
from actors.doctor.forms import fix_script, nagios_line, prometheus_lines
from actors.doctor.postgres_checks import ABOUT_TABLES
from actors.doctor.report import SHOWN, Level, Report, Row
from actors.doctor.round_trip import clean_up
from actors.errors import ConfigError, SinkUnavailable, SourceUnavailable
from actors.startup import publication_problems
from actors.startup.stream_state import examine_copies, history_problem
from actors.telemetry.telemetry import Problem

SETUP = {"postgres": "db:5432/app as bridge", "nats": "nats:4222", "slot": "s", "publication": "p", "stream": "CDC"}
LEVELS: tuple[Level, ...] = ("ok", "note", "warn", "unknown", "fail")
PROBLEM = Problem("WB120", "no limit", "it said so", "the disk fills", "ALTER SYSTEM ...;\nSELECT pg_reload_conf();")


@given(st.lists(st.sampled_from(LEVELS)))
def test_the_exit_code_is_that_of_the_worst_row(levels: list[Level]) -> None:
    report = Report(SETUP, [Row("NATS", f"c{i}", level, "words") for i, level in enumerate(levels)])
    worst = max((LEVELS.index(level) for level in levels), default=0)
    assert report.exit_code == (2 if worst == 4 else 1 if worst >= 2 else 0)
    assert report.as_json()["exit_code"] == report.exit_code
    shown = list(report.lines())
    assert sum(row.startswith(f"  {SHOWN['fail']}") for row in shown) == levels.count("fail")
    for level, word in (("warn", "warning"), ("fail", "failure"), ("unknown", "not checked")):
        assert (word in shown[-1].partition(".")[0]) == (level in levels)


def test_a_finding_is_shown_with_code_meaning_and_its_fix_unbroken() -> None:
    fix = "ALTER ROLE x " + "y" * 200
    report = Report(SETUP)
    report.add(Row.of_problem("PostgreSQL", "WAL limit", "warn", PROBLEM))
    report.add(Row.of_problem("PostgreSQL", "role", "fail", ConfigError("WB112", "it may not", fix=fix)))
    lines = [line.strip() for line in report.lines()]
    assert "warn  WAL limit  WB120 no limit" in lines
    for line in (
        "said   it said so",
        "means  the disk fills",
        "fix    ALTER SYSTEM ...;",
        "SELECT pg_reload_conf();",
        f"fix    {fix}",
    ):
        assert line in lines
    assert lines[-1].endswith("walbridge help WB112"), "the worst one"
    assert "\x1b" not in "".join(lines)
    assert "\x1b[31mFAIL\x1b[0m" in "\n".join(report.lines(colour=True))


def test_names_cannot_steer_the_terminal_and_long_words_stay_in_one_piece() -> None:
    report = Report(SETUP, [Row("NATS", "stream CDC", "ok", "a\x1b[2Jb " + "word " * 60)])
    assert "\x1b" not in "\n".join(report.lines())
    assert all(len(line) <= 118 for line in report.lines())


def test_what_could_not_be_checked_for_one_reason_is_one_line_and_stays_apart_in_json() -> None:
    report = Report(SETUP, [Row("NATS", name, "unknown", "could not be checked: no connection") for name in ("a", "b", "c")])
    shown = [line for line in report.lines() if line.startswith("  ?")]
    assert len(shown) == 1
    assert "(a, b, c)" in shown[0]
    assert [row["check"] for row in report.as_json()["checks"]] == ["a", "b", "c"]  # type: ignore[attr-defined]


# -- for other readers

TEXTS = st.text(st.sampled_from("a\n\\$`;|&<>'\"# SQL-"), max_size=12)
FIXES = st.builds(
    str.__add__, st.sampled_from(["", "ALTER TABLE x;\n", "nats stream edit CDC ", "walbridge ", "SELECT "]), TEXTS
)


@given(st.lists(st.builds(Row, st.just("NATS"), TEXTS, st.sampled_from(LEVELS), TEXTS, st.just("WB1"), fix=FIXES), max_size=4))
def test_no_name_escapes_from_the_script_or_breaks_a_line(rows: list[Row]) -> None:
    report = Report(SETUP, rows)
    in_statements = False
    for line in "\n".join(fix_script(report)).splitlines()[1:]:
        if line.startswith("psql ") and line.endswith("<<'SQL'"):
            in_statements = True
        elif line == "SQL":
            in_statements = False
        elif in_statements:
            assert not line.lstrip().startswith("\\")
        else:
            assert re.fullmatch(r"|#.*|(?:nats|walbridge) [^$`;|&<>\\]*", line), line
    assert not in_statements
    assert "\n" not in nagios_line(report)
    assert nagios_line(report).count("|") == 1
    assert all(
        re.fullmatch(r'#.*|bridge_check_status\{group="NATS",check="(?:[^"\\]|\\.)*"\} [012]', line)
        for line in prometheus_lines(report)
    )


def test_other_readers_get_states_and_the_fixes_once() -> None:
    report = Report(SETUP, [Row("NATS", "payload", "ok", "fine")])
    assert nagios_line(report) == "WALBRIDGE OK 1 checks | ok=1 warnings=0 failures=0"
    report.add(*[Row.of_problem("PostgreSQL", "WAL limit", "warn", PROBLEM)] * 2)
    report.add(Row("NATS", "payload", "warn", "small", "WB233", fix="raise max_payload in the configuration"))
    assert nagios_line(report) == (
        "WALBRIDGE WARNING WAL limit WB120, WAL limit WB120, payload WB233 | ok=1 warnings=3 failures=0"
    )  # fmt: skip
    assert list(prometheus_lines(report))[2:] == [
        'bridge_check_status{group="NATS",check="payload"} 1', 'bridge_check_status{group="PostgreSQL",check="WAL limit"} 1',
    ]  # fmt: skip
    assert "\n".join(fix_script(report)).split("\n\n")[1:] == [
        "# WB120 no limit\npsql ${DATABASE_URL:+\"$DATABASE_URL\"} -v ON_ERROR_STOP=1 <<'SQL'\n"
        "ALTER SYSTEM ...;\nSELECT pg_reload_conf();\nSQL",
        "# WB233 small\n# raise max_payload in the configuration",
    ]


# -- how checks are made


def on_mock_clock(run: Callable[[], Awaitable[object]]) -> None:
    trio.run(run, clock=MockClock(autojump_threshold=0))


class World:
    """Connections that are counted, and may be refused from one on."""

    def __init__(self, refused_from: int = 99) -> None:
        self.opened, self.refused_from = 0, refused_from

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[int]:
        self.opened += 1
        if self.opened >= self.refused_from:
            raise SourceUnavailable("WB101", "nobody answers")
        yield self.opened


async def _fine(_: int) -> Found:
    return Found("fine")


async def _hangs(_: int) -> Found:
    await trio.sleep_forever()
    raise AssertionError


def _raises(error: Exception) -> Check[int]:
    async def check(_: int) -> Found:
        raise error

    return check


def make(checks: Mapping[str, Check[int]], world: World | None = None) -> tuple[dict[str, Row], World]:
    world, report = world or World(), Report(SETUP)
    on_mock_clock(partial(make_checks, report, "NATS", checks, world.open))
    return {row.check: row for row in report.rows}, world


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (NotChecked("the reason"), "unknown"),
        (PostgresError("42501", "permission denied"), "unknown"),
        (ConfigError("WB114", "of another kind"), "fail"),
        (SinkUnavailable("WB202", "no reply"), "unknown"),
    ],
)
def test_one_check_that_cannot_be_made_hides_no_other(error: Exception, level: str) -> None:
    rows, _ = make({"first": _fine, "bad": _raises(error), "last": _fine})
    assert [row.level for row in rows.values()] == ["ok", level, "ok"]


def test_a_check_that_hangs_ends_at_its_deadline_and_the_next_has_a_new_connection() -> None:
    rows, world = make({"hangs": _hangs, "last": _fine})
    assert rows["hangs"].what == f"could not be checked: no answer within {CHECK_S:.1f} s"
    assert rows["last"].level == "ok"
    assert world.opened == 2


def test_the_checks_of_a_group_end_together_if_all_of_them_hang() -> None:
    rows, _ = make({f"c{i}": _hangs for i in range(30)})
    assert len(rows) == 30 + ("connection" in rows)
    assert {row.level for row in rows.values()} == {"unknown"}
    assert GROUP_S / CHECK_S < 30


def test_without_a_connection_there_is_a_failure_and_everything_else_is_named() -> None:
    rows, _ = make({"a": _fine, "b": _fine}, World(refused_from=1))
    assert {name: row.level for name, row in rows.items()} == {"connection": "fail", "a": "unknown", "b": "unknown"}
    rows, _ = make({"a": _raises(SinkUnavailable("WB201", "lost")), "b": _fine}, World(refused_from=2))
    assert {name: row.level for name, row in rows.items()} == {"connection": "fail", "a": "unknown", "b": "unknown"}


def test_a_connection_that_ends_with_a_refusal_during_a_check_is_a_failure_of_that_check() -> None:
    @asynccontextmanager
    async def opened() -> AsyncGenerator[int]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refuse)
            yield 1
            nursery.cancel_scope.cancel()

    async def refuse() -> None:
        raise SinkRefused("WB204", "may not do this", said='Permissions Violation for Subscription to "_INBOX.x"')

    report = Report(SETUP)
    on_mock_clock(partial(make_checks, report, "NATS", {"a": _hangs, "b": _hangs}, opened))
    assert [(row.check, row.level, row.code) for row in report.rows] == [("a", "fail", "WB204"), ("b", "fail", "WB204")]


def test_a_bug_is_not_taken_for_a_finding() -> None:
    with pytest.raises(ZeroDivisionError):
        make({"bug": _raises(ZeroDivisionError())})


def test_a_check_may_find_several_things() -> None:
    async def two(_: int) -> Found:
        return warned("", PROBLEM, None, PROBLEM)

    report = Report(SETUP)
    on_mock_clock(partial(make_checks, report, "NATS", {"two": two}, World().open))
    assert [row.level for row in report.rows] == ["warn", "warn"]


async def _loses() -> None:
    raise SinkUnavailable("WB201", "the connection ended")


@pytest.mark.parametrize("remove", [trio.sleep_forever, _loses])
def test_what_cannot_be_removed_is_told_with_the_command_that_does(remove: Callable[[], Awaitable[object]]) -> None:
    with pytest.raises(ConfigError) as caught:
        on_mock_clock(partial(clean_up, "stream X", remove, "nats stream rm X --force"))
    assert (caught.value.code, caught.value.fix) == ("WB249", "nats stream rm X --force")
    assert caught.value.said


# -- streams beside each other


def stream(**more: Any) -> dict[str, Any]:
    return {"config": {"name": "CDC", "num_replicas": 3}, "cluster": {"leader": "a", "replicas": []}, **more}


def test_copies_of_a_stream() -> None:
    late = {"leader": "a", "replicas": [{"name": "b", "current": True}, {"name": "c", "current": False, "offline": True}]}
    assert examine_copies(stream(), 3) is None
    alone = {"name": "CDC", "num_replicas": 1}
    assert examine_copies({"config": alone}, 1) is None
    assert examine_copies(stream(config=alone), 2) is None, "three copies have no room there, and two need both servers"
    for info, refused in (stream(cluster=late), False), (stream(cluster={}), True), (stream(config=alone), False):
        found = examine_copies(info, 3)
        assert found is not None
        assert found.refused == refused


@given(st.integers(0, 10**17), st.integers(0, 10**17))
def test_snapshots_that_outlive_the_changes_after_them_are_told_and_either_fix_mends_it(changes: int, snapshots: int) -> None:
    configs = {"CDC": {"name": "CDC", "max_age": changes}, "INIT": {"name": "INIT", "max_age": snapshots}}
    found = history_problem(configs["CDC"], configs["INIT"])
    longer = (snapshots or float("inf")) > (changes or float("inf"))
    assert (found is not None) == longer
    fixes = re.findall(r"nats stream edit (\w+) --max-age=(\d+)([ds])", found.fix if found else "")
    assert len(fixes) == (0 if found is None else 2 if snapshots else 1)
    for name, count, unit in fixes:
        if name == "CDC" or changes >= 10**9:
            fixed = {**configs, name: {"name": name, "max_age": int(count) * {"d": 86_400, "s": 1}[unit] * 10**9}}
            assert history_problem(fixed["CDC"], fixed["INIT"]) is None


def test_every_problem_of_a_publications_tables_has_a_check() -> None:
    told = re.findall(r'"(WB\d+)"', inspect.getsource(publication_problems))
    assert sorted(told) == sorted(code for codes in ABOUT_TABLES.values() for code in codes)
