"""The suite that every store of a mirror must pass. A new store is one more parameter of `url`.

All of a local transaction is committed or nothing; values come back as they were; one mirror at a time.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.contract.bridge_record import BridgeRecord
from actors.contract.records import Column, Delete, Insert, Raw, Row, Update
from actors.contract.rules import identity_of, written_columns
from actors.contract.stream_view import LastMessage
from actors.errors import ConfigError
from actors.mirror.mirror_counts import MirrorCounts
from actors.mirror.replica import Replica
from actors.mirror.state import (
    FORMAT,
    LIVE,
    STALE,
    Checkpoint,
    TableRecord,
    keeps_everything,
    load_checkpoint,
    load_tables,
    load_tokens,
    load_verdicts,
    saved_verdict,
)
from actors.mirror.stores import postgres, sqlite
from actors.mirror.stores.dialect import LATER_COLUMNS, Statement
from actors.mirror.stores.open import open_store
from actors.mirror.stores.row_statements import RowStatements, UnknownColumn
from actors.mirror.stores.shapes import TableShape, encode_columns
from actors.mirror.stores.store import ApplyConflict, ReplicaRefused, ReplicaUnavailable, Store
from actors.mirror.track import NEEDED_NOTHING, Cursor
from actors.positions import Lsn, Position
from actors.values.canonical import canonical_for
from tests.servers import Database

BRIDGE = BridgeRecord("slot", "publication", "1", 1)
COLUMNS = (Column("id", "integer", True), Column("name", "text", False), Column("note", "character varying(9)", False))


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path, database: Database) -> Iterator[str]:
    """Of an empty replica."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/replica.db"
        return
    replica = Database(database.server, f"{database.name}_replica")
    try:
        yield replica.dsn
    finally:
        replica.drop()


@pytest.mark.parametrize("token", ["t", ""])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_statement_that_meets_no_row_undoes_the_transaction(url: str, token: str, place: int) -> None:
    """Of a table, or of the mirror's own place (an empty token): then another mirror has been there."""

    async def main() -> None:
        store = await open_store(url)
        try:
            table = store.dialect.table(store.dialect.local_name("public", "t"))
            await store.run([Statement(f"CREATE TABLE {table} (id int)", [()])], commit=True)
            statements = [insert(store, 1), insert(store, 2)]
            statements.insert(place, Statement("DELETE FROM t WHERE id = 99", [()], counted=True, token=token))
            with pytest.raises(ApplyConflict if token else ReplicaRefused):
                await store.run(statements, commit=True)
            await store.rollback()
            assert await store.query("SELECT count(*) FROM t") in ([(0,)], [("0",)])
            await store.run([insert(store, 3)], commit=True)
            assert await store.query("SELECT id FROM t") in ([(3,)], [("3",)])
        finally:
            await store.close()

    trio.run(main)


VALUES = ["", "\\N", "\\.", "\\", "a\tb", "\n", "\r\n", "\\n", "ä ☃", None, " ", "end"]


