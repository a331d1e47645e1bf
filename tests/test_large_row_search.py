"""The search for a row that no message can carry lasts no longer than it may, and goes on where it was."""

from __future__ import annotations

import pytest
import trio

from actors.clients.postgres.connection import PgConnection
from actors.clients.postgres.publications import published_tables
from actors.settings.resolve import resolve
from actors.snapshots.chunks import RowTooLarge
from actors.snapshots.large_rows import LargeRowSearch
from actors.snapshots.table_reader import open_table
from tests.servers import Database

WINDOW_S = 0.004
ROWS = 300_000


def test_a_search_goes_on_from_window_to_window_and_finds_the_last_row(database: Database) -> None:
    database.execute("CREATE TABLE items (id int, v text, doc jsonb) PARTITION BY RANGE (id)")
    database.execute("CREATE TABLE few PARTITION OF items FOR VALUES FROM (0) TO (10)")
    database.execute("CREATE TABLE most PARTITION OF items DEFAULT; ALTER TABLE most ALTER v SET STORAGE EXTERNAL")
    database.execute(f"INSERT INTO items SELECT g, 'x', '[1]' FROM generate_series(1, {ROWS}) g")
    database.execute(f"INSERT INTO items VALUES ({ROWS + 1}, repeat('x', 100000)), (-7, repeat('x', 3000000))")
    database.execute("CREATE PUBLICATION cdc_pub FOR TABLE items WHERE (id > 0) WITH (publish_via_partition_root = true)")
    config = resolve({}, {"DATABASE_URL": database.dsn})

    async def search() -> list[float]:
        connection = await PgConnection.connect(config.postgres, application_name="tests")
        (published,) = await published_tables(connection, "cdc_pub")
        connection.close()
        search, took = LargeRowSearch(1 << 20, is_compressed=False), list[float]()
        while True:
            opening = open_table(config, published, lambda _: ("v", 0), payload_max=1 << 20)
            async with opening as table:
                begun_at = trio.current_time()
                try:
                    is_done = await search.search(table, ("id",), begun_at + WINDOW_S)
                finally:
                    took.append(trio.current_time() - begun_at)
            if is_done:
                return took

    took = trio.run(search)
    assert len(took) > 1, "several windows"
    database.execute(f"INSERT INTO items VALUES ({ROWS + 2}, repeat('x', 3000000))")
    with pytest.raises(RowTooLarge, match=f"id={ROWS + 2}"):
        trio.run(search)
