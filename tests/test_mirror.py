"""The mirror: a replica equals its source, whatever happens to rows, shapes, streams and processes."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import psycopg
import pytest
import trio

from actors.embedded.nats import NatsServer
from actors.embedded.process import free_port
from actors.mirror.stores.open import open_store
from actors.verification import hold_row
from actors.verification.comparison import differences
from tests.command_line import run_here
from tests.conftest import MakeBridge, MakeMirror
from tests.mirrors import MirrorProcess
from tests.servers import HANG_S, ROOT, Database, wait_until_drained, with_nats


def test_rows_from_before_and_after_the_snapshot_are_in_the_replica(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, make_mirror: MakeMirror
) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY, name text); CREATE PUBLICATION cdc_pub FOR TABLE users")
    database.execute("INSERT INTO users SELECT g, 'user ' || g FROM generate_series(1, 1000) g")
    make_bridge(database, nats)
    mirror = make_mirror()
    mirror.wait_live(1)
    assert mirror.query("SELECT count(*), min(name) FROM users") == [(1000, "user 1")]
    database.execute("UPDATE users SET name = 'Ada' WHERE id = 1; DELETE FROM users WHERE id = 2")
    database.execute("INSERT INTO users VALUES (2000, 'Grace')")
    mirror.wait_for("SELECT id, name FROM users WHERE id IN (1, 2, 2000) ORDER BY id", [(1, "Ada"), (2000, "Grace")])
    assert mirror.stop() == 0


EVERY_KIND_OF_KEY = """
CREATE SCHEMA sales;
CREATE TABLE plain (id int PRIMARY KEY, name text, big text);
CREATE TABLE pair (a int, b text, v numeric, PRIMARY KEY (b, a));
CREATE TABLE whole (a int, b text, j json);
ALTER TABLE whole REPLICA IDENTITY FULL;
CREATE TABLE keyed_whole (id int PRIMARY KEY, v text);
ALTER TABLE keyed_whole REPLICA IDENTITY FULL;
CREATE TABLE by_index (id int PRIMARY KEY, code text NOT NULL, v int);
CREATE UNIQUE INDEX by_code ON by_index (code);
ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_code;
CREATE TABLE late (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, v text);
ALTER TABLE late REPLICA IDENTITY FULL;
CREATE TABLE log_lines (at timestamptz, line text);
ALTER TABLE log_lines REPLICA IDENTITY NOTHING;
CREATE TABLE sales."a.b c*>""q" ("the key" int PRIMARY KEY, "select" text, "x.y" int);
CREATE TABLE "sales.orders" (id int PRIMARY KEY);
CREATE TABLE sales.orders (id int PRIMARY KEY, v text);
CREATE PUBLICATION cdc_pub FOR TABLE plain, pair, whole, keyed_whole, by_index, late, sales."a.b c*>""q", "sales.orders",
  sales.orders;
