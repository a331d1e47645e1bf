"""The checks before the stream starts, against real servers: each finding comes with a statement that mends it."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import psycopg
import pytest
import trio

from actors.clients.postgres.connection import PgConnection
from actors.errors import ConfigError
from actors.publication_model import PublicationModel
from actors.publication_monitor import find_problems
from actors.settings.config import PostgresConfig
from actors.startup.postgres_preflight import check_postgres
from actors.telemetry.telemetry import Problem
from tests.conftest import MakePostgres
from tests.servers import Database, wait_for

BOTH = pytest.mark.parametrize("server", ["database", "database15"])


def check(dsn: str, *, slot: str = "absent", publication: str = "p") -> dict[str, Problem]:
    """The warnings by code, but for the test server's unlimited WAL."""

    async def run() -> list[Problem]:
        connection = await PgConnection.connect(PostgresConfig(dsn), application_name="test")
        with closing(connection):
            found = await check_postgres(connection, slot=slot, publication=publication)
            model = PublicationModel(publication)
            await model.look(connection)
            return [*found, *await find_problems(connection, model)]

    return {problem.code: problem for problem in trio.run(run) if problem.code != "WB120"}


def refusal(dsn: str, *, slot: str = "absent", publication: str = "p") -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        check(dsn, slot=slot, publication=publication)
    return caught.value


@BOTH
def test_a_missing_publication_is_refused_with_the_statement_that_makes_it(server: str, request: pytest.FixtureRequest) -> None:
    database: Database = request.getfixturevalue(server)
    database.execute('CREATE SCHEMA "S x"; CREATE TABLE "S x"."t""1" (id int PRIMARY KEY)')
    database.execute("CREATE TABLE users (id int PRIMARY KEY)")
    name = 'it\'s "p"'
    error = refusal(database.dsn, publication=name)
    assert error.exit_code == 2
    assert name in error.what
    database.execute(error.fix)
    assert check(database.dsn, publication=name) == {}
    assert database.execute("SELECT count(*) FROM pg_publication_tables") == [(2,)]


@BOTH
def test_tables_without_identity_are_named_and_the_fix_mends_them(server: str, request: pytest.FixtureRequest) -> None:
    database: Database = request.getfixturevalue(server)
    database.execute("""
        CREATE TABLE keyed (id int PRIMARY KEY); CREATE TABLE log (v text);
        CREATE TABLE parts (id int, v text) PARTITION BY RANGE (id);
        CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10);
        ALTER TABLE parts REPLICA IDENTITY FULL;
        CREATE PUBLICATION only_inserts FOR TABLE log WITH (publish = 'insert, truncate');
        CREATE PUBLICATION p FOR TABLE keyed, log;
        CREATE PUBLICATION rooted FOR TABLE parts WITH (publish_via_partition_root);
    """)
    problem = check(database.dsn)["WB115"]
    assert "public.log" in problem.what
    assert "WB115" not in check(database.dsn, publication="only_inserts")
    assert "WB115" in check(database.dsn, publication="rooted"), "a root's identity is not its partitions'"
    database.execute("ALTER TABLE log REPLICA IDENTITY FULL; ALTER TABLE parts_1 REPLICA IDENTITY FULL")
    assert check(database.dsn) == {}
    assert check(database.dsn, publication="rooted") == {}


