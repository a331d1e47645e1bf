"""Writers that do to a database what applications do, and the oracle that sees all of it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from tests.oracle import WalOracle
from tests.servers import Database

LEDGER = """
CREATE TABLE ledger (id bigserial PRIMARY KEY, worker int, txn int, payload text);
CREATE TABLE side (id int PRIMARY KEY, hits int);
INSERT INTO side SELECT g, 0 FROM generate_series(1, 20) g;
CREATE PUBLICATION cdc_pub FOR TABLE ledger, side;
"""


class Load:
    """Writers that commit small and large transactions, roll some back, and survive the server's restarts."""

    def __init__(self, database: Database, workers: int = 3) -> None:
        self._database, self._stop = database, threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(n,), daemon=True) for n in range(workers)]
        self.committed = 0

    def _write(self, worker: int) -> None:
        dice = random.Random(worker)
        txn = 0
        while not self._stop.is_set():
            try:
                with self._database.connect() as connection:
                    while not self._stop.is_set():
                        txn += 1
                        self._transaction(connection, dice, worker, txn)
            except psycopg.Error:
                time.sleep(0.05)

    def _transaction(self, connection: psycopg.Connection, dice: random.Random, worker: int, txn: int) -> None:
        rows = dice.choice((1, 1, 1, 5, 40))
        with connection.transaction(force_rollback=dice.random() < 0.1):
            connection.execute(
                "INSERT INTO ledger (worker, txn, payload) SELECT %s, %s, repeat('x', %s) FROM generate_series(1, %s)",
                (worker, txn, dice.randrange(200), rows),
            )
            if dice.random() < 0.3:
                connection.execute("UPDATE side SET hits = hits + 1 WHERE id = %s", (dice.randrange(1, 21),))
            if dice.random() < 0.1:
                connection.execute("DELETE FROM ledger WHERE worker = %s AND txn = %s", (worker, txn - 1))
        self.committed += 1

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@contextmanager
def ledger(database: Database) -> Iterator[WalOracle]:
    database.execute(LEDGER)
    yield WalOracle(database)
