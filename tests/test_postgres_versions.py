"""Every supported major version of PostgreSQL, from 14 on: what the bridge asks of a server and reads from it.

A run of the suite takes the versions that are on the machine; `nox -s postgres` takes all of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psycopg

from actors.embedded.nats import NatsServer
from actors.embedded.postgres import PostgresServer
from actors.embedded.process import free_port
from tests.command_line import run_here
from tests.conftest import MakeBridge
from tests.mirrors import MirrorProcess
from tests.servers import Database, read_stream, wait_for, wait_for_events
from tests.snapshots import take

BIG = "b" * 5000
TABLES = """
    CREATE TABLE orders (id int PRIMARY KEY, small text, big text, tags text[], paid numeric(10, 2), at timestamptz);
    ALTER TABLE orders ALTER big SET STORAGE EXTERNAL;
    CREATE TABLE entire (id int PRIMARY KEY, small text, doubled int GENERATED ALWAYS AS (id * 2) STORED);
    ALTER TABLE entire REPLICA IDENTITY FULL;
    CREATE TABLE parts (id int, region text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
    CREATE TABLE parts_eu PARTITION OF parts FOR VALUES IN ('eu');
    CREATE TABLE parts_us PARTITION OF parts FOR VALUES IN ('us');
"""


def publish(database: Database) -> None:
    """Make the tables, and the publication with all that the version can say in it.

    Row filters and column lists came with 15, stored generated columns with 18.
    """
    version = major(database)
    columns, rows = ("(id, kept)", "WHERE (id > 1)") if version >= 15 else ("", "")
    generated = ", publish_generated_columns = stored" if version >= 18 else ""
    database.execute(f"""
        {TABLES}
        CREATE TABLE partly (id int PRIMARY KEY, kept text, hidden text);
        CREATE PUBLICATION cdc_pub FOR TABLE orders, entire, parts, partly {columns} {rows}
        WITH (publish_via_partition_root = true {generated});
    """)


def major(server: Database) -> int:
    return int(server.execute("SHOW server_version_num")[0][0]) // 10000


def doctor(database: Database, nats: NatsServer) -> list[dict[str, Any]]:
    """The rows of `walbridge doctor --json`."""
    settings = {"DATABASE_URL": database.dsn, "NATS_URL": nats.url, "BRIDGE_PORT": str(free_port())}
    rows: list[dict[str, Any]] = json.loads(run_here("doctor", "--json", env=settings).stdout)["checks"]
    return rows


def test_the_doctor_finds_nothing_wrong_with_a_server_that_is_set_up(release_database: Database, nats: NatsServer) -> None:
    publish(release_database)
    rows = doctor(release_database, nats)
    assert [row for row in rows if row["level"] == "fail"] == []
    found = [(row["check"], row["what"]) for row in rows]
    assert ("wal_level", "logical") in found
    assert any(check == "version" and what.startswith(f"{major(release_database)}.") for check, what in found), found


def changes(database: Database) -> int:
    """Make changes of every kind; return how many events they are."""
    database.execute(
        f"INSERT INTO orders VALUES (1, 'a', '{BIG}', '{{x,NULL}}', 1.50, '2025-12-12 12:00:00Z'), (2, NULL, NULL, NULL, NULL, NULL)"
    )
    database.execute(
        "UPDATE orders SET small = 'b' WHERE id = 1; UPDATE orders SET id = 3 WHERE id = 2; DELETE FROM orders WHERE id = 3"
    )
    database.execute("INSERT INTO entire VALUES (1, 'a'); UPDATE entire SET small = 'b'; DELETE FROM entire")
    database.execute("INSERT INTO parts VALUES (1, 'eu'); UPDATE parts SET region = 'us'")
    database.execute("ALTER TABLE orders ADD more int DEFAULT 7; INSERT INTO orders (id) VALUES (4)")
    database.execute("TRUNCATE entire RESTART IDENTITY CASCADE")
    database.execute("INSERT INTO partly VALUES (2, 'b', 'y'), (1, 'a', 'x')")
    return 15 if major(database) >= 15 else 16


def test_changes_of_every_kind_survive_restarts_and_fill_a_replica(
    release_server: PostgresServer, release_database: Database, nats: NatsServer, make_bridge: MakeBridge, tmp_path: Path
) -> None:
    database = release_database
    version = major(database)
    publish(database)
    bridge = make_bridge(database, nats)
    check_slot(database, version)
    count = changes(database)
    first = [event.body for event in wait_for_events(nats.url, count)]
    check_events(first, version)

    # a crash of PostgreSQL, then one of the bridge: nothing is lost or doubled, though a shape may be told of again
    database.close()
    release_server.restart("immediate")
    database.execute("INSERT INTO orders (id) VALUES (5)")
    wait_for(lambda: inserted_after(nats, count) == [5])
    bridge.kill()
    database.execute("INSERT INTO orders (id) VALUES (6)")
    bridge.start()
    wait_for(lambda: inserted_after(nats, count) == [5, 6], lambda: inserted_after(nats, count))
    assert [event.body for event in read_stream(nats.url)[:count]] == first

    snapshot = take(nats.url, "orders")
    assert {row["id"] for row in snapshot.rows} == {1, 4, 5, 6}
    assert snapshot.rows[0]["big"] == BIG
    assert len(take(nats.url, "partly").rows) == (1 if version >= 15 else 2), "a snapshot has what the publication has"

    replica = Database(release_server, f"{database.name}_replica")
    mirror = MirrorProcess(nats, replica.dsn, tmp_path)
    try:
        mirror.start()
        mirror.wait_for("SELECT id, more FROM orders ORDER BY id", [(1, 7), (4, 7), (5, 7), (6, 7)])
        mirror.assert_equal(database.dsn)
    finally:
        mirror.kill()
        replica.drop()
    assert bridge.stop() == 0


def inserted_after(nats: NatsServer, count: int) -> list[int]:
    """The ids of the rows that the stream's later events insert."""
    return [event.body["data"]["id"] for event in read_stream(nats.url)[count:] if event.body["operation"] == "INSERT"]


def check_slot(database: Database, version: int) -> None:
    """Hold the slot's flags against what the version knows."""
    ((slot,),) = database.execute("SELECT to_jsonb(s) FROM pg_replication_slots s WHERE slot_name = 'cdc_slot'")
    assert (slot["plugin"], slot["temporary"], slot["two_phase"]) == ("pgoutput", False, False)
    assert slot.get("failover") == (True if version >= 17 else None), "standbys get the slot too, where there is that"
    assert ("invalidation_reason" in slot) == (version >= 17)


def check_events(events: list[dict[str, Any]], version: int) -> None:
    """Hold the events of `changes` against what it did."""
    kinds = [(event["table"], event["operation"]) for event in events]
    orders, entire, parts = (
        [event for event in events if event["table"] == name and event["operation"] != "TRUNCATE"]
        for name in ("orders", "entire", "parts")
    )
    assert orders[0]["data"] == {
        "id": 1, "small": "a", "big": BIG, "tags": "{x,NULL}", "paid": "1.50", "at": "2025-12-12T12:00:00Z"
    }  # fmt: skip
    assert (orders[2]["data"]["small"], orders[2]["unchanged"]) == ("b", ["big"])
    assert (orders[3]["old"], orders[3]["data"]["id"]) == ({"id": 2}, 3)
    assert (orders[4]["operation"], orders[4]["data"]["id"]) == ("DELETE", 3)
    assert (orders[5]["operation"], orders[5]["columns"][-1]["name"]) == ("SCHEMA", "more")
    assert orders[6]["data"]["more"] == 7
    doubled = {"doubled": 2} if version >= 18 else {}
    assert entire[1]["old"] == {"id": 1, "small": "a", **doubled}
    assert entire[0]["data"] == {"id": 1, "small": "a", **doubled}
    assert [event["operation"] for event in parts] == ["INSERT", "DELETE", "INSERT"], "it moved to another partition"
    assert kinds.count(("entire", "TRUNCATE")) == 1
    partly = [event["data"] for event in events if event["table"] == "partly"]
    both = [{"id": 2, "kept": "b", "hidden": "y"}, {"id": 1, "kept": "a", "hidden": "x"}]
    assert partly == ([{"id": 2, "kept": "b"}] if version >= 15 else both)
    assert len({event["msg_id"] for event in events}) == len(events)
    assert [(e["lsn"], e["seq"]) for e in events] == sorted((e["lsn"], e["seq"]) for e in events)


def test_a_slot_that_has_lost_its_wal_is_told_of_in_every_version(
    release_server: PostgresServer, release_database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database = release_database
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE t")
    bridge = make_bridge(database, nats)
    database.execute("INSERT INTO t VALUES (1)")
    wait_for_events(nats.url, 1)
    assert bridge.stop() == 0
    database.execute("INSERT INTO t VALUES (2)")
    with psycopg.connect(release_server.dsn(), autocommit=True) as admin:
        admin.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
        admin.execute("SELECT pg_reload_conf()")
        try:
            wait_for(lambda: admin.execute("SHOW max_slot_wal_keep_size").fetchall() == [("1MB",)])
            for _ in range(3):
                admin.execute("SELECT pg_logical_emit_message(true, 'test', 'x'), pg_switch_wal()")
            admin.execute("CHECKPOINT")
            lost = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'cdc_slot'"
            wait_for(lambda: admin.execute(lost).fetchall() == [("lost",)], lambda: admin.execute(lost).fetchall())
        finally:
            admin.execute("ALTER SYSTEM RESET max_slot_wal_keep_size")
            admin.execute("SELECT pg_reload_conf()")
    bridge.start(ready=False)
    assert bridge.wait() == 1
    assert "WB107" in bridge.log()


def test_before_19_a_server_with_wal_level_replica_is_refused(
    release_server: PostgresServer, release_database: Database, nats: NatsServer
) -> None:
    release_server.settings["wal_level"] = "replica"
    release_server.restart()
    try:
        rows = doctor(release_database, nats)
        (found,) = [row for row in rows if row["check"] == "wal_level"]
        assert (found["level"], found["code"]) == ("fail", "WB111")
    finally:
        release_server.settings.pop("wal_level")
        release_server.restart()
