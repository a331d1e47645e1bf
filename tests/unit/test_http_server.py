"""The HTTP server alone, with telemetry that the test makes: strangers, slow clients, states no bridge can be held in."""

from __future__ import annotations

import gc
import http.client
import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from functools import partial
from typing import Any

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from actors.embedded.process import free_port
from actors.errors import ConfigError
from actors.http_server import serve_http
from actors.pace import Pace
from actors.pause import Pause
from actors.positions import Lsn
from actors.process import allow_many_files
from actors.settings.resolve import resolve
from actors.telemetry.metrics import FAULTS, OPERATIONS, REJECTIONS, TABLES_MAX, Metrics
from actors.telemetry.telemetry import Problem, Telemetry
from actors.web import serving
from tests.http_api import SEED_METRICS, FakeLookup, Server


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


@pytest.fixture
def server(telemetry: Telemetry) -> Iterator[Server]:
    with Server(telemetry) as server:
        yield server


def read_to_end(client: socket.socket) -> bytes:
    found = b""
    while more := client.recv(65536):
        found += more
    return found


@pytest.mark.parametrize("request_line", ["GET /health HTTP/1.0\r\n", "GET /health HTTP/1.1\r\nConnection: close\r\n"])
def test_a_client_that_reads_to_the_end_sees_the_end(request_line: str, server: Server) -> None:
    with server.connected() as client:
        client.sendall(f"{request_line}Host: localhost\r\n\r\n".encode())
        before = time.monotonic()
        assert read_to_end(client).endswith(b'{"status":"ok"}\n')
        assert time.monotonic() - before < 10, "not by the idle timeout"


def test_a_connection_is_kept_for_more_and_ended_when_idle(telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "IDLE_S", 1.0)
    with Server(telemetry) as server, server.connected() as used, server.connected() as silent, server.connected() as half:
        for path in ("/health", "/metrics", "/health"):
            used.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            reply = http.client.HTTPResponse(used)
            reply.begin()
            assert reply.status == 200
            reply.read()
        half.sendall(b"GET /health HTTP/1.1\r\nHos")
        assert [read_to_end(client) for client in (used, silent, half)] == [b"", b"", b""]


def test_a_client_that_never_reads_does_not_keep_the_server_from_ending(
    telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "UNREAD_S", 1.0)
    with Server(telemetry) as server, closing(socket.create_connection(("127.0.0.1", server.port))) as client:
        client.settimeout(1)
        asked = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1_000_000
        with pytest.raises(TimeoutError):  # both sides' buffers are full
            client.sendall(asked)
        server.end()
        assert client.fileno() >= 0, "it was there all the time"


def test_ready_says_why_not(server: Server, telemetry: Telemetry) -> None:
    telemetry.state, telemetry.not_ready_reason = "waiting_nats", "WB200: cannot connect to NATS at n:4222"
    status, _, body = server.ask("GET", "/ready")
    assert status == 503
    assert json.loads(body) == {"ready": False, "state": "waiting_nats", "reason": "WB200: cannot connect to NATS at n:4222"}
    assert server.ask("GET", "/health")[0] == 200, "waiting is no reason to be killed"
    telemetry.state = "streaming"
    assert server.ask("GET", "/ready")[0] == 200


def test_paths_methods_and_stream_info(server: Server) -> None:
    assert server.ask("GET", "/streams/info?stream=CDC")[0] == 200
    assert [server.ask("GET", f"/streams/info{query}")[0] for query in ("", "?stream=", "?stream=a.b", "?stream=NO")] == [
        400,
        400,
        400,
        404,
    ]
    assert server.ask("GET", "/streams/info?stream=AWAY")[0] == 503
    for method, path, expected in (
        ("GET", "/none", 404),
        ("POST", "/", 405),
        ("GET", "/shutdown", 405),
        ("POST", "/health", 405),
        ("HEAD", "/health", 200),
    ):
        status, headers, _ = server.ask(method, path)
        assert (status, headers["Content-Type"]) == (expected, "application/json")
    assert "/metrics" in json.loads(server.ask("GET", "/nothing")[2])["paths"]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:9090", "localhost.evil.example", "127.0.0.1.evil.example"])
def test_a_rebound_name_is_refused(host: str, server: Server) -> None:
    assert server.ask("GET", "/status", Host=host)[0] == 403
    assert server.ask("POST", "/shutdown", Host=host)[0] == 403
    assert not server.stop_asked


