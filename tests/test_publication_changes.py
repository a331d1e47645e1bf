"""What administrators change in the catalog while a bridge runs: the stream says so, and no snapshot joins what is missing."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from nats.aio.client import Client

from actors.contract.bridge_record import UNFINISHED
from actors.embedded.nats import NatsServer
from tests.conftest import MakeBridge
from tests.servers import Bridge, Database, StoredEvent, read_stream, wait_for, wait_for_events, with_nats
from tests.snapshots import ask, snapshots, wait_for_snapshots

BOTH = pytest.mark.parametrize("server", ["database", "database15"])

TABLES = """
    CREATE TYPE mood AS ENUM ('sad', 'happy'); CREATE TYPE address AS (street text);
    CREATE TABLE quiet (id int PRIMARY KEY, m mood); CREATE TABLE calm (id int PRIMARY KEY, v text);
    CREATE TABLE filtered (id int PRIMARY KEY, v int); CREATE TABLE listed (id int PRIMARY KEY, a text, b text);
    CREATE TABLE left_out (id int PRIMARY KEY); CREATE TABLE in_and_out (id int PRIMARY KEY); CREATE TABLE dropped (id int PRIMARY KEY);
    CREATE TABLE old_name (id int PRIMARY KEY); CREATE TABLE moved (id int PRIMARY KEY);
    CREATE TABLE one (id int PRIMARY KEY); CREATE TABLE other (id int PRIMARY KEY);
    CREATE TABLE made_anew (id int PRIMARY KEY); CREATE TABLE rewritten (id int PRIMARY KEY, price numeric(10,2));
    CREATE TABLE labelled (id int PRIMARY KEY, m mood[]); CREATE TABLE composed (id int PRIMARY KEY, a address);
    CREATE TABLE rekeyed (id int PRIMARY KEY, k int NOT NULL UNIQUE); CREATE TABLE widened (id int PRIMARY KEY);
    CREATE TYPE place AS (street text, city text); CREATE TABLE placed (id int PRIMARY KEY, p place);
    CREATE TABLE made_again (id int PRIMARY KEY, v int); CREATE TABLE made_less (id int PRIMARY KEY, w int, v int);
    CREATE TABLE heir (id int PRIMARY KEY, w int, v int);
    CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
    CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10);
    CREATE SCHEMA s;
    CREATE PUBLICATION cdc_pub FOR TABLE quiet, calm, filtered WHERE (v > 5), listed (id, a), left_out, in_and_out, dropped, old_name,
      moved, one, other, made_anew, rewritten, labelled, composed, rekeyed, widened, placed, made_again, made_less, heir,
      parts WITH (publish_via_partition_root);
