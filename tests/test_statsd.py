"""StatsD: what a daemon hears over UDP is what the bridge did; a name that is none harms nothing."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from actors.embedded.nats import NatsServer
from tests.conftest import MakeBridge
from tests.servers import HANG_S, Database, wait_for_events


@pytest.fixture
def daemon() -> Iterator[socket.socket]:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.settimeout(0.2)
        yield listening


def heard(daemon: socket.socket) -> list[str]:
    """The lines that have come, with what each packet holds."""
    lines: list[str] = []
    while True:
        try:
            packet = daemon.recv(65536)
        except TimeoutError:
            return lines
        assert len(packet) <= 1432
        lines += packet.decode().split("\n")


def test_a_daemon_hears_what_the_bridge_did(
    daemon: socket.socket, database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE users")
    bridge = make_bridge(database, nats, env={"BRIDGE_STATSD": f"127.0.0.1:{daemon.getsockname()[1]}"})
    database.execute("INSERT INTO users SELECT generate_series(1, 40); DELETE FROM users WHERE id > 38")
    wait_for_events(nats.url, 42)
    assert bridge.stop() == 0
    lines = heard(daemon)  # the last one comes at the end
    assert "bridge_cdc_events_published_total:42|c" in lines
    assert "bridge_table_events_total:40|c|#schema:public,table:users,operation:insert" in lines
    assert "bridge_event_latency_seconds_count:42|c" in lines
    assert any(re.fullmatch(r"bridge_wal_lag_bytes:\d+\|g", line) for line in lines)
    for line in lines:
        assert re.fullmatch(r"[a-z_]+:-?\d+(\.\d+)?\|[cg](\|#[a-z_]+:[^\s,|#:@]*(,[a-z_]+:[^\s,|#:@]*)*)?", line), line


def test_a_name_that_is_none_is_logged_and_harms_nothing(database: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE users")
    bridge = make_bridge(database, nats, env={"BRIDGE_STATSD": "no-such-host.invalid:8125"})
    database.execute("INSERT INTO users VALUES (1)")
    wait_for_events(nats.url, 1)
    began = time.monotonic()
    assert bridge.stop() == 0
    assert time.monotonic() - began < HANG_S / 2
    assert "Traceback" not in bridge.log()