def test_loopback_by_any_of_its_names_is_served(server: Server) -> None:
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1:80", "[::1]:9090", "[::1]"):
        assert server.ask("GET", "/status", Host=host)[0] == 200, host


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://localhost.evil.example", ""])
def test_a_page_from_elsewhere_cannot_stop_the_bridge(origin: str, server: Server) -> None:
    assert server.ask("POST", "/shutdown", Origin=origin)[0] == 403
    assert not server.stop_asked


@pytest.mark.parametrize(
    "given", ["", "hunter2-token", "Basic hunter2-token", "Bearer", "Bearer wrong", "Bearer hunter2-tokem"]
)
def test_only_the_bearer_token_opens(given: str, telemetry: Telemetry) -> None:
    with Server(telemetry, token="hunter2-token") as server:
        status, headers, body = server.ask("POST", "/shutdown", Authorization=given)
        assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
        assert "hunter2" not in body
        assert not server.stop_asked
        assert server.ask("POST", "/shutdown", Authorization="bearer hunter2-token")[0] == 202
        assert server.stop_asked


def test_beyond_loopback_any_name_may_read_and_nobody_may_post(telemetry: Telemetry) -> None:
    with Server(telemetry, bind="0.0.0.0") as server:
        assert server.ask("GET", "/metrics", Host="bridge.monitoring.svc:9090")[0] == 200
        assert server.ask("POST", "/shutdown", Host="bridge.monitoring.svc:9090")[0] == 403


def test_a_header_without_end_is_refused(server: Server) -> None:
    with server.connected() as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        with pytest.raises(OSError):  # noqa: PT011  (a reset, or a pipe that broke, as the race falls)
            client.sendall((b"X-Filler: " + b"x" * 4096 + b"\r\n") * 10_000)
    assert server.ask("GET", "/health")[0] == 200


def test_a_body_without_end_is_refused(server: Server) -> None:
    head = "POST /snapshot/users HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with server.connected() as client:
        client.sendall(head.encode())
        with pytest.raises(OSError):  # noqa: PT011  (a reset, or a pipe that broke, as the race falls)
            client.sendall((b"10000\r\n" + b"x" * 65536 + b"\r\n") * 1_000)
    assert server.ask("GET", "/health")[0] == 200


