"""What events look like: the contract, section 4, against real servers."""

from __future__ import annotations

import time
from typing import Any

import pytest

from actors.embedded.nats import NatsServer
from tests.conftest import MakeBridge, MakeNats
from tests.servers import Database, StoredEvent, read_stream, wait_for, wait_for_events
from tests.snapshots import take


def bodies(events: list[StoredEvent]) -> list[dict[str, Any]]:
    return [e.body for e in events]


def test_an_insert_has_every_field_of_the_contract(database: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY, name text); CREATE PUBLICATION cdc_pub FOR TABLE users")
    make_bridge(database, nats)
    database.execute("INSERT INTO users VALUES (1, 'Ada'), (2, NULL)")
    ((oid, xid),) = database.execute("SELECT 'users'::regclass::oid::int, xmin::text::int FROM users LIMIT 1")
    first, second = wait_for_events(nats.url, 2)
    body = first.body
    assert first.subject == body["subject"] == "cdc.users.insert"
    assert first.headers["Nats-Msg-Id"] == body["msg_id"] == f"{body['lsn']:x}-0-users-insert"
    assert body["data"] == {"id": 1, "name": "Ada"}
    assert (body["table"], body["schema"], body["operation"], body["key"]) == ("users", "public", "INSERT", ["id"])
    assert (body["relation_id"], body["xid"], body["seq"]) == (oid, xid, 0)
    assert abs(body["commit_ts"] / 1e6 - time.time()) < 60
    assert "last" not in body
    assert second.body["last"] is True
    assert (second.body["seq"], second.body["lsn"]) == (1, body["lsn"])
    assert second.body["data"] == {"id": 2, "name": None}
    assert set(body) == {
        "subject", "table", "operation", "msg_id", "relation_id", "data", "lsn", "seq", "xid", "commit_ts", "schema", "key"
    }  # fmt: skip