"""


def test_every_kind_of_change_on_every_kind_of_key(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, make_mirror: MakeMirror
) -> None:
    database.execute(EVERY_KIND_OF_KEY)
    database.execute("""
        INSERT INTO plain SELECT g, 'n' || g, repeat(md5(g::text), 2000) FROM generate_series(1, 50) g;
        ALTER TABLE plain ALTER big SET STORAGE EXTERNAL;
        INSERT INTO plain SELECT g, 'n' || g, repeat(md5(g::text), 2000) FROM generate_series(51, 100) g;
        INSERT INTO pair SELECT g, 'x' || g % 7, g / 3.0 FROM generate_series(1, 100) g;
        INSERT INTO whole SELECT g % 5, 'same', '{"a": 1.50}' FROM generate_series(1, 40) g;
        INSERT INTO whole VALUES (NULL, NULL, NULL), (NULL, NULL, NULL);
        INSERT INTO keyed_whole SELECT g, 'v' FROM generate_series(1, 20) g;
        INSERT INTO by_index SELECT g, 'c' || g, 0 FROM generate_series(1, 20) g;
        INSERT INTO late SELECT g, 'v' || g FROM generate_series(1, 20) g;
        INSERT INTO sales."a.b c*>""q" SELECT g, 'x', 1 FROM generate_series(1, 20) g;
        INSERT INTO "sales.orders" VALUES (1); INSERT INTO sales.orders VALUES (1, 'x')""")
    make_bridge(database, nats)
    mirror = make_mirror()
    mirror.wait_live(9)
    mirror.assert_equal(database.dsn)
    for change in (
        "UPDATE plain SET name = 'm' || id",  # large values unchanged
        "UPDATE plain SET id = id + 1000 WHERE id % 2 = 0",  # and the key changed
        "UPDATE plain SET big = NULL WHERE id < 10; DELETE FROM plain WHERE id > 1050",
        "UPDATE pair SET b = 'y' || a, v = v * 1000000007 WHERE a % 3 = 0",
        "DELETE FROM pair WHERE a % 5 = 0",
        "DELETE FROM whole WHERE ctid IN (SELECT ctid FROM whole WHERE a = 1 LIMIT 3)",
        "UPDATE whole SET b = 'other' WHERE ctid IN (SELECT ctid FROM whole WHERE a = 2 LIMIT 2)",
        "DELETE FROM whole WHERE ctid IN (SELECT ctid FROM whole WHERE a IS NULL LIMIT 1)",
        "UPDATE keyed_whole SET id = id + 100, v = NULL WHERE id < 5",
        "DELETE FROM keyed_whole WHERE id = 10",
        "UPDATE by_index SET code = 'd' || id, v = v + 1 WHERE id < 10",
        "DELETE FROM by_index WHERE id = 15",
        "UPDATE late SET id = id + 1",  # keys that are taken until the next row has moved
        'UPDATE sales."a.b c*>""q" SET "the key" = "the key" + 100, "select" = NULL, "x.y" = 7',
        'INSERT INTO "sales.orders" VALUES (2); UPDATE sales.orders SET v = $$it\'s "quoted"$$',
        "BEGIN; INSERT INTO plain VALUES (1, 'x', 'y'); ROLLBACK",
        "BEGIN; INSERT INTO pair VALUES (1, 'kept', 1); SAVEPOINT s; DELETE FROM pair; ROLLBACK TO s; COMMIT",
    ):
        try:
            database.execute(change)
        except psycopg.errors.UniqueViolation:
            database.execute("ROLLBACK")
    mirror.assert_equal(database.dsn)
    database.execute("TRUNCATE plain, pair; INSERT INTO plain VALUES (1, 'after', 'all')")
    database.execute("BEGIN; INSERT INTO late VALUES (500, 'x'); TRUNCATE late; INSERT INTO late VALUES (501, 'y'); COMMIT")
    mirror.assert_equal(database.dsn)
    assert mirror.query("SELECT id, name FROM plain") == [(1, "after")]
    if mirror.to.startswith("postgresql"):
        names = mirror.query("SELECT indexrelid::regclass::text FROM pg_index WHERE indisprimary AND indrelid >= 16384")
        assert {"plain_pkey", "sales.orders_pkey", 'sales."a.b c*>""q_pkey"'} <= {name for (name,) in names}
        assert not [name for (name,) in names if "_walbridge_new" in name]


EVERY_TYPE = """
CREATE TYPE mood AS ENUM ('sad', 'happy, very');
CREATE DOMAIN cents AS numeric(10, 2);
CREATE TYPE pos AS (x int, y text);
CREATE TABLE every_type (
  id int PRIMARY KEY, s smallint, l bigint, f4 real, f8 double precision, n numeric, n2 numeric(20, 4), m money, b bool, t text,
  vc varchar(20), c char(6), u uuid, d date, ts timestamp, tz timestamptz, ti time, iv interval, j json, jb jsonb, by bytea,
  ai int[], at text[], am int[][], ab bool[], af float8[], atz timestamptz[], aby bytea[], aj jsonb[], mo mood, ce cents, po pos,
  ip inet, ra int4range, bi bit(5), vb varbit, pt point, tsv tsvector, rc regclass, amo mood[]);
