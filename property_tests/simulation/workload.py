"""Applications: transactions over several tables, side by side, some of them rolled back."""

from __future__ import annotations

import random
from itertools import count

import trio

from property_tests.simulation.plan import STORM_S
from property_tests.simulation.postgres.server import Postgres, Writer
from property_tests.simulation.postgres.tables import TOASTED_FROM, Column, Database, Row, Table

WRITERS = 3
KEYS = 12


class Workload:
    """Writes until it has made its transactions or is stopped."""

    def __init__(self, postgres: Postgres, seed: int, transactions: int) -> None:
        self._postgres, self._dice = postgres, random.Random(f"workload {seed}")
        self._left, self._numbers = transactions, count(1)
        self._locked: dict[tuple[int, bytes], Writer] = {}
        self._pause_s = STORM_S / max(1, transactions) * WRITERS
        self.stopped = False

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(WRITERS):
                nursery.start_soon(self._write)

    async def _write(self) -> None:
        dice = self._dice
        while self._left > 0 and not self.stopped:
            await trio.sleep(dice.expovariate(1 / self._pause_s))
            if self._postgres.is_up and not self.stopped:
                self._left -= 1
                await self.transaction()

    async def transaction(self) -> None:
        """One transaction of some changes."""
        postgres, dice = self._postgres, self._dice
        if not postgres.is_up:
            return
        writer = postgres.begin()
        hurry = dice.random() < 0.6
        pause_s = 0.0 if hurry else dice.choice((0.01, 0.1, 1.5))
        for _ in range(dice.choice((1, 1, 2, 3, 8))):
            if pause_s:
                await trio.sleep(pause_s * dice.random())
            if writer not in postgres.writers:
                return  # the server has gone down
            self._change(writer)
        if dice.random() < 0.1:
            postgres.roll_back(writer)
        else:
            postgres.commit(writer)

    async def slow_transaction(self, table_oid: int, seconds: float) -> None:
        """Change some rows of one table, and commit much later."""
        postgres = self._postgres
        writer = postgres.begin()
        for _ in range(3):
            if table_oid in postgres.database.tables:
                self._change(writer, postgres.database.tables[table_oid])
        await trio.sleep(seconds)
        if writer in postgres.writers:
            postgres.commit(writer)

    def touched(self, table: Table) -> bool:
        """Whether an open transaction has written to a table, so that nobody may alter it."""
        return any(change.table_oid == table.oid for writer in self._postgres.writers for change in writer.changes)

    def _change(self, writer: Writer, only: Table | None = None) -> None:
        postgres, dice = self._postgres, self._dice
        tables = sorted(postgres.database.tables.values(), key=lambda table: table.oid)
        if not tables:
            return
        table = only or dice.choice(tables)
        if any(table.oid in session.locked for session in postgres.sessions) and dice.random() < 0.5:
            return
        seen = self._seen_by(writer, postgres.database)
        rows = seen.rows[table.oid]
        if dice.random() < 0.02 and not any(oid == table.oid for oid, _ in self._held()):
            postgres.change(writer, table, None, None)
            self._locked |= {(table.oid, b"%d" % key): writer for key in range(2 * KEYS)}
            return
        key = b"%d" % dice.randrange(KEYS)
        if self._held().get((table.oid, key), writer) is not writer:
            return
        old = rows.get(key)
        self._locked[table.oid, key] = writer
        if old is None:
            postgres.change(writer, table, None, self._row(table, key, None))
        elif dice.random() < 0.25:
            postgres.change(writer, table, old, None)
        else:
            moved = b"%d" % (int(key) + KEYS)
            rekeyed = dice.random() < 0.1 and moved not in rows and (table.oid, moved) not in self._held()
            if rekeyed:
                self._locked[table.oid, moved] = writer
            postgres.change(writer, table, old, self._row(table, moved if rekeyed else key, old))

    def _held(self) -> dict[tuple[int, bytes], Writer]:
        """Rows that open transactions have written."""
        self._locked = {one: writer for one, writer in self._locked.items() if writer in self._postgres.writers}
        return self._locked

    def _seen_by(self, writer: Writer, database: Database) -> Database:
        found = database.copy()
        for change in writer.changes:
            change.apply(found)
        return found

    def _row(self, table: Table, key: bytes, old: Row | None) -> Row:
        dice = self._dice

        def value(column: Column) -> bytes | None:
            number = next(self._numbers)
            if column.name == "id":
                return key
            if column.name == "big":
                before = None if old is None else old.get("big")
                if before is not None and dice.random() < 0.7:
                    return before
                return b"%d " % number + b"x" * dice.choice((5, TOASTED_FROM, 3 * TOASTED_FROM))
            if dice.random() < 0.1:
                return None
            return b"%d" % number if column.type_oid != 25 else b"text %d" % number

        return {column.name: value(column) for column in table.columns}