def test_updates_and_deletes_carry_keys_old_rows_and_unchanged_columns(
    database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute("""
        CREATE TABLE d (id int PRIMARY KEY, small text, big text);
        CREATE TABLE f (id int PRIMARY KEY, small text, big text); ALTER TABLE f REPLICA IDENTITY FULL;
        CREATE PUBLICATION cdc_pub FOR TABLE d, f;
        ALTER TABLE d ALTER big SET STORAGE EXTERNAL; ALTER TABLE f ALTER big SET STORAGE EXTERNAL;
    """)
    make_bridge(database, nats)
    big = "b" * 5000
    for table in "df":
        database.execute(f"INSERT INTO {table} VALUES (1, 'a', '{big}')")
        database.execute(f"UPDATE {table} SET small = 'b'")
        database.execute(f"UPDATE {table} SET id = 2")
        database.execute(f"DELETE FROM {table}")
    events = bodies(wait_for_events(nats.url, 8))
    _, d_small, d_key, d_delete, _, f_small, f_key, f_delete = events
    assert d_small["data"] == {"id": 1, "small": "b"}
    assert d_small["unchanged"] == ["big"]
    assert "old" not in d_small
    assert (d_key["old"], d_key["data"]["id"], d_key["unchanged"]) == ({"id": 1}, 2, ["big"])
    assert d_delete["data"] == {"id": 2, "small": None, "big": None}
    # under FULL the old row has what did not change
    assert f_small["data"] == {"id": 1, "small": "b", "big": big}
    assert f_small["old"] == {"id": 1, "small": "a", "big": big}
    assert list(f_small["data"]) == ["id", "small", "big"]
    assert "unchanged" not in f_small
    assert f_key["old"]["id"] == 1
    assert f_delete["data"] == {"id": 2, "small": "b", "big": big}
    assert f_delete["key"] == ["id", "small", "big"]
    assert all(e["last"] for e in events)


def test_truncate_is_one_event_a_table_and_counts_in_seq(database: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    database.execute("""
        CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int REFERENCES a);
        CREATE PUBLICATION cdc_pub FOR TABLE a, b""")
    make_bridge(database, nats)
    database.execute("INSERT INTO a VALUES (1); TRUNCATE a RESTART IDENTITY CASCADE; INSERT INTO a VALUES (2)")
    events = bodies(wait_for_events(nats.url, 4))
    assert [e["operation"] for e in events] == ["INSERT", "TRUNCATE", "TRUNCATE", "INSERT"]
    assert [e["seq"] for e in events] == [0, 1, 2, 3]
    assert {e["table"] for e in events[1:3]} == {"a", "b"}
    for event in events[1:3]:
        assert (event["data"], event["cascade"], event["restart_identity"]) == ({}, True, True)
    assert [e.get("last") for e in events] == [None, None, None, True]


def test_hostile_names_travel_whole(database: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    database.execute("""
        CREATE SCHEMA "sa.les >";
        CREATE TABLE "sa.les >"."a.b c*>""'é" ("id ""x\\" int PRIMARY KEY, "weird.col 'ü" text);
        CREATE TABLE "_private" (id int PRIMARY KEY);
        CREATE PUBLICATION "my pub,""'" FOR TABLE "sa.les >"."a.b c*>""'é", "_private" """)
    make_bridge(database, nats, pub="my pub,\"'")
    database.execute("""INSERT INTO "sa.les >"."a.b c*>""'é" VALUES (1, 'x'); INSERT INTO "_private" VALUES (1)""")
    weird, private = wait_for_events(nats.url, 2)
    assert weird.subject == "cdc.sa=2Eles=20=3E/a=2Eb=20c=2A=3E=22=27=C3=A9.insert"
    assert (weird.body["table"], weird.body["schema"]) == ("a.b c*>\"'é", "sa.les >")
    assert weird.body["data"] == {'id "x\\': 1, "weird.col 'ü": "x"}
    assert private.subject == "cdc.=5Fprivate.insert"


def test_partitions_generated_columns_and_tables_without_a_key(
    database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute("""
        CREATE TABLE part (id int, region text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
        CREATE TABLE part_eu PARTITION OF part FOR VALUES IN ('eu');
        CREATE TABLE part_us PARTITION OF part FOR VALUES IN ('us');
        CREATE TABLE gen (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED);
        CREATE TABLE nokey (v text);
        CREATE PUBLICATION cdc_pub FOR TABLE part, gen, nokey WITH (publish_via_partition_root)""")
    bridge = make_bridge(database, nats)
    database.execute("INSERT INTO part VALUES (1, 'eu'); UPDATE part SET region = 'us'")
    database.execute("INSERT INTO gen VALUES (7); INSERT INTO nokey VALUES ('x')")
    events = bodies(wait_for_events(nats.url, 5))
    assert [(e["table"], e["operation"]) for e in events] == [
        ("part", "INSERT"), ("part", "DELETE"), ("part", "INSERT"), ("gen", "INSERT"), ("nokey", "INSERT")
    ]  # fmt: skip
    assert events[3]["data"] == {"id": 7}
    assert (events[4]["key"], events[4]["data"]) == ([], {"v": "x"})
    problem = next(p for p in bridge.status()["problems"] if p["code"] == "WB115")
    assert "nokey" in problem["what"]
    assert "REPLICA IDENTITY FULL" in problem["fix"]


def test_a_new_shape_is_announced_before_its_first_row_and_in_kv(
    database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY, a text); CREATE PUBLICATION cdc_pub FOR TABLE t")
    make_bridge(database, nats)
    database.execute("INSERT INTO t VALUES (1, 'x')")
    database.execute("ALTER TABLE t ADD b int NOT NULL DEFAULT 5, DROP a")
    database.execute("INSERT INTO t VALUES (2)")
    database.execute("CREATE TABLE late (id int PRIMARY KEY); ALTER PUBLICATION cdc_pub ADD TABLE late")
    database.execute("INSERT INTO late VALUES (1)")
    # that the table is published now is told at the next look, which may come before all of these are read
    wait_for(lambda: sum(e.subject != "cdc._bridge.published" for e in read_stream(nats.url, "CDC")) == 5)
    events = [e for e in read_stream(nats.url, "CDC") if e.subject != "cdc._bridge.published"]
    assert [e.subject for e in events] == [
        "cdc.t.insert", "cdc.t.schema", "cdc.t.insert", "cdc.late.schema", "cdc.late.insert"
    ]  # fmt: skip
    schema, row = events[1].body, events[2].body
    assert (schema["operation"], schema["lsn"], schema["seq"]) == ("SCHEMA", row["lsn"], row["seq"])
    assert schema["msg_id"] == events[1].headers["Nats-Msg-Id"] == f"{row['lsn']:x}-0-t-schema"
    assert [c["name"] for c in schema["columns"]] == ["id", "b"]
    assert schema["columns"][1] == {
        "name": "b", "position": 2, "data_type": "integer", "is_nullable": False, "column_default": "5", "pk": False,
        "type_oid": 23,
    }  # fmt: skip
    assert schema["columns"][0]["pk"] is True
    assert schema["schema"] == "public.t"
    assert row["data"] == {"id": 2, "b": 5}
    held = wait_for_events(nats.url, 3, "KV_schemas")
    assert sorted(e.subject for e in held) == ["$KV.schemas.late", "$KV.schemas.t", "$KV.schemas.t"], [e.body for e in held]
    newest = {e.subject: e.body for e in held}
    assert newest["$KV.schemas.t"]["schema_id"] == schema["schema_id"]
    assert "$KV.schemas.late" in newest
    assert {e.subject for e in read_stream(nats.url, "INIT")} == {"init.schema.t", "init.schema.late"}


def test_shapes_are_announced_once_also_across_restarts(database: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE t")
    bridge = make_bridge(database, nats)
    database.execute("INSERT INTO t VALUES (1)")
    wait_for_events(nats.url, 1)
    bridge.kill()
    database.execute("INSERT INTO t VALUES (2); ALTER TABLE t ADD a int; INSERT INTO t VALUES (3, 3)")
    database.execute("ALTER TABLE t ADD b int")
    database.execute("INSERT INTO t VALUES (4, 4, 4)")
    bridge.start()
    wait_for_events(nats.url, 6)
    bridge.kill()
    bridge.start()
    database.execute("INSERT INTO t VALUES (5, 5, 5)")
    events = wait_for_events(nats.url, 7)
    assert [e.body["operation"] for e in events] == ["INSERT", "INSERT", "SCHEMA", "INSERT", "SCHEMA", "INSERT", "INSERT"]
    assert [e.body["data"] for e in events if "data" in e.body][-1] == {"id": 5, "a": 5, "b": 5}


def test_a_row_over_the_limit_loses_its_largest_columns_only(
    database: Database, make_nats: MakeNats, make_bridge: MakeBridge
) -> None:
    nats = make_nats(max_payload=65536)
    database.execute("""
        CREATE TABLE t (id int PRIMARY KEY, small text, big text, bigger text); CREATE PUBLICATION cdc_pub FOR TABLE t""")
    bridge = make_bridge(database, nats)
    database.execute("INSERT INTO t VALUES (1, 's', repeat('b', 60000), repeat('c', 70000))")
    database.execute("INSERT INTO t VALUES (2, 's', repeat('b', 70000), repeat('c', 70001))")
    first, second = bodies(wait_for_events(nats.url, 2))
    assert (first["omitted"], set(first["data"])) == (["bigger"], {"id", "small", "big"})
    assert (second["omitted"], second["data"]) == (["bigger", "big"], {"id": 2, "small": "s"})
    assert "bridge_events_omitting_columns_total 2.0" in bridge.metrics()


def test_a_table_whose_key_alone_is_too_large_is_suspended_and_the_others_go_on(
    database: Database, make_nats: MakeNats, make_bridge: MakeBridge
) -> None:
    nats = make_nats(max_payload=65536)
    database.execute("""
        CREATE TABLE bad (id text, v int); ALTER TABLE bad REPLICA IDENTITY FULL;
        CREATE TABLE keyed (id text, v int); CREATE TABLE good (id int PRIMARY KEY);
        CREATE PUBLICATION cdc_pub FOR TABLE keyed, good;
        ALTER TABLE keyed ALTER id SET NOT NULL; CREATE UNIQUE INDEX k ON keyed USING btree (id);
        ALTER TABLE keyed REPLICA IDENTITY USING INDEX k;""")
    bridge = make_bridge(database, nats)
    # a key that fits into the index since it compresses, and not into a message
    database.execute("INSERT INTO keyed VALUES ('a', 1)")
    database.execute("BEGIN; INSERT INTO good VALUES (1); INSERT INTO keyed VALUES (repeat('k', 100000), 2); COMMIT")
    database.execute("INSERT INTO keyed VALUES ('b', 3); INSERT INTO good VALUES (2)")
    events = bodies(wait_for_events(nats.url, 4))
    assert [(e["operation"], e.get("table")) for e in events] == [
        ("INSERT", "keyed"), ("INSERT", "good"), ("GAP", None), ("INSERT", "good")
    ]  # fmt: skip
    gap = events[2]
    assert gap["tables"] == ["keyed"]
    assert gap["slot"] == "cdc_slot"
    status = bridge.status()
    assert "keyed" in status["suspended_tables"]
    assert "bridge_tables_suspended 1.0" in bridge.metrics()
    # it stays suspended over a restart, and the gap is told once
    bridge.kill()
    bridge.start()
    database.execute("INSERT INTO keyed VALUES ('c', 4); INSERT INTO good VALUES (3)")
    events = bodies(wait_for_events(nats.url, 5))
    assert [e["operation"] for e in events].count("GAP") == 1
    assert events[-1]["data"] == {"id": 3}
    assert "keyed" in bridge.status()["suspended_tables"]
    # its snapshot resumes it: from there on its events are whole again
    database.execute("DELETE FROM keyed WHERE v = 2")
    snapshot = take(nats.url, "keyed")
    assert sorted(row["v"] for row in snapshot.rows) == [1, 3, 4]
    assert bridge.status()["suspended_tables"] == {}
    bridge.kill()
    bridge.start()
    database.execute("INSERT INTO keyed VALUES ('d', 5)")
    assert bodies(wait_for_events(nats.url, 6))[-1]["data"] == {"id": "d", "v": 5}


def test_packed_messages_hold_lists_and_the_last_events_id(
    database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE t")
    make_bridge(database, nats, "--pack", "3")
    database.execute("INSERT INTO t SELECT generate_series(1, 7); DELETE FROM t WHERE id = 1")
    events = wait_for_events(nats.url, 8)
    messages: dict[int, list[StoredEvent]] = {}
    for event in events:
        messages.setdefault(event.seq, []).append(event)
    assert [len(m) for m in messages.values()] == [3, 3, 1, 1]
    for packed in messages.values():
        assert packed[0].headers["Nats-Msg-Id"] == packed[-1].body["msg_id"]
    assert [e.body["data"]["id"] for e in events] == [1, 2, 3, 4, 5, 6, 7, 1]


@pytest.mark.parametrize("json_flag", [(), ("--json",)])
def test_kv_bridges_tells_position_tables_and_cluster(
    json_flag: tuple[str, ...], database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE t")
    bridge = make_bridge(database, nats, *json_flag)
    database.execute("INSERT INTO t VALUES (1)")
    (event,) = wait_for_events(nats.url, 1)
    assert bridge.stop() == 0
    record = read_stream(nats.url, "KV_bridges")[-1]
    assert record.subject == "$KV.bridges.CDC"
    body = record.body
    ((system_id,),) = database.execute("SELECT system_identifier::text FROM pg_control_system()")
    assert (body["slot"], body["publication"], body["tables"], body["system_id"]) == ("cdc_slot", "cdc_pub", ["t"], system_id)
    assert (body["last_seq"], body["lsn"], body["seq"], body["timeline"]) == (1, event.body["lsn"], 0, 1)
    schema = read_stream(nats.url, "KV_schemas")[0]
    assert schema.body["columns"][0]["data_type"] == "integer"