CREATE PUBLICATION cdc_pub FOR TABLE every_type;
"""
ROWS = """
INSERT INTO every_type VALUES ({0}, 1, 9007199254740993, 0.1, 1e-7, 12345678901234567890.123456789, 1.5, '12.34', true, 'a
b "quoted" \\ {{', 'v', 'ab', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '2025-12-12', '2025-12-12 12:00:34.338547',
 '2025-12-12 12:00:34.5+02', '12:34:56.789', '1 year 2 mons 3 days 04:05:06', '{{"b": 1, "a": [1, 2.50, null, "x"]}}',
 '{{"b": 1, "a": [1, 2.50, null, "x"]}}', '\\xdeadbeef00', '{{1,NULL,3}}', '{{"a b",NULL,"q\\"uo",""}}', '{{{{1,2}},{{3,4}}}}',
 '{{t,f}}', '{{1.5,NaN,-Infinity,1e20}}', '{{"2025-12-12 12:00:34+00"}}', ARRAY['\\x00ff'::bytea], ARRAY['"x"', '{{"a": 1}}', '1.50']::jsonb[],
 'happy, very', 12.30, '(1,"a b")', '10.0.0.1/8', '[1,5)', '10101', '101', '(1,2)', 'the fat cat', 'pg_class', '{{sad,"happy, very"}}');
INSERT INTO every_type (id) VALUES ({0} + 1);
INSERT INTO every_type (id, l, f4, f8, n, d, ts, tz, j, jb, by, ai, at, t) VALUES ({0} + 2, -9223372036854775808, 'NaN', '-Infinity',
 'NaN', 'infinity', '-infinity', '0044-03-15 BC', '"just a text"', '"just a text"', '', '{{}}', '{{}}', '');
INSERT INTO every_type (id, l, f8, n, j, jb, ai, ts) VALUES ({0} + 3, 9223372036854775807, 1e300, -0.00000000000000000001, 'null',
 'null', '[2:3]={{7,8}}', '12025-01-01 00:00:00.1');
INSERT INTO every_type (id, j, jb, f4, f8) VALUES ({0} + 4, '{{"a":1,"a":2, "n": 1e400}}', '123456789012345678901234567890.5', 3.4e38, -0.0);
INSERT INTO every_type (id, j, jb) VALUES ({0} + 5, '12', 'true');
"""


@pytest.mark.parametrize(
    "flags",
    [(), ("--json",), ("--arrays", "list"), ("--json", "--arrays", "list", "--snapshot-format", "array"),
     ("--snapshot-format", "array", "--zstd"), ("--pack", "10", "--zstd", "--zstd-events")],
    ids=lambda flags: " ".join(flags) or "default",
)  # fmt: skip
def test_every_type_in_every_encoding(
    flags: tuple[str, ...],
    database: Database,
    nats: NatsServer,
    make_bridge: MakeBridge,
    make_mirror: MakeMirror,
    tmp_path: Path,
) -> None:
    database.execute(EVERY_TYPE)
    database.execute(ROWS.format(1))
    if "--zstd-events" in flags:
        (tmp_path / "dictionaries").mkdir()
        samples: list[bytes | bytearray | memoryview] = [
            f'{{"subject":"cdc.every_type.insert","id":{i},"name":"some {i}"}}'.encode() * 4 for i in range(2000)
        ]
        import zstandard  # noqa: PLC0415

        dictionary = zstandard.train_dictionary(4096, samples).as_bytes()
        (tmp_path / "dictionaries" / "every_type.zstd.dict").write_bytes(dictionary)
        flags += ("--dictionaries", str(tmp_path / "dictionaries"))
    make_bridge(database, nats, *flags)
    mirror = make_mirror()
    mirror.wait_live(1)
    mirror.assert_equal(database.dsn)
    database.execute(ROWS.format(101))
    mirror.assert_equal(database.dsn)
    database.execute(
        "UPDATE every_type SET s = 2; UPDATE every_type SET id = id + 1000 WHERE id > 100; DELETE FROM every_type WHERE id = 1"
    )
    database.execute("ALTER TABLE every_type REPLICA IDENTITY FULL")
    database.execute("UPDATE every_type SET l = 1, j = jb::json; DELETE FROM every_type WHERE id % 2 = 0")
    mirror.assert_equal(database.dsn)
    assert mirror.log().count("table is live") == 1, "nothing was copied twice"


def test_columns_come_and_go(database: Database, nats: NatsServer, make_bridge: MakeBridge, make_mirror: MakeMirror) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY, name text, age int); CREATE TABLE other (id int PRIMARY KEY)")
    database.execute("CREATE PUBLICATION cdc_pub FOR TABLE users, other")
    database.execute("INSERT INTO users SELECT g, 'user ' || g, g FROM generate_series(1, 500) g")
    make_bridge(database, nats)
    mirror = make_mirror()
    mirror.wait_live(2)
    database.execute("ALTER TABLE users DROP age; INSERT INTO users VALUES (501, 'x'); INSERT INTO other VALUES (1)")
    mirror.wait_for("SELECT count(*) FROM users", [(501,)])
    assert "must be copied again" not in mirror.log(), "a dropped column is dropped"
    mirror.assert_equal(database.dsn)
    # no event tells the values of the rows that were there: nobody sees the default any more
    database.execute("ALTER TABLE users ADD score int DEFAULT 7; ALTER TABLE users ALTER score DROP DEFAULT")
    database.execute("BEGIN; UPDATE users SET name = 'y' WHERE id = 1; INSERT INTO other VALUES (2); COMMIT")
    mirror.wait_for("SELECT count(*), sum(score) FROM users", [(501, 3507)])
    mirror.assert_equal(database.dsn)
    database.execute("ALTER TABLE users ALTER score TYPE text USING 'score ' || score; ALTER TABLE users RENAME name TO title")
    database.execute("INSERT INTO users VALUES (502, 'z', 'none')")
    mirror.wait_for("SELECT count(score), max(title) FROM users", [(502, "z")])
    mirror.assert_equal(database.dsn)
    database.execute(
        "BEGIN; UPDATE users SET title = 'w'; ALTER TABLE users ADD more int DEFAULT 1; UPDATE users SET title = 'v'; COMMIT"
    )
    mirror.wait_for("SELECT sum(more) FROM users WHERE title = 'v'", [(502,)])
    mirror.assert_equal(database.dsn)


def test_rows_altered_in_the_replica_are_found_and_listed(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, make_mirror: MakeMirror
) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY, name text, price numeric)")
    database.execute("CREATE TABLE bag (a int, b text); ALTER TABLE bag REPLICA IDENTITY FULL")
    database.execute("CREATE PUBLICATION cdc_pub FOR TABLE users, bag")
    database.execute("INSERT INTO users SELECT g, 'user ' || g, 1.50 FROM generate_series(1, 3000) g")
    database.execute("INSERT INTO bag SELECT g % 3, 'x' FROM generate_series(1, 30) g")
    make_bridge(database, nats)
    mirror = make_mirror()
    mirror.wait_live(2)
    mirror.assert_equal(database.dsn)
    mirror.change("UPDATE users SET name = 'somebody' WHERE id = 17")
    found = mirror.verify(database.dsn)
    assert found.returncode == 1
    assert "  id=17: differs in name\n" in found.stdout
    mirror.change("UPDATE users SET name = 'user 17' WHERE id = 17")
    mirror.assert_equal(database.dsn)
    mirror.change("DELETE FROM users WHERE id = 18")
    mirror.change("INSERT INTO users VALUES (70000, 'extra', 1)")
    mirror.change(
        "UPDATE users SET price = '1.5' WHERE id = 19"
        if mirror.to.startswith("sqlite")
        else "UPDATE users SET price = 1.5 WHERE id = 19"
    )
    found = mirror.verify(database.dsn, "--tables", "users")
    assert found.returncode == 1
    assert "id=18: missing in the replica" in found.stdout
    assert "id=70000: only in the replica" in found.stdout
    assert "id=19: differs in price" in found.stdout
    mirror.change("UPDATE bag SET b = 'y' WHERE a = 1")
    found = mirror.verify(database.dsn, "--tables", "bag", "--limit", "1")
    assert found.returncode == 1
    assert 'a=1, b="x": missing in the replica\n  ... and 1 more (--limit shows more)\n' in found.stdout
    assert "more" not in mirror.verify(database.dsn, "--tables", "bag").stdout
    mirror.change("UPDATE bag SET b = 'x' WHERE a = 1")
    mirror.assert_equal(database.dsn, "--tables", "bag")


@pytest.mark.parametrize("cut_off", [False, True])
def test_a_verification_leaves_no_row_behind_whenever_it_ends(
    cut_off: bool, database: Database, nats: NatsServer, make_bridge: MakeBridge, make_mirror: MakeMirror,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The mirror would stand still for it for a while, and answer no other one."""
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE users")
    make_bridge(database, nats)
    mirror = make_mirror()
    mirror.wait_live(1)
    monkeypatch.setattr(hold_row, "ALIVE_EVERY_S", 0.0)

    async def hold(seconds: float) -> None:
        store = await open_store(mirror.to, create=False)
        row = hold_row.HoldRow(store, mirror.to, HANG_S, print)
        with trio.move_on_after(seconds if cut_off else HANG_S):
            async with row.present():
                if cut_off:
                    await row.wait_reached(HANG_S)
                await trio.sleep(seconds)
        await store.close()

    for number in range(20):
        trio.run(hold, 0.1 + 0.003 * number)
        assert mirror.query(f"SELECT id FROM {mirror.own('verify')}") == []


def test_a_key_is_shown_as_a_person_writes_it() -> None:
    columns, types = ["id", "a name", "on", "at", "n"], [20, 25, 16, 1114, 1700]
    keys: list[tuple[str | None, ...]] = [
        ("10", 'say "x"\x1b[2J', "t", None, "NaN"), ("9", "x" * 500, "f", "2026-01-01 00:00:00", "-1.50")
    ]  # fmt: skip
    found, count = differences({key: [list(key)] for key in keys}, {}, columns, types, range(5), 20)
    assert count == 2
    assert [one["row"] for one in found] == [
        f'id=9, "a name"="{"x" * 100}"..., on=false, at="2026-01-01 00:00:00", n=-1.50',
        'id=10, "a name"="say \\"x\\"\\u001b[2J", on=true, at=null, n="NaN"',
    ]


def test_verify_says_when_nobody_mirrors(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, make_mirror: MakeMirror
) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE users")
    make_bridge(database, nats)
    mirror = make_mirror()
    mirror.wait_live(1)
    mirror.stop()
    found = mirror.verify(database.dsn, "--timeout", "2")
    assert found.returncode == 1
    assert "WB512" in found.stderr
    assert "waiting for the mirror to answer; 2 s at most" in found.stderr


def test_a_verify_that_is_stopped_lets_the_mirror_go_on_and_a_killed_one_is_waited_for(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, make_mirror: MakeMirror
) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE users")
    bridge = make_bridge(database, nats)
    mirror = make_mirror()
    mirror.wait_live(1)
    own = "_walbridge_verify" if mirror.to.startswith("sqlite") else "_walbridge.verify"
    bridge.stop()  # so that no verification comes to its LSN
    for number in (signal.SIGTERM, signal.SIGINT):
        command = [sys.executable, "-m", "actors.main", "verify", "--to", mirror.to]
        env = {**mirror.env, "DATABASE_URL": database.dsn}
        with subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True) as verifying:
            mirror.wait_until(lambda: bool(mirror.query(f"SELECT 1 FROM {own} WHERE lsn > 0")))
            verifying.send_signal(number)
            assert verifying.wait(HANG_S) == 130
            assert verifying.stderr is not None
            assert verifying.stderr.read().endswith("walbridge: stopped by a signal\n")
        assert mirror.query(f"SELECT count(*) FROM {own}") == [(0,)]
    assert 'holding still for a verification" state=held' in mirror.log()
    mirror.change(f"INSERT INTO {own} (id, state, lsn, alive) VALUES ('killed', 'asked', 0, 0)")
    bridge.start()
    waited = mirror.verify(database.dsn)
    assert "another verification may hold the mirror; if it was killed, that ends within 15 s" in waited.stderr
    assert waited.returncode == 0, waited.stderr


def test_verify_beside_a_paused_bridge_says_so_at_once(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, make_mirror: MakeMirror
) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE users")
    bridge = make_bridge(database, nats)
    mirror = make_mirror()
    mirror.wait_live(1)
    assert bridge.post("/pause")[0] == 202
    refused = mirror.verify(database.dsn)
    assert refused.returncode == 1
    assert "error WB514: the mirror cannot reach the source's LSN: the bridge is paused since 2" in refused.stderr
    assert "fix:   walbridge resume   # then verify again" in refused.stderr
    env = {"DATABASE_URL": database.dsn, "NATS_URL": nats.url, "BRIDGE_PORT": str(free_port())}
    seen = run_here("doctor", "--json", "--only", "path", env=env)
    (paused,) = [row for row in json.loads(seen.stdout)["checks"] if row["check"] == "resume" and row["level"] == "warn"]
    assert paused["fix"] == "walbridge resume"
    bridge.post("/resume")
    mirror.assert_equal(database.dsn)


def test_verify_refuses_another_database_than_the_streams(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, make_mirror: MakeMirror
) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE users")
    make_bridge(database, nats)
    mirror = make_mirror()
    mirror.wait_live(1)
    refused = mirror.verify(database.server.dsn("postgres"), "--timeout", "1")
    assert refused.returncode == 2
    assert f"error WB510: stream CDC was written from database {database.name}, not from postgres\n" in refused.stderr


def test_verify_says_why_the_first_copy_was_refused(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, make_mirror: MakeMirror
) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE users")
    make_bridge(database, nats)
    mirror = make_mirror(start=False)
    mirror.change("CREATE TABLE users (mine int)")
    mirror.start()
    mirror.wait_until(lambda: "cannot be mirrored" in mirror.log())
    found = mirror.verify(database.dsn, "--timeout", "60")
    assert found.returncode == 1
    assert "error WB512: the mirror could not make its first copy of users\n" in found.stderr
    assert "already, which is not this mirror's: drop or rename it" in found.stderr
    assert "start walbridge mirror again" in found.stderr


def test_a_copy_that_nobody_makes_is_said_by_mirror_and_verify(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, make_mirror: MakeMirror
) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE users")
    bridge = make_bridge(database, nats)
    bridge.stop()
    mirror = make_mirror()
    mirror.wait_until(lambda: "no bridge has answered the request for a snapshot" in mirror.log())
    assert 'tables=users fix="start the bridge: walbridge run; ' in mirror.log()
    found = mirror.verify(database.dsn, "--timeout", "1")
    assert found.returncode == 1
    assert "walbridge verify: waiting until a copy is made of users; 1 s at most\n" in found.stderr
    assert "error WB512: no table of the replica had its copy within 1 s: users" in found.stderr
    bridge.start()
    mirror.wait_live(1)
    mirror.assert_equal(database.dsn)


def test_a_wrong_table_leaves_no_file_behind(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, tmp_path: Path
) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE users")
    make_bridge(database, nats)
    folder = tmp_path / "replicas"
    folder.mkdir()
    for flag in ("--tables", "--again"):
        mirror = MirrorProcess(nats, f"sqlite:///{folder}/replica.db", tmp_path, flag, "nonsense")
        with mirror.running():
            assert mirror.process is not None
            assert mirror.process.wait(HANG_S) == 2, mirror.log()
        assert f"WB507: {flag}: 'nonsense' is no table that the bridge publishes" in mirror.log()
        assert list(folder.iterdir()) == []
    mirror = MirrorProcess(nats, f"sqlite:///{folder}/none/replica.db", tmp_path)
    with mirror.running():
        assert mirror.process is not None
        assert mirror.process.wait(HANG_S) == 2, mirror.log()
    assert "no such folder" in mirror.log()


def test_what_a_gap_lost_is_copied_again(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, make_mirror: MakeMirror
) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE users")
    bridge = make_bridge(database, nats)
    mirror = make_mirror()
    mirror.wait_live(1)
    bridge.stop()
    database.execute("INSERT INTO users VALUES (1)")
    database.execute("SELECT pg_drop_replication_slot('cdc_slot')")
    database.execute("INSERT INTO users VALUES (2)")
    make_bridge(database, nats, "--accept-gap")
    mirror.wait_for("SELECT id FROM users ORDER BY id", [(1,), (2,)])  # without a change after the gap
    database.execute("INSERT INTO users VALUES (3)")
    mirror.wait_for("SELECT id FROM users ORDER BY id", [(1,), (2,), (3,)])
    mirror.assert_equal(database.dsn)
    assert "permanently lost" in mirror.log()


@pytest.mark.parametrize("harm", ["purged", "made anew"])
def test_a_stream_that_lost_its_history_is_noticed(
    harm: str, database: Database, nats: NatsServer, make_bridge: MakeBridge, make_mirror: MakeMirror
) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE users")
    bridge = make_bridge(database, nats)
    mirror = make_mirror()
    mirror.wait_live(1)
    database.execute("INSERT INTO users SELECT generate_series(1, 100)")
    mirror.wait_for("SELECT count(*) FROM users", [(100,)])
    mirror.kill()
    for i in range(101, 121):
        database.execute("INSERT INTO users VALUES (%s)", [i])
    database.execute("DELETE FROM users WHERE id <= 50")
    wait_until_drained(bridge, database)
    assert bridge.stop() == 0
    if harm == "purged":
        with_nats(nats.url, lambda client: client.jetstream().purge_stream("CDC"))
        bridge.start()
    else:
        with_nats(nats.url, lambda client: client.jetstream().delete_stream("CDC"))
        bridge = make_bridge(database, nats, "--accept-gap")
    database.execute("INSERT INTO users VALUES (1000)")
    mirror.start()
    mirror.wait_for("SELECT count(*), max(id) FROM users", [(71, 1000)])
    mirror.assert_equal(database.dsn)


def test_other_peoples_tables_are_never_touched(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, make_mirror: MakeMirror
) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE TABLE mine (id int PRIMARY KEY)")
    database.execute(
        "CREATE PUBLICATION cdc_pub FOR TABLE users, mine; INSERT INTO users VALUES (1); INSERT INTO mine VALUES (1)"
    )
    make_bridge(database, nats)
    mirror = make_mirror(start=False)
    mirror.change("CREATE TABLE mine (precious text)")
    mirror.change("INSERT INTO mine VALUES ('x')")
    mirror.start()
    mirror.wait_live(1)
    mirror.wait_until(lambda: "cannot be mirrored" in mirror.log())
    assert mirror.query("SELECT * FROM mine") == [("x",)]
    database.execute("INSERT INTO users VALUES (2)")
    mirror.wait_for("SELECT count(*) FROM users", [(2,)])


def test_a_second_mirror_on_the_same_replica_is_refused(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, make_mirror: MakeMirror, tmp_path: Path
) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE users")
    make_bridge(database, nats)
    mirror = make_mirror()
    mirror.wait_live(1)
    (folder := tmp_path / "second").mkdir()
    second = MirrorProcess(nats, mirror.to, folder)
    with second.running():
        assert second.process is not None
        for i in range(50):
            database.execute("INSERT INTO users VALUES (%s)", [i])
        assert second.process.wait(HANG_S) == 1
        assert "WB505" in second.log()
    mirror.kill()  # the lock goes with it
    mirror.start()
    database.execute("INSERT INTO users VALUES (1000)")
    mirror.assert_equal(database.dsn)


def test_the_source_is_no_replica(database: Database, nats: NatsServer, make_bridge: MakeBridge, tmp_path: Path) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE users")
    make_bridge(database, nats)
    mirror = MirrorProcess(nats, database.dsn, tmp_path)
    with mirror.running():
        assert mirror.process is not None
        assert mirror.process.wait(HANG_S) == 2
    assert "WB508" in mirror.log()
    assert database.execute("SELECT count(*) FROM pg_namespace WHERE nspname = '_walbridge'") == [(0,)]


def test_transactions_are_seen_whole_by_readers_of_the_replica(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, make_mirror: MakeMirror
) -> None:
    """Money moves between two tables, one of which is copied anew meanwhile: at every moment the sum is the same."""
    database.execute("""
        CREATE TABLE a (id int PRIMARY KEY, v int); CREATE TABLE b (id int PRIMARY KEY, v int); CREATE TABLE noise (id int);
        CREATE PUBLICATION cdc_pub FOR TABLE a, b, noise;
        INSERT INTO a SELECT g, 100 FROM generate_series(1, 2000) g; INSERT INTO b SELECT g, 100 FROM generate_series(1, 2000) g""")
    make_bridge(database, nats)
    mirror = make_mirror("--tables", "a,b")
    stop, sums, dice = threading.Event(), set(), random.Random(5)

    def move() -> None:
        with database.connect(autocommit=False) as connection:
            while not stop.is_set():
                for _ in range(dice.choice((1, 1, 3, 500))):
                    one, many = dice.randrange(1, 2001), dice.randrange(100)
                    connection.execute("UPDATE a SET v = v - %s WHERE id = %s", (many, one))
                    connection.execute("UPDATE b SET v = v + %s WHERE id = %s", (many, one))
                connection.execute("INSERT INTO noise VALUES (1)")
                connection.commit()

    thread = threading.Thread(target=move)
    thread.start()
    try:
        mirror.wait_live(2)
        started = time.monotonic()
        while time.monotonic() < started + 5:
            sums.add(mirror.query("SELECT (SELECT sum(v) FROM a) + (SELECT sum(v) FROM b)")[0][0])
        mirror.kill()
        mirror.start()
        started = time.monotonic()
        while time.monotonic() < started + 3:
            sums.add(mirror.query("SELECT (SELECT sum(v) FROM a) + (SELECT sum(v) FROM b)")[0][0])
        mirror.assert_equal(database.dsn)
    finally:
        stop.set()
        thread.join()
    assert sums == {400_000}
    mirror.assert_equal(database.dsn)


def test_new_copies_join_under_a_load_that_never_pauses(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, make_mirror: MakeMirror
) -> None:
    database.execute("""
        CREATE TABLE a (id int PRIMARY KEY, v int); CREATE TABLE b (id int PRIMARY KEY, v int); CREATE TABLE idle (id int);
        CREATE PUBLICATION cdc_pub FOR TABLE a, b, idle;
        INSERT INTO a SELECT g, 0 FROM generate_series(1, 100) g; INSERT INTO b SELECT g, 0 FROM generate_series(1, 100) g""")
    make_bridge(database, nats)
    stop = threading.Event()

    def write(worker: int) -> None:
        with database.connect() as connection:
            while not stop.is_set():
                connection.execute(
                    f"BEGIN; UPDATE a SET v = v + 1 WHERE id = {worker}; UPDATE b SET v = v + 1 WHERE id = {worker}; COMMIT".encode()
                )

    threads = [threading.Thread(target=write, args=(n,)) for n in range(1, 4)]
    for thread in threads:
        thread.start()
    try:
        mirror = make_mirror()
        mirror.wait_live(3)
        database.execute("ALTER TABLE b ADD note text DEFAULT 'new'")
        mirror.wait_for("SELECT min(note) FROM b", [("new",)])
        mirror.wait_live(3)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    mirror.assert_equal(database.dsn)


def test_a_transaction_of_many_rows_appears_at_once(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, make_mirror: MakeMirror
) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY, name text); CREATE PUBLICATION cdc_pub FOR TABLE users")
    make_bridge(database, nats)
    mirror = make_mirror()
    mirror.wait_live(1)
    database.execute("INSERT INTO users SELECT g, 'user ' || g FROM generate_series(1, 60000) g")
    counts = {0}
    while 60000 not in counts:
        counts.add(mirror.query("SELECT count(*) FROM users")[0][0])
        assert counts <= {0, 60000}


