"""The PostgreSQL connection on trio, against real servers."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
import pytest
import trio

from actors.clients.postgres.catalog import describe_columns, describe_types, format_types
from actors.clients.postgres.connection import PgConnection, PostgresError, SourceRefused
from actors.clients.postgres.publications import published_tables
from actors.embedded.postgres import PostgresServer
from actors.embedded.process import free_port
from actors.errors import SourceUnavailable, WalbridgeError
from actors.settings.config import PostgresConfig
from tests.conftest import MakePostgres
from tests.servers import Database, wait_for


async def connected(dsn: str, *, replication: bool = False) -> PgConnection:
    return await PgConnection.connect(PostgresConfig(dsn), application_name="test", replication=replication)


def refusal(dsn: str) -> WalbridgeError:
    async def try_it() -> WalbridgeError:
        with pytest.raises(WalbridgeError) as caught:
            await connected(dsn)
        return caught.value

    return trio.run(try_it)


@contextmanager
def black_hole() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_parameters_and_rows_are_text(database: Database) -> None:
    async def check() -> None:
        with closing(await connected(database.dsn)) as connection:
            select = "SELECT $1::text, $2::int + 1, $3::text FROM generate_series(1, 2)"
            rows = await connection.query(select, ("it's é", 41, None))
            assert rows == [("it's é", "42", None)] * 2
            assert await connection.query("SELECT 1 WHERE false") == []
            assert await connection.query("CREATE TEMP TABLE t (a int)") == []
            large = "x" * 20_000_000  # more than any socket buffer: sent piece by piece
            assert await connection.query("SELECT length($1)", (large,)) == [("20000000",)]
            assert connection.server_version >= 180000

    trio.run(check)


def test_a_refused_statement_leaves_the_connection_in_use(database: Database) -> None:
    async def check() -> None:
        with closing(await connected(database.dsn)) as connection:
            with pytest.raises(PostgresError) as caught:
                await connection.query("SELECT 1/0")
            assert caught.value.sqlstate == "22012"
            assert "22012 division by zero" in str(caught.value)
            assert await connection.query("SELECT 1") == [("1",)]

    trio.run(check)


def test_notices_are_kept(database: Database) -> None:
    async def check() -> None:
        with closing(await connected(database.dsn)) as connection:
            await connection.query("DO $$ BEGIN RAISE WARNING 'mind the gap' USING ERRCODE = '01W42'; END $$")
            assert connection.notices == [("WARNING", "01W42", "mind the gap")]

    trio.run(check)


def test_a_cancelled_query_ends_here_and_on_the_server(database: Database) -> None:
    async def check() -> None:
        connection = await connected(database.dsn)
        with trio.move_on_after(0.2) as deadline:
            await connection.query("SELECT pg_sleep(600)")
        assert deadline.cancelled_caught
        with pytest.raises(SourceUnavailable):
            await connection.query("SELECT 1")
        connection.close()

    trio.run(check)
    running = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)' AND state = 'active'"
    wait_for(lambda: database.execute(running) == [(0,)])


def test_a_server_that_is_killed_makes_the_source_unavailable(make_postgres: MakePostgres) -> None:
    server = make_postgres()

    def kill_soon() -> None:
        time.sleep(0.2)
        server.kill()

    async def check() -> None:
        connection = await connected(server.dsn())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, kill_soon)
            with pytest.raises(SourceUnavailable) as caught:
                await connection.query("SELECT pg_sleep(600)")
        assert caught.value.code == "WB102"
        with pytest.raises(SourceUnavailable) as refused:
            await connected(server.dsn())
        assert refused.value.code == "WB101"
        connection.close()

    trio.run(check)


def test_a_terminated_backend_makes_the_source_unavailable(database: Database) -> None:
    async def check() -> None:
        connection = await connected(database.dsn)
        ((pid,),) = await connection.query("SELECT pg_backend_pid()")
        database.execute(f"SELECT pg_terminate_backend({pid})")
        with pytest.raises(SourceUnavailable) as caught:
            await connection.query("SELECT 1")
        assert caught.value.code == "WB102"

    trio.run(check)


def test_refusals_name_what_is_wrong_and_never_the_password(database: Database) -> None:
    secret = "p4ss-secret"
    cases: list[dict[str, str]] = [
        {"password": secret}, {"user": "nobody_here", "password": secret}, {"dbname": "no_such_db"}, {"password": ""},
    ]  # fmt: skip
    for words in cases:
        error = refusal(psycopg.conninfo.make_conninfo(database.dsn, **words))
        assert isinstance(error, SourceRefused), error.explain()
        assert error.fix
        assert secret not in error.explain()


def test_nothing_at_the_port_is_not_a_refusal() -> None:
    error = refusal(f"postgresql://u:p4ss-secret@127.0.0.1:{free_port()}/db")
    assert type(error) is SourceUnavailable
    assert "Connection refused" in error.said
    assert refusal("postgresql://u@no-such-host.invalid/db").code == "WB101"


def test_a_silent_host_does_not_keep_us_from_the_next(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.clients.postgres.connection.CONNECT_TIMEOUT_S", 0.5)

    async def check() -> None:
        words = psycopg.conninfo.conninfo_to_dict(database.dsn)
        with black_hole() as port:
            both = {"host": "127.0.0.1,localhost", "port": f"{port},{words['port']}"}
            dsn = psycopg.conninfo.make_conninfo(database.dsn, **both, target_session_attrs="read-write")
            with closing(await connected(dsn)) as connection:
                assert await connection.query("SELECT current_database()") == [(database.name,)]
                led = psycopg.conninfo.conninfo_to_dict(connection.config.conninfo)
                assert (led["host"], str(led["port"])) == ("localhost", str(words["port"])), "one more leads to the same server"

    trio.run(check)


def test_who_waits_on_a_connection_is_told_when_another_task_closes_it(database: Database) -> None:
    async def check() -> None:
        connection = await connected(database.dsn)

        async def wait() -> None:
            with pytest.raises(SourceUnavailable):
                await connection.query("SELECT pg_sleep(600)")

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await trio.sleep(0.1)
                connection.close()
                connection.close()

    trio.run(check)


WEIRD_TABLES = """
CREATE SCHEMA "s.1";
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE DOMAIN "s.1".small AS int2 CHECK (VALUE < 10);
CREATE DOMAIN "s.1".smaller AS "s.1".small NOT NULL;
CREATE DOMAIN "s.1".many AS mood[];
CREATE TABLE users (id bigserial PRIMARY KEY, name text NOT NULL DEFAULT 'x', price numeric(10, 2), m mood, ms mood[],
  b box[], "a,b\\c""d" "s.1".smaller, e "s.1".many, up text GENERATED ALWAYS AS (upper(name)) STORED, gone int);
