"""The commands in messages: typed in as they stand, they reach the bridge that the command line meant."""

from __future__ import annotations

import shlex

import pytest

from actors.commands import as_typed
from actors.commands.as_typed import carried, remember
from actors.contract.bridge_record import NotedGap
from actors.main import COMMANDS, app
from actors.positions import Lsn
from actors.settings.config import HttpConfig
from actors.snapshots.failures import SnapshotFailed, fix_of
from actors.telemetry.problems import gap_problem

FILE = ["--env-file", "a b.env"]


@pytest.mark.parametrize(
    ("typed", "said", "carries"),
    [
        (["status", "--port", "9191", *FILE], "until walbridge resume. More", "until walbridge resume --port 9191 --env-file 'a b.env'. More"),
        (["status", "--url=http://b:1"], "walbridge resume", "walbridge resume --url http://b:1"),
        (["pause", "--port=9191"], "walbridge resume --url http://b:1", "walbridge resume --url http://b:1"),
        (["status", "--port", "9191", *FILE], "walbridge snapshot users   # again", "walbridge snapshot users --env-file 'a b.env'   # again"),
        (["snapshot", "users", "--stream", "S", *FILE], "walbridge snapshot orders\nSELECT 1;", "walbridge snapshot orders --stream S --env-file 'a b.env'\nSELECT 1;"),
        (["snapshot", "users", "--stream", "S"], "walbridge snapshot users --stream CDC", "walbridge snapshot users --stream CDC"),
        (["--slot", "s", "--json", "--accept-upgrade", *FILE], "walbridge run --accept-gap   # gap", "walbridge run --accept-gap --slot s --json --env-file 'a b.env'   # gap"),
        (["run", "--embedded", "dir", "--port", "1"], "start it: walbridge run", "start it: walbridge run --embedded dir --port 1"),
        (["doctor", "--slot", "s", "--json"], "walbridge run", "walbridge run --slot s"),
        (["mirror", "--port", "9091", "--to", "sqlite:///x", *FILE], "walbridge run; or walbridge status", "walbridge run --env-file 'a b.env'; or walbridge status --env-file 'a b.env'"),
        (["certify", "--", "prog", "--stream", "S"], "walbridge tail", "walbridge tail"),
        (["init", "--slot", "s"], "walbridge run", "walbridge run"),
        (["tail", *FILE], "see walbridge help WB200 and walbridge demo", "see walbridge help WB200 and walbridge demo"),
        (["tail"], "walbridge run", "walbridge run"),
    ],
)  # fmt: skip
def test_a_command_in_a_message_has_the_flags_that_were_typed(typed: list[str], said: str, carries: str) -> None:
    remember(typed)
    assert carried(said) == carries
    if "\n" not in carries and carries.startswith("walbridge "):
        app.parse_args(shlex.split(carries.partition("#")[0].partition(";")[0])[1:], print_error=False, exit_on_error=False)


def test_every_command_that_takes_an_env_file_is_known() -> None:
    named = {"run", *(name.partition(":")[2] for name in COMMANDS)}
    assert named - {"init", "certify", "demo", "produce", "help"} == set(as_typed.COMMANDS)


def test_what_a_bridge_says_of_a_gap_and_a_snapshot_reaches_that_bridge() -> None:
    gap = NotedGap(5, 1.0, "dropped", Lsn(1), Lsn(2), ("users", "s/Odd=20one"), 2)
    fix = gap_problem(gap, "SHOP", HttpConfig(port=9191, token="hunter2")).fix
    assert "walbridge snapshot users --stream SHOP\nwalbridge snapshot 's.Odd one' --stream SHOP\n" in fix
    assert 'curl -X POST -H "Authorization: Bearer $BRIDGE_HTTP_TOKEN" http://127.0.0.1:9191/gaps/5/acknowledge' in fix
    of_default = gap_problem(gap, "CDC", HttpConfig()).fix
    assert "walbridge snapshot users\n" in of_default
    assert "curl -X POST http://127.0.0.1:9090/gaps/5/acknowledge" in of_default
    assert fix_of(SnapshotFailed("no_watermark", ""), "public.users", "users", "SHOP").startswith(
        "walbridge snapshot users --stream SHOP"
    )
    denied = SnapshotFailed("permission_denied", "42501 permission denied for schema Sales Dept")
    assert fix_of(denied, '"Sales Dept"."Lines.v2"', "Sales=20Dept/Lines=2Ev2", "CDC").startswith(
        'GRANT USAGE ON SCHEMA "Sales Dept" TO ...; GRANT SELECT'
    )
