"""A table that is copied in rounds, and a writer that does to it whatever a copy must survive."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

from tests.servers import HANG_S, Database

ROWS = 70_000
ITEMS = f"""
CREATE TABLE items (id bigint PRIMARY KEY, v int, big text);
ALTER TABLE items ALTER COLUMN big SET STORAGE EXTERNAL;
INSERT INTO items SELECT g, 0, CASE WHEN g % 200 = 0 THEN repeat('x', 3000) ELSE 'small' END FROM generate_series(1, {ROWS}) g;
CREATE PUBLICATION cdc_pub FOR TABLE items WHERE (id > 0);
ANALYZE items;
"""


TO_THE_FRONT = "DELETE FROM items WHERE id < 8;" + "".join(
    f"UPDATE items SET id = {i} WHERE id = (SELECT max(id) FROM items WHERE id <= {ROWS * i // 7} AND id % 200 = 0);"
    for i in range(1, 8)
)
"""Rows go from ranges that come later to where the first chunk was, without their large values: they have to be asked for."""


@contextmanager
def writing_items(database: Database) -> Iterator[None]:
    """Rows come, go, change their keys and large values, and move into the row filter and out of it."""
    done, chance = threading.Event(), Random(1)

    def write() -> None:
        fresh = 10_000_000
        with database.connect() as connection:
            while not done.is_set():
                fresh, some = fresh + 1, 200 * chance.randint(1, ROWS // 200) - chance.choice((0, 0, 1))
                connection.execute(
                    chance.choice(
                        [
                            "INSERT INTO items VALUES (%(fresh)s, 1, 'new')",
                            "UPDATE items SET v = v + 1 WHERE id = %(some)s",
                            "UPDATE items SET id = -id WHERE id IN (%(some)s, -%(some)s)",
                            "UPDATE items SET id = -id WHERE id < 0",
                            "UPDATE items SET id = %(fresh)s WHERE id = %(some)s",
                            "DELETE FROM items WHERE id = %(some)s - 7",
                        ]
                    ),
                    {"fresh": fresh, "some": some},
                )

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(HANG_S)
