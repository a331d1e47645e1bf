"""Databases that are not UTF-8: every byte of a text arrives, in events, snapshots and replicas alike."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
import trio

from actors.clients.postgres.connection import PgConnection, PostgresError
from actors.embedded.nats import NatsServer
from actors.embedded.postgres import PostgresServer
from actors.settings.config import PostgresConfig
from actors.wire.text_encoding import _SINGLE_BYTE, encoding_of
from tests.conftest import MakeBridge
from tests.mirrors import MirrorProcess
from tests.servers import Database, wait_for_events
from tests.snapshots import take

MakeDatabase = Callable[[str], Database]


@pytest.fixture
def make_database(pg18: PostgresServer, database: Database) -> Iterator[MakeDatabase]:
    """Makes databases of an encoding."""
    made: list[Database] = []

    def make(encoding: str) -> Database:
        made.append(Database(pg18, f"{database.name}_{encoding.lower()}", encoding=encoding))
        return made[-1]

    yield make
    for one in made:
        one.drop()


def test_every_byte_of_every_encoding_reads_as_postgresql_converts_it(make_database: MakeDatabase) -> None:
    """What PostgreSQL converts has its character; what it refuses keeps its byte."""
    database = make_database("SQL_ASCII")
    database.execute("""
        CREATE FUNCTION as_utf8(code int, encoding name) RETURNS bytea LANGUAGE plpgsql AS $$ BEGIN
          RETURN convert(set_byte('\\x00', 0, code), encoding, 'UTF8');
        EXCEPTION WHEN OTHERS THEN RETURN NULL; END $$""")
    for name in _SINGLE_BYTE:
        rows = database.execute("SELECT code, as_utf8(code, %s) FROM generate_series(1, 255) code", [name])
        kept = {code: chr(0xEF00 + code) for code in range(128, 256)}
        expected = {code: bytes(found).decode() if found is not None else kept[code] for code, found in rows}
        assert {code: encoding_of(name).decode(bytes([code])) for code in expected} == expected, name


@pytest.mark.parametrize(
    ("encoding", "flags"),
    [("SQL_ASCII", ()), ("WIN1252", ("--json", "--snapshot-format", "array")), ("EUC_JP", ())],
)
def test_bytes_without_a_character_arrive(
    encoding: str, flags: tuple[str, ...], make_database: MakeDatabase, database: Database, nats: NatsServer,
    make_bridge: MakeBridge, tmp_path: Path,
) -> None:  # fmt: skip
    source = make_database(encoding)
    with psycopg.connect(source.dsn, autocommit=True, client_encoding="SQL_ASCII") as raw:
        table, odd = (b"caf\xe9", b"\x81 \xd2 \xff") if encoding != "EUC_JP" else (b"caf\xa4\xa2", b"\xa4\xa2")
        raw.execute(b'CREATE TABLE "%b" (id int PRIMARY KEY, "%b" text, doc jsonb, tags text[], n numeric)' % (table, table))
        raw.execute(b'ALTER TABLE "%b" REPLICA IDENTITY FULL; CREATE PUBLICATION cdc_pub FOR TABLE "%b"' % (table, table))
        row = b"INSERT INTO \"%b\" VALUES (%d, '%b', '{\"%b\": 1.5}', ARRAY['%b', NULL], 1.50)"
        raw.execute(row % (table, 1, odd, odd, odd))
        make_bridge(source, nats, *flags)
        mirror = MirrorProcess(nats, database.dsn, tmp_path)
        mirror.start()
        try:
            mirror.wait_live(1)
            raw.execute(row % (table, 2, odd, odd, odd))
            raw.execute(b'UPDATE "%b" SET n = 2 WHERE id = 2' % table)
            event = wait_for_events(nats.url, 2)[-1].body
            name = encoding_of(encoding).decode(table) if encoding != "EUC_JP" else "cafあ"
            text = encoding_of(encoding).decode(odd) if encoding != "EUC_JP" else "あ"
            assert event["table"] == name
            assert event["data"][name] == text
            assert event["data"]["doc"] == {text: 1.5}
            (token,) = {event["subject"].split(".")[1]}
            (found,) = [row for row in take(nats.url, token).rows if row["id"] == 1]
            found["doc"] = event["data"]["doc"] if flags else found["doc"]
            assert found == event["data"] | {"id": 1, "n": "1.50"}
            mirror.assert_equal(source.dsn)
            assert database.execute(f'SELECT DISTINCT "{name}" FROM "{name}"') == [(text,)]
        finally:
            mirror.kill()


def test_a_character_that_unicode_lacks_is_named_with_a_way_past_it(
    make_database: MakeDatabase, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    source = make_database("EUC_JP")
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE PUBLICATION cdc_pub FOR TABLE t")
    bridge = make_bridge(source, nats)
    with psycopg.connect(source.dsn, autocommit=True, client_encoding="SQL_ASCII") as raw:
        raw.execute(b"INSERT INTO t VALUES (1, 'before')")
        wait_for_events(nats.url, 1)
        raw.execute(b"INSERT INTO t VALUES (2, '\xa9\xa1')")
        raw.execute(b"INSERT INTO t VALUES (3, 'after')")
    assert bridge.wait() == 1
    assert re.search(r"WB109.*\n +said: .*22P05.*associated LSN \w+/\w+", bridge.log())
    (fix,) = re.findall(r"fix: +(SELECT .*;)", bridge.log())
    source.execute(fix)
    bridge.start()
    source.execute("INSERT INTO t VALUES (4, 'and on')")
    events = [event.body for event in wait_for_events(nats.url, 3)]
    assert [event["operation"] for event in events] == ["INSERT", "GAP", "INSERT"]
    assert "WB123" in bridge.log()
    assert {problem["code"] for problem in bridge.status()["problems"]} >= {"WB123"}


def test_statements_reach_a_database_in_its_own_encoding(make_database: MakeDatabase) -> None:
    database = make_database("WIN1252")

    async def check() -> None:
        with closing(await PgConnection.connect(PostgresConfig(database.dsn), application_name="test")) as connection:
            assert await connection.query("SELECT 'é€' || chr(252), $1", ("ß\uef81",)) == [("é€ü", "ß\uef81")]
            with pytest.raises(PostgresError) as caught:
                await connection.query("SELECT $1", ("日",))
            assert caught.value.sqlstate == "22P05"
            assert await connection.query("SELECT encode(convert_to('\uef81', 'WIN1252'), 'hex')") == [("81",)]

    trio.run(check)
