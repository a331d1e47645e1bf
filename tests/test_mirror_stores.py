"""What a mirror relies on in a replica's database: all of a local transaction, or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from actors.mirror.dialect import Statement
from actors.mirror.store import ReplicaRefused, Store, TableFault, open_store
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
            with pytest.raises(TableFault if token else ReplicaRefused):
                await store.run(statements, commit=True)
            await store.rollback()
            assert await store.query("SELECT count(*) FROM t") in ([(0,)], [("0",)])
            await store.run([insert(store, 3)], commit=True)
            assert await store.query("SELECT id FROM t") in ([(3,)], [("3",)])
        finally:
            await store.close()

    trio.run(main)


def insert(store: Store, number: int) -> Statement:
    return Statement(f"INSERT INTO t VALUES ({store.dialect.parameter(1)})", [(number,)], token="t")
