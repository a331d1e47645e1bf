"""Which WAL levels suffice, by version: as a table, and the script's SQL beside the function."""

from __future__ import annotations

import psycopg
import pytest

from actors.embedded.postgres import PostgresServer
from actors.startup.wal_level import NEEDS_CHANGE, QUERY, WalLevel

BEFORE, SINCE = (140000, 150013, 180006), (190000, 190001, 200000)
LEVELS = ("minimal", "replica", "logical")


@pytest.mark.parametrize("version", BEFORE)
@pytest.mark.parametrize("is_standby", [False, True])
def test_before_postgresql_19_only_logical_suffices(version: int, is_standby: bool) -> None:
    for level in LEVELS:
        found = WalLevel(version, level, None, is_standby=is_standby)
        assert found.suffices == (level == "logical")
        assert found.words == level
        assert found.suffices or (level in found.refusal and "wal_level = 'logical'" in found.fix)


@pytest.mark.parametrize("version", SINCE)
@pytest.mark.parametrize(
    ("configured", "effective", "suffices", "words"),
    [
        ("minimal", "minimal", False, "minimal"),
        ("replica", "replica", True, "replica, which PostgreSQL {} raises for the first logical slot"),
        ("replica", "logical", True, "replica, in effect logical: PostgreSQL {} raises it while there is a logical slot"),
        ("logical", "logical", True, "logical"),
    ],
)
def test_postgresql_19_raises_every_level_but_minimal(
    version: int, configured: str, effective: str, suffices: bool, words: str
) -> None:  # fmt: skip
    found = WalLevel(version, configured, effective)
    assert (found.suffices, found.words) == (suffices, words.format(version // 10000))
    if not suffices:
        assert f"PostgreSQL {version // 10000} takes replica or logical" in found.refusal


@pytest.mark.parametrize("configured", LEVELS)
@pytest.mark.parametrize("effective", ["replica", "logical"])
def test_a_standby_of_postgresql_19_has_the_level_of_its_primary(configured: str, effective: str) -> None:
    found = WalLevel(190000, configured, effective, is_standby=True)
    assert found.suffices == (effective == "logical")
    assert found.suffices or ("effective_wal_level" in found.refusal and "on the primary" in found.fix)


def test_the_script_decides_as_the_bridge_does(pg18: PostgresServer) -> None:
    with psycopg.connect(pg18.dsn()) as connection:
        assert connection.execute(QUERY).fetchall() == [("logical", None, False)]
        for version in (*BEFORE, *SINCE):
            for level in LEVELS:
                words = NEEDS_CHANGE.replace("current_setting('server_version_num')", f"'{version}'")
                statement = "SELECT " + words.replace("current_setting('wal_level')", f"'{level}'")
                ((needs_change,),) = connection.execute(statement.encode()).fetchall()
                assert needs_change != WalLevel(version, level, level).suffices
