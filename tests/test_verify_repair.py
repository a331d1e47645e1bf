"""`walbridge verify --repair` makes just the rows right that differ, while others write and whatever the keys are."""

from __future__ import annotations

import json

from actors.embedded.nats import NatsServer
from tests.conftest import MakeBridge, MakeMirror
from tests.row_writers import Hand, writers
from tests.servers import Database

TABLES = """
CREATE TABLE users (id int PRIMARY KEY, name text, doc jsonb, at timestamptz, b bytea);
INSERT INTO users SELECT g, 'n' || g, '{"a": [1, 2.50]}', '2026-01-01 00:00:00+00', '\\xab' FROM generate_series(1, 500) g;
CREATE TABLE pairs (b text, a numeric, t timestamp, v int, PRIMARY KEY (a, t, b));
INSERT INTO pairs SELECT 'é''"\\' || E'\\n' || g, g / 4.0, '2026-01-01'::timestamp + g * interval '1 s', g FROM generate_series(1, 50) g;
CREATE TABLE bytes (id bytea PRIMARY KEY, f boolean, v int);
INSERT INTO bytes SELECT decode(md5(g::text), 'hex'), true, g FROM generate_series(1, 50) g;
CREATE TABLE bag (a int); INSERT INTO bag SELECT g FROM generate_series(1, 5) g; ALTER TABLE bag REPLICA IDENTITY FULL;
CREATE TABLE calm (id int PRIMARY KEY); INSERT INTO calm VALUES (1);
CREATE PUBLICATION cdc_pub FOR TABLE users, pairs, bytes, calm;
"""


def busy(hand: Hand) -> None:
    hand.run("UPDATE users SET name = name || 'x' WHERE id = %s AND pg_try_advisory_xact_lock(id)", hand.chance.randint(1, 490))


def test_rows_that_differ_are_made_right_while_others_write(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, make_mirror: MakeMirror
) -> None:
    database.execute(TABLES)
    make_bridge(database, nats)
    mirror = make_mirror()
    mirror.wait_live(4)
    mirror.assert_equal(database.dsn)
    with writers(database, busy, open_s=[0.01, 0.3]):
        mirror.change("DELETE FROM users WHERE id IN (491, 492)")
        mirror.change("INSERT INTO users (id, name) VALUES (1000, 'nobody'), (-5, 'nobody')")
        mirror.change("UPDATE users SET name = 'wrong' WHERE id BETWEEN 493 AND 497")
        mirror.change("UPDATE users SET doc = NULL WHERE id = 498")
        mirror.change("UPDATE pairs SET v = -v WHERE v IN (3, 4)")
        mirror.change("DELETE FROM pairs WHERE v = 5")
        mirror.change("UPDATE bytes SET v = 0 WHERE v = 7")
        found = mirror.verify(database.dsn, "--repair")
    assert found.returncode == 0, found.stdout + found.stderr + mirror.log()[-3000:]
    for words in ("users: 10 rows made right", "pairs: ", "bytes: 1 row made right"):
        assert words in found.stdout
    assert "calm: " not in found.stdout
    mirror.assert_equal(database.dsn)
    report = json.loads(mirror.verify(database.dsn, "--repair", "--json").stdout)
    assert (report["equal"], report["repaired"], report["not_repaired"]) == (True, {}, {})


def test_what_cannot_be_asked_for_by_key_is_said(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, make_mirror: MakeMirror
) -> None:
    database.execute(TABLES)
    database.execute("ALTER PUBLICATION cdc_pub SET TABLE bag, calm")
    make_bridge(database, nats)
    mirror = make_mirror()
    mirror.wait_live(2)
    mirror.change("DELETE FROM bag WHERE a = 3")
    mirror.change("DELETE FROM calm")
    found = mirror.verify(database.dsn, "--repair")
    assert found.returncode == 1
    assert "bag: not repaired: it has no primary key" in found.stdout
    assert "calm: 1 row made right" in found.stdout
    assert "--again bag" in found.stdout