def test_hundreds_of_connections_keep_nobody_out_and_are_ended(telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silent, in the middle of a header, in the middle of a body: what slow clients, scanners and attackers do."""
    allow_many_files()
    monkeypatch.setattr(serving, "IDLE_S", 2.0)
    body = b"POST /snapshot/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n1"
    begun = (b"", b"GET /health HTTP/1.1\r\nHos", body)
    with Server(telemetry) as server, ExitStack() as opened:
        clients = [opened.enter_context(server.connected()) for _ in range(450)]
        for number, client in enumerate(clients):
            client.sendall(begun[number % 3])
        assert server.ask("GET", "/health")[0] == 200
        for client in clients:  # each is ended; by a reset if the server had not read everything
            with suppress(ConnectionResetError):
                read_to_end(client)
        assert server.ask("GET", "/health")[0] == 200


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # hypercorn leaves its socket open, and ends
@pytest.mark.parametrize(("bind", "words"), [("nosuchhost.invalid", "nosuchhost.invalid"), ("192.0.2.1", "192.0.2.1")])
def test_an_address_that_is_not_ours_is_named(bind: str, words: str, telemetry: Telemetry) -> None:
    config = resolve({"port": free_port(), "bind": bind}, {"POSTGRES_BRIDGE_USER": "x"})
    info: Any = None
    with pytest.raises(ConfigError) as refused:
        trio.run(
            partial(
                serve_http,
                config,
                telemetry,
                stop=trio.Event(),
                pause=Pause(telemetry),
                pace=Pace(telemetry, 0),
                stream_info=info,
                request_snapshot=info,
                acknowledge_gap=info,
                has_table=info,
                lookup=FakeLookup(),
            )
        )
    assert refused.value.code == "WB005"
    assert words in refused.value.what
    del refused
    gc.collect()


def test_status_shows_problems_and_suspended_tables_in_full(server: Server, telemetry: Telemetry) -> None:
    problem = Problem("WB120", "no limit", means="the disk fills", fix="ALTER SYSTEM ...")
    telemetry.problems[problem.what] = problem
    telemetry.suspended_tables["users"] = Problem("WB301", "a key too large")
    telemetry.confirmed_lsn, telemetry.slot.current_lsn, telemetry.slot.restart_lsn = Lsn(0xABC), Lsn(5 << 20), Lsn(1 << 20)
    status = json.loads(server.ask("GET", "/status")[2])
    assert [p["code"] for p in status["problems"]] == ["WB120", "WB301"]
    assert status["problems"][0]["fix"] == "ALTER SYSTEM ..."
    assert list(status["suspended_tables"]) == ["users"]
    assert (status["status"], status["is_connected"], status["state"]) == ("disconnected", False, "starting")
    assert (status["current_lsn"], status["wal_lag_bytes"], status["wal_lag_mb"]) == ("0/abc", 4 << 20, 4)


def _as_declared(label: tuple[str, str]) -> int:
    return ["schema", "table", "operation"].index(label[0]) if label[0] in ("schema", "table", "operation") else 0


def samples(telemetry: Telemetry) -> dict[tuple[str, tuple[str, ...]], float]:
    text = Metrics(telemetry, resolve({}, {"POSTGRES_BRIDGE_USER": "x"})).render().decode()
    return {
        (s.name, tuple(v for _, v in sorted(s.labels.items(), key=_as_declared))): s.value
        for f in text_string_to_metric_families(text)
        for s in f.samples
    }


def test_every_number_stays_an_integer_in_the_ten_lines_however_large(telemetry: Telemetry) -> None:
    telemetry.confirmed_lsn, telemetry.events_published, telemetry.wal_messages_received = Lsn(2**62), 10**15, 10**12
    text = Metrics(telemetry, resolve({}, {"POSTGRES_BRIDGE_USER": "x"})).render().decode()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert [line.split()[0] for line in lines[:10]] == SEED_METRICS
    assert all(re.fullmatch(r"[a-z_]+ \d+", line) for line in lines[:10])
    assert f"bridge_last_ack_lsn {2**62}" in lines
    assert lines[10].startswith("bridge_lag_seconds "), "the one number, first of ours"


def test_counters_are_there_before_anything_happens(telemetry: Telemetry) -> None:
    found = samples(telemetry)
    for operation in ("insert", "update", "delete", "truncate"):
        assert found["bridge_events_total", (operation,)] == 0
    for code in FAULTS:
        assert found["bridge_errors_total", (code,)] == 0
    for name in ("gaps", "fenced", "transactions", "wal_bytes_received", "published_bytes"):
        assert found[f"bridge_{name}_total", ()] == 0
    assert found["bridge_state", ("starting",)] == 1
    assert sum(value for (name, _), value in found.items() if name == "bridge_state") == 1
    assert found["bridge_slot_seconds_to_loss", ()] == float("inf")


def test_the_table_series_are_bounded_and_no_counter_ever_falls(telemetry: Telemetry) -> None:
    for number in range(TABLES_MAX + 50):
        telemetry.table_events["public", f"t{number}", "insert"] = 10
    before = samples(telemetry)
    tables = {labels: value for (name, labels), value in before.items() if name == "bridge_table_events_total"}
    assert len(tables) == TABLES_MAX * len(OPERATIONS) + 1
    assert tables["", "_other", "insert"] == 500
    telemetry.table_events["public", f"t{TABLES_MAX + 10}", "insert"] = 1_000_000
    after = samples(telemetry)
    for key, value in before.items():
        if key[0].startswith("bridge_") and key[0].endswith("_total"):
            assert after[key] >= value, key
    assert after["bridge_events_total", ("insert",)] == sum(telemetry.table_events.values())


def test_counters_of_published_tables_and_of_refusals_begin_at_0(telemetry: Telemetry) -> None:
    telemetry.tables = ("users", "sales/Order=20Lines")
    telemetry.publish_rejected.update({10077: 3, 12345: 2, 54321: 1})
    found = samples(telemetry)
    for schema, table in (("public", "users"), ("sales", "Order Lines")):
        for operation in OPERATIONS:
            assert found["bridge_table_events_total", (schema, table, operation)] == 0
    refused = {labels[0]: value for (name, labels), value in found.items() if name == "bridge_publish_rejected_total"}
    assert refused == {**{str(code): 0 for code in REJECTIONS}, "10077": 3, "other": 3}


def test_label_values_of_any_table_name_parse(telemetry: Telemetry) -> None:
    telemetry.table_events['sch"ema', "ta\\ble\nname", "update"] = 3
    assert samples(telemetry)["bridge_table_events_total", ('sch"ema', "ta\\ble\nname", "update")] == 3