"""
CHANGES = (
    "ALTER PUBLICATION cdc_pub DROP TABLE left_out, in_and_out, filtered, listed",
    "ALTER PUBLICATION cdc_pub ADD TABLE in_and_out, filtered WHERE (v > 6), listed (id, a, b)",
    "DROP TABLE dropped", "ALTER TABLE old_name RENAME TO new_name", "ALTER TABLE moved SET SCHEMA s",
    "ALTER TABLE one RENAME TO third; ALTER TABLE other RENAME TO one; ALTER TABLE third RENAME TO other",
    "DROP TABLE made_anew; CREATE TABLE made_anew (id int PRIMARY KEY); ALTER PUBLICATION cdc_pub ADD TABLE made_anew",
    "ALTER TABLE rewritten ALTER price TYPE numeric(10,2) USING price * 2",
    "ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'", "ALTER TYPE address ADD ATTRIBUTE city text", "TRUNCATE parts_1",
    "ALTER TABLE rekeyed REPLICA IDENTITY USING INDEX rekeyed_k_key", "ALTER TABLE widened ADD b int DEFAULT 7",
    "ALTER TABLE made_again DROP v; ALTER TABLE made_again ADD v int",
    "ALTER TABLE made_less DROP w, DROP v; ALTER TABLE made_less ADD v int",
    "ALTER TABLE heir DROP w; ALTER TABLE heir RENAME v TO w",
    "ALTER TYPE place DROP ATTRIBUTE city; ALTER TYPE place ADD ATTRIBUTE city text",
    "CREATE TABLE added (id int PRIMARY KEY); ALTER PUBLICATION cdc_pub ADD TABLE added",
)  # fmt: skip
HARMLESS = (
    ("VACUUM FULL calm", "CLUSTER calm USING calm_pkey", "TRUNCATE calm"),
    ("ANALYZE calm", "ALTER TABLE calm ALTER v SET STATISTICS 10", "ALTER TABLE calm ADD CHECK (id > 0)",
     "CREATE INDEX ON calm (v)", "GRANT SELECT ON calm TO PUBLIC", "ALTER TYPE mood ADD VALUE 'calm'", "ALTER TABLE calm ADD w int",
     "ALTER TABLE calm DROP w"),
    ("VACUUM FULL calm",),
)  # fmt: skip
"""With a look after each row: a rewrite and a change of the columns between two looks are told like ALTER ... TYPE ... USING."""


def told(url: str) -> dict[str, tuple[str, str]]:
    """The last change that the stream tells of each table, and the version."""
    return {
        e.body["table"]: (e.body["change"], e.body["version"]) for e in read_stream(url) if e.subject == "cdc._bridge.published"
    }


def have_it_looked(url: str) -> None:
    """The bridge looks every 30 s, and when it is asked for a table that it does not know."""
    ask(url, "nobody_knows_this")


@BOTH
def test_what_an_administrator_changes_is_told_and_what_changes_nothing_is_not(
    server: str, request: pytest.FixtureRequest, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database: Database = request.getfixturevalue(server)
    database.execute(TABLES)
    bridge = make_bridge(database, nats)
    versions = {found.start["table"]: found.start["version"] for found in [take(nats.url, "quiet"), take(nats.url, "filtered")]}
    for statements in HARMLESS:
        for statement in statements:
            database.execute(statement)
        have_it_looked(nats.url)
        time.sleep(3)
    assert told(nats.url) == {}
    for statement in CHANGES:
        database.execute(statement)
    have_it_looked(nats.url)
    expected = {
        "left_out": "removed", "in_and_out": "changed", "filtered": "changed", "listed": "changed", "dropped": "removed",
        "old_name": "removed", "new_name": "added", "moved": "removed", "s/moved": "added", "one": "changed", "other": "changed",
        "made_anew": "changed", "rewritten": "changed", "labelled": "changed", "quiet": "changed", "composed": "changed",
        "parts": "changed", "added": "added", "made_again": "changed", "made_less": "changed", "placed": "changed",
        "heir": "changed",
    }  # fmt: skip
    wait_for(lambda: len(told(nats.url)) >= len(expected))
    found = told(nats.url)
    assert {token: change for token, (change, _) in found.items()} == expected
    assert all(bool(version) == (change != "removed") for change, version in found.values())
    assert found["filtered"][1] != versions["filtered"]
    assert take(nats.url, "filtered").start["version"] == found["filtered"][1]
    shapes = {e.body["table"] for e in read_stream(nats.url) if e.body["operation"] == "SCHEMA"}
    assert {"rekeyed", "widened", "labelled", "listed"} <= shapes, "idle tables too"
    assert set(record_of(nats.url)["tables"]) >= {"added", "new_name", "s/moved"}

    positions = [(e.body["lsn"], e.body["seq"]) for e in read_stream(nats.url)]
    assert positions == sorted(set(positions)), "each has a place of its own"
    bridge.stop()
    database.execute("ALTER PUBLICATION cdc_pub DROP TABLE widened; INSERT INTO calm VALUES (1)")
    bridge.start()
    wait_for(lambda: told(nats.url).get("widened") == ("removed", ""))
    assert {token: change for token, (change, _) in told(nats.url).items()} == expected | {"widened": "removed"}

    bridge.stop()
    forget_what_was_told(nats.url)
    database.execute("ALTER PUBLICATION cdc_pub DROP TABLE calm")
    bridge.start()
    wait_for(lambda: told(nats.url).get("calm") == ("removed", ""))


def forget_what_was_told(url: str) -> None:
    """Write the record as a bridge of an older version does, which knows of no versions of tables."""
    record = record_of(url)
    del record["published"]

    async def put(client: Client) -> None:
        await (await client.jetstream().key_value("bridges")).put("CDC", json.dumps(record).encode())

    with_nats(url, put)


def take(url: str, token: str) -> Any:
    before = len(snapshots(url, token))
    ask(url, token)
    return wait_for_snapshots(url, token, before + 1)[-1]


def record_of(url: str) -> dict[str, Any]:
    return [e.body for e in read_stream(url, "KV_bridges") if e.subject == "$KV.bridges.CDC"][-1]


PUBLISHING = (
    "CREATE PUBLICATION cdc_pub FOR TABLE quiet; ",
    "CREATE PUBLICATION cdc_pub FOR TABLE quiet; CREATE SCHEMA s; ",
    "CREATE PUBLICATION cdc_pub FOR TABLE quiet, t WHERE (id > 100); ",
)
THEN = (
    "ALTER PUBLICATION cdc_pub ADD TABLE t",
    "ALTER PUBLICATION cdc_pub ADD TABLES IN SCHEMA public",
    "ALTER PUBLICATION cdc_pub SET TABLE quiet, t WHERE (id > 0)",
)


@pytest.mark.parametrize("case", range(3), ids=["table", "schema", "filter"])
def test_a_row_that_was_written_before_its_table_was_published_is_in_the_snapshot_or_there_is_none(
    case: int, database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    """PostgreSQL decodes it with the catalog of its time: the stream never has it."""
    database.execute("CREATE TABLE quiet (id int PRIMARY KEY); CREATE TABLE t (id int PRIMARY KEY)")
    database.execute(PUBLISHING[case])
    make_bridge(database, nats)
    with database.connect(autocommit=False) as writer:
        writer.execute("INSERT INTO t VALUES (1)")
        database.execute(THEN[case])
        ask(nats.url, "t")
        time.sleep(7)  # an ordinary snapshot is tried after 5 s
        assert not [found for found in snapshots(nats.url, "t") if found.meta is not None]
        writer.commit()
    found = wait_for_snapshots(nats.url, "t")[-1]
    assert [row["id"] for row in found.rows] == [1]


@BOTH
def test_a_locked_table_stops_no_other(
    server: str, request: pytest.FixtureRequest, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database: Database = request.getfixturevalue(server)
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE TABLE busy (id int PRIMARY KEY, v int DEFAULT 5)")
    database.execute("CREATE PUBLICATION cdc_pub FOR TABLE users, busy WHERE (id > 0); INSERT INTO users VALUES (1)")
    bridge = make_bridge(database, nats)
    database.execute("INSERT INTO busy VALUES (1)")
    wait_for_events(nats.url, 1)
    bridge.stop()
    database.execute("ALTER TABLE busy ADD w int DEFAULT 6; INSERT INTO busy VALUES (2)")
    with database.connect(autocommit=False) as other:
        other.execute("LOCK TABLE busy IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(6)")
        bridge.start()
        database.execute("INSERT INTO users VALUES (2)")
        events = wait_for_events(nats.url, 4)
        assert [e.subject for e in events] == ["cdc.busy.insert", "cdc.busy.schema", "cdc.busy.insert", "cdc.users.insert"]
        assert [row["id"] for row in take(nats.url, "users").rows] == [1, 2]
        (problem,) = [p for p in bridge.status()["problems"] if p["code"] == "WB133"]
        assert "public.busy" in problem["what"]
        assert f"pid {other.info.backend_pid}" in problem["what"]
        database.execute(problem["fix"].split("--")[0])


def wait_for_problem(bridge: Bridge, code: str) -> dict[str, Any]:
    wait_for(lambda: any(p["code"] == code for p in bridge.status()["problems"]))
    return next(p for p in bridge.status()["problems"] if p["code"] == code)


def test_problems_of_tables_are_found_while_the_bridge_runs_and_one_says_all_of_a_kind(
    database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE users")
    bridge = make_bridge(database, nats)
    database.execute("""
        CREATE TABLE log (v text); CREATE TABLE late_key (id int PRIMARY KEY DEFERRABLE); CREATE TABLE "Child" () INHERITS (users);
        CREATE TABLE half (a int, b int, v text, PRIMARY KEY (a, b)); CREATE TABLE big (id int PRIMARY KEY, v int, doc text);
        ALTER PUBLICATION cdc_pub ADD TABLE log, late_key, half (a, v), big WHERE (id > 5);
    """)
    have_it_looked(nats.url)
    wait_for_problem(bridge, "WB132")
    problems = {p["code"]: p for p in bridge.status()["problems"]}
    assert "public.late_key, public.log" in problems["WB115"]["what"]
    assert "public.half (b)" in problems["WB131"]["what"]
    assert "public.big (doc)" in problems["WB130"]["what"]
    assert 'public."Child"' in problems["WB132"]["what"]
    for statement in problems["WB130"]["fix"].splitlines() + problems["WB132"]["fix"].splitlines():
        database.execute(statement)
    have_it_looked(nats.url)
    wait_for(lambda: not {"WB130", "WB132"} & {p["code"] for p in bridge.status()["problems"]})


def test_half_of_a_key_is_no_primary_key(database: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    database.execute("CREATE TABLE half (a int, b int, v text, PRIMARY KEY (a, b)); INSERT INTO half VALUES (1, 1), (1, 2)")
    database.execute("CREATE TABLE wide (id int, extra int, PRIMARY KEY (id) INCLUDE (extra))")
    database.execute("CREATE PUBLICATION cdc_pub FOR TABLE half (a, v), wide WITH (publish = 'insert')")
    make_bridge(database, nats)
    assert [c["pk"] for c in take(nats.url, "half").start["columns"]] == [False, False]
    held: list[StoredEvent] = wait_for_events(nats.url, 2, "KV_schemas")
    pk = {e.body["table"]: [c["pk"] for c in e.body["columns"]] for e in held}
    assert pk == {"half": [False, False], "wide": [True, False]}


@BOTH
def test_what_was_changed_and_changed_back_between_two_looks_is_told(
    server: str, request: pytest.FixtureRequest, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    """The catalog reads as before, but what was written meanwhile is in no event."""
    database: Database = request.getfixturevalue(server)
    database.execute("""
        CREATE TABLE plain (id int PRIMARY KEY); CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
        CREATE TABLE half PARTITION OF parts FOR VALUES FROM (0) TO (10) PARTITION BY RANGE (id);
        CREATE TABLE quarter PARTITION OF half FOR VALUES FROM (0) TO (5); INSERT INTO parts VALUES (1), (2);
        CREATE PUBLICATION cdc_pub FOR TABLE plain, parts WITH (publish_via_partition_root)""")
    make_bridge(database, nats)
    for statement in ("ALTER TABLE parts DETACH PARTITION half", "DELETE FROM half WHERE id = 1",
                      "ALTER TABLE parts ATTACH PARTITION half FOR VALUES FROM (0) TO (10)"):  # fmt: skip
        database.execute(statement)
    have_it_looked(nats.url)
    wait_for(lambda: {token: change for token, (change, _) in told(nats.url).items()} == {"parts": "changed"})
    version = told(nats.url)["parts"][1]
    database.execute("ALTER PUBLICATION cdc_pub SET (publish = 'insert')")
    database.execute("ALTER PUBLICATION cdc_pub SET (publish = 'insert, update, delete, truncate')")
    time.sleep(2.5)  # a table that nobody knows is looked for once in a while
    have_it_looked(nats.url)
    wait_for(
        lambda: {token: change for token, (change, _) in told(nats.url).items()} == {"parts": "changed", "plain": "changed"}
    )
    assert told(nats.url)["parts"][1] != version


def test_a_bridge_that_ends_while_it_writes_its_first_entries_tells_of_no_new_table(
    database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute(
        "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE a, b"
    )
    bridge = make_bridge(database, nats)
    wait_for(lambda: record_of(nats.url)["published"] not in ("", UNFINISHED))

    keys = [
        (e.subject.removeprefix("$KV.bridges."), e.body["published"] if e.subject.endswith(".CDC") else "")
        for e in read_stream(nats.url, "KV_bridges")
    ]
    first = min(keys.index(("CDC.a", "")), keys.index(("CDC.b", "")))
    assert ("CDC", UNFINISHED) in keys[:first], keys
    bridge.kill()

    record = {**record_of(nats.url), "published": UNFINISHED}

    async def as_if_cut(client: Client) -> None:
        await client.jetstream().purge_stream("KV_bridges", subject="$KV.bridges.CDC.b")
        await client.jetstream().publish("$KV.bridges.CDC", json.dumps(record).encode())

    with_nats(nats.url, as_if_cut)
    bridge.start()
    wait_for(lambda: record_of(nats.url)["published"] not in ("", UNFINISHED))
    database.execute("INSERT INTO b VALUES (1)")
    wait_for_events(nats.url, 1)
    assert told(nats.url) == {}
