"""Every history of consumers/conformance, and the Python mirror, which must get each of them right in both kinds of replica."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from actors.certify.history import Step
from consumers.conformance import by_hand, rounds_by_hand
from consumers.conformance.make import FOLDER, HEADING, README, read_all, rules_table
from consumers.conformance.rules import RULES
from tests import certified_mirror
from tests.planted.mirrors import FAULTS, planted
from tests.servers import Database

HISTORIES = read_all()


@pytest.fixture
def replica(database: Database) -> str:
    """The URL of an empty database."""
    return database.dsn


@pytest.mark.parametrize("name", HISTORIES)
def test_the_mirror_in_sqlite(name: str, tmp_path: Path) -> None:
    certified_mirror.run(HISTORIES[name], f"sqlite:///{tmp_path}/replica.db")


OF_ROWS = ("update.", "delete.", "truncate", "table.", "key.", "values.", "schema.dropped", "schema.type", "gap.cuts-off")
"""Rules of which the kind of replica decides. The others are the mirror's own, whatever its rows are in."""
IN_POSTGRESQL = [
    name for name, history in HISTORIES.items()
    if "WALBRIDGE_TEST_ALL" in os.environ or any(rule.startswith(OF_ROWS) for rule in history.rules)
]  # fmt: skip


@pytest.mark.parametrize("name", IN_POSTGRESQL)
def test_the_mirror_in_postgresql(name: str, replica: str) -> None:
    certified_mirror.run(HISTORIES[name], replica)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str, tmp_path: Path) -> None:
    """By one of the histories of its rule, each of which the mirror passes without the fault."""
    rule = FAULTS[fault].rule
    for name in [name for name, history in HISTORIES.items() if rule in history.rules]:
        with planted(fault):
            try:
                certified_mirror.run(HISTORIES[name], f"sqlite:///{tmp_path}/{name}.db")
            except Exception:
                return
    pytest.fail(f"no history of {rule} finds it")


def test_each_rule_has_a_history() -> None:
    tried = {rule for history in HISTORIES.values() for rule in history.rules}
    assert tried == set(RULES)
    assert README.read_text(encoding="utf-8").partition(HEADING)[2].split("\n")[1:-1] == list(rules_table(HISTORIES))


def test_the_files_written_by_hand_are_as_written() -> None:
    """`python -m consumers.conformance.make --by-hand`."""
    for history in (*by_hand.histories(), *rounds_by_hand.histories()):
        committed = HISTORIES[history.name]
        assert committed.encode() == (FOLDER / f"{history.name}.json").read_bytes()
        assert replace(committed, steps=()) == replace(history, steps=())
        assert [_readable(step) for step in committed.steps] == [_readable(step) for step in history.steps], history.name


def _readable(step: Step) -> Step:
    """Without the bytes that depend on the version of zstd."""
    is_compressed = "Content-Encoding" in step.get("headers", ())
    return {name: value for name, value in step.items() if name != "body" or not is_compressed}
