"""Applications that write to a test's table on several connections, for as long as a block of the test lasts."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import psycopg

from tests.servers import HANG_S, Database


@dataclass
class Written:
    """What the writers have done so far."""

    committed: int = 0
    held_open: int = 0
    """Transactions that stayed open for `open_s` before they ended."""


@dataclass(frozen=True)
class Hand:
    """One writer's connection and dice, and keys that no other writer uses."""

    connection: psycopg.Connection[tuple[Any, ...]]
    chance: random.Random
    fresh: Iterator[int]
    number: int
    """The writer's own, from 1."""

    def run(self, statement: str, *values: object) -> None:
        self.connection.execute(statement.encode(), values)


Change = Callable[[Hand], None]
"""One change of a transaction."""


@contextmanager
def writers(
    database: Database, change: Change, *, open_s: Sequence[float], open_often: float = 0.1, seed: str = ""
) -> Iterator[Written]:
    """Write in one thread for each item of `open_s`: transactions of one to five changes, of which a tenth is rolled back.

    The item is how long the writer leaves some of its transactions open, and `open_often` what part of them. A server that is
    killed, and a deadlock, end a transaction only; every other error is raised at the end of the block.
    """
    done, failures, written = threading.Event(), list[BaseException](), Written()

    def write(number: int, stays_open_s: float) -> None:
        chance, fresh = random.Random(f"{seed}{number}"), count(number * 10_000_000)
        while not done.is_set():
            try:
                with database.connect(autocommit=False) as connection:
                    hand = Hand(connection, chance, fresh, number)
                    while not done.is_set():
                        for _ in range(chance.randint(1, 5)):
                            change(hand)
                        if chance.random() < open_often:
                            written.held_open += 1
                            done.wait(stays_open_s)
                        if chance.random() < 0.1:
                            connection.rollback()
                        else:
                            connection.commit()
                            written.committed += 1
            except psycopg.OperationalError:  # PostgreSQL was killed, or is not there yet
                time.sleep(0.05)
            except BaseException as exc:  # seen by the test
                failures.append(exc)
                return

    threads = [threading.Thread(target=write, args=one, daemon=True) for one in enumerate(open_s, 1)]
    for thread in threads:
        thread.start()
    try:
        yield written
    finally:
        done.set()
        for thread in threads:
            thread.join(HANG_S)
    assert not failures, failures


def moving_rows(hand: Hand) -> None:
    """Change the table `items (id bigint PRIMARY KEY, v int, filler text)` of 20,000 rows: some rows move to other ranges."""
    pick, fresh, some = hand.chance.random(), next(hand.fresh), hand.chance.randint(1, 20_000)
    if pick < 0.3:
        hand.run("INSERT INTO items VALUES (%s, %s, 'new')", fresh, hand.number)
    elif pick < 0.6:
        hand.run("UPDATE items SET v = v + 1 WHERE id = %s AND pg_try_advisory_xact_lock(id)", some)
    elif pick < 0.75:
        hand.run("DELETE FROM items WHERE id = %s AND pg_try_advisory_xact_lock(id)", some)
    else:
        moved = fresh if pick < 0.9 else -fresh
        hand.run("UPDATE items SET id = %s WHERE id = %s AND pg_try_advisory_xact_lock(id)", moved, some)


def young_rows(hand: Hand) -> None:
    """Change the table `items (id int PRIMARY KEY, v int, filler text)`, mostly rows that were written shortly before."""
    pick, fresh, chance = hand.chance.random(), next(hand.fresh), hand.chance
    if pick < 0.4:
        hand.run("INSERT INTO items VALUES (%s, %s)", fresh, hand.number)
    elif pick < 0.7:
        hand.run(
            "UPDATE items SET v = v + 1 WHERE id = (SELECT id FROM items OFFSET %s LIMIT 1) AND pg_try_advisory_xact_lock(id)",
            chance.randint(0, 500),
        )
    elif pick < 0.85:
        hand.run("DELETE FROM items WHERE id = %s", fresh - chance.randint(1, 9))
    else:
        hand.run("UPDATE items SET id = %s WHERE id = %s", -fresh, fresh - 1)