@pytest.mark.parametrize("count", [1, 19, 20, 5000])
def test_rows_come_back_as_they_were_however_many(url: str, count: int) -> None:
    """Many of them go to PostgreSQL by COPY, which has characters of its own."""
    rows = [(number, VALUES[number % len(VALUES)], VALUES[number // len(VALUES) % len(VALUES)]) for number in range(count)]

    async def main() -> None:
        store = await open_store(url)
        try:
            table = store.dialect.table(store.dialect.local_name("public", 'a " VALUES (b'))
            marks = ", ".join(store.dialect.parameter(i) for i in (1, 2, 3))
            await store.run(
                [Statement(f'CREATE TABLE {table} (id int PRIMARY KEY, "v ""VALUES (" text, w text)', [()])], commit=True
            )
            added = Statement(f'INSERT INTO {table} ("id", "v ""VALUES (", "w") VALUES ({marks})', [*rows], token="t")
            more = Statement(f"UPDATE {table} SET w = 'x' WHERE id = {store.dialect.parameter(1)}", [(0,)], True, "t")
            await store.run([added, more], commit=True)
            found = await store.query(f"SELECT * FROM {table} ORDER BY id")
            assert [(int(id_), v, w) for id_, v, w in found] == [(0, "", "x"), *rows[1:]]
            with pytest.raises(ApplyConflict) as fault:
                await store.run([Statement(f"DELETE FROM {table} WHERE id = 1", [()]), added], commit=True)
            assert fault.value.is_duplicate
            await store.rollback()
            assert await store.query(f"SELECT * FROM {table} ORDER BY id") == found
        finally:
            await store.close()

    trio.run(main)


@pytest.mark.parametrize("count", [1, 50])
def test_rows_of_a_table_that_has_lost_its_columns(url: str, count: int) -> None:
    if url.startswith("sqlite"):
        pytest.skip("a table in SQLite has columns")
    shape = TableShape("t", "public", "t", ("public", "t"), (), (), 1)

    async def main() -> None:
        store = await open_store(url)
        try:
            sql, params = RowStatements(store.dialect, shape).insert({})
            await store.run([Statement(store.dialect.create_table(shape), [()])], commit=True)
            await store.run([Statement(sql, [params] * count, token="t")], commit=True)
            assert await store.query("SELECT count(*) FROM t") == [(str(count),)]
        finally:
            await store.close()

    trio.run(main)


def insert(store: Store, number: int) -> Statement:
    return Statement(f"INSERT INTO t VALUES ({store.dialect.parameter(1)})", [(number,)], token="t")


# -- changes of rows


@asynccontextmanager
async def opened(url: str) -> AsyncGenerator[Store]:
    store = await open_store(url)
    try:
        yield store
    finally:
        await store.close()


def with_store(url: str, body: Callable[[Store], Awaitable[None]]) -> None:
    async def main() -> None:
        async with opened(url) as store:
            await body(store)

    trio.run(main)


async def made(
    store: Store, columns: Sequence[Column] = COLUMNS, name: str = "Some table", *, keyed: bool = True
) -> TableShape:
    """A new table."""
    local = store.dialect.local_name("public", name)
    shape = TableShape("t", "public", name, local, tuple(columns), await store.local_types(columns), 1, keyed)
    await store.run([Statement(store.dialect.create_table(shape), [()])], commit=True)
    return shape


async def content(store: Store, shape: TableShape) -> list[tuple[Any, ...]]:
    """All rows, every value as text."""
    return sorted(
        [tuple(None if value is None else str(value) for value in row)
         for row in await store.query(f"SELECT * FROM {store.dialect.table(shape.local)}")],
        key=repr,
    )  # fmt: skip


def inserted(row: Row, omitted: tuple[str, ...] = ()) -> Insert:
    return Insert("t", "public", "t", 1, 0, True, 1, 0, ("id",), row, omitted)


def updated(row: Row, key: tuple[str, ...], old: Row | None = None) -> Update:
    return Update("t", "public", "t", 1, 0, True, 1, 0, key, row, (), old, ())


def deleted(row: Row, key: tuple[str, ...]) -> Delete:
    return Delete("t", "public", "t", 1, 0, True, 1, 0, key, row, ())


def statements_of(shape: TableShape, store: Store, changes: Sequence[Insert | Update | Delete]) -> list[Statement]:
    rows, found = RowStatements(store.dialect, shape), []
    for change in changes:
        if isinstance(change, Insert):
            sql, params = rows.insert(written_columns(change))
        elif isinstance(change, Update):
            sql, params = rows.update(written_columns(change), identity_of(change, shape.pk, len(shape.columns)))
        else:
            sql, params = rows.delete(identity_of(change, shape.pk, len(shape.columns)))
        found.append(Statement(sql, [params], not isinstance(change, Insert), shape.token))
    return found


def test_rows_are_found_by_their_key(url: str) -> None:
    async def body(store: Store) -> None:
        shape = await made(store)
        changes = [
            inserted({"id": 1, "name": "Ada", "note": None}), inserted({"id": 2, "name": "Eve"}, ("note",)),
            updated({"id": 3, "name": "Ada"}, ("id",), {"id": 1}), updated({"id": 2, "note": "x"}, ("id",)),
        ]  # fmt: skip
        await store.run(statements_of(shape, store, changes), commit=True)
        assert await content(store, shape) == [("2", "Eve", "x"), ("3", "Ada", None)]
        await store.run(statements_of(shape, store, [deleted({"id": 2, "name": None, "note": None}, ("id",))]), commit=True)
        assert await content(store, shape) == [("3", "Ada", None)]
        sql, params = RowStatements(store.dialect, shape).truncate()
        await store.run([Statement(sql, [params], token="t")], commit=True)
        assert await content(store, shape) == []

    with_store(url, body)


def test_of_rows_that_are_equal_one_is_changed(url: str) -> None:
    columns = (Column("a", "integer", False), Column("b", "jsonb", False))
    whole = ("a", "b")

    async def body(store: Store) -> None:
        shape = await made(store, columns, keyed=False)
        row: Row = {"a": 1, "b": None}
        other: Row = {"a": 1, "b": {"x": 1}}
        await store.run(statements_of(shape, store, [inserted(row), inserted(row), inserted(other)]), commit=True)
        await store.run(
            statements_of(shape, store, [updated({"a": 2, "b": None}, whole, row), deleted(other, whole)]), commit=True
        )
        assert await content(store, shape) == [("1", None), ("2", None)]
        with pytest.raises(ApplyConflict, match="met 0 rows"):
            await store.run(statements_of(shape, store, [deleted(row, whole), deleted(other, whole)]), commit=True)
        await store.rollback()
        assert await content(store, shape) == [("1", None), ("2", None)], "the first delete is undone as well"

    with_store(url, body)


def test_a_second_row_of_a_key_is_a_conflict_and_an_unknown_column_an_error(url: str) -> None:
    async def body(store: Store) -> None:
        shape = await made(store)
        twice = statements_of(shape, store, [inserted({"id": 1}), inserted({"id": 1})])
        with pytest.raises(ApplyConflict) as conflict:
            await store.run(twice, commit=True)
        assert (conflict.value.token, conflict.value.is_duplicate) == ("t", True)
        await store.rollback()
        assert await content(store, shape) == []
        rows = RowStatements(store.dialect, shape)
        with pytest.raises(UnknownColumn, match="new"):
            rows.insert({"id": 1, "new": 2})
        with pytest.raises(UnknownColumn, match="new"):
            rows.update({"new": 2}, identity_of(updated({"id": 1}, ("id",)), ("id",), 1))

    with_store(url, body)


def test_what_is_not_committed_is_rolled_back(url: str) -> None:
    async def body(store: Store) -> None:
        shape = await made(store)
        await store.run(statements_of(shape, store, [inserted({"id": 1})]), commit=False)
        await store.run(statements_of(shape, store, [inserted({"id": 2})]), commit=False)
        async with opened(url) as other:
            assert await content(other, shape) == [], "nobody else sees it"
        await store.rollback()
        await store.rollback()
        assert await content(store, shape) == []
        await store.run(statements_of(shape, store, [inserted({"id": 3})]), commit=False)
        await store.run([], commit=True)
        async with opened(url) as other:
            assert await content(other, shape) == [("3", None, None)]

    with_store(url, body)


# -- values

VALUES_OF_TYPES = [
    ("integer", 23, -5, "-5"), ("bigint", 20, 2**63 - 1, str(2**63 - 1)), ("bigint", 20, "9007199254740993", "9007199254740993"),
    ("double precision", 701, 0.1, "0.1"), ("double precision", 701, "NaN", "NaN"), ("double precision", 701, "-Infinity", "-Infinity"),
    ("boolean", 16, True, "t"), ("bytea", 17, b"\x00\xff", "\\x00ff"), ("bytea", 17, "AP8=", "\\x00ff"),
    ("numeric(10,2)", 1700, "1.50", "1.50"),
    ("uuid", 2950, "00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000001"),
    ("jsonb", 3802, {"b": [1, None], "a": "x"}, '{"a": "x", "b": [1, null]}'), ("json", 114, Raw("1e400"), "1e400"),
    ("timestamp with time zone", 1184, "2025-12-12T12:00:34.338547Z", "2025-12-12 12:00:34.338547+00"),
    ("timestamp(3) without time zone", 1114, "2025-12-12T12:00:34.338", "2025-12-12 12:00:34.338"),
    ("text[]", 1009, ["a", None, 'q"'], '{a,NULL,"q\\""}'), ("integer[]", 1007, "{1,2}", "{1,2}"), ("date", 1082, "infinity", "infinity"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "oid", "value", "text"), VALUES_OF_TYPES, ids=[f"{v[0]} {v[2]!r:.20}" for v in VALUES_OF_TYPES]
)
def test_values_equal_the_sources_text(words: str, oid: int, value: Any, text: str, url: str) -> None:
    async def body(store: Store) -> None:
        if isinstance(store, postgres.PostgresStore):
            await store.query("SET TimeZone = 'UTC'")
        shape = await made(store, (Column("id", "integer", True), Column("v", words, False)))
        changes = [inserted({"id": 1, "v": value}), inserted({"id": 2, "v": None})]
        await store.run(statements_of(shape, store, changes), commit=True)
        found = dict(await store.query(f'SELECT id, "v" FROM {store.dialect.table(shape.local)} ORDER BY id'))
        mine, nothing = found.values()
        canonical = canonical_for(oid, {})
        assert nothing is None
        assert canonical(mine) == canonical(text)

    with_store(url, body)


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=8), min_size=1, max_size=30)
)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_comes_back_one_by_one_and_in_bulk(url: str, texts: list[str]) -> None:
    async def body(store: Store) -> None:
        table = store.dialect.table(store.dialect.local_name("public", "texts"))
        await store.run([Statement(f"DROP TABLE IF EXISTS {table}", [()]), Statement(f"CREATE TABLE {table} (i int, v text)", [()])],
                        commit=True)  # fmt: skip
        sql = f'INSERT INTO {table} ("i", "v") VALUES ({store.dialect.parameter(1)}, {store.dialect.parameter(2)})'
        await store.run([Statement(sql, [(i, text)], token="t") for i, text in enumerate(texts)], commit=True)
        many = [*enumerate(texts, 100)] * 20
        await store.run([Statement(sql, [*many], token="t")], commit=True)
        blocks = [block async for block in store.rows(f"SELECT i, v FROM {table}")]
        found = [(int(i), v) for block in blocks for i, v in block]
        assert sorted(found) == sorted([*enumerate(texts), *many])

    with_store(url, body)