@BOTH
def test_what_makes_postgresql_refuse_updates_is_named_and_the_fix_mends_it(
    server: str, request: pytest.FixtureRequest
) -> None:
    database: Database = request.getfixturevalue(server)
    database.execute("""
        CREATE TABLE orders (id int PRIMARY KEY, amount int); CREATE TABLE listed (a int, b int);
        ALTER TABLE listed REPLICA IDENTITY FULL;
        CREATE TABLE parts (id int PRIMARY KEY, v int, doc text) PARTITION BY RANGE (id);
        CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10);
        CREATE TABLE "Parts 2" PARTITION OF parts FOR VALUES FROM (10) TO (20);
        CREATE PUBLICATION p FOR TABLE orders WHERE (amount > 5), listed (a);
        CREATE PUBLICATION rooted FOR TABLE parts WHERE (v > 5) WITH (publish_via_partition_root);
    """)
    problems = check(database.dsn)
    assert "public.orders (amount)" in problems["WB136"].what
    assert "public.listed" in problems["WB134"].what
    assert set(check(database.dsn, publication="rooted")) == {"WB130", "WB136"}
    with pytest.raises(psycopg.errors.InvalidColumnReference):
        database.execute("UPDATE parts SET v = 1")
    database.execute(check(database.dsn, publication="rooted")["WB136"].fix.split("--")[0])
    assert check(database.dsn, publication="rooted") == {}, "the partitions' identities, not the root's"
    database.execute(
        "ALTER TABLE orders REPLICA IDENTITY FULL; ALTER PUBLICATION p SET TABLE listed, orders WHERE (amount > 5)"
    )
    assert check(database.dsn) == {}
    database.execute("UPDATE parts SET v = 1; UPDATE orders SET amount = 1; UPDATE listed SET a = 1")


@BOTH
def test_partitions_of_which_there_is_no_wal_are_named_and_the_fix_mends_it(
    server: str, request: pytest.FixtureRequest
) -> None:
    database: Database = request.getfixturevalue(server)
    database.execute("""
        CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY LIST (id); CREATE TABLE parts_1 PARTITION OF parts FOR VALUES IN (1);
        CREATE UNLOGGED TABLE "Parts 2" PARTITION OF parts FOR VALUES IN (2);
        CREATE PUBLICATION p FOR TABLE parts WITH (publish_via_partition_root);
    """)
    problem = check(database.dsn)["WB137"]
    assert 'public."Parts 2"' in problem.what
    database.execute(problem.fix.split("--")[0])
    assert check(database.dsn) == {}


def test_a_table_without_columns_is_named_until_it_has_one(database: Database) -> None:
    database.execute("CREATE TABLE bare (); CREATE PUBLICATION p FOR TABLE bare WITH (publish = 'insert')")
    assert "public.bare" in check(database.dsn)["WB138"].what
    database.execute("ALTER TABLE bare ADD COLUMN id int PRIMARY KEY")
    assert check(database.dsn) == {}


def test_generated_columns_that_full_has_and_the_publication_does_not_are_named(database: Database) -> None:
    database.execute("""
        CREATE TABLE sums (a int, twice int GENERATED ALWAYS AS (a * 2) STORED); ALTER TABLE sums REPLICA IDENTITY FULL;
        CREATE PUBLICATION p FOR TABLE sums;
    """)
    problem = check(database.dsn)["WB135"]
    assert "public.sums (twice)" in problem.what
    with pytest.raises(psycopg.errors.InvalidColumnReference):
        database.execute("DELETE FROM sums")
    database.execute(problem.fix.split("--")[0])
    assert check(database.dsn) == {}
    database.execute("DELETE FROM sums")


@BOTH
def test_a_role_must_be_able_to_replicate_and_is_told_what_it_may_not_read(server: str, request: pytest.FixtureRequest) -> None:
    database: Database = request.getfixturevalue(server)
    role = f"Bridge {database.name}"
    database.execute(f"CREATE ROLE \"{role}\" LOGIN PASSWORD 'pw'")
    database.execute("CREATE SCHEMA s; CREATE TABLE s.t (id int PRIMARY KEY)")
    database.execute("CREATE PUBLICATION p FOR TABLE s.t")
    dsn = psycopg.conninfo.make_conninfo(database.dsn, user=role, password="pw")
    try:
        error = refusal(dsn)
        assert error.code == "WB112"
        database.execute(error.fix.split("--")[0])
        problem = check(dsn)["WB117"]
        assert role in problem.what
        database.execute(problem.fix)
        assert check(dsn) == {}
    finally:
        database.execute(f'DROP OWNED BY "{role}"; DROP ROLE "{role}"')


