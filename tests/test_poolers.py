"""A pooler in between: one that gives each transaction another process is refused before anything is set through it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
import trio

from actors.clients.postgres import pooling
from actors.clients.postgres.connection import PgConnection, SourceRefused
from actors.embedded.postgres import PostgresServer
from actors.embedded.process import free_port
from actors.errors import ConfigError
from actors.mirror.stores.postgres import PostgresStore
from actors.settings.config import PostgresConfig
from actors.startup.postgres_preflight import check_postgres
from tests.conftest import FAST
from tests.pooler import Pooler


@pytest.fixture(scope="module")
def trusting(server_folder: Path, pg18: PostgresServer) -> Iterator[PostgresServer]:
    """A server without passwords, which the pooler does not know."""
    server = PostgresServer(pg18.bin_dir, server_folder / "pooled", port=free_port(), settings=FAST, password=None)
    server.initdb()
    server.start()
    yield server
    server.stop("immediate")


def url(port: int) -> str:
    return f"postgresql://postgres@127.0.0.1:{port}/postgres"


@pytest.mark.parametrize("size", [20, 1])
def test_a_transaction_pooler_is_refused_and_nothing_is_set_through_it(
    size: int, trusting: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooling, "PROBE_TIMEOUT_S", 0.5)
    with Pooler(trusting.port, "transaction", size=size) as pooler:

        async def refused() -> None:
            with pytest.raises(SourceRefused) as caught:
                await PgConnection.connect(PostgresConfig(url(pooler.port)), application_name="test")
            assert (caught.value.code, "transaction pooler" in caught.value.what) == ("WB119", True)
            with pytest.raises(ConfigError) as of_mirror:
                await PostgresStore.open(url(pooler.port))
            assert (of_mirror.value.code, of_mirror.value.what[:5]) == ("WB119", "--to:")

        with psycopg.connect(url(pooler.port), autocommit=True) as application:
            application.execute("SELECT 1")
            trio.run(refused)
            assert application.execute("SHOW search_path").fetchone() == ('"$user", public',)


def test_a_session_pooler_is_only_warned_of(trusting: PostgresServer) -> None:
    with psycopg.connect(trusting.dsn(), autocommit=True) as admin, Pooler(trusting.port, "session") as pooler:
        admin.execute("CREATE TABLE t (id int PRIMARY KEY)")
        admin.execute("CREATE PUBLICATION p FOR TABLE t")

        async def check() -> None:
            connection = await PgConnection.connect(PostgresConfig(url(pooler.port)), application_name="test")
            with closing(connection):
                assert await connection.query("SHOW search_path") == [("pg_catalog",)]
                assert "WB119" in {p.code for p in await check_postgres(connection, slot="absent", publication="p")}
            store = await PostgresStore.open(url(pooler.port))
            assert await store.query("SHOW default_transaction_read_only") == [("off",)]
            await store.close()

        trio.run(check)
