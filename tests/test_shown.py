"""What the bridge shows of itself, on real servers: an idle restart, missing rights, unknown tables, settings, the end."""

from __future__ import annotations

import json
import time
import urllib.request
from typing import Any

from actors.contract.subjects import REQUEST_ALL
from actors.embedded.nats import NatsServer
from actors.telemetry.history import STUCK_AFTER_S
from tests.conftest import MakeBridge, MakeNats
from tests.servers import Database, read_stream, wait_for, wait_for_events, wait_until_drained


def problems(status: dict[str, Any]) -> list[str]:
    return [problem["code"] for problem in status["problems"]]


def errors(metrics: str) -> float:
    return sum(float(line.split()[1]) for line in metrics.splitlines() if line.startswith("bridge_errors_total"))


def test_an_idle_database_is_green_after_a_restart_and_an_outage(
    database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE t")
    bridge = make_bridge(database, nats)
    database.execute("INSERT INTO t VALUES (1)")
    wait_until_drained(bridge, database)
    assert bridge.stop() == 0
    bridge.start()
    wait_for(lambda: bridge.status()["uptime_seconds"] > STUCK_AFTER_S + 2)
    status = bridge.status()
    assert status["positions"]["confirmed"] != "0/0"
    assert [stage["stage"] for stage in status["stages"] if stage["stuck"]] == []
    assert (status["lag_seconds"], status["verdict"]["level"]) == (0, "warn" if problems(status) else "ok")
    assert "has not moved" not in status["verdict"]["text"]
    database.execute("INSERT INTO t VALUES (2)")
    wait_until_drained(bridge, database)
    nats.kill()
    wait_for(lambda: bridge.status()["state"] == "waiting_nats" and errors(bridge.metrics()) > 2)
    status = bridge.status()
    assert (status["lag_seconds"], status["nats_reconnect_count"]) == (0, 1)
    assert "unstored" not in status["verdict"]["text"]
    nats.start()
    bridge.wait_ready()
    status = bridge.status()
    assert status["nats_reconnect_count"] == 1, "one outage, however many attempts"
    assert (status["transactions"], status["last_commit_at"] > 0) == (1, True), "an outage begins no new count"
    assert "PostgreSQL has sent nothing" not in status["verdict"]["text"]
    wait_for(lambda: "No changes now; the last was committed" in bridge.status()["verdict"]["text"])
    assert bridge.stop() == 0
    assert "confirmed_lsn=0/0" not in bridge.log()


def test_a_user_who_may_not_hear_requests_is_refused_before_streaming_and_no_gap_follows(
    database: Database, make_nats: MakeNats, make_bridge: MakeBridge
) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE t")
    lacking = 'authorization { users: [ { user: u, password: p, permissions: { subscribe: ["_INBOX.>"] } } ] }'
    nats = make_nats(extra_config=lacking)
    user = {"NATS_BRIDGE_USER": "u", "NATS_BRIDGE_PASSWORD": "p"}
    bridge = make_bridge(database, nats, start=False, env=user)
    bridge.start(ready=False)
    assert bridge.wait() == 2
    assert "WB204" in bridge.log()
    assert REQUEST_ALL in bridge.log()
    assert "msg=streaming" not in bridge.log()
    nats.kill()
    nats.extra_config = "authorization { users: [ { user: u, password: p } ] }"
    nats.start()
    bridge.start()
    database.execute("INSERT INTO t VALUES (1)")
    wait_until_drained(bridge, database)
    assert [event.subject for event in read_stream(nats.url, user="u", password="p")] == ["cdc.t.insert"]


def test_a_snapshot_of_an_unknown_table_is_refused_with_the_names(
    database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE SCHEMA s; CREATE TABLE s.u (id int PRIMARY KEY)")
    database.execute("CREATE PUBLICATION cdc_pub FOR TABLE t, s.u")
    bridge = make_bridge(database, nats)
    code, said = bridge.post("/snapshot/nothing")
    assert code == 404
    assert json.loads(said)["available_tables"] == ["s.u", "t"]
    assert bridge.post("/snapshot/s.u")[0] == 202
    database.execute("CREATE TABLE late (id int PRIMARY KEY); ALTER PUBLICATION cdc_pub ADD TABLE late")
    assert bridge.post("/snapshot/late")[0] == 202, "the publication is looked at for it"


def test_a_setting_that_is_mended_while_the_bridge_runs_is_a_problem_no_more(
    database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE t")
    bridge = make_bridge(database, nats)
    before = database.execute("SELECT setting FROM pg_settings WHERE name = 'max_slot_wal_keep_size'")[0][0]
    limits = ["-1", "1024"] if before != "-1" else ["1024", "-1"]
    try:
        for limit in limits:
            database.execute(f"ALTER SYSTEM SET max_slot_wal_keep_size = {limit}")
            database.execute("SELECT pg_reload_conf()")
            bridge.post("/snapshot/no_such_table")  # the next look is due in half a minute, or at a question
            wait_for(lambda limit=limit: ("WB120" in problems(bridge.status())) == (limit == "-1"))
    finally:
        database.execute("ALTER SYSTEM RESET max_slot_wal_keep_size")
        database.execute("SELECT pg_reload_conf()")


def test_a_backlog_is_never_green_and_its_lag_falls_only_with_what_is_stored(
    database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute("CREATE TABLE t (id serial PRIMARY KEY, v text); CREATE PUBLICATION cdc_pub FOR TABLE t")
    bridge = make_bridge(database, nats)
    assert bridge.stop() == 0
    for _ in range(12):
        database.execute("INSERT INTO t (v) SELECT repeat('x', 300) FROM generate_series(1, 5000)")
    newest = time.time()
    wait_for(lambda: time.time() > newest + STUCK_AFTER_S)
    bridge.start(ready=False)
    lags: list[float] = []

    def look() -> bool:
        try:
            status = bridge.status()
        except (OSError, ValueError):  # it does not serve yet
            return False
        if status["state"] == "streaming" and 0 < status["cdc_events_published"] < 60_000:
            lags.append(status["lag_seconds"])
            assert status["lag_seconds"] > 5, "every change of it is older"
            assert status["verdict"]["level"] != "ok", status["verdict"]
        return bool(status["cdc_events_published"] == 60_000)

    wait_for(look)
    wait_until_drained(bridge, database)
    assert bridge.status()["lag_seconds"] == 0
    assert lags, "it was looked at while there was a backlog"


def test_an_open_page_is_told_that_the_bridge_has_stopped(
    database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE t")
    bridge = make_bridge(database, nats)
    database.execute("INSERT INTO t VALUES (1)")
    wait_for_events(nats.url, 1)
    with urllib.request.urlopen(f"http://127.0.0.1:{bridge.port}/events") as page:
        frames = (json.loads(line[6:]) for line in page if line.startswith(b"data: "))
        assert next(frames)["status"]["state"] == "streaming"
        bridge.post("/shutdown")
        last = None
        try:
            for last in frames:  # noqa: B007
                pass
        except OSError:
            pass
    assert last is not None
    assert last["status"]["state"] in ("draining", "halted")
    assert bridge.wait() == 0
