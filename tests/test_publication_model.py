"""What the bridge takes for published is what PostgreSQL takes for published: for odd tables, in random publications."""

from __future__ import annotations

import os
import random
from contextlib import closing
from typing import Any
from unittest import mock

import psycopg
import pytest
import trio

from actors.clients.postgres.catalog import describe_relation
from actors.clients.postgres.connection import PgConnection
from actors.clients.postgres.publications import PublishedTable, published_tables
from actors.contract.table_schema import describe_table
from actors.messages import SchemaChange
from actors.settings.config import PostgresConfig
from actors.wire import pgoutput
from actors.wire.pgoutput import Relation
from actors.wire.sql_names import quoted
from tests.servers import Database

TYPES = """
    CREATE TYPE mood AS ENUM ('sad', 'happy'); CREATE TYPE inner_pair AS (m mood, n numeric(5,2));
    CREATE TYPE pair AS (i inner_pair, ms mood[]); CREATE DOMAIN pairs AS pair[]; CREATE DOMAIN moody AS mood;
    CREATE DOMAIN moodier AS moody; CREATE TYPE mood_range AS RANGE (subtype = mood); CREATE TYPE moody_pair AS (m moodier, r mood_range);
    CREATE SCHEMA s; CREATE SCHEMA "o.d""d";
"""
TABLES = {
    "plain": "(id int PRIMARY KEY, v text)",
    "no_key": "(v text, w int)",
    "all_of_it": "(v text, w int); ALTER TABLE {t} REPLICA IDENTITY FULL",
    "nothing": "(id int PRIMARY KEY, v text); ALTER TABLE {t} REPLICA IDENTITY NOTHING",
    "late": "(id int PRIMARY KEY DEFERRABLE, v text)",
    "two": "(a int, b int, v text, PRIMARY KEY (b, a) INCLUDE (v))",
    "by_index": "(id int PRIMARY KEY, a int NOT NULL, v text, w int NOT NULL); CREATE UNIQUE INDEX i ON {t} (w, a) INCLUDE (v); "
    "ALTER TABLE {t} REPLICA IDENTITY USING INDEX i",
    "index_gone": "(id int PRIMARY KEY, a int NOT NULL); CREATE UNIQUE INDEX j ON {t} (a); "
    "ALTER TABLE {t} REPLICA IDENTITY USING INDEX j; DROP INDEX j",
    "dropped": "(x int, id int PRIMARY KEY, y int, v text, z int); ALTER TABLE {t} DROP x; ALTER TABLE {t} DROP y",
    "typed": "(id int PRIMARY KEY, a pair, b pairs, c moodier, d mood_range, e moody_pair[], f varchar(3)[], g numeric(7,3), h mood[],"
    " i mood_multirange)",
    "stored": "(id int PRIMARY KEY, v int, g int GENERATED ALWAYS AS (v + 1) STORED)",
    "stored_full": "(id int PRIMARY KEY, v int, g int GENERATED ALWAYS AS (v + 1) STORED); ALTER TABLE {t} REPLICA IDENTITY FULL",
    "stored_key": "(id int, v int, g int GENERATED ALWAYS AS (v + 1) STORED NOT NULL UNIQUE); "
    "ALTER TABLE {t} REPLICA IDENTITY USING INDEX stored_key_g_key",
    's."b.c"': "(id int PRIMARY KEY, \"v\"\"'x\" text, \"😀\" moodier)",
    '"o.d""d"."€ x"': "(id int PRIMARY KEY, v text)",
    "s.child": "(extra int) INHERITS (plain)",
    "no_columns": "()",
    "parts": "(id int PRIMARY KEY, v text) PARTITION BY RANGE (id)",
    "parts_1": "PARTITION OF parts FOR VALUES FROM (0) TO (10)",
    "s.parts_2": "PARTITION OF parts FOR VALUES FROM (10) TO (20) PARTITION BY RANGE (id)",
    "parts_2_1": "PARTITION OF s.parts_2 FOR VALUES FROM (10) TO (20)",
    "parts_3": "(v text, id int NOT NULL, PRIMARY KEY (id)); ALTER TABLE parts ATTACH PARTITION parts_3 FOR VALUES FROM (20) TO (30)",
    "keyless": "(id int, v text) PARTITION BY LIST (id)",
    "keyless_1": "PARTITION OF keyless FOR VALUES IN (1); ALTER TABLE {t} REPLICA IDENTITY FULL",
    "half_keyed": "(id int NOT NULL, v text) PARTITION BY LIST (id)",
    "half_keyed_1": "PARTITION OF half_keyed FOR VALUES IN (1)",
    "half_keyed_2": "PARTITION OF half_keyed FOR VALUES IN (2); ALTER TABLE ONLY half_keyed ADD PRIMARY KEY (id)",
    "mixed": "(id int, v text) PARTITION BY LIST (id)",
    "mixed_1": "PARTITION OF mixed FOR VALUES IN (1); ALTER TABLE {t} REPLICA IDENTITY FULL",
    "empty_root": "(id int PRIMARY KEY) PARTITION BY LIST (id)",
}  # fmt: skip
SINCE_18 = {
    "virtual": "(id int PRIMARY KEY, v int, g int GENERATED ALWAYS AS (v + 1) VIRTUAL)",
    "virtual_full": "(id int PRIMARY KEY, v int, g int GENERATED ALWAYS AS (v + 1) VIRTUAL); ALTER TABLE {t} REPLICA IDENTITY FULL",
    "temporal": "(id int4range, at daterange, v text, PRIMARY KEY (id, at WITHOUT OVERLAPS))",
}
BESIDE = """
    CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY); CREATE UNLOGGED TABLE mixed_2 PARTITION OF mixed FOR VALUES IN (2);
    CREATE FOREIGN DATA WRAPPER nothing; CREATE SERVER away FOREIGN DATA WRAPPER nothing; CREATE FOREIGN TABLE far (id int) SERVER away;
    CREATE MATERIALIZED VIEW seen AS SELECT * FROM plain; CREATE SEQUENCE counted;
"""
"""Relations that no publication of all tables includes."""


