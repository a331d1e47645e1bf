"""The JavaScript client against real servers: a replica in Node equals its source, and so does one in a browser."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actors.embedded.nats import NatsServer
from tests.command_line import run_here
from tests.conftest import MakeBridge
from tests.large_table import ITEMS, move_into_what_is_copied, writing_items
from tests.node_replicas import NodeReplica, client, node_with_sqlite
from tests.rounds import rounds
from tests.servers import HANG_S, ROOT, Database

MakeReplica = Callable[..., NodeReplica]


@pytest.fixture
def make_replica(nats: NatsServer, tmp_path: Path) -> Iterator[MakeReplica]:
    """Makes and starts replicas in Node; killed at the end of the test."""
    made: list[NodeReplica] = []

    def make(*flags: str) -> NodeReplica:
        made.append(NodeReplica(nats, f"sqlite:///{tmp_path}/replica-{len(made)}.db", tmp_path, *flags))
        made[-1].start()
        return made[-1]

    yield make
    for replica in made:
        replica.kill()


def test_a_replica_in_node_equals_its_source(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, make_replica: MakeReplica
) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY, name text); CREATE PUBLICATION cdc_pub FOR TABLE users")
    database.execute("INSERT INTO users SELECT g, 'user ' || g FROM generate_series(1, 20000) g")
    make_bridge(database, nats)
    replica = make_replica()
    replica.wait_live(1)
    database.execute("UPDATE users SET name = 'Ada' WHERE id = 1; DELETE FROM users WHERE id = 2")
    database.execute("INSERT INTO users VALUES (30000, 'Grace')")
    replica.wait_for("SELECT id, name FROM users WHERE id IN (1, 2, 30000) ORDER BY id", [(1, "Ada"), (30000, "Grace")])
    replica.assert_equal(database.dsn)
    assert replica.stop() == 0


def test_a_large_table_is_copied_in_rounds_and_continued_after_kills(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, make_replica: MakeReplica
) -> None:
    database.execute(ITEMS)
    bridge = make_bridge(database, nats, "--snapshot-round-s", "1", "--snapshot-rate-mb-s", "1")
    with writing_items(database):
        replica = make_replica("--rounds-from", "60000")
        replica.wait_until(lambda: replica.query(f"SELECT chunks > 1 FROM {replica.own('rounds')}") == [(1,)])
        replica.kill()
        bridge.kill()
        move_into_what_is_copied(database, nats.url)
        bridge.start()
        replica.start()
        replica.wait_live(1)
    (snapshot,) = rounds(nats.url, "items+ranges")
    assert snapshot.meta is not None
    assert len(snapshot.places) > 2
    assert "the copy of items continues after" in replica.log()
    assert "rows of items that lack values" in replica.log()
    replica.assert_equal(database.dsn)
    assert replica.query(f"SELECT count(*) FROM {replica.own('rounds')}") == [(0,)]


def test_the_demo_in_a_browser_is_served_and_says_what_it_needs(tmp_path: Path) -> None:
    without = run_here("demo", "--browser", env={"PATH": str(tmp_path)})
    assert (without.returncode, "error WB411: --browser: there is no Node" in without.stderr) == (2, True), without.stderr
    both = run_here("demo", "--browser", "--seconds", "3")
    assert (both.returncode, "leave out --seconds" in both.stderr) == (2, True)
    client()
    command = [sys.executable, "-m", "actors.main", "demo", "--browser"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        patience = threading.Timer(HANG_S, process.kill)
        patience.start()
        try:
            assert process.stdout is not None
            address = next(line.split()[1] for line in process.stdout if line.startswith("open http://"))
            with urllib.request.urlopen(address, timeout=HANG_S) as page:
                assert b"<title>" in page.read()
            process.send_signal(signal.SIGTERM)
            assert process.wait(HANG_S) == 0
        finally:
            patience.cancel()
            process.kill()


def test_the_clients_own_tests_pass() -> None:
    """Its types, and every history of consumers/conformance in every store that is here."""
    folder = client()
    newer = (
        node_with_sqlite(),
        "--no-warnings",
        "--test",
        "--test-name-pattern",
        "^node-sqlite",
        "test/conformance_sqlite.test.js",
    )
    for command in (("npm", "run", "--silent", "check"), ("npm", "run", "--silent", "test"), newer):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "pass 0" not in done.stdout, "those of Node's own SQLite"
