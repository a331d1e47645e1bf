"""What a mirror relies on in a replica's database: all of a local transaction, or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from actors.mirror.stores.dialect import Statement
from actors.mirror.stores.open import open_store
from actors.mirror.stores.row_statements import RowStatements
from actors.mirror.stores.shapes import TableShape
from actors.mirror.stores.store import ApplyConflict, ReplicaRefused, Store
from tests.servers import Database


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