LISTED = """
    SELECT c.oid, format('%I.%I', t.schemaname, t.tablename), t.attnames::text[], t.rowfilter IS NOT NULL
    FROM pg_publication_tables t JOIN pg_namespace n ON n.nspname = t.schemaname
    JOIN pg_class c ON c.relname = t.tablename AND c.relnamespace = n.oid
    WHERE t.pubname = 'p' AND c.relkind IN ('r', 'p') AND c.relpersistence = 'p'
"""
"""Without foreign and unlogged partitions, which PostgreSQL lists and sends nothing of."""
Connection = psycopg.Connection[tuple[Any, ...]]


def random_publication(rng: random.Random, columns: dict[str, list[str]], is_15: bool) -> str:
    operations = rng.choice(["insert", "insert, update", "insert, delete", "insert, update, delete"])
    options = [f"publish = '{operations}, truncate'", f"publish_via_partition_root = {rng.random() < 0.5}"]
    if not is_15 and rng.random() < 0.5:
        options.append("publish_generated_columns = stored")
    if rng.random() < 0.15:
        return f"CREATE PUBLICATION p FOR ALL TABLES WITH ({', '.join(options)})"
    schemas = rng.sample(["public", "s", '"o.d""d"'], rng.choice([0, 0, 1, 2]))
    clauses = list[str]()
    for table in rng.sample(list(columns), rng.randint(0, len(columns))):
        names, clause = columns[table], table
        if names and not schemas and rng.random() < 0.4:
            clause += f" ({', '.join(rng.sample(names, rng.randint(1, len(names))))})"
        if names and rng.random() < 0.2:
            clause += f" WHERE ({rng.choice(names)} IS NULL)"
        clauses.append(clause)
    named = [f"TABLE {', '.join(clauses)}"] if clauses else []
    named += [f"TABLES IN SCHEMA {', '.join(schemas)}"] if schemas else []
    return f"CREATE PUBLICATION p{' FOR ' if named else ''}{', '.join(named)} WITH ({', '.join(options)})"


async def look(dsn: str, relations: list[Relation]) -> tuple[dict[int, PublishedTable], list[SchemaChange]]:
    """What a look at the catalog finds, by OID, and what is told of these Relation messages."""
    with closing(await PgConnection.connect(PostgresConfig(dsn), application_name="test")) as connection:
        found = {table.relation_oid: table for table in await published_tables(connection, "p")}
        return found, [describe_table(one, await describe_relation(connection, one)) for one in relations]


def announced(connection: Connection, tables: list[str]) -> list[Relation]:
    """The Relation messages of tables."""
    if tables:
        connection.execute(f"TRUNCATE {', '.join(tables)}")
    rows = connection.execute(
        "SELECT data FROM pg_logical_slot_get_binary_changes(current_database() || '_model', NULL, NULL,"
        " 'proto_version', '1', 'publication_names', 'p')"
    ).fetchall()
    messages = [pgoutput.decode(bytes(data), 0) for (data,) in rows]
    return [message for message in messages if isinstance(message, Relation)]


def is_refused(connection: Connection, table: PublishedTable) -> bool:
    """Whether PostgreSQL refuses the application's UPDATE or DELETE because of the publication."""
    column = next(c.name for c in table.relation.columns if c.name != "g")
    for statement in (f"UPDATE {table.own} SET {quoted(column)} = {quoted(column)}", f"DELETE FROM {table.own}"):
        try:
            with connection.transaction(force_rollback=True):
                connection.execute(statement)
        except (psycopg.errors.InvalidColumnReference, psycopg.errors.ObjectNotInPrerequisiteState):
            return True
    return False


