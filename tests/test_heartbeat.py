"""The heartbeat: heard by a real HTTP server, sent by a real bridge, silent when there is no progress, and never any harm."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from actors.embedded.nats import NatsServer
from actors.embedded.process import free_port
from tests.conftest import MakeBridge
from tests.servers import HANG_S, Database, wait_for, wait_for_events
from tests.watchdog import Watchdog


@pytest.fixture
def watchdog() -> Iterator[Watchdog]:
    watchdog = Watchdog()
    yield watchdog
    watchdog.end()


def test_a_streaming_bridge_is_heard_once_a_minute_and_no_more(
    watchdog: Watchdog, database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE users")
    bridge = make_bridge(database, nats, env={"BRIDGE_HEARTBEAT_URL": watchdog.url})
    database.execute("INSERT INTO users VALUES (1)")
    wait_for_events(nats.url, 1)
    wait_for(lambda: watchdog.heard, bridge.log)
    time.sleep(3)
    assert watchdog.heard == ["/ping/hunter2-secret"]
    assert bridge.stop() == 0
    assert "hunter2" not in bridge.log()


@pytest.mark.parametrize("trouble", ["nobody there", "answers 500", "never answers"])
def test_no_trouble_with_the_watchdog_harms_the_bridge_or_shows_the_url(
    trouble: str, watchdog: Watchdog, database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    watchdog.answer = 500
    url = watchdog.url
    if trouble == "nobody there":
        url = f"http://127.0.0.1:{free_port()}/ping/hunter2-secret"
    elif trouble == "never answers":
        watchdog.shutdown()  # it still takes connections
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE users")
    bridge = make_bridge(database, nats, env={"BRIDGE_HEARTBEAT_URL": url})
    if trouble != "never answers":
        wait_for(lambda: "cannot send heartbeats" in bridge.log(), bridge.log)
    database.execute("INSERT INTO users VALUES (1)")
    assert len(wait_for_events(nats.url, 1)) == 1
    assert bridge.get("/ready")[0] == 200
    began = time.monotonic()
    assert bridge.stop() == 0
    assert time.monotonic() - began < HANG_S / 2, "the bridge's end does not wait for the watchdog"
    assert "hunter2" not in bridge.log()
