"""`walbridge cleanup`: what a bridge leaves behind goes, what is others' stays, and nothing goes unasked."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from typing import Any

import nats as nats_py
import pytest
from nats.aio.client import Client

from actors.embedded.nats import NatsServer
from tests.command_line import run_here
from tests.conftest import MakeBridge, MakeNats
from tests.servers import ROOT, Bridge, Database, wait_for_events, with_nats
from tests.snapshots import take

SLOTS = "SELECT slot_name FROM pg_replication_slots WHERE database = current_database() ORDER BY 1"


def cleanup(bridge: Bridge, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "actors.main", "cleanup", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=bridge.env, text=True, capture_output=True, stdin=subprocess.DEVNULL, check=False
    )


def streams(url: str) -> dict[str, int]:
    """The streams that are there, and how many messages each has."""

    async def look(client: Client) -> dict[str, int]:
        return {s.config.name or "": s.state.messages for s in await client.jetstream().streams_info()}

    return with_nats(url, look)


pytestmark = pytest.mark.own_servers("who cleans up may delete streams; the stack's bridge may not")


@pytest.fixture
def used(database: Database, nats: NatsServer, make_bridge: MakeBridge) -> Bridge:
    """A stopped bridge that has streamed and taken a snapshot."""
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE t; INSERT INTO t VALUES (1)")
    bridge = make_bridge(database, nats)
    database.execute("INSERT INTO t VALUES (2)")
    wait_for_events(nats.url, 1)
    take(nats.url, "t")
    assert bridge.stop() == 0
    return bridge


def test_everything_goes_and_what_it_frees_is_said(used: Bridge, database: Database, nats: NatsServer) -> None:
    assert set(streams(nats.url)) == {"CDC", "INIT", "REQUESTS", "KV_schemas", "KV_bridges"}
    done = cleanup(used, "--yes")
    assert done.returncode == 0, done.stderr
    assert "of WAL in PostgreSQL" in done.stdout
    assert 'DROP PUBLICATION "cdc_pub"' in done.stdout
    assert done.stdout.count("removed:") == 6
    assert streams(nats.url) == {}
    assert database.execute(SLOTS) == []
    assert database.execute("SELECT count(*) FROM t, pg_publication") == [(2,)], "what is the owner's stays"
    again = cleanup(used, "--yes")
    assert (again.returncode, again.stdout) == (0, "nothing to remove\n")


def test_another_databases_slot_and_stream_stay(used: Bridge, database: Database, nats: NatsServer) -> None:
    before = streams(nats.url)
    env = {"DATABASE_URL": database.server.dsn("postgres"), "NATS_URL": nats.url}
    ((slot,),) = database.execute(SLOTS)
    done = run_here("cleanup", "--slot", slot, "--yes", "--force", env=env)
    assert (done.returncode, f"slot {slot} belongs to database {database.name}, not to postgres" in done.stderr) == (2, True)
    assert streams(nats.url) == before
    assert database.execute(SLOTS) == [(slot,)]
    database.execute("SELECT pg_drop_replication_slot(%s)", [slot])
    done = run_here("cleanup", "--slot", slot, "--yes", env=env)
    assert (done.returncode, f"written from database {database.name}, not from postgres" in done.stderr) == (2, True), (
        done.stderr
    )
    assert streams(nats.url) == before


def test_a_bridge_starts_afresh_after_it(used: Bridge, database: Database, nats: NatsServer) -> None:
    assert cleanup(used, "--yes").returncode == 0
    used.start()
    database.execute("INSERT INTO t VALUES (3)")
    assert [event.body["data"]["id"] for event in wait_for_events(nats.url, 1)] == [3]


def test_nothing_goes_unasked(used: Bridge, database: Database, nats: NatsServer) -> None:
    before = streams(nats.url)
    refused = cleanup(used)
    assert refused.returncode == 2
    assert "slot cdc_slot" in refused.stdout, "the plan is shown all the same"
    assert refused.stderr == "walbridge: nobody is here to be asked; give --yes to remove what is listed\n"
    assert streams(nats.url) == before
    assert database.execute(SLOTS) == [("cdc_slot",)]


def test_as_json_it_says_what_there_was_and_what_is_gone(used: Bridge, nats: NatsServer) -> None:
    before = streams(nats.url)
    asked = cleanup(used, "--json")
    assert asked.returncode == 2
    assert "give --yes" in asked.stderr
    plan = json.loads(asked.stdout)
    assert {(r["kind"], r["name"], r["removed"]) for r in plan["removals"]} == {
        ("slot", "cdc_slot", False), ("stream", "CDC", False), ("stream", "INIT", False), ("stream", "REQUESTS", False),
        ("bucket", "schemas", False), ("bucket", "bridges", False),
    }  # fmt: skip
    assert (plan["slot"], plan["stream"], plan["publication"], plan["objections"]) == ("cdc_slot", "CDC", "cdc_pub", [])
    assert streams(nats.url) == before
    done = cleanup(used, "--json", "--yes")
    assert done.returncode == 0, done.stderr
    assert [r["removed"] for r in json.loads(done.stdout)["removals"]] == [True] * 6
    assert streams(nats.url) == {}
    assert json.loads(cleanup(used, "--json").stdout)["removals"] == []


@pytest.mark.parametrize(("answer", "code"), [("cdc_slot", 0), ("yes", 1), ("", 1)])
def test_only_the_slots_name_is_a_yes(answer: str, code: int, used: Bridge, database: Database) -> None:
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "actors.main", "cleanup"], cwd=ROOT, env=used.env, stdin=theirs,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        os.write(ours, f"{answer}\n".encode())
        _, said = process.communicate(timeout=60)
    finally:
        os.close(ours)
        os.close(theirs)
    assert process.returncode == code
    assert b"Type the slot's name, cdc_slot" in said
    assert database.execute(SLOTS) == ([] if code == 0 else [("cdc_slot",)])


def test_a_running_bridge_is_left_alone(used: Bridge, database: Database, nats: NatsServer) -> None:
    used.start()
    refused = cleanup(used, "--yes", "--force")
    assert refused.returncode == 2
    assert "slot cdc_slot is being read by process" in refused.stderr
    assert refused.stdout == ""
    assert "CDC" in streams(nats.url)
    assert used.get("/ready")[0] == 200


def test_a_slot_that_no_bridge_made_is_left_alone(used: Bridge, database: Database) -> None:
    database.execute("SELECT pg_create_logical_replication_slot('other', 'test_decoding')")
    refused = cleanup(used, "--slot", "other", "--yes")
    assert refused.returncode == 2
    assert "its plugin is test_decoding" in refused.stderr
    assert database.execute(SLOTS) == [("cdc_slot",), ("other",)]


def test_another_slots_stream_is_left_alone(used: Bridge, nats: NatsServer) -> None:
    refused = cleanup(used, "--slot", "some_slot", "--yes")
    assert refused.returncode == 2
    assert "WB242" in refused.stderr
    assert "CDC" in streams(nats.url)


def test_a_stream_that_somebody_reads_goes_only_by_force(used: Bridge, database: Database, nats: NatsServer) -> None:
    async def subscribe(client: Client) -> None:
        await client.jetstream().add_consumer("CDC", durable_name="replica", ack_policy=nats_py.js.api.AckPolicy.EXPLICIT)

    with_nats(nats.url, subscribe)
    refused = cleanup(used, "--yes")
    assert refused.returncode == 2
    assert "stream CDC has 1 consumer (replica); add --force" in refused.stderr
    assert database.execute(SLOTS) == [("cdc_slot",)], "not even the slot"
    assert cleanup(used, "--yes", "--force").returncode == 0
    assert streams(nats.url) == {}


def test_what_a_paused_bridge_will_go_on_with_goes_only_by_force(used: Bridge, database: Database, nats: NatsServer) -> None:
    used.start()
    assert run_here("pause", "--port", str(used.port)).returncode == 0
    for flags in ([], ["--slot-only"]):
        refused = cleanup(used, "--yes", *flags)
        assert refused.returncode == 2
        assert "the bridge of slot cdc_slot is paused" in refused.stderr
    assert database.execute(SLOTS) == [("cdc_slot",)]
    used.stop()
    assert cleanup(used, "--yes", "--force").returncode == 0
    assert streams(nats.url) == {}


def test_the_slot_alone(used: Bridge, database: Database, nats: NatsServer) -> None:
    before = streams(nats.url)
    done = cleanup(used, "--slot-only", "--yes")
    assert done.returncode == 0
    assert database.execute(SLOTS) == []
    assert streams(nats.url) == before
    used.start(ready=False)
    assert used.wait() == 1
    assert "WB108" in used.log(), "the next start says that changes are lost"


def test_what_another_bridge_uses_stays(used: Bridge, database: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    database.execute("CREATE TABLE u (id int PRIMARY KEY); CREATE PUBLICATION pub2 FOR TABLE u")
    second = make_bridge(database, nats, "--stream", "TWO", slot="slot2", pub="pub2")
    database.execute("INSERT INTO u VALUES (7)")
    wait_for_events(nats.url, 1, "TWO")
    take(nats.url, "u")
    done = cleanup(used, "--yes")
    assert done.returncode == 0, done.stderr
    assert "shared with the bridges of streams TWO" in done.stdout
    assert second.get("/ready")[0] == 200
    assert database.execute(SLOTS) == [("slot2",)]
    assert set(streams(nats.url)) == {"TWO", "INIT", "REQUESTS", "KV_schemas", "KV_bridges"}

    async def subjects(client: Client) -> set[str]:
        js, found = client.jetstream(), set[str]()
        for name in ("INIT", "KV_schemas", "KV_bridges"):
            info: Any = await js.stream_info(name, subjects_filter=">")
            found |= set(info.state.subjects or ())
        return found

    left = with_nats(nats.url, subjects)
    assert {s for s in left if s.startswith("$KV")} == {"$KV.schemas.TWO.u", "$KV.bridges.TWO", "$KV.bridges.TWO.u"}
    assert not [s for s in left if ".t" in s]
    assert [s for s in left if s.startswith("init.snap.u.")]


def test_what_the_user_may_not_remove_comes_as_commands(
    database: Database, make_nats: MakeNats, make_bridge: MakeBridge
) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE t")
    denied = 'permissions: { publish: { deny: ["$JS.API.STREAM.DELETE.CDC", "$JS.API.STREAM.DELETE.KV_schemas"] } }'
    nats = make_nats(extra_config=f"authorization {{ users: [{{ user: a, password: a, {denied} }}] }}")
    url = nats.url.replace("//", "//a:a@")
    bridge = make_bridge(database, url)
    assert bridge.stop() == 0
    done = cleanup(bridge, "--yes")
    assert done.returncode == 1
    assert done.stdout.count("removed:") == 4
    assert "nats stream rm CDC --force" in done.stderr
    assert "nats kv del schemas --force" in done.stderr
    assert set(streams(url)) == {"CDC", "KV_schemas"}
    assert database.execute(SLOTS) == []


def test_a_server_that_is_away_is_said_in_our_words(used: Bridge) -> None:
    used.env["NATS_URL"] = "nats://127.0.0.1:1"
    gone = cleanup(used, "--yes")
    assert gone.returncode == 1
    assert gone.stderr.startswith("error WB200:")
    assert "Traceback" not in gone.stderr
