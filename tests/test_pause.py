"""pause and resume: in order, kept over a restart, without an alarm but with the budget, and never at the cost of a change."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from actors.embedded.nats import NatsServer
from tests.command_line import run_here
from tests.conftest import MakeBridge, MakeNats, MakePostgres
from tests.load import Load, ledger
from tests.oracle import assert_exact
from tests.servers import CLEAN, HANG_S, ROOT, Bridge, Database, read_stream, wait_for, wait_for_events, wait_until_drained

SLOT = "SELECT active, confirmed_flush_lsn >= %s::pg_lsn FROM pg_replication_slots WHERE slot_name = 'cdc_slot'"


def told(command: str, bridge: Bridge, **env: str) -> Any:
    return run_here(command, "--port", str(bridge.port), env=env)


def is_in(bridge: Bridge, state: str) -> bool:
    code, body = bridge.get("/ready")
    return code == 503 and json.loads(body)["state"] == state


@pytest.fixture
def table(database: Database) -> Database:
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE t")
    return database


def ids(url: str) -> list[int]:
    return [event.body["data"]["id"] for event in read_stream(url) if event.body.get("operation") == "INSERT"]


def test_what_was_read_is_stored_and_confirmed_before_the_slot_is_released_and_a_restart_stays_paused(
    database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    with ledger(database) as oracle:
        bridge = make_bridge(database, nats)
        with Load(database):
            wait_for_events(nats.url, 20)
            done = told("pause", bridge)
            assert done.returncode == 0, done.stderr
            assert done.stdout.startswith("paused: slot cdc_slot is released at ")
            assert "WAL held: " in done.stdout
            assert f"to continue: walbridge resume --url http://127.0.0.1:{bridge.port}" in done.stdout
            status = bridge.status()
            assert database.execute(SLOT, [status["positions"]["durable"]]) == [(False, True)]
            assert status["positions"]["durable"] == status["positions"]["confirmed"]
            stored = len(read_stream(nats.url))
        assert (status["state"], status["paused"]["recorded"]) == ("paused", True)
        code, ready = bridge.get("/ready")
        assert (code, json.loads(ready)["state"]) == (503, "paused")
        assert "walbridge resume ends that" in json.loads(ready)["reason"]
        assert bridge.get("/health")[0] == 200
        metrics = {line.split(" ")[0]: float(line.split(" ")[1]) for line in bridge.metrics().splitlines() if line[0] != "#"}
        assert metrics["bridge_paused_timestamp_seconds"] == status["paused"]["since"]
        assert metrics['bridge_state{bridge_state="paused"}'] == 1

        bridge.kill()
        bridge.start(ready=False)
        wait_for(lambda: is_in(bridge, "paused"), bridge.log)
        assert bridge.status()["paused"] == status["paused"]
        assert told("pause", bridge).returncode == 0, "a second operator changes nothing"
        assert bridge.status()["paused"] == status["paused"]
        assert len(read_stream(nats.url)) == stored
        assert database.execute("SELECT active FROM pg_replication_slots WHERE slot_name = 'cdc_slot'") == [(False,)]
        done = told("resume", bridge)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("slot cdc_slot: resumed. It reads on from where it stopped")
        assert "slot cdc_slot: it was not paused. Streaming." in told("resume", bridge).stdout
        assert told("resume", bridge).returncode == 0
        wait_until_drained(bridge, database)
        assert_exact(read_stream(nats.url), oracle.expected())
        assert bridge.status()["paused"] is None
        assert bridge.status()["reconnect_count"] == bridge.status()["nats_reconnect_count"] == 0


def test_a_paused_bridge_lets_postgresql_stop_and_stays_paused_over_a_restart_without_it(
    make_postgres: MakePostgres, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    server = make_postgres()
    database = Database(server, "shop")
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE t")
    bridge = make_bridge(database, nats)
    assert told("pause", bridge).returncode == 0
    server.stop("fast")
    assert bridge.stop() == 0
    bridge.start(ready=False)
    wait_for(lambda: is_in(bridge, "paused"), bridge.log)
    server.start()
    with database.connect() as again:
        again.execute("INSERT INTO t VALUES (1)")
    assert told("resume", bridge).returncode == 0
    wait_for_events(nats.url, 1)
    database.close()


def test_a_pause_during_an_outage_of_nats_releases_the_slot_and_is_recorded_once_nats_is_back(
    table: Database, make_nats: MakeNats, make_bridge: MakeBridge
) -> None:
    nats = make_nats()
    bridge = make_bridge(table, nats)
    nats.kill()
    wait_for(lambda: is_in(bridge, "waiting_nats"), bridge.log)
    table.execute("INSERT INTO t VALUES (1)")
    done = told("pause", bridge)
    assert "NATS does not have the pause yet" in done.stdout
    assert "a restart would stream" in bridge.status()["verdict"]["text"]
    assert table.execute("SELECT active FROM pg_replication_slots WHERE slot_name = 'cdc_slot'") == [(False,)]
    nats.start()
    wait_for(lambda: bridge.status()["paused"]["recorded"])
    assert "a restart would stream" not in bridge.status()["verdict"]["text"]
    assert "not recorded" not in bridge.status()["reason"]
    nats.kill()
    code, _ = bridge.post("/resume")
    assert code == 202
    wait_for(lambda: is_in(bridge, "waiting_nats"), bridge.log)
    nats.start()
    bridge.wait_ready()
    wait_for_events(nats.url, 1)
    assert ids(nats.url) == [1]


def test_a_slot_that_is_lost_during_the_pause_is_told_as_ever(
    table: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    bridge = make_bridge(table, nats)
    assert told("pause", bridge).returncode == 0
    table.execute("SELECT pg_drop_replication_slot('cdc_slot')")
    table.execute("INSERT INTO t VALUES (1)")
    wait_for(lambda: "WB108" in [one["code"] for one in bridge.status()["problems"]])
    assert bridge.status()["verdict"]["level"] == "bad"
    assert "the slot is gone: changes do not wait, they are lost" in bridge.status()["verdict"]["text"]
    checks = json.loads(run_here("doctor", "--json", "--port", str(bridge.port), env=bridge.env).stdout)["checks"]
    (port,) = [row for row in checks if row["check"] == "HTTP port"]
    assert (port["level"], "the slot is gone" in port["what"]) == ("warn", True), port
    done = told("resume", bridge)
    assert done.returncode == 1
    assert bridge.wait() == 1
    assert "WB108" in bridge.log()
    assert make_bridge(table, nats, "--accept-gap").stop() == 0, "it is not paused any more"
    assert [event.subject for event in read_stream(nats.url)] == ["cdc._bridge.gap"]


def test_a_snapshot_is_interrupted_by_a_pause_and_requests_wait_for_its_end(
    table: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    table.execute("CREATE TABLE wide (id int PRIMARY KEY, v text); ALTER PUBLICATION cdc_pub ADD TABLE wide")
    table.execute("INSERT INTO wide SELECT g, repeat(md5(g::text), 60) FROM generate_series(1, 40000) g")
    bridge = make_bridge(table, nats)
    bridge.post("/snapshot/wide")
    wait_for(lambda: any(s["state"] == "running" and s["rows"] for s in bridge.status()["snapshots"]))
    done = told("pause", bridge)
    assert "after the pause: snapshots of wide" in done.stdout, done.stdout + bridge.log()
    code, reply = bridge.post("/snapshot/t")
    assert code == 202
    assert json.loads(reply)["waits"].startswith("paused since ")
    asking = subprocess.Popen(
        [sys.executable, "-m", "actors.main", "snapshot", "t"],
        cwd=ROOT,
        env={**CLEAN, "NATS_URL": nats.url},
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert asking.stderr is not None
    assert "t: the bridge is paused: the request is kept" in asking.stderr.readline()
    assert told("resume", bridge).returncode == 0
    assert asking.wait(HANG_S) == 0
    asking.communicate()
    wait_for(lambda: {s["table"]: s["state"] for s in bridge.status()["snapshots"]} == {"wide": "done", "t": "done"})


def test_a_pause_needs_the_token_and_no_temporary_slot(table: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    bridge = make_bridge(table, nats, env={"BRIDGE_HTTP_TOKEN": "let-me-in"})
    done = told("pause", bridge)
    assert (done.returncode, "wants its token: set BRIDGE_HTTP_TOKEN" in done.stderr) == (1, True)
    assert bridge.post("/resume")[0] == 401
    assert bridge.status()["paused"] is None
    assert told("pause", bridge, BRIDGE_HTTP_TOKEN="let-me-in").returncode == 0
    bridge.kill()
    nobody = told("resume", bridge)
    assert (nobody.returncode, "no bridge answers" in nobody.stderr) == (1, True)
    preview = make_bridge(table, nats, "--temporary-slot", "--stream", "PREVIEW", slot="preview")
    done = told("pause", preview)
    assert (done.returncode, "a pause would lose changes" in done.stderr) == (1, True)
    assert preview.get("/ready")[0] == 200


def test_of_two_bridges_on_a_slot_a_pause_of_either_is_a_pause_of_both(
    table: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    first = make_bridge(table, nats)
    second = make_bridge(table, nats, start=False)
    second.start(ready=False)
    wait_for(lambda: "WB104" in second.get("/ready")[1], second.log)
    assert told("pause", first).returncode == 0
    wait_for(lambda: is_in(second, "paused"), second.log)
    table.execute("INSERT INTO t VALUES (1)")
    second.post("/resume")
    wait_for(lambda: {first.status()["paused"] is None, second.status()["paused"] is None} == {True})
    wait_for_events(nats.url, 1)
    assert ids(nats.url) == [1]
