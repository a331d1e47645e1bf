"""Every history of consumers/conformance, and the Python mirror, which must get each of them right in both kinds of replica."""

from __future__ import annotations

from pathlib import Path

import pytest

from consumers.conformance import by_hand
from consumers.conformance.make import FOLDER, HEADING, README, read_all, rules_table
from consumers.conformance.rules import RULES
from tests import certified_mirror

HISTORIES = read_all()


@pytest.mark.parametrize("name", HISTORIES)
def test_the_mirror_in_sqlite(name: str, tmp_path: Path) -> None:
    certified_mirror.run(HISTORIES[name], f"sqlite:///{tmp_path}/replica.db")


def test_each_rule_has_a_history() -> None:
    tried = {rule for history in HISTORIES.values() for rule in history.rules}
    assert tried == set(RULES)
    assert README.read_text(encoding="utf-8").partition(HEADING)[2].split("\n")[1:-1] == list(rules_table(HISTORIES))


def test_the_files_written_by_hand_are_as_written() -> None:
    """`python -m consumers.conformance.make --by-hand`."""
    for history in by_hand.histories():
        assert (FOLDER / f"{history.name}.json").read_bytes() == history.encode(), history.name
        assert HISTORIES[history.name] == history
