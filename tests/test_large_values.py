"""Values that no message can carry: what they cost the bridge in memory, and that nothing stops for them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.embedded.nats import NatsServer
from tests.conftest import MakeBridge, MakeNats
from tests.servers import HANG_S, Bridge, Database, wait_for_events

MB = 1024 * 1024
SIZE = 40 * MB
"""Of each message that PostgreSQL sends here."""
RATIO_MAX = 2.5
REMAINS_MAX = 40 * MB


class Memory:
    """The resident memory of a bridge's process, in bytes."""

    def __init__(self, bridge: Bridge) -> None:
        assert bridge.process is not None
        self._folder = Path("/proc") / str(bridge.process.pid)
        self.idle = self.now

    def _read(self, field: str) -> int:
        lines = (self._folder / "status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))

    @property
    def now(self) -> int:
        return self._read("VmRSS")

    @property
    def peak(self) -> int:
        """Since the last call of `begin`."""
        return self._read("VmHWM")

    def begin(self) -> None:
        """Forget the peak so far."""
        (self._folder / "clear_refs").write_text("5")


@pytest.fixture
def impatient(database: Database) -> Iterator[Database]:
    """A database whose walsenders disconnect a client that is silent for two seconds."""
    database.execute(f"ALTER DATABASE {database.name} SET wal_sender_timeout = '2s'")
    database.execute("""
        CREATE TABLE t (id int PRIMARY KEY, v text, b bytea, j jsonb, l text[], n int);
        ALTER TABLE t ALTER v SET STORAGE EXTERNAL, ALTER b SET STORAGE EXTERNAL,
            ALTER j SET STORAGE EXTERNAL, ALTER l SET STORAGE EXTERNAL;
        CREATE PUBLICATION cdc_pub FOR TABLE t""")
    return database


VALUES = {
    "v": f"repeat('äöü€', {SIZE} / 9)",
    "b": f"decode(repeat('00ff', {SIZE} / 4), 'hex')",
    "j": f"jsonb_build_object('a', to_jsonb(array_fill(repeat('x', 96), ARRAY[{SIZE} / 100])), 'b', 1)",
    "l": f"array_fill(repeat('x', 99), ARRAY[{SIZE} / 100])",
}


def wait_until_returned(memory: Memory) -> None:
    deadline = time.monotonic() + HANG_S
    while memory.now > memory.idle + REMAINS_MAX:
        assert time.monotonic() < deadline, f"{(memory.now - memory.idle) / MB:.0f} MB above idle after a minute"
        time.sleep(0.2)


@pytest.mark.parametrize("flags", [(), ("--json", "--arrays", "list", "--pack", "10")], ids=["plain", "json, lists, packed"])
def test_a_large_value_costs_twice_its_size_for_a_moment_and_is_read_once(
    flags: tuple[str, ...], impatient: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    bridge = make_bridge(impatient, nats, *flags)
    impatient.execute("INSERT INTO t VALUES (0)")
    wait_for_events(nats.url, 1)
    memory = Memory(bridge)
    memory.begin()
    for number, (column, value) in enumerate(VALUES.items(), 1):
        impatient.execute(f"INSERT INTO t (id, {column}) VALUES ({number}, {value})")
    impatient.execute("ALTER TABLE t REPLICA IDENTITY FULL")
    impatient.execute("UPDATE t SET n = 1 WHERE id = 1")
    impatient.execute("UPDATE t SET n = 2 WHERE id = 0")
    # the new identity is told too
    events = [event.body for event in wait_for_events(nats.url, 8) if event.body["operation"] != "SCHEMA"]
    assert memory.peak - memory.idle < RATIO_MAX * SIZE
    told = [(e["operation"], e["data"]["id"], e.get("omitted", [])) for e in events]
    assert told == [
        ("INSERT", 0, []), ("INSERT", 1, ["v"]), ("INSERT", 2, ["b"]), ("INSERT", 3, ["j"]), ("INSERT", 4, ["l"]),
        ("UPDATE", 1, ["v"]), ("UPDATE", 0, []),
    ]  # fmt: skip
    assert events[5]["old"] == {"id": 1, "b": None, "j": None, "l": None, "n": None}
    for number, column in enumerate(VALUES, 1):
        assert f'table=t reason="id={number}" omitted={column}' in bridge.log()
    if not flags:
        wait_until_returned(memory)
    impatient.execute("INSERT INTO t VALUES (5); UPDATE t SET n = 3 WHERE id = 5")
    events = [event.body for event in wait_for_events(nats.url, 10) if event.body["operation"] != "SCHEMA"]
    assert [(e["operation"], e["data"]["id"]) for e in events[7:]] == [("INSERT", 5), ("UPDATE", 5)]
    assert "waiting for" not in bridge.log(), "the stream was not interrupted"
    assert "a large message is arriving" in bridge.log()
    assert bridge.stop() == 0


def test_several_large_values_in_a_row_and_a_key_that_no_message_can_carry(
    impatient: Database, make_nats: MakeNats, make_bridge: MakeBridge
) -> None:
    nats = make_nats(max_payload=65536)
    impatient.execute("""
        CREATE TABLE k (id text NOT NULL, v text); CREATE UNIQUE INDEX i ON k (id);
        ALTER TABLE k REPLICA IDENTITY USING INDEX i; ALTER PUBLICATION cdc_pub ADD TABLE k""")
    bridge = make_bridge(impatient, nats)
    impatient.execute("INSERT INTO t (id) VALUES (0)")
    wait_for_events(nats.url, 1)
    memory = Memory(bridge)
    memory.begin()
    impatient.execute(f"INSERT INTO t VALUES (1, {VALUES['v']}, {VALUES['b']}, {VALUES['j']}, {VALUES['l']}, 7)")
    # a key that fits into the index since it compresses, and not into a message
    impatient.execute("INSERT INTO k SELECT repeat('k', 100000), repeat('v', 2000000)")
    impatient.execute("INSERT INTO t (id) VALUES (2)")
    events = [event.body for event in wait_for_events(nats.url, 4)]
    assert memory.peak - memory.idle < RATIO_MAX * len(VALUES) * SIZE
    assert (events[1]["data"], sorted(events[1]["omitted"])) == ({"id": 1, "n": 7}, ["b", "j", "l", "v"])
    assert (events[2]["operation"], events[2]["tables"]) == ("GAP", ["k"])
    assert events[3]["data"]["id"] == 2
