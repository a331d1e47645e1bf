"""What is published changes while a mirror runs: its tables follow, and what it cannot follow it says."""

from __future__ import annotations

import json
from pathlib import Path

from actors.embedded.nats import NatsServer
from tests.conftest import MakeBridge
from tests.published import publish_change
from tests.servers import Database, read_stream, wait_for, wait_until_drained
from tests.snapshots import ask
from tests.watched_mirrors import WatchedMirror

TABLES = """
CREATE TABLE users (id int PRIMARY KEY);
CREATE TABLE orders (id int PRIMARY KEY);
CREATE TABLE more (id int PRIMARY KEY);
CREATE PUBLICATION cdc_pub FOR TABLE users, orders;
INSERT INTO users SELECT generate_series(1, 10);
INSERT INTO orders SELECT generate_series(1, 10);
INSERT INTO more SELECT generate_series(1, 10)
"""
STATES = "SELECT token, state FROM _walbridge_tables ORDER BY token"


def test_the_tables_of_a_running_mirror_follow_the_publication(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, tmp_path: Path
) -> None:
    database.execute(TABLES)
    bridge = make_bridge(database, nats)
    everything = WatchedMirror(nats, f"sqlite:///{tmp_path}/everything.db", tmp_path)
    narrow = WatchedMirror(nats, f"sqlite:///{tmp_path}/narrow.db", tmp_path, "--tables", "orders,users")
    with everything.running(), narrow.running():
        for mirror in (everything, narrow):
            mirror.wait_live(2)
        database.execute("INSERT INTO users VALUES (11)")
        wait_until_drained(bridge, database)
        bridge.stop()

        # another row filter: the rows that it hides stay in the replica otherwise, and no event is about them
        database.execute("ALTER PUBLICATION cdc_pub SET TABLE users WHERE (id > 5), orders")
        publish_change(nats.url, "users", "changed", "another")
        for mirror in (everything, narrow):
            mirror.wait_for(STATES, [("orders", "live"), ("users", "stale")])
        bridge.start()
        for mirror in (everything, narrow):
            mirror.wait_for("SELECT min(id) FROM users", [(6,)])
            mirror.wait_until(mirror.is_ready)
            assert mirror.value("mirror_resnapshots_total", "publication") == 1

        # out of the publication: the rows stay and are said to be old
        bridge.stop()
        database.execute("ALTER PUBLICATION cdc_pub DROP TABLE orders; INSERT INTO orders VALUES (11)")
        publish_change(nats.url, "orders", "removed")
        for mirror in (everything, narrow):
            mirror.wait_for(STATES, [("orders", "unpublished"), ("users", "live")])
            status, body = mirror.get("/ready")
            assert (status, json.loads(body)["reason"]) == (503, "no longer published (WB509): orders")
            assert mirror.value("mirror_tables", "unpublished") == 1
            assert 'code=WB509 table=orders reason="a test"' in mirror.log()
        bridge.start()
        database.execute("INSERT INTO users VALUES (12)")
        for mirror in (everything, narrow):  # a restart is no time at which such a table may end the others
            mirror.stop()
            mirror.start()
            mirror.wait_for("SELECT max(id) FROM users", [(12,)])
            assert mirror.query("SELECT max(id) FROM orders") == [(10,)]
        done = narrow.verify(database.dsn)
        assert done.returncode == 1
        assert "orders  not compared: no longer in the publication (WB509)" in done.stdout

        # back again, and a new one; the narrow mirror does not want that
        wait_until_drained(bridge, database)
        bridge.stop()
        database.execute("ALTER PUBLICATION cdc_pub ADD TABLE orders, more")
        publish_change(nats.url, "orders", "added", "of orders")
        publish_change(nats.url, "more", "added", "of more")
        everything.wait_for(STATES, [("more", "waiting"), ("orders", "stale"), ("users", "live")])
        bridge.start()
        everything.wait_live(3)
        narrow.wait_live(2)
        database.execute("INSERT INTO orders VALUES (12); INSERT INTO more VALUES (11)")
        for mirror in (everything, narrow):
            mirror.wait_for("SELECT count(*) FROM orders", [(12,)])
            mirror.wait_until(mirror.is_ready)
        everything.assert_equal(database.dsn)
        done = narrow.verify(database.dsn)
        assert done.returncode == 0
        assert "published, but not among the tables of this mirror: more" in done.stdout


def test_a_new_shape_of_an_idle_table_at_the_streams_end_keeps_no_copy_waiting(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, tmp_path: Path
) -> None:
    """It belongs to no transaction, so that none is open which could have more."""
    database.execute(TABLES)
    bridge = make_bridge(database, nats)
    mirror = WatchedMirror(nats, f"sqlite:///{tmp_path}/replica.db", tmp_path)
    with mirror.running():
        mirror.wait_live(2)
        database.execute("ALTER TABLE users ADD v int; INSERT INTO users VALUES (11, 1)")
        wait_until_drained(bridge, database)
        database.execute("ALTER PUBLICATION cdc_pub SET TABLE users (id), orders")
        ask(nats.url, "nobody_knows_this")  # have the publication looked at
        wait_for(lambda: [e.body["operation"] for e in read_stream(nats.url)][-2:] == ["PUBLISHED", "SCHEMA"])
        assert read_stream(nats.url)[-1].body["last"]
        mirror.wait_for("SELECT name FROM pragma_table_info('users')", [("id",)])
        mirror.wait_until(mirror.is_ready)
        mirror.assert_equal(database.dsn)
