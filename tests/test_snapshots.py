"""Whole tables on request: exact to the row, whatever happens meanwhile (contract, section 5)."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zstandard
from psycopg.conninfo import make_conninfo

from actors.embedded.nats import NatsServer
from tests.command_line import run_here
from tests.conftest import MakeBridge, MakeNats
from tests.servers import HANG_S, Bridge, Database, decode_body, read_messages, rss_bytes, wait_for, wait_for_events, with_nats
from tests.snapshots import ask, replica, snapshots, take, unpacked, wait_for_snapshots

USERS = """
CREATE TABLE users (id bigint PRIMARY KEY, name text, email text, age int, price numeric, created_at timestamptz);
CREATE PUBLICATION cdc_pub FOR TABLE users;
INSERT INTO users SELECT g, 'User-' || g, 'user' || g || '@example.com', g % 90, g * 1.5, '2026-01-02 03:04:05.678+00'
  FROM generate_series(1, 25000) g;
"""


def test_a_table_comes_whole_and_typed(database: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    database.execute(USERS)
    make_bridge(database, nats)
    snapshot = take(nats.url, "users")
    assert snapshot.error is None
    assert snapshot.meta is not None
    start, meta = snapshot.start, snapshot.meta
    assert start["columns"] == [
        {"name": "id", "type": "bigint", "pk": True},
        {"name": "name", "type": "text", "pk": False},
        {"name": "email", "type": "text", "pk": False},
        {"name": "age", "type": "integer", "pk": False},
        {"name": "price", "type": "numeric", "pk": False},
        {"name": "created_at", "type": "timestamp with time zone", "pk": False},
    ]
    assert (start["table"], start["schema"], start["status"], start["format"]) == ("users", "public", "starting", "map")
    assert start["compression_enabled"] is False
    high, low = start["lsn"].split("/")
    assert (int(high, 16) << 32) + int(low, 16) == start["snapshot_lsn"]
    assert (meta["row_count"], meta["batch_count"]) == (25000, len(snapshot.chunks))
    assert all(9000 < len(body["data"]) <= 10000 for body in snapshot.bodies[:-1]), "chunks are full"
    assert {r["id"]: r for r in snapshot.rows}[7] == {
        "id": 7, "name": "User-7", "email": "user7@example.com", "age": 7, "price": "10.5",
        "created_at": "2026-01-02T03:04:05.678Z",
    }  # fmt: skip
    assert len(replica(nats.url, snapshot, "users")) == 25000


TYPES = """
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TABLE types (
  id int PRIMARY KEY, i2 smallint, i8 bigint, f4 real, f8 double precision, n numeric, m money, b boolean, t text, u uuid,
  d date, ts timestamp, tz timestamptz, iv interval, j json, jb jsonb, by bytea, e mood, r int4range, dom positive,
  ai int[], at text[], aj jsonb[], atz timestamptz[]
);
CREATE PUBLICATION cdc_pub FOR TABLE types;
"""
TYPE_ROWS = """
INSERT INTO types VALUES
  (1, -5, 9007199254740993, 1.5, 'NaN', 12345678901234567890.123, '12.50', true, E'tab\\t"quote" \\\\ €', gen_random_uuid(),
   '2025-12-12', '2025-12-12 12:00:34.338547', '2025-12-12 12:00:34.338547+02', '1 day 2:03', '{"a": 1.0, "a": 2}',
   '{"a": [1, 2.5, null], "b": {"c": "d"}}', '\\xdeadbeef', 'happy', '[1,5)', 3, '{{1,2},{3,NULL}}', '{"a b",NULL,"q\\"x"}',
   '{"{\\"x\\": 1}"}', '{"2025-12-12 12:00:34+00"}'),
  (2, NULL, -9007199254740993, 'Infinity', '-Infinity', 'NaN', NULL, false, '', NULL, 'infinity', '-infinity', 'infinity', NULL,
   'null', 'null', '', NULL, 'empty', NULL, '{}', '{}', NULL, NULL),
  (3, 1, 42, -0.0, 1e300, 0.00, '-1', NULL, repeat('long ', 3000), NULL, '0044-03-15 BC', '0044-03-15 01:02:03 BC',
   '0044-03-15 01:02:03+00 BC', '-1 month', '[]', '12345678901234567890', NULL, 'sad', NULL, 1, '[2:3]={5,6}', '{NULL}', '{}', '{}');
