"""Changes of every kind on users and orders, for `walbridge produce mixed`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import psycopg

from actors.sample.rows import SampleRows

KEYS_MAX = 5_000
"""Keys remembered per table: updates and deletes hit recent rows, as they do in practice."""
ROLLBACK_SHARE = 0.05
CHANGES_MAX = 10
"""Per transaction."""


@dataclass(slots=True)
class Counts:
    """What was committed, and what was not."""

    inserted: int = 0
    updated: int = 0
    key_changes: int = 0
    deleted: int = 0
    transactions: int = 0
    rolled_back: int = 0
    """Transactions that were rolled back: on purpose, or because of a conflict with another writer."""
    undone: int = 0
    """Changes in those."""
    stopped: bool = False
    """Whether Ctrl-C ended the load early."""

    @property
    def changes(self) -> int:
        """Rows that were changed, without rows deleted by a cascade."""
        return self.inserted + self.updated + self.key_changes + self.deleted

    def as_dict(self) -> dict[str, object]:
        """The counts for a JSON report."""
        return asdict(self)

    def __str__(self) -> str:
        words = {
            "inserted": self.inserted, "updated": self.updated, "keys changed": self.key_changes, "deleted": self.deleted,
            "transactions": self.transactions, "rolled back": self.rolled_back,
        }  # fmt: skip
        shown = ", ".join(f"{number:,} {name}" for name, number in words.items() if number or name == "inserted")
        return shown + (", stopped" if self.stopped else "")

    def add(self, other: Counts) -> None:
        """Add what one transaction changed."""
        self.inserted += other.inserted
        self.updated += other.updated
        self.key_changes += other.key_changes
        self.deleted += other.deleted


class MixedLoad:
    """Runs transactions of one to ten changes on a connection in autocommit mode, and counts them in `counts`.

    Other writers are tolerated: a row that is gone is skipped, and a transaction that conflicts is rolled back.
    """

    def __init__(self, connection: psycopg.Connection[tuple[Any, ...]], samples: SampleRows, counts: Counts) -> None:
        self._connection, self._samples, self._counts = connection, samples, counts
        self._pick = samples.random
        self._users = self._keys("users")
        self._orders = self._keys("orders")
        self._steps: dict[Callable[[Counts], None], int] = {
            self._insert_user: 25, self._insert_order: 30, self._update_user: 15, self._update_order: 12,
            self._change_key_of_user: 3, self._change_key_of_order: 3, self._delete_order: 9, self._delete_user: 3,
        }  # fmt: skip

    def transaction(self) -> None:
        """Run one transaction, committed or rolled back."""
        users, orders, done = list(self._users), list(self._orders), Counts()
        undo = self._pick.random() < ROLLBACK_SHARE
        committed = False
        try:
            with self._connection.transaction(force_rollback=undo):
                for step in self._pick.choices(list(self._steps), list(self._steps.values()), k=self._changes()):
                    step(done)
            committed = not undo
        except (psycopg.errors.ForeignKeyViolation, psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure):
            pass
        if committed:
            self._counts.add(done)
            self._counts.transactions += 1
            del self._users[:-KEYS_MAX], self._orders[:-KEYS_MAX]
        else:
            self._users, self._orders = users, orders
            self._counts.rolled_back += 1
            self._counts.undone += max(done.changes, 1)

    def _changes(self) -> int:
        return 1 if self._pick.random() < 0.5 else self._pick.randint(2, CHANGES_MAX)

    def _keys(self, table: str) -> list[int]:
        rows = self._connection.execute(f"SELECT id FROM public.{table} ORDER BY id DESC LIMIT {KEYS_MAX}".encode())
        return [key for (key,) in rows][::-1]

    def _returned(self, statement: str, *params: object) -> int | None:
        """The key that the statement returns; None without such a row."""
        row = self._connection.execute(statement.encode(), params).fetchone()
        return None if row is None else int(row[0])

    def _insert_user(self, done: Counts) -> None:
        key = self._returned(
            "INSERT INTO public.users (name, email, age, price, created_at) VALUES (%s, %s, %s, %s, %s) RETURNING id",
            *self._samples.user(),
        )
        assert key is not None
        self._users.append(key)
        done.inserted += 1

    def _insert_order(self, done: Counts) -> None:
        if not self._users:
            return self._insert_user(done)
        user_id, *rest = self._samples.order(self._pick.choice(self._users))
        key = self._returned(
            "INSERT INTO public.orders (user_id, total, status, created_at)"
            " SELECT id, %s, %s, %s FROM public.users WHERE id = %s RETURNING id",
            *rest, user_id,
        )  # fmt: skip
        if key is not None:
            self._orders.append(key)
            done.inserted += 1
        return None

    def _update_user(self, done: Counts) -> None:
        if self._users:
            _, email, age, price, _ = self._samples.user()
            key = self._pick.choice(self._users)
            statement = "UPDATE public.users SET email = %s, age = %s, price = %s WHERE id = %s RETURNING id"
            done.updated += self._returned(statement, email, age, price, key) is not None

    def _update_order(self, done: Counts) -> None:
        if self._orders:
            _, total, status, _ = self._samples.order(0)
            key = self._pick.choice(self._orders)
            statement = "UPDATE public.orders SET total = %s, status = %s WHERE id = %s RETURNING id"
            done.updated += self._returned(statement, total, status, key) is not None

    def _change_key_of_user(self, done: Counts) -> None:
        # a user with orders keeps its key: the orders refer to it
        self._change_key("users", self._users, " AND NOT EXISTS (SELECT FROM public.orders WHERE user_id = users.id)", done)

    def _change_key_of_order(self, done: Counts) -> None:
        self._change_key("orders", self._orders, "", done)

    def _change_key(self, table: str, keys: list[int], condition: str, done: Counts) -> None:
        if keys:
            place = self._pick.randrange(len(keys))
            sequence = f"nextval(pg_get_serial_sequence('public.{table}', 'id'))"
            statement = f"UPDATE public.{table} SET id = {sequence} WHERE id = %s{condition} RETURNING id"
            key = self._returned(statement, keys[place])
            if key is not None:
                keys[place] = key
                done.key_changes += 1

    def _delete_order(self, done: Counts) -> None:
        if self._orders:
            key = self._orders.pop(self._pick.randrange(len(self._orders)))
            done.deleted += self._returned("DELETE FROM public.orders WHERE id = %s RETURNING id", key) is not None

    def _delete_user(self, done: Counts) -> None:
        if self._users:
            key = self._users.pop(self._pick.randrange(len(self._users)))
            done.deleted += self._returned("DELETE FROM public.users WHERE id = %s RETURNING id", key) is not None
