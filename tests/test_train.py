"""`walbridge train`: dictionaries from live tables, measured on rows that were not trained on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
import zstandard
from psycopg.conninfo import make_conninfo

from actors.clients.postgres.connection import PgConnection
from actors.clients.postgres.publications import published_tables, with_row_filter
from actors.clients.postgres.table_sample import TableSample, sample_table
from actors.contract.compression import Compressor, dictionary_id
from actors.contract.event_encoder import event_encoder
from actors.contract.table_schema import describe_table
from actors.dictionaries.training import MONTH_S, events_of, train_dictionary
from actors.embedded.nats import NatsServer
from actors.embedded.process import free_port
from actors.settings.config import PostgresConfig
from tests.conftest import MakeBridge
from tests.servers import CLEAN, ROOT, Database, decode_body, read_messages, wait_for_events
from tests.snapshots import unpacked

USERS = """
CREATE TABLE users (id bigint PRIMARY KEY, name text, email text, price numeric, created_at timestamptz);
INSERT INTO users SELECT g, 'User-' || md5(g::text), 'user' || g || '@example.com', g * 1.5, '2026-01-02'::timestamptz + g * '1 h'::interval
  FROM generate_series(1, 3000) g;
CREATE PUBLICATION cdc_pub FOR TABLE users;
"""


def run_train(
    database: Database | str, nats: NatsServer | None, folder: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    url = database if isinstance(database, str) else database.dsn
    env = CLEAN | {"DATABASE_URL": url, "NATS_URL": nats.url if nats else f"nats://127.0.0.1:{free_port()}"}
    command = [sys.executable, "-m", "actors.main", "train", "--dictionaries", str(folder), *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, text=True, capture_output=True, check=False)


def sample(database: Database, name: str, **limits: int) -> TableSample:
    async def take() -> TableSample:
        connection = await PgConnection.connect(PostgresConfig(database.dsn), application_name="test")
        try:
            (published,) = [t for t in await published_tables(connection, "cdc_pub") if t.name == name]
            published = await with_row_filter(connection, "cdc_pub", published)
            return await sample_table(connection, published, **{"rows_max": 1000, "bytes_max": 10_000_000} | limits)
        finally:
            connection.close()

    return trio.run(take)


def events(sampled: TableSample, encoding: Any = "json") -> list[dict[str, Any]]:
    table = describe_table(sampled.relation, sampled.description).table
    bodies = events_of(sampled, table, event_encoder(encoding), encoding, sampled.rows, MONTH_S)
    return [decode_body(body)[0] for body in bodies]


def test_a_trained_dictionary_is_written_uploaded_and_used_by_the_bridge(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, tmp_path: Path
) -> None:
    database.execute(USERS)
    done = run_train(database, nats, tmp_path, "--table", "users", "--size", "4k", "--upload", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    written = (tmp_path / "users.zstd.dict").read_bytes()
    key = dictionary_id("users", written)
    assert (report["table"], report["bytes"], report["dictionary_id"], report["uploaded"]) == ("users", len(written), key, True)
    assert len(written) <= 4096
    assert (report["rows_trained"], report["rows_tested"]) == (1500, 1500)
    by_sort = {(figure["what"], figure["encoding"]): figure for figure in report["figures"]}
    assert set(by_sort) == {(what, encoding) for what in ("event", "chunk") for encoding in ("msgpack", "json")}
    for encoding in ("msgpack", "json"):
        event = by_sort["event", encoding]
        assert event["messages"] == 1500 * 2 + 750
        assert event["dictionary_bytes"] * 2 < event["zstd_bytes"] <= event["plain_bytes"]
        assert event["dictionary_bytes"] < event["sent_bytes"] < event["plain_bytes"]
    stored = {message.subject: message.data for message in read_messages(nats.url, "KV_dictionaries")}
    assert stored == {"$KV.dictionaries.users_dict": written, f"$KV.dictionaries.{key}": written}

    for encoding_flag, encoding in (("--json", "json"), (None, "msgpack")):
        flags = [encoding_flag] if encoding_flag else []
        bridge = make_bridge(database, nats, "--zstd-events", "--dictionaries", str(tmp_path), *flags)
        before = len(read_messages(nats.url, "CDC"))
        database.execute("INSERT INTO users SELECT id + 100000, name, email, price, created_at FROM users WHERE id <= 100")
        database.execute("DELETE FROM users WHERE id > 100000")
        while len(read_messages(nats.url, "CDC")) < before + 200:
            assert bridge.exit_code is None
        messages = read_messages(nats.url, "CDC")[before:]
        assert all(message.headers["Dictionary-Id"] == key for message in messages)
        plain = sum(len(unpacked(message, {key: written})) for message in messages)
        # what was foretold is what comes: these rows are shorter than their average, and no better and no worse otherwise
        foretold = by_sort["event", encoding]["dictionary_bytes"] / by_sort["event", encoding]["plain_bytes"]
        assert abs(sum(len(message.data) for message in messages) / plain - foretold) < 0.15
        bridge.stop()


def test_what_is_trained_on_looks_as_the_bridges_own_events(
    database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute("""
        CREATE TYPE mood AS ENUM ('sad', 'happy'); CREATE SCHEMA "my sales";
        CREATE TABLE "my sales"."Order Lines" (id int, line int, "Ünit" text, price numeric, at timestamptz, doc jsonb, big bigint,
          tags text[], mood mood, skipped text, PRIMARY KEY (id, line));
        CREATE PUBLICATION cdc_pub FOR TABLE "my sales"."Order Lines" (id, line, "Ünit", price, at, doc, big, tags, mood) WHERE (id < 500);
    """)
    make_bridge(database, nats, "--json")
    database.execute("""
        INSERT INTO "my sales"."Order Lines" SELECT g, 1, 'u', 1.50, '2026-01-02', '{"a": [1, null]}', 9007199254740993 - g, '{a,NULL}',
          'happy', 'x' FROM generate_series(1, 600) g;
    """)
    stored = [event.body for event in wait_for_events(nats.url, 499)]
    sampled = sample(database, "Order Lines")
    assert len(sampled.rows) == 499, "the publication's row filter holds"
    made = {event["data"]["id"]: event for event in events(sampled) if event["operation"] == "INSERT"}
    for event in stored:
        ours = made[event["data"]["id"]]
        assert set(ours) - {"last"} == set(event) - {"last"}
        places = {"lsn", "xid", "commit_ts", "msg_id", "seq", "last"}
        assert {k: v for k, v in ours.items() if k not in places} == {k: v for k, v in event.items() if k not in places}
        assert ours["msg_id"] == f"{ours['lsn']:x}-{ours['seq']}-my=20sales/Order=20Lines-insert"
    assert any("raw" in event for event in stored)


def test_deletes_and_updates_are_as_the_replica_identity_makes_them(database: Database) -> None:
    database.execute("""
        CREATE TABLE by_key (id int PRIMARY KEY, v text); CREATE TABLE by_all (id int, v text); CREATE TABLE by_index (id int NOT NULL, v text);
        CREATE TABLE by_none (id int, v text); CREATE UNIQUE INDEX own ON by_index (id);
        ALTER TABLE by_all REPLICA IDENTITY FULL; ALTER TABLE by_index REPLICA IDENTITY USING INDEX own;
        CREATE PUBLICATION cdc_pub FOR ALL TABLES""")
    for table in ("by_key", "by_all", "by_index", "by_none"):
        database.execute(f"INSERT INTO {table} VALUES (1, 'a'), (2, 'b')")
    of = {name: events(sample(database, name)) for name in ("by_key", "by_all", "by_index", "by_none")}
    assert {name: made[0]["key"] for name, made in of.items()} == {
        "by_key": ["id"], "by_all": ["id", "v"], "by_index": ["id"], "by_none": []
    }  # fmt: skip
    assert {name: sorted({event["operation"] for event in made}) for name, made in of.items()} == {
        "by_key": ["DELETE", "INSERT", "UPDATE"], "by_all": ["DELETE", "INSERT", "UPDATE"],
        "by_index": ["DELETE", "INSERT", "UPDATE"], "by_none": ["INSERT"],
    }  # fmt: skip
    deleted = {name: event["data"] for name, made in of.items() for event in made if event["operation"] == "DELETE"}
    assert all(row["v"] is None for name, row in deleted.items() if name != "by_all")
    assert deleted["by_all"]["v"] in ("a", "b")
    assert all(event["old"] == event["data"] for event in of["by_all"] if event["operation"] == "UPDATE")
    assert not any("old" in event for event in of["by_key"])


def test_nothing_is_tested_on_what_was_trained_on(database: Database) -> None:
    """Rows that share nothing with each other: a dictionary can only learn the envelope, however often it saw its own half."""
    database.execute("""
        CREATE TABLE noise (id int PRIMARY KEY, v text); CREATE PUBLICATION cdc_pub FOR TABLE noise;
        INSERT INTO noise SELECT g, md5(g::text) || md5((g * 7)::text) || md5((g * 11)::text) FROM generate_series(1, 400) g""")
    trained = train_dictionary(sample(database, "noise"), 64 * 1024)
    event = next(figure for figure in trained.figures if (figure.what, figure.encoding) == ("event", "msgpack"))
    assert (trained.rows_trained, trained.rows_tested) == (200, 200)
    carrying = event.messages * 4 // 5  # all but the deletes
    assert event.dictionary_bytes > carrying * 48, "96 hex digits are 48 bytes, and nobody can tell them beforehand"


def test_a_sample_is_bounded_and_spread_over_a_large_table(database: Database) -> None:
    database.execute("""
        CREATE TABLE large (id int PRIMARY KEY, v text); ALTER TABLE large ALTER v SET STORAGE PLAIN;
        INSERT INTO large SELECT g, repeat('x', 1500) FROM generate_series(1, 30000) g;
        CREATE TABLE wide (id int PRIMARY KEY, v text); ALTER TABLE wide ALTER v SET STORAGE EXTERNAL;
        INSERT INTO wide SELECT g, repeat('x', 500000) FROM generate_series(1, 60) g;
        CREATE PUBLICATION cdc_pub FOR TABLE large, wide""")
    large = sample(database, "large", rows_max=1000)
    assert len(large.rows) == 1000
    ids = [int(row[0] or 0) for row in large.rows]
    assert len(set(ids)) == 1000
    assert [sum(low < i <= low + 10000 for i in ids) > 100 for low in (0, 10000, 20000)] == [True] * 3
    wide = sample(database, "wide", bytes_max=5_000_000)
    assert 10 <= len(wide.rows) <= 21, "it stops at the limit, a block behind it at most"


def test_a_partitioned_table_gives_rows_of_all_its_partitions(database: Database) -> None:
    database.execute("""
        CREATE TABLE parted (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
        CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (500);
        CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (500) TO (1000);
        INSERT INTO parted SELECT g, 'v' || g FROM generate_series(0, 999) g;
        CREATE PUBLICATION cdc_pub FOR TABLE parted WITH (publish_via_partition_root)""")
    sampled = sample(database, "parted")
    assert sorted(int(row[0] or 0) for row in sampled.rows) == list(range(1000))
    assert train_dictionary(sampled, 2048).figures[0].messages == 1250


@pytest.mark.parametrize("rows", [0, 7, 199])
def test_too_few_rows_are_refused_and_nothing_is_written(rows: int, database: Database, tmp_path: Path) -> None:
    database.execute(USERS)
    database.execute(f"DELETE FROM users WHERE id > {rows}")
    done = run_train(database, None, tmp_path / "new", "--table", "users")
    assert done.returncode == 2
    assert "WB521" in done.stderr
    assert f"{rows} rows of users" in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_done_is_said_with_a_code(database: Database, tmp_path: Path) -> None:
    database.execute(USERS)
    (tmp_path / "a file").touch()
    wanted = [
        (["--table", "nope"], database, tmp_path, 2, "WB520", "users"),
        (["--table", "users", "--pub", "nope"], database, tmp_path, 2, "WB520", "nope"),
        (["--table", "users", "--size", "1"], database, tmp_path, 2, "--size", "16k"),
        (["--table", "users", "--size", "9m"], database, tmp_path, 2, "--size", "'9m'"),
        (["--table", "users"], database, tmp_path / "a file", 1, "WB522", "a file"),
        (["--table", "users", "--upload"], database, tmp_path, 1, "WB200", "cannot connect to NATS"),
        (["--table", "users"], "postgresql://u@127.0.0.1:1/d", tmp_path, 1, "WB101", "127.0.0.1"),
        ([], database, tmp_path, 2, "--table", "train"),
    ]  # fmt: skip
    for arguments, source, folder, code, *words in wanted:
        done = run_train(source, None, folder, *arguments)  # type: ignore[arg-type]
        assert done.returncode == code, (arguments, done.stderr)
        assert all(word in done.stderr for word in words), (arguments, done.stderr)  # type: ignore[operator]
        assert "Traceback" not in done.stderr
        assert done.stdout == ""


def test_a_table_that_the_role_may_not_read_is_said_with_the_grant(database: Database, tmp_path: Path) -> None:
    database.execute(USERS)
    database.execute("CREATE ROLE reader_of_nothing LOGIN PASSWORD 'secret-of-the-role'")
    try:
        source = make_conninfo(database.dsn, user="reader_of_nothing", password="secret-of-the-role")
        done = run_train(source, None, tmp_path, "--table", "users")
        assert (done.returncode, "error WB117: role reader_of_nothing may not read public.users" in done.stderr) == (2, True), (
            done.stderr
        )
        assert 'GRANT SELECT ON "public"."users" TO "reader_of_nothing";' in done.stderr
    finally:
        database.execute("DROP ROLE reader_of_nothing")


def test_an_older_dictionary_is_replaced_whole_and_a_schemas_goes_into_a_folder(database: Database, tmp_path: Path) -> None:
    database.execute(USERS)
    database.execute("CREATE SCHEMA sales; ALTER TABLE users SET SCHEMA sales")
    file = tmp_path / "sales" / "users.zstd.dict"
    for size in ("4k", "2k"):
        done = run_train(database, None, tmp_path, "--table", "sales/users", "--size", size)
        assert done.returncode == 0, done.stderr
        assert "with the dictionary" in done.stdout
        assert f"--dictionaries {tmp_path}" in done.stdout
    content = file.read_bytes()
    assert len(content) <= 2048
    assert Compressor("sales/users", content).compress(b"x")
    assert zstandard.ZstdCompressionDict(content).dict_id()
    assert [path.name for path in file.parent.iterdir()] == ["users.zstd.dict"]
