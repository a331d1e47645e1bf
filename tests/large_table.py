"""A table that is copied in rounds, and a writer that does to it whatever a copy must survive."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

from tests.beside import beside
from tests.rounds import rounds
from tests.servers import Database

ROWS = 70_000
ITEMS = f"""
CREATE TABLE items (id bigint PRIMARY KEY, v int, big text);
ALTER TABLE items ALTER COLUMN big SET STORAGE EXTERNAL;
INSERT INTO items SELECT g, 0, CASE WHEN g % 200 = 0 THEN repeat('x', 3000) ELSE 'small' END FROM generate_series(1, {ROWS}) g;
CREATE PUBLICATION cdc_pub FOR TABLE items WHERE (id > 0);
ANALYZE items;
"""


@contextmanager
def writing_items(database: Database) -> Iterator[None]:
    """Rows come, go, change their keys and large values, and move into the row filter and out of it."""
    chance = Random(1)

    def write(done: threading.Event) -> None:
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

    with beside(write):
        yield


def move_into_what_is_copied(database: Database, nats_url: str) -> None:
    """Move a row from a range that has not come to a key that no chunk will have, without its large value.

    So a copy has to ask for it. The bridge must be down: it reads nothing more meanwhile.
    """
    left = rounds(nats_url, "items+ranges")[-1].chunks[-1].left

    def is_left(key: int) -> bool:
        return any(
            (one.after is None or key > int(one.after[0])) and (one.through is None or key <= int(one.through[0]))
            for one in left
        )

    # the writer leaves this key alone, and may take any of the others first
    free = next(key for key in range(3, ROWS, 200) if not is_left(key))
    database.execute("DELETE FROM items WHERE id = %s", [free])
    for (key,) in database.execute("SELECT id FROM items WHERE id > 0 AND length(big) = 3000"):
        if is_left(key) and database.execute("UPDATE items SET id = %s WHERE id = %s RETURNING id", [free, key]):
            return
    raise AssertionError("no row waits any more: the copy was complete too soon")