# -- tables


def test_tables_change_their_shape_and_their_name(url: str) -> None:
    async def body(store: Store) -> None:
        shape = await made(store)
        dialect = store.dialect
        staging = replace(shape, local=dialect.staging_name(shape.local, "t"))
        assert await store.exists(shape.local)
        assert not await store.exists(staging.local)
        change = [dialect.add_column(shape.local, "new", "int"), dialect.drop_column(shape.local, "note")]
        await store.run([Statement(sql, [()]) for sql in [*change, dialect.create_table(staging)]], commit=True)
        await store.run(statements_of(staging, store, [inserted({"id": 7, "name": "Ada"})]), commit=True)
        kept = replace(shape, columns=shape.columns[:2], local_types=shape.local_types[:2])
        await store.run([Statement(sql, [()]) for sql in dialect.refill(kept, staging.local)], commit=True)
        assert await content(store, shape) == [("7", "Ada", None)]
        assert not await store.exists(staging.local)
        again = [
            dialect.create_table(staging),
            dialect.drop_table(shape.local),
            *dialect.rename_table(staging.local, shape.local[1]),
        ]
        await store.run([Statement(sql, [()]) for sql in again], commit=True)
        assert await content(store, shape) == []

    with_store(url, body)


def test_a_table_of_another_schema_can_be_made(url: str) -> None:
    async def body(store: Store) -> None:
        local = store.dialect.local_name("Sales dept", "orders")
        types = await store.local_types(COLUMNS)
        shape = TableShape("t", "Sales dept", "orders", local, COLUMNS, types, 1)
        sql = [*await store.make_schema(local), store.dialect.create_table(shape)]
        await store.run([Statement(one, [()]) for one in sql], commit=True)
        assert await store.exists(local)
        assert await store.make_schema(local) == []

    with_store(url, body)