INSERT INTO types (id) SELECT g FROM generate_series(4, 400) g;
INSERT INTO types (id, i8, f8, ts, tz, b) SELECT g, g * 1000000, g / 7.0, '2026-01-01'::timestamp + g * interval '1.1 s',
   '2026-01-01'::timestamptz + g * interval '1.1 s', g % 2 = 0 FROM generate_series(401, 1500) g;
"""


def test_requests_that_follow_one_another_see_tables_under_their_present_names(
    database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub")
    database.execute("ALTER PUBLICATION cdc_pub ADD TABLE a, b; INSERT INTO a VALUES (1); INSERT INTO b VALUES (2)")
    make_bridge(database, nats)
    assert take(nats.url, "a").rows == [{"id": 1}]
    database.execute("BEGIN; ALTER TABLE a RENAME TO c; ALTER TABLE b RENAME TO a; ALTER TABLE c RENAME TO b; COMMIT")
    swapped = take(nats.url, "a")
    assert swapped.rows == [{"id": 2}]
    assert [(swapped.start["relation_id"],)] == database.execute("SELECT 'a'::regclass::oid::int8")
    database.execute("CREATE TABLE new (id int PRIMARY KEY); ALTER PUBLICATION cdc_pub SET TABLE a, new")
    assert take(nats.url, "new").error is None
    gone = take(nats.url, "b").error
    assert gone is not None
    assert gone["error_type"] == "unknown_table"


@pytest.mark.parametrize(
    "flags", [(), ("--json",), ("--arrays", "list"), ("--json", "--arrays", "list"), ("--json", "--zstd")], ids=" ".join
)
def test_a_row_reads_alike_from_a_snapshot_and_from_an_event(
    flags: tuple[str, ...], database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute(TYPES)
    make_bridge(database, nats, *flags)
    database.execute(TYPE_ROWS)
    events = {e.body["data"]["id"]: e.body for e in wait_for_events(nats.url, 1500) if e.body["operation"] == "INSERT"}
    snapshot = take(nats.url, "types")
    rows = {row["id"]: row for row in snapshot.rows}
    assert rows.keys() == events.keys()
    for key, row in rows.items():
        assert repr(row) == repr(events[key]["data"]), "also NaN, and -0.0"
    raw = {key: body["raw"] for key, body in events.items() if "raw" in body}
    assert raw, "some values have no native form"
    found: dict[int, list[str]] = {}
    for body in snapshot.bodies:
        for row, column in body.get("raw", []):
            found.setdefault(body["data"][row]["id"], []).append(column)
    assert found == raw


@pytest.mark.parametrize("flags", [(), ("--json",), ("--zstd",)], ids=" ".join)
def test_the_array_format(flags: tuple[str, ...], database: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    database.execute(TYPES)
    make_bridge(database, nats, "--snapshot-format", "array", *flags)
    database.execute(TYPE_ROWS)
    events = {e.body["data"]["id"]: e.body["data"] for e in wait_for_events(nats.url, 1500) if e.body["operation"] == "INSERT"}
    snapshot = take(nats.url, "types")
    assert snapshot.announced is not None
    assert snapshot.start["format"] == snapshot.announced["format"] == "array_streaming"
    for name in ("schema_id", "snapshot_id", "snapshot_lsn", "stream_seq", "columns", "table"):
        assert snapshot.announced[name] == snapshot.start[name]
    assert all(m.subject == "snapshot.data.types" for m in snapshot.chunks)
    rows = {row["id"]: row for row in snapshot.rows}
    assert rows.keys() == events.keys()
    plain = [name for name in rows[1] if name not in ("j", "jb")]
    for key, row in rows.items():
        assert repr([row[name] for name in plain]) == repr([events[key][name] for name in plain])
    assert rows[1]["jb"] == '{"a": [1, 2.5, null], "b": {"c": "d"}}', "json as text"
    assert rows[1]["j"] == '{"a": 1.0, "a": 2}'


@pytest.mark.parametrize(("payload", "flags"), [(64 * 1024, ()), (64 * 1024, ("--zstd",)), (1024 * 1024, ("--json",))])
def test_chunks_keep_the_limits_and_use_them(
    payload: int, flags: tuple[str, ...], database: Database, make_nats: MakeNats, make_bridge: MakeBridge
) -> None:
    nats = make_nats(max_payload=payload)
    database.execute("""
        CREATE TABLE docs (id int PRIMARY KEY, body text);
        INSERT INTO docs SELECT g, repeat(md5(g::text), g % 300) FROM generate_series(1, 3000) g;
        INSERT INTO docs SELECT g, (SELECT string_agg(md5(x::text), '') FROM generate_series(g, g + 1000) x)
          FROM generate_series(5001, 5040) g;
        INSERT INTO docs SELECT g, NULL FROM generate_series(10001, 40000) g;
        CREATE PUBLICATION cdc_pub FOR TABLE docs""")
    make_bridge(database, nats, *flags)
    snapshot = take(nats.url, "docs")
    assert snapshot.error is None
    sizes = [len(m.data) + sum(len(k) + len(v) + 4 for k, v in m.headers.items()) + 12 for m in snapshot.chunks]
    assert max(sizes) <= payload
    rows = [len(body["data"]) for body in snapshot.bodies]
    assert max(rows) <= 10_000
    if not flags:
        full = [size for size, count in zip(sizes, rows, strict=True) if count < 9_900][:-1]
        assert sorted(full)[len(full) // 2] > payload * 0.7, "most are nearly full"
    assert len(replica(nats.url, snapshot, "docs")) == 33040
    expected = dict(database.execute("SELECT id, body FROM docs"))
    assert {row["id"]: row["body"] for row in snapshot.rows} == expected


def test_a_row_too_large_fails_that_snapshot_alone(database: Database, make_nats: MakeNats, make_bridge: MakeBridge) -> None:
    nats = make_nats(max_payload=64 * 1024)
    database.execute("""
        CREATE TABLE big (id int PRIMARY KEY, body text); CREATE TABLE small (id int PRIMARY KEY);
        INSERT INTO big SELECT g, 'x' FROM generate_series(1, 500) g; INSERT INTO small SELECT generate_series(1, 10);
        INSERT INTO big SELECT 1000, string_agg(md5(g::text), '') FROM generate_series(1, 5000) g;
        CREATE PUBLICATION cdc_pub FOR TABLE big, small""")
    bridge = make_bridge(database, nats)
    failed = take(nats.url, "big")
    assert failed.meta is None
    assert failed.error is not None
    assert failed.error["error_type"] == "row_too_large"
    assert failed.error["snapshot_id"] == failed.start["snapshot_id"]
    assert "max_payload" in failed.error["error_message"]
    assert take(nats.url, "small").meta is not None
    assert bridge.get("/ready")[0] == 200
    assert 'bridge_snapshots_total{result="error"} 1.0' in bridge.metrics()
    states = {s["table"]: (s["state"], s["error"][:13]) for s in bridge.status()["snapshots"]}
    assert states == {"big": ("failed", "row_too_large"), "small": ("done", "")}
    assert no_leftovers(database)


def test_a_huge_row_fails_its_snapshot_by_name_before_it_is_read(
    database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute("""
        CREATE TABLE t (id int, part text, v text, PRIMARY KEY (id, part)); ALTER TABLE t ALTER v SET STORAGE EXTERNAL;
        CREATE TABLE j (v jsonb, n int); ALTER TABLE j ALTER v SET STORAGE EXTERNAL;
        CREATE TABLE fits (id int PRIMARY KEY, v text, j jsonb);
        INSERT INTO t SELECT g, 'it''s', 'x' FROM generate_series(1, 500) g;
        INSERT INTO t VALUES (501, 'it''s', repeat('x', 60000000));
        INSERT INTO j VALUES (to_jsonb(array_fill(repeat('x', 96), ARRAY[600000])), 1);
        INSERT INTO fits VALUES (1, repeat('y', 900000), to_jsonb(repeat('z', 100000)));
        CREATE PUBLICATION cdc_pub FOR TABLE t, j WHERE (n > 0), fits""")
    bridge = make_bridge(database, nats)
    with Path(f"/proc/{bridge.process.pid if bridge.process else 0}/status").open() as status:
        before = resident_peak(status.read())
    assert take(nats.url, "fits").meta is not None
    errors = [take(nats.url, token).error for token in ("t", "j")]
    assert [error and error["error_type"] for error in errors] == ["row_too_large"] * 2
    assert "a row of 60,000,000 bytes, id=501, part=it's, is too large" in errors[0]["error_message"]  # type: ignore[index]
    assert "ctid=(" in errors[1]["error_message"]  # type: ignore[index]
    with Path(f"/proc/{bridge.process.pid if bridge.process else 0}/status").open() as status:
        assert resident_peak(status.read()) - before < 30_000, "kB: neither row was read"


def resident_peak(status: str) -> int:
    """VmHWM of /proc/PID/status, in kB."""
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


def is_running(bridge: Bridge, token: str) -> bool:
    """A snapshot of the table has sent some rows, and not all."""
    return any(s["table"] == token and s["state"] == "running" and s["rows"] for s in bridge.status()["snapshots"])


def no_leftovers(database: Database) -> bool:
    """No snapshot slot, no open transaction of a snapshot's is there, at the latest in a moment."""

    def clean() -> bool:
        return database.execute("""
            SELECT (SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'snap%') = 0
              AND (SELECT count(*) FROM pg_stat_activity WHERE application_name = 'walbridge snapshot'
                   AND datname = current_database()) = 0""") == [(True,)]

    wait_for(clean)
    return True