def leave_a_partition_half_detached(database: Database) -> None:
    database.execute("""
        CREATE TABLE left_by (id int PRIMARY KEY) PARTITION BY LIST (id);
        CREATE TABLE leaving PARTITION OF left_by FOR VALUES IN (1); CREATE TABLE staying PARTITION OF left_by FOR VALUES IN (2);
    """)
    with database.connect(autocommit=False) as reader:
        reader.execute("SELECT FROM left_by")
        with database.connect() as connection:
            connection.execute("SET lock_timeout = '100ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                connection.execute("ALTER TABLE left_by DETACH PARTITION leaving CONCURRENTLY")


@pytest.mark.parametrize("server", ["database", "database15"])
def test_what_is_published_is_what_postgresql_says(server: str, request: pytest.FixtureRequest) -> None:
    database: Database = request.getfixturevalue(server)
    is_15 = server == "database15"
    database.execute(TYPES)
    tables = TABLES if is_15 else TABLES | SINCE_18
    for name, definition in tables.items():
        database.execute(f"CREATE TABLE {name} {definition.format(t=name)}")
    leave_a_partition_half_detached(database)
    database.execute(BESIDE)
    database.execute("SELECT pg_create_logical_replication_slot(current_database() || '_model', 'pgoutput')")
    seed = int(os.environ.get("SEED", "0")) or random.randrange(10**6)
    rng = random.Random(seed)
    with database.connect() as connection:
        columns = {
            name: [column for (column,) in connection.execute(
                "SELECT quote_ident(attname) FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped",
                [name],
            )] for name in [*tables, "left_by", "leaving", "staying"]
        }  # fmt: skip
        left = int(os.environ.get("ROUNDS", "12"))
        while left:
            publication = random_publication(rng, columns, is_15)
            try:
                connection.execute(publication)
            except psycopg.Error:  # not every combination is allowed
                continue
            compare(connection, database.dsn, f"{publication}  -- SEED={seed}", is_15)
            connection.execute("DROP PUBLICATION p")
            left -= 1


def compare(connection: Connection, dsn: str, about: str, is_15: bool) -> None:
    listed = connection.execute(LISTED).fetchall()
    relations = announced(connection, [name for _, name, _, _ in listed])
    found, told = trio.run(look, dsn, relations)
    assert found.keys() == {oid for oid, _, _, _ in listed}, about
    assert {t.relation_oid for t in found.values() if t.columns} <= {relation.oid for relation in relations} <= found.keys(), (
        about
    )
    for oid, name, attributes, is_filtered in listed:
        assert found[oid].is_filtered is is_filtered, (name, about)
        if not is_15:  # whose view lists generated columns, which pgoutput never sends
            assert list(found[oid].columns) == (attributes or []), (name, about)
    for change in told:
        table = found[change.table.relation.oid]
        assert table.columns == tuple(column.name for column in change.table.relation.columns), (table.qualified, about)
        assert table.facts.schema_id == change.table.schema_id, (table.qualified, about)
        body: Any = change.body
        assert table.pk == {column["name"] for column in body["columns"] if column["pk"]}, (table.qualified, about)
    ((refusing,),) = connection.execute("SELECT pubupdate OR pubdelete FROM pg_publication WHERE pubname = 'p'").fetchall()
    for table in found.values():
        if refusing and set(table.columns) - {"g"}:
            assert is_refused(connection, table) is bool(table.refusal), (table.qualified, table.refusal, about)


async def look_as_19(dsn: str, excepted: str) -> set[str]:
    """The published tables for a server that says it is PostgreSQL 19, whose catalog a temporary view stands in for."""
    with closing(await PgConnection.connect(PostgresConfig(dsn), application_name="test")) as connection:
        await connection.query(f"""
            CREATE TEMPORARY VIEW pg_publication_rel AS SELECT r.*, false AS prexcept FROM pg_catalog.pg_publication_rel r
            UNION ALL SELECT 1, p.oid, '{excepted}'::regclass, NULL, NULL, true FROM pg_publication p
        """)
        with mock.patch.object(PgConnection, "server_version", 190000):
            return {table.qualified for table in await published_tables(connection, "p")}


@pytest.mark.parametrize("via_root", [False, True])
@pytest.mark.parametrize("excepted", ["public.plain", "public.parts"])
def test_tables_that_postgresql_19_excepts_from_all_tables_are_not_published(
    via_root: bool, excepted: str, database: Database
) -> None:  # fmt: skip
    """A root that is excepted takes its partitions with it."""
    database.execute(f"""
        CREATE TABLE plain (id int PRIMARY KEY); CREATE TABLE other (id int PRIMARY KEY);
        CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY LIST (id); CREATE TABLE part PARTITION OF parts FOR VALUES IN (1);
        CREATE PUBLICATION p FOR ALL TABLES WITH (publish_via_partition_root = {via_root});
    """)
    rows_of_parts = "parts" if via_root else "part"
    every = {f'"public"."{name}"' for name in ("plain", "other", rows_of_parts)}
    gone = rows_of_parts if excepted == "public.parts" else "plain"
    assert trio.run(look_as_19, database.dsn, excepted) == every - {f'"public"."{gone}"'}
