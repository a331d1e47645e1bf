"""HTTP, as the contract, section 7, promises it; the log line; what a stranger may not do."""

from __future__ import annotations

import http.client
import json
import re
import socket
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from actors.embedded.nats import NatsServer
from tests.conftest import MakeBridge
from tests.http_api import SEED_METRICS, SEED_STATUS
from tests.servers import Bridge, Database, wait_for, wait_for_events, wait_until_drained


@pytest.fixture
def bridge(database: Database, nats: NatsServer, make_bridge: MakeBridge) -> Bridge:
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE t")
    bridge = make_bridge(database, nats)
    database.execute("INSERT INTO t SELECT generate_series(1, 7)")
    wait_for_events(nats.url, 7)
    wait_for(lambda: bridge.status()["cdc_events_published"] == 7)
    return bridge


def ask(bridge: Bridge, method: str, path: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", bridge.port, timeout=10)
    connection.request(method, path, headers=headers or {})
    reply = connection.getresponse()
    body = reply.read().decode()
    connection.close()
    return reply.status, body


def test_status_metrics_and_stream_info_tell_what_was_stored(bridge: Bridge) -> None:
    assert bridge.get("/health") == (200, '{"status":"ok"}\n') or json.loads(bridge.get("/health")[1]) == {"status": "ok"}
    assert bridge.get("/ready")[0] == 200
    status = bridge.status()
    assert set(SEED_STATUS) <= set(status)
    assert (status["status"], status["is_connected"], status["cdc_events_published"]) == ("connected", True, 7)
    assert re.fullmatch(r"0/[0-9a-f]+", status["current_lsn"])
    info = json.loads(bridge.get("/streams/info?stream=CDC")[1])
    assert info["state"]["messages"] == 7
    assert [bridge.get(path)[0] for path in ("/streams/info", "/streams/info?stream=NONE", "/nothing")] == [400, 404, 404]
    assert ask(bridge, "GET", "/shutdown")[0] == 405


def test_the_seeds_metrics_are_plain_integers_and_ours_parse(bridge: Bridge) -> None:
    text = bridge.metrics()
    lines = text.splitlines()
    for name in SEED_METRICS:
        (line,) = [line for line in lines if re.match(rf"{name}\b[ {{]", line)]
        assert re.fullmatch(rf"{name} \d+", line), line
    families = {family.name: family for family in text_string_to_metric_families(text)}
    for name in ("bridge_lag_seconds", "bridge_state", "bridge_info", "bridge_event_latency_seconds", "bridge_ack_seconds",
                 "bridge_position_lsn", "bridge_channel_items", "bridge_events", "bridge_table_events", "bridge_gaps",
                 "bridge_tables_suspended", "bridge_slot_seconds_to_loss", "process_cpu_seconds"):  # fmt: skip
        assert name in families, name
    assert "_created" not in text
    samples = {(s.name, frozenset(s.labels.values())): s.value for f in families.values() for s in f.samples}
    assert samples["bridge_events_total", frozenset(["insert"])] == 7
    assert samples["bridge_table_events_total", frozenset(["public", "t", "insert"])] == 7
    assert samples["bridge_event_latency_seconds_count", frozenset()] == 7
    assert len(lines) == len(set(lines)), "no line comes twice"


def test_a_foreign_host_or_origin_is_refused_on_loopback_too(bridge: Bridge) -> None:
    assert ask(bridge, "GET", "/status", {"Host": "evil.example"})[0] == 403
    assert ask(bridge, "POST", "/shutdown", {"Origin": "http://evil.example"})[0] == 403
    assert ask(bridge, "GET", "/status", {"Host": f"localhost:{bridge.port}"})[0] == 200
    assert bridge.exit_code is None


def test_shutdown_drains_and_ends_with_0(bridge: Bridge) -> None:
    assert bridge.post("/shutdown")[0] == 202
    assert bridge.wait() == 0
    assert "stopped" in bridge.log()


def test_a_token_is_asked_for_where_one_is_set(database: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE t")
    bridge = make_bridge(database, nats, env={"BRIDGE_HTTP_TOKEN": "hunter2-token"})
    assert bridge.post("/shutdown")[0] == 401
    assert bridge.post("/shutdown", {"Authorization": "Bearer wrong"})[0] == 401
    assert bridge.get("/status")[0] == 200
    assert "hunter2-token" not in bridge.log() + json.dumps(bridge.status())
    assert bridge.post("/shutdown", {"Authorization": "Bearer hunter2-token"})[0] == 202
    assert bridge.wait() == 0


def test_beyond_loopback_nothing_is_posted_without_a_token(
    database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE t")
    bridge = make_bridge(database, nats, "--bind", "0.0.0.0")
    assert bridge.post("/shutdown")[0] == 403
    assert bridge.get("/health")[0] == 200


def test_a_taken_port_is_said_with_the_flag(
    bridge: Bridge, database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    second = make_bridge(database, nats, start=False)
    second.argv[second.argv.index("--port") + 1] = str(bridge.port)
    second.start(ready=False)
    assert second.wait() == 2
    assert f"--port {bridge.port} is taken" in second.log()


def test_the_metrics_line_comes_every_15_seconds_verbatim(bridge: Bridge) -> None:
    pattern = (
        r"^info\(bridge\): METRICS uptime=1[4-9] wal_messages=\d+ cdc_events=7 lsn=0/[0-9a-f]+ connected=1 reconnects=0 "
        r"nats_reconnects=0 lag_bytes=\d+ slot_active=1$"
    )
    wait_for(lambda: re.search(pattern, bridge.log(), re.MULTILINE) is not None)


@pytest.mark.parametrize(("style", "check"), [("logfmt", r"^ts=\S+ level=info actor=bridge msg=streaming slot=cdc_slot"),
                                              ("json", r'^\{"ts": "[^"]+", "level": "info", "actor": "bridge"')])  # fmt: skip
def test_the_log_is_logfmt_or_json(
    style: str, check: str, database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE t")
    bridge = make_bridge(database, nats, env={"LOG_FORMAT": style})
    time.sleep(0.1)
    assert re.search(check, bridge.log(), re.MULTILINE), bridge.log()


def test_no_secret_is_ever_shown(database: Database, make_nats: type, make_bridge: MakeBridge) -> None:
    nats = make_nats(users={"bridge": "hunter2-nats"})
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE t")
    bridge = make_bridge(database, nats, env={"LOG_LEVEL": "DEBUG"})
    nats.kill()
    wait_for(lambda: bridge.status()["state"] == "waiting_nats")
    everything = bridge.log() + json.dumps(bridge.status()) + bridge.metrics()
    assert "hunter2-nats" not in everything
    assert database.server.dsn().split(":")[2].split("@")[0] not in everything


def test_wrong_credentials_end_the_bridge_at_the_start(database: Database, make_nats: type, make_bridge: MakeBridge) -> None:
    nats = make_nats(users={"bridge": "right"})
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE t")
    bridge = make_bridge(database, nats, start=False, env={"NATS_BRIDGE_PASSWORD": "hunter2-wrong"})
    bridge.start(ready=False)
    assert bridge.wait() == 2
    assert "WB203" in bridge.log()
    assert "hunter2-wrong" not in bridge.log()
    wrong = make_bridge(database.dsn.replace(":walbridge-test@", ":hunter2-wrong@"), nats, start=False)
    wrong.start(ready=False)
    assert wrong.wait() == 2, wrong.log()
    assert "WB103" in wrong.log()
    assert "hunter2-wrong" not in wrong.log()


def test_answers_that_nobody_waits_for_disturb_neither_the_next_ones_nor_the_stream(
    database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY, note text); CREATE PUBLICATION cdc_pub FOR TABLE users")
    bridge = make_bridge(database, nats)
    database.execute("INSERT INTO users SELECT g, repeat('x', 1000) FROM generate_series(1, 3000) g")
    wait_until_drained(bridge, database)
    for number in range(30):
        with socket.create_connection(("127.0.0.1", bridge.port)) as tab:
            tab.sendall(b"GET /messages?table=users&key=id=1 HTTP/1.1\r\nHost: x\r\n\r\n")
            time.sleep(0.001 * number)
    status, body = bridge.get("/messages?limit=1")
    assert (status, len(json.loads(body)["messages"])) == (200, 1), body
    database.execute("INSERT INTO users VALUES (4000)")
    wait_until_drained(bridge, database)
    assert bridge.status()["nats_reconnect_count"] == 0