def test_any_kind_of_table(database: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    database.execute("""
        CREATE SCHEMA "S x"; CREATE SCHEMA sales;
        CREATE TABLE "S x"."a.b c*>""\\" ("k.1" text, "k>2" uuid, "v""\\" int, PRIMARY KEY ("k.1", "k>2"));
        INSERT INTO "S x"."a.b c*>""\\" SELECT g::text, gen_random_uuid(), g FROM generate_series(1, 100) g;
        CREATE TABLE nokey (v int); INSERT INTO nokey SELECT 7 FROM generate_series(1, 100); ALTER TABLE nokey REPLICA IDENTITY FULL;
        CREATE TABLE empty (id int PRIMARY KEY);
        CREATE TABLE sparse (id bigint PRIMARY KEY); INSERT INTO sparse SELECT g * 1000000007::bigint FROM generate_series(1, 100) g;
        CREATE TABLE sales.parted (id int, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
        CREATE TABLE sales.p1 PARTITION OF sales.parted FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
        CREATE TABLE sales.p2 PARTITION OF sales.parted FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');
        INSERT INTO sales.parted SELECT g, '2026-01-01'::date + g % 50 FROM generate_series(1, 100) g;
        CREATE TABLE parent (id int PRIMARY KEY, v int GENERATED ALWAYS AS (id * 2) STORED);
        CREATE TABLE child () INHERITS (parent);
        INSERT INTO parent SELECT generate_series(1, 10); INSERT INTO child SELECT generate_series(11, 20);
        CREATE TABLE listed (id int PRIMARY KEY, shown text, hidden text);
        INSERT INTO listed SELECT g, 's', 'h' FROM generate_series(1, 10) g;
        CREATE TABLE filtered (id int PRIMARY KEY, region text);
        INSERT INTO filtered SELECT g, CASE WHEN g % 2 = 0 THEN 'eu' ELSE 'us' END FROM generate_series(1, 10) g;
        CREATE TABLE nocolumns ();
        INSERT INTO nocolumns DEFAULT VALUES;
        CREATE PUBLICATION cdc_pub FOR TABLE "S x"."a.b c*>""\\", nokey, empty, sparse, sales.parted, ONLY parent, listed (id, shown),
          filtered WHERE (region = 'eu') WITH (publish_via_partition_root)""")
    make_bridge(database, nats)
    strange = take(nats.url, "S=20x/a=2Eb=20c=2A=3E=22=5C")
    assert strange.start["table"] == 'a.b c*>"\\'
    assert sorted(row['v"\\'] for row in strange.rows) == list(range(1, 101))
    assert [c["name"] for c in strange.start["columns"] if c["pk"]] == ["k.1", "k>2"]
    assert take(nats.url, "nokey").rows == [{"v": 7}] * 100
    empty = take(nats.url, "empty")
    assert (empty.rows, empty.meta and empty.meta["row_count"], empty.meta and empty.meta["batch_count"]) == ([], 0, 0)
    assert len(take(nats.url, "sparse").rows) == 100
    assert sorted(row["id"] for row in take(nats.url, "sales/parted").rows) == list(range(1, 101))
    assert take(nats.url, "parent").rows == [{"id": g} for g in range(1, 11)], "no child's rows, no generated column"
    assert take(nats.url, "listed").rows == [{"id": g, "shown": "s"} for g in range(1, 11)]
    assert [row["id"] for row in take(nats.url, "filtered").rows] == [2, 4, 6, 8, 10]
    unknown = take(nats.url, "child")
    assert unknown.error is not None
    assert (unknown.error["error_type"], "sales/parted" in unknown.error["available_tables"]) == ("unknown_table", True)


def test_a_request_made_while_the_bridge_is_down_is_served_once(
    database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute(USERS)
    bridge = make_bridge(database, nats)
    assert bridge.stop() == 0
    for _ in range(50):
        ask(nats.url, "users")
    bridge.start()
    wait_for_snapshots(nats.url, "users")
    ask(nats.url, "nothing")
    wait_for_snapshots(nats.url, "nothing")  # requests are served in order: no other is waiting
    ask(nats.url, "nothing")
    assert len(snapshots(nats.url, "users")) == 1
    wait_for(lambda: read_messages(nats.url, "REQUESTS") == [])
    assert bridge.stop() == 0
    bridge.start()
    take(nats.url, "users")
    assert len(snapshots(nats.url, "users")) == 2
    assert len(snapshots(nats.url, "nothing")) == 1, "at most one word a minute on what is unknown"


def test_requests_by_http(database: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    database.execute("CREATE SCHEMA s; CREATE TABLE s.t (id int PRIMARY KEY);" + USERS.replace("users;", "users, s.t;"))
    bridge = make_bridge(database, nats)
    assert bridge.post("/snapshot/users")[0] == 202
    assert bridge.post("/snapshot/s/t") == (202, '{"status":"requested","table":"s/t"}\n')
    for token in ("users", "s/t"):
        assert wait_for_snapshots(nats.url, token)[0].meta is not None
    assert bridge.get("/snapshot/users")[0] == 405
    done = {s["table"]: s for s in bridge.status()["snapshots"]}
    assert (done["users"]["rows"], done["users"]["state"], done["users"]["chunks"] > 0) == (25000, "done", True)
    assert "bridge_snapshot_rows_total 25000.0" in bridge.metrics()


def test_a_flood_of_requests_neither_fills_memory_nor_starves_a_real_one(
    database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute(USERS)
    bridge = make_bridge(database, nats)

    async def flood(client: Any) -> None:
        for i in range(30_000):
            await client.publish(f"snapshot.request.junk{i}", b"")
        await client.publish("snapshot.request.users", b"x" * 100)
        await client.publish("snapshot.request.a.b.c", b"")
        await client.flush()

    before = rss_bytes(bridge)
    with_nats(nats.url, flood)
    assert wait_for_snapshots(nats.url, "users")[0].meta is not None
    assert rss_bytes(bridge) - before < 60 * 2**20
    assert bridge.get("/ready")[0] == 200


def test_a_snapshot_of_a_killed_bridge_is_taken_again(database: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    database.execute(USERS + "INSERT INTO users SELECT g, repeat('x', 500) FROM generate_series(100000, 400000) g;")
    bridge = make_bridge(database, nats)
    for _ in range(3):
        ask(nats.url, "users")
        wait_for(lambda: is_running(bridge, "users"))
        bridge.kill()
        assert snapshots(nats.url, "users")[-1].meta is None, "half a snapshot does not look whole"
        bridge.start()
    found = wait_for_snapshots(nats.url, "users")
    assert found[-1].meta is not None
    assert len(found[-1].rows) == 325001
    assert no_leftovers(database)


def test_a_request_outlives_a_bridge_that_is_killed_when_it_deletes_it(
    database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute(USERS)
    bridge = make_bridge(database, nats)

    async def kill_at_the_deletion(client: Any) -> None:
        deleting = await client.subscribe("$JS.API.STREAM.PURGE.REQUESTS")
        await client.publish("snapshot.request.users", b"")
        await deleting.next_msg(HANG_S)
        bridge.kill()

    for count in range(1, 4):
        with_nats(nats.url, kill_at_the_deletion)
        bridge.start()
        wait_for(lambda count=count: sum(found.meta is not None for found in snapshots(nats.url, "users")) >= count)  # type: ignore[misc]


def test_a_stop_does_not_wait_for_a_snapshot(database: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    database.execute(USERS + "INSERT INTO users SELECT g, repeat('x', 500) FROM generate_series(100000, 600000) g;")
    bridge = make_bridge(database, nats)
    ask(nats.url, "users")
    wait_for(lambda: is_running(bridge, "users"))
    assert bridge.stop() == 0, bridge.log()
    assert snapshots(nats.url, "users")[-1].meta is None
    assert no_leftovers(database)


def test_what_the_role_may_not_read_is_an_error_of_that_table(
    database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute(
        USERS
        + f"""
        CREATE TABLE secret (id int PRIMARY KEY); INSERT INTO secret VALUES (1); ALTER PUBLICATION cdc_pub ADD TABLE secret;
        CREATE TABLE filtered (id int PRIMARY KEY); INSERT INTO filtered VALUES (1); ALTER PUBLICATION cdc_pub ADD TABLE filtered;
        ALTER TABLE filtered ENABLE ROW LEVEL SECURITY;
        CREATE TABLE listed (id int PRIMARY KEY, v text, secret text); INSERT INTO listed VALUES (1, 'a', 'b');
        CREATE TABLE half (id int PRIMARY KEY, v text); ALTER PUBLICATION cdc_pub ADD TABLE listed (id, v), half;
        CREATE ROLE reader_{database.name} LOGIN REPLICATION PASSWORD 'reader';
        GRANT SELECT (id, v) ON listed TO reader_{database.name}; GRANT SELECT (id) ON half TO reader_{database.name};
        GRANT SELECT ON users, filtered TO reader_{database.name}; GRANT CREATE ON DATABASE {database.name} TO reader_{database.name}
    """
    )
    dsn = make_conninfo(database.dsn, user=f"reader_{database.name}", password="reader")
    make_bridge(dsn, nats)
    for token in ("secret", "filtered", "half"):
        failed = take(nats.url, token)
        assert failed.error is not None
        assert failed.error["error_type"] == "permission_denied", "rows that a policy hides are not left out in silence"
    told = run_here("snapshot", "secret", env={"NATS_URL": nats.url})
    assert (told.returncode, told.stderr.splitlines()[0]) == (
        1,
        "error WB529: the snapshot of secret failed: permission_denied",
    )
    assert 'GRANT SELECT ON "public"."secret" TO' in told.stderr
    assert "walbridge snapshot secret\n" in told.stderr
    assert take(nats.url, "users").meta is not None
    assert take(nats.url, "listed").rows == [{"id": 1, "v": "a"}], "what is published can be read"


def test_the_start_of_a_snapshot_that_the_stream_has_dropped_is_an_error(
    database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute(USERS)

    async def make_small(client: Any) -> None:
        await client.jetstream().add_stream(name="INIT", subjects=["init.>"], max_bytes=1_200_000)

    with_nats(nats.url, make_small)
    make_bridge(database, nats)
    ask(nats.url, "users")

    def failed() -> bool:
        errors = [str(decode_body(m.data)[0]) for m in read_messages(nats.url, "INIT") if "error" in m.subject]
        return any("start_lost" in error and "nats stream edit INIT --max-bytes=64MB" in error for error in errors)

    wait_for(failed)


def test_zstd_with_a_dictionary(database: Database, nats: NatsServer, make_bridge: MakeBridge, tmp_path: Path) -> None:
    database.execute(USERS)
    plain = make_bridge(database, nats)
    database.execute("UPDATE users SET age = 7 WHERE id <= 3000")
    wait_for(lambda: plain.status()["cdc_events_published"] == 3000)
    assert plain.stop() == 0
    trained = zstandard.train_dictionary(16384, [m.data for m in read_messages(nats.url, "CDC")]).as_bytes()
    (tmp_path / "users.zstd.dict").write_bytes(trained)
    (tmp_path / "broken.zstd.dict").write_bytes(b"no dictionary")
    bridge = make_bridge(database, nats, "--zstd", "--zstd-events", "--dictionaries", str(tmp_path))
    assert "continuing without a dictionary" in bridge.log()

    async def bucket(client: Any) -> dict[str, bytes]:
        kv = await client.jetstream().key_value("dictionaries")
        return {key: (await kv.get(key)).value for key in await kv.keys()}

    dictionaries = with_nats(nats.url, bucket)
    key = f"users_dict.{hashlib.sha256(trained).hexdigest()[:8]}"
    assert dictionaries == {"users_dict": trained, key: trained}
    ask(nats.url, "users")
    snapshot = wait_for_snapshots(nats.url, "users", dictionaries=dictionaries)[0]
    assert (snapshot.start["compression_enabled"], snapshot.start["dictionary_id"]) == (True, key)
    assert snapshot.meta is not None
    assert snapshot.meta["dictionary_id"] == key
    assert all(m.headers["Content-Encoding"] == "zstd" and m.headers["Dictionary-Id"] == key for m in snapshot.chunks)
    assert len(snapshot.rows) == 25000
    database.execute("UPDATE users SET age = 1 WHERE id = 5; INSERT INTO users VALUES (0)")
    wait_for(lambda: bridge.status()["cdc_events_published"] == 2)
    events = read_messages(nats.url, "CDC", start_seq=3001)
    assert all(m.headers["Dictionary-Id"] == key for m in events), "small bodies are where a dictionary pays"
    bodies = [decode_body(unpacked(m, dictionaries))[0] for m in events]
    assert [(b["operation"], b["data"]["id"]) for b in bodies] == [("UPDATE", 5), ("INSERT", 0)]


def test_the_command_asks_and_follows(database: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    database.execute(USERS)
    bridge = make_bridge(database, nats)

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "actors.main", "snapshot", *words]
        return subprocess.run(argv, env={**os.environ, "NATS_URL": nats.url}, capture_output=True, text=True, check=False)

    done = command("users")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("users: 25,000 rows in 3 chunks, snap-")
    assert json.loads(command("users", "--json").stdout)["row_count"] == 25000
    failed = command("no such")
    assert (failed.returncode, failed.stderr.splitlines()[0]) == (1, "error WB520: no table no such in publication cdc_pub")
    assert "published are users" in failed.stderr
    assert 'ALTER PUBLICATION "cdc_pub" ADD TABLE "public"."no such";' in failed.stderr
    unanswered = command("no such")  # the bridge answers once a minute
    assert (unanswered.returncode, "WB520" in unanswered.stderr) == (2, True), unanswered.stderr
    near = command("userz", "--stream", "CDC")
    assert "walbridge snapshot users --stream CDC   # if that was meant" in near.stderr
    answer = command("usrs", "--json")
    assert (answer.returncode, json.loads(answer.stdout)["code"]) == (1, "WB520")
    astray = command("users", "--stream", "CDC2", "--no-wait")
    assert (astray.returncode, "users is published into stream CDC, not into CDC2" in astray.stderr) == (2, True), astray.stderr
    assert "walbridge snapshot users --stream CDC\n" in astray.stderr
    nowhere = command("nothing", "--stream", "CDC2", "--no-wait")
    assert (nowhere.returncode, "WB215" in nowhere.stderr) == (2, True), nowhere.stderr
    assert command("users", "--no-wait").stdout == "asked for users\n"
    database.execute(
        "CREATE SCHEMA sales; CREATE TABLE sales.orders (id int PRIMARY KEY); ALTER PUBLICATION cdc_pub ADD TABLE sales.orders"
    )
    unknown = command("sales.nothing").stderr  # has the publication looked at
    assert 'ALTER PUBLICATION "cdc_pub" ADD TABLE "sales"."nothing";' in unknown
    assert command("sales.orders").stdout.startswith("sales.orders: 0 rows in 0 chunks")
    bridge.stop()
    argv = [sys.executable, "-m", "actors.main", "snapshot", "sales.orders"]
    with subprocess.Popen(argv, env={**os.environ, "NATS_URL": nats.url}, stderr=subprocess.PIPE, text=True) as waiting:
        assert waiting.stderr is not None
        assert "sales.orders: no answer yet: " in waiting.stderr.readline()
        waiting.kill()


def test_who_may_not_ask_for_a_snapshot_is_told(make_nats: MakeNats) -> None:
    denied = 'permissions: { publish: { deny: ["snapshot.request.>"] } }'
    nats = make_nats(
        extra_config=f"authorization {{ users: [ {{user: a, password: p}}, {{user: b, password: p, {denied}}} ] }}"
    )
    url = f"nats://a:p@127.0.0.1:{nats.port}"
    for name, subjects in (("CDC", ["cdc.>"]), ("INIT", ["init.>"])):
        with_nats(url, lambda client, name=name, subjects=subjects: client.jetstream().add_stream(name=name, subjects=subjects))
    env = {"NATS_URL": f"nats://127.0.0.1:{nats.port}", "NATS_BRIDGE_PASSWORD": "p"}
    may = run_here("snapshot", "users", "--no-wait", env=env | {"NATS_BRIDGE_USER": "a"})
    assert (may.returncode, may.stdout) == (0, "asked for users\n"), may.stderr
    may_not = run_here("snapshot", "users", "--no-wait", env=env | {"NATS_BRIDGE_USER": "b"})
    assert (may_not.returncode, "WB204" in may_not.stderr, may_not.stdout) == (2, True, ""), may_not.stderr