def test_kill_9_of_mirror_and_bridge_under_load_loses_and_repeats_nothing(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, make_mirror: MakeMirror
) -> None:
    database.execute("""
        CREATE TABLE ledger (id bigserial PRIMARY KEY, who int, v int); CREATE TABLE sums (id int PRIMARY KEY, v bigint);
        CREATE TABLE lines (who int, line text); ALTER TABLE lines REPLICA IDENTITY FULL;
        CREATE PUBLICATION cdc_pub FOR TABLE ledger, sums, lines; INSERT INTO sums SELECT g, 0 FROM generate_series(1, 50) g""")
    bridge = make_bridge(database, nats)
    mirror = make_mirror()
    stop, dice = threading.Event(), random.Random(11)

    def write(worker: int) -> None:
        own = random.Random(worker)
        with database.connect(autocommit=False) as connection:
            while not stop.is_set():
                try:
                    for _ in range(own.choice((1, 2, 30))):
                        connection.execute("INSERT INTO ledger (who, v) VALUES (%s, %s)", (worker, own.randrange(100)))
                        connection.execute("UPDATE sums SET v = v + 1 WHERE id = %s", [own.randrange(1, 51)])
                    if own.random() < 0.3:
                        connection.execute("INSERT INTO lines VALUES (%s, 'same')", [worker])
                        connection.execute(
                            "DELETE FROM lines WHERE ctid = (SELECT ctid FROM lines WHERE who = %s LIMIT 1)", [worker]
                        )
                        connection.execute("UPDATE sums SET id = id + 1000 WHERE id > 1000 AND id < 900000")
                    if own.random() < 0.05:
                        connection.execute("DELETE FROM ledger WHERE who = %s", [worker])
                    if own.random() < 0.1:
                        connection.rollback()
                    connection.commit()
                except psycopg.errors.DeadlockDetected:
                    connection.rollback()

    threads = [threading.Thread(target=write, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(8):
            time.sleep(dice.uniform(0.3, 1.5))
            victims = dice.choice((("mirror",), ("mirror",), ("bridge",), ("mirror", "bridge")))
            if "mirror" in victims:
                mirror.kill()
            if "bridge" in victims:
                bridge.kill()
                bridge.start(ready=False)
            if "mirror" in victims:
                mirror.start()
        mirror.wait_live(3)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    bridge.wait_ready()
    mirror.assert_equal(database.dsn)
    assert mirror.query("SELECT count(*) FROM ledger")[0][0] > 0


def test_users_indexes_and_views_outlive_a_new_copy(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, make_mirror: MakeMirror
) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY, name text); CREATE PUBLICATION cdc_pub FOR TABLE users")
    database.execute("INSERT INTO users VALUES (1, 'Ada')")
    make_bridge(database, nats)
    mirror = make_mirror()
    mirror.wait_live(1)
    mirror.change("CREATE INDEX by_name ON users (name)")
    mirror.change("CREATE VIEW names AS SELECT name FROM users")
    mirror.change("DELETE FROM users")  # the next change finds no row: copied again
    database.execute("UPDATE users SET name = 'Grace'")
    mirror.wait_for("SELECT name FROM names", [("Grace",)])
    assert "must be copied again" in mirror.log()
    mirror.assert_equal(database.dsn)


def test_only_the_tables_asked_for(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, make_mirror: MakeMirror
) -> None:
    database.execute(
        "CREATE SCHEMA sales; CREATE TABLE users (id int PRIMARY KEY); CREATE TABLE sales.orders (id int PRIMARY KEY)"
    )
    database.execute("CREATE TABLE rest (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE users, sales.orders, rest")
    make_bridge(database, nats)
    mirror = make_mirror("--tables", "users, sales.orders")
    mirror.wait_live(2)
    for i in range(20):
        database.execute(
            f"INSERT INTO users VALUES ({i}); INSERT INTO rest VALUES ({i}); INSERT INTO sales.orders VALUES ({i})"
        )
    mirror.assert_equal(database.dsn)
    with pytest.raises((sqlite3.Error, psycopg.Error)):
        mirror.query("SELECT * FROM rest")