def test_a_role_that_the_server_lets_replicate_by_a_rule_of_its_own_is_let_through(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a managed server does for members of a role that only it knows: here the connection is a superuser's."""
    role, connect = f"member_{database.name}", PgConnection.connect

    async def lenient(config: PostgresConfig, **options: Any) -> PgConnection:
        return await connect(PostgresConfig(database.dsn) if options.get("replication") else config, **options)

    database.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'pw'; CREATE TABLE t (id int PRIMARY KEY)")
    database.execute(f"CREATE PUBLICATION p FOR TABLE t; GRANT SELECT ON t TO {role}")
    try:
        dsn = psycopg.conninfo.make_conninfo(database.dsn, user=role, password="pw")
        assert refusal(dsn).code == "WB112"
        monkeypatch.setattr(PgConnection, "connect", lenient)
        assert check(dsn) == {}
    finally:
        database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


@BOTH
def test_a_slot_of_another_kind_is_refused(server: str, request: pytest.FixtureRequest) -> None:
    database: Database = request.getfixturevalue(server)
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t")
    name = database.name
    database.execute(f"SELECT pg_create_logical_replication_slot('{name}_here', 'pgoutput')")
    database.execute(f"SELECT pg_create_physical_replication_slot('{name}_physical')")
    other = psycopg.conninfo.make_conninfo(database.dsn, dbname="postgres")
    with psycopg.connect(other, autocommit=True) as elsewhere:
        elsewhere.execute(f"SELECT pg_create_logical_replication_slot('{name}_there', 'pgoutput')")
    try:
        assert check(database.dsn, slot=f"{name}_here") == {}
        assert "database postgres" in refusal(database.dsn, slot=f"{name}_there").what
        assert "physical" in refusal(database.dsn, slot=f"{name}_physical").what
        with psycopg.connect(database.dsn, autocommit=True) as owner:
            owner.execute(f"SELECT pg_create_logical_replication_slot('{name}_mine', 'pgoutput', true)")
            assert "temporary" in refusal(database.dsn, slot=f"{name}_mine").what
    finally:
        with psycopg.connect(other, autocommit=True) as elsewhere:
            for slot in ("there", "physical"):
                elsewhere.execute(f"SELECT pg_drop_replication_slot('{name}_{slot}')")


def test_an_empty_publication_is_noted(database: Database) -> None:
    database.execute("CREATE PUBLICATION p")
    assert list(check(database.dsn)) == ["WB116"]


def test_a_server_that_writes_too_little_wal_is_refused(make_postgres: MakePostgres) -> None:
    server = make_postgres(wal_level="replica")
    error = refusal(server.dsn())
    assert error.code == "WB111"
    assert "replica" in error.what
    assert "wal_level = 'logical'" in error.fix


def test_a_server_without_a_free_slot_is_refused_and_an_unlimited_one_noted(make_postgres: MakePostgres) -> None:
    server = make_postgres(max_replication_slots="1")
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute("CREATE TABLE t (id int PRIMARY KEY)")
        admin.execute("CREATE PUBLICATION p FOR TABLE t")
        assert check(server.dsn()) == {}
        admin.execute("SELECT pg_create_logical_replication_slot('taken', 'pgoutput')")
        error = refusal(server.dsn())
        assert "max_replication_slots = 1" in error.what
        assert check(server.dsn(), slot="taken") == {}


@pytest.mark.parametrize("version", [18, 15])
def test_a_standby_is_refused_where_it_cannot_be_read(version: int, make_postgres: MakePostgres) -> None:
    server = make_postgres(version)  # type: ignore[arg-type]
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute("CREATE TABLE t (id int PRIMARY KEY)")
        admin.execute("CREATE PUBLICATION p FOR TABLE t")
    server.stop()
    (server.data_dir / "standby.signal").touch()
    server.start()
    if version >= 16:
        (problem,) = check(server.dsn()).values()
        assert problem.code == "WB125"
        with psycopg.connect(server.dsn(), autocommit=True) as standby:
            for statement in problem.fix.split("   --")[0].split(";")[:2]:
                standby.execute(statement.encode())
            wait_for(lambda: standby.execute("SHOW hot_standby_feedback").fetchone() == ("on",))
        assert check(server.dsn()) == {}
    else:
        assert "standby" in refusal(server.dsn()).what