ALTER TABLE users DROP COLUMN gone;
CREATE TABLE "s.1"."t,1" (a int);
CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10);
CREATE PUBLICATION everything FOR ALL TABLES;
CREATE PUBLICATION "by, list" FOR TABLE users (id, "a,b\\c""d"), parts WITH (publish_via_partition_root);
CREATE PUBLICATION by_schema FOR TABLES IN SCHEMA "s.1";
"""


def test_a_constraint_that_old_rows_need_not_meet_makes_no_column_not_null(database: Database) -> None:
    database.execute("CREATE TABLE t (a int, b int NOT NULL); INSERT INTO t VALUES (NULL, 1)")

    async def nullable() -> list[bool]:
        with closing(await connected(database.dsn)) as connection:
            ((oid,),) = await connection.query("SELECT 'public.t'::regclass::oid")
            found = (await describe_columns(connection, [int(oid or 0)]))[int(oid or 0)]
            return [column.is_nullable for column in found.columns]

    database.execute("ALTER TABLE t ADD CONSTRAINT a_there NOT NULL a NOT VALID")
    assert trio.run(nullable) == [True, False]
    database.execute("DELETE FROM t; ALTER TABLE t VALIDATE CONSTRAINT a_there")
    assert trio.run(nullable) == [False, False]


@pytest.mark.parametrize("server", ["database", "database15"])
def test_the_catalog_describes_types_columns_and_publications(server: str, request: pytest.FixtureRequest) -> None:
    database: Database = request.getfixturevalue(server)
    database.execute(WEIRD_TABLES)

    async def check() -> None:
        with closing(await connected(database.dsn)) as connection:
            ((oid,),) = await connection.query("SELECT 'public.users'::regclass::oid")
            columns = (await describe_columns(connection, [int(oid or 0)]))[int(oid or 0)].columns
            by_name = {c.name: c for c in columns}
            assert list(by_name) == ["id", "name", "price", "m", "ms", "b", 'a,b\\c"d', "e", "up"]
            # as the seed's consumers know it
            assert by_name["id"].column_default == "nextval('users_id_seq'::regclass)"
            assert (by_name["id"].is_pk, by_name["id"].is_nullable, by_name["name"].is_pk) == (True, False, False)
            assert by_name["up"].is_generated
            assert by_name["up"].column_default is None
            assert by_name["price"].typmod == 10 << 16 | 2 + 4
            words = await format_types(connection, [(c.type_oid, c.typmod) for c in columns])
            assert words[:6] == ["bigint", "text", "numeric(10,2)", "mood", "mood[]", "box[]"]
            assert words[6:] == ['"s.1".smaller', '"s.1".many', "text"]
            types = await describe_types(connection, [c.type_oid for c in columns])

            def resolved(name: str) -> list[str]:
                kinds: list[str] = []
                at = by_name[name].type_oid
                while at in types:
                    kinds.append(types[at].kind)
                    at = types[at].base_oid
                return kinds

            assert resolved('a,b\\c"d')[:2] == ["domain", "domain"]
            assert resolved("e") == ["domain", "array", "other"]
            assert resolved("ms") == ["array", "other"]
            assert types[by_name["b"].type_oid].delimiter == ";"
            assert await describe_columns(connection, [4]) == {}

            async def tables(publication: str) -> dict[str, tuple[str, ...]]:
                return {f"{t.schema}/{t.name}": t.columns for t in await published_tables(connection, publication)}

            stored = tuple(name for name in by_name if name != "up")
            assert await tables("everything") == {"public/parts_1": ("id",), "public/users": stored, "s.1/t,1": ("a",)}
            assert await tables("by, list") == {"public/parts": ("id",), "public/users": ("id", 'a,b\\c"d')}
            assert await tables("by_schema") == {"s.1/t,1": ("a",)}
            assert await tables("none") == {}

    trio.run(check)


def test_a_function_planted_in_public_is_never_called(database: Database) -> None:
    database.execute("""
        CREATE FUNCTION public.format_type(oid, bigint) RETURNS text LANGUAGE sql AS $$ SELECT 'planted' $$;
        CREATE FUNCTION public.array_agg(name) RETURNS name LANGUAGE sql AS $$ SELECT 'planted'::name $$;
        CREATE FUNCTION public.unnest(name[]) RETURNS SETOF name LANGUAGE sql AS $$ SELECT 'planted'::name $$;
        CREATE FUNCTION public.array_to_string(name[], text) RETURNS text LANGUAGE sql AS $$ SELECT 'planted' $$;
        CREATE FUNCTION public.to_json(name[]) RETURNS json LANGUAGE sql AS $$ SELECT '["planted"]'::json $$;
        CREATE TABLE t (a int PRIMARY KEY, b text); CREATE PUBLICATION p FOR TABLE t;
    """)

    async def check() -> None:
        with closing(await connected(database.dsn)) as connection:
            (table,) = await published_tables(connection, "p")
            assert table.columns == ("a", "b")
            assert await format_types(connection, [(25, -1)]) == ["text"]

    trio.run(check)


def test_tls_that_the_server_does_not_speak_is_said(pg18: PostgresServer) -> None:
    error = refusal(psycopg.conninfo.make_conninfo(pg18.dsn(), sslmode="require"))
    assert "does not support SSL" in error.said
    assert (error.code, "ssl = on" in error.fix, "sslrootcert" in error.fix) == ("WB122", True, False)


def test_a_database_that_does_not_exist_is_named_where_it_is_given(pg18: PostgresServer) -> None:
    error = refusal(pg18.dsn("nobody_made_it"))
    assert (error.code, "postgresql://host/NAME" in error.fix) == ("WB103", True)


def test_peer_authentication_is_a_refusal_with_its_own_fix(make_postgres: MakePostgres, server_folder: Path) -> None:
    sockets = server_folder / "sockets"
    sockets.mkdir(mode=0o777)
    sockets.chmod(0o777)
    server = make_postgres(unix_socket_directories=str(sockets))
    (server.data_dir / "pg_hba.conf").write_text("local all all peer\n")
    server.restart()
    error = refusal(f"host={sockets} port={server.port} user=somebody_else dbname=postgres")
    assert (error.code, type(error)) == ("WB103", SourceRefused)
    assert "127.0.0.1 for the host in PG_HOST" in error.fix