# -- the mirror's own state


@pytest.fixture
def short_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "CLAIM_WITHIN_S", 0.3)
    monkeypatch.setattr(postgres, "CLAIM_WITHIN_S", 0.3)


@pytest.mark.usefixtures("short_claim")
def test_one_mirror_claims_a_replica_at_a_time(url: str) -> None:
    async def body(store: Store) -> None:
        with pytest.raises(ConfigError, match="no replica"):
            await open_store(url, create=False)
        await store.claim(BRIDGE)
        async with opened(url) as second:
            with pytest.raises(ReplicaRefused, match="another mirror"):
                await second.claim(BRIDGE)
        await (await open_store(url, create=False)).close()

    with_store(url, body)

    async def later(store: Store) -> None:
        await store.claim(BRIDGE)

    with_store(url, later)


def test_state_comes_back_and_only_its_owner_moves_it(url: str) -> None:
    live = TableRecord("t", "s", "n", LIVE, "", "public", "t", 5, encode_columns(COLUMNS), 1, "snap", 2**40, 7, 9)
    checkpoint = Checkpoint("CDC", "now", Cursor(5, Position(Lsn(2**40), 3, 1)))
    later = Cursor(9, Position(Lsn(2**41), 0, 0))

    async def body(store: Store) -> None:
        await store.claim(BRIDGE)
        assert await load_checkpoint(store) is None
        stale = replace(live, token="u").as_stale("a reason", NEEDED_NOTHING)
        await store.run([live.saved(store.dialect), stale.saved(store.dialect), checkpoint.first(store.dialect)], commit=True)
        assert await load_tables(store) == {"t": live, "u": stale}
        assert stale.state == STALE
        assert await load_checkpoint(store) == checkpoint
        read_last = LastMessage(9, "20000000000-0-t-insert")
        await store.run([checkpoint.moved(store.dialect, later, read_last)], commit=True)
        assert await load_checkpoint(store) == replace(checkpoint, cursor=later, last_message=read_last)
        with pytest.raises(ReplicaRefused, match="another mirror"):
            await store.run([checkpoint.moved(store.dialect, later)], commit=True)
        await store.rollback()
        for at, mismatched in ((100, 0), (200, 3)):
            await store.run([saved_verdict(store.dialect, "t", at, mismatched)], commit=True)
        assert await load_verdicts(store) == {"t": (100, 3)}, "it was equal last at 100"

    with_store(url, body)


