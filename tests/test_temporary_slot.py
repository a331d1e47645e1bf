"""--temporary-slot: nothing can be left behind in PostgreSQL, and consumers are told of each interruption."""

from __future__ import annotations

import pytest

from actors.embedded.nats import NatsServer
from tests.conftest import MakeBridge, MakeNats
from tests.servers import Bridge, Database, read_stream, wait_for, wait_for_events

SLOTS = "SELECT slot_name, temporary FROM pg_replication_slots WHERE database = current_database()"


@pytest.fixture
def table(database: Database) -> Database:
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE t")
    return database


def story(url: str) -> list[int | str]:
    """What the stream tells: ids of rows, and reasons of gaps."""
    return [e.body["reason"] if e.subject == "cdc._bridge.gap" else e.body["data"]["id"] for e in read_stream(url)]


@pytest.mark.parametrize("killed", [False, True])
def test_the_slot_ends_with_the_bridge_and_the_next_start_is_a_gap(
    killed: bool, table: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    bridge = make_bridge(table, nats, "--temporary-slot")
    assert table.execute(SLOTS) == [("cdc_slot", True)]
    table.execute("INSERT INTO t VALUES (1), (2)")
    wait_for_events(nats.url, 2)
    if killed:
        bridge.kill()
    else:
        assert bridge.stop() == 0
    wait_for(lambda: table.execute(SLOTS) == [])
    table.execute("INSERT INTO t VALUES (3)")
    bridge.start()
    table.execute("INSERT INTO t VALUES (4)")
    wait_for_events(nats.url, 4)
    assert story(nats.url) == [1, 2, "temporary slot cdc_slot ended with its connection", 4]
    assert bridge.stop() == 0
    assert table.execute(SLOTS) == []


def test_a_fault_of_nats_is_a_gap_too_and_the_bridge_goes_on(
    table: Database, make_nats: MakeNats, make_bridge: MakeBridge
) -> None:
    nats = make_nats()
    bridge = make_bridge(table, nats, "--temporary-slot")
    table.execute("INSERT INTO t VALUES (1)")
    wait_for_events(nats.url, 1)
    nats.kill()
    wait_for(lambda: bridge.status()["state"] == "waiting_nats")
    table.execute("INSERT INTO t VALUES (2)")
    nats.start()
    bridge.wait_ready()
    table.execute("INSERT INTO t VALUES (3)")
    wait_for_events(nats.url, 3)
    assert story(nats.url)[-2:] == ["temporary slot cdc_slot ended with its connection", 3]
    wait_for(lambda: "Changes were lost permanently: 1 gap to acknowledge" in bridge.status()["verdict"]["text"])


def test_a_permanent_slot_of_that_name_is_left_alone(table: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    assert make_bridge(table, nats).stop() == 0
    bridge: Bridge = make_bridge(table, nats, "--temporary-slot", start=False)
    bridge.start(ready=False)
    assert bridge.wait() == 2
    assert "WB114" in bridge.log()
    assert "leave out --temporary-slot" in bridge.log()
    assert table.execute(SLOTS) == [("cdc_slot", False)]