def test_a_replica_of_an_earlier_version_keeps_its_checkpoint(url: str) -> None:
    checkpoint = Checkpoint("CDC", "now", Cursor(5, Position(Lsn(2**40), 3, 1)))
    record = TableRecord("t", "", "t", LIVE, snapshot_id="s", snapshot_lsn=7)

    async def body(store: Store) -> None:
        await store.claim(BRIDGE)
        await store.run([checkpoint.first(store.dialect)], commit=True)
        await store.run([record.saved(store.dialect)], commit=True)
        for table, column, _ in LATER_COLUMNS:
            sql = f"ALTER TABLE {store.dialect.own(table)} DROP COLUMN {column}"
            await store.run([Statement(sql, [()])], commit=True)
        assert await load_tokens(store) == ("t",)

    async def later(store: Store) -> None:
        await store.claim(BRIDGE)
        assert await load_checkpoint(store) == checkpoint
        assert await load_tables(store) == {"t": record}, "live, of an unknown version"
        assert not await keeps_everything(store)

    for step in (body, later, later):
        with_store(url, step)


@pytest.mark.parametrize("sqlstate", ["53100", "53400", "58030", "XX000", "57014"])
def test_what_is_wrong_with_the_server_is_no_conflict_of_rows(database: Database, sqlstate: str) -> None:
    async def body(store: Store) -> None:
        raises = f"DO $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = '{sqlstate}'; END $$"
        with pytest.raises(ReplicaUnavailable) as told:
            await store.run([Statement(raises, [()], token="t")], commit=True)
        assert (told.value.code, sqlstate in told.value.said) == ("WB503", True)

    with_store(database.dsn, body)


def test_a_replica_of_a_later_version_is_refused_and_left_as_it_is(url: str) -> None:
    async def body(store: Store) -> None:
        await store.claim(BRIDGE)
        replica = Replica(store, "CDC", MirrorCounts())
        await replica.load()
        owner = store.dialect.own("owner")
        before = await store.query(f"SELECT * FROM {owner}")
        assert before, "the replica has an owner"
        await store.run([Statement(f"UPDATE {owner} SET format = {FORMAT + 1}", [()])], commit=True)
        with pytest.raises(ReplicaRefused) as refused:
            await Replica(store, "CDC", MirrorCounts()).load()
        assert refused.value.code == "WB516"
        await store.run([Statement(f"UPDATE {owner} SET format = {FORMAT}", [()])], commit=True)
        assert await store.query(f"SELECT * FROM {owner}") == before

    with_store(url, body)


def test_a_replica_that_refuses_the_role_says_how_a_password_is_given(
    database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(url: str) -> ConfigError:
        with pytest.raises(ConfigError) as told:
            trio.run(open_store, url)
        assert told.value.code == "WB502"
        return told.value

    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "pgpass"))
    monkeypatch.delenv("PGPASSWORD", raising=False)
    server = database.server
    where = f"127.0.0.1:{server.port}/{database.name}"
    without = refused(f"postgresql://postgres@{where}")
    assert without.what == "--to: the replica's PostgreSQL asks for a password, and none was given"
    for way in ("export PGPASSWORD=", "~/.pgpass", "--to postgresql://USER:PASSWORD@HOST/DATABASE"):
        assert way in without.fix
    wrong = refused(f"postgresql://postgres:wrong-{server.password}@{where}")
    assert "does not accept this role and password" in wrong.what
    assert wrong.fix.startswith("a password in --to comes first")
    assert "no such database" in refused(f"postgresql://postgres:{server.password}@127.0.0.1:{server.port}/no_such").what

    async def opens() -> None:
        await (await open_store(f"postgresql://postgres@{where}")).close()

    (tmp_path / "pgpass").write_text(f"127.0.0.1:{server.port}:*:postgres:{server.password}\n")
    (tmp_path / "pgpass").chmod(0o600)
    trio.run(opens)
    (tmp_path / "pgpass").unlink()
    monkeypatch.setenv("PGPASSWORD", str(server.password))
    trio.run(opens)
