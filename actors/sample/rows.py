"""Rows for the sample tables users, orders and test_types: invented, with the shape and spread of real rows."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta

_FIRST = (
    "Ada Alan Amelia Anders Barbara Bjarne Carlos Chen Dennis Donald Edsger Elif Fatima Frances Grace Guido Hedy Ingrid Ivan "
    "Jean Joan John José Katherine Ken Kofi Lena Leslie Linus Margaret María Mei Noor Olga Priya Radia Sofia Tim Yuki Zoë"
).split()
_LAST = (
    "Allen Andersson Bartik Berners-Lee Cerf Diaz Dijkstra García Hamilton Hoare Hopper Ito Ivanov Johnson Kowalski Lamarr "
    "Lamport Liskov Lovelace Müller Mensah Nguyen Nowak Okafor Patel Perlman Ritchie Rossi Silva Smith Thompson Turing Young"
).split()
_HOSTS = ("example.com", "example.com", "example.org", "example.net", "mail.example.com", "shop.example.co.uk")
_STATUS = ("new", "new", "paid", "paid", "paid", "packed", "shipped", "shipped", "returned", "cancelled")
_WORDS = (
    "amber anchor arrow basket beacon cedar circle copper delta ember field forest garden harbor island kettle lantern maple "
    "meadow needle ocean pebble quarry ribbon river saddle silver table timber umbrella valley willow window winter"
).split()
_DEVICES = ("web", "ios", "android", "api")

Row = tuple[object, ...]
_SINCE = datetime(2024, 1, 1, tzinfo=UTC)

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "users": ("name", "email", "age", "price", "created_at"),
    "orders": ("user_id", "total", "status", "created_at"),
    "test_types": (
        "uid", "age", "temperature", "price", "is_true", "some_text", "tags", "matrix", "metadata", "created_at"
    ),
}  # fmt: skip
"""Columns that rows have a value for; the id comes from its sequence."""


class SampleRows:
    """Makes rows without end; the same `seed` makes the same rows."""

    def __init__(self, seed: int | None = None) -> None:
        self.random = random.Random(seed)

    def rows(self, table: str, user_ids: Sequence[int] = ()) -> Iterator[Row]:
        """Rows of one of the tables. Orders belong to the given users."""
        make: dict[str, Callable[[], Row]] = {
            "users": self.user,
            "orders": lambda: self.order(self.random.choice(user_ids)),
            "test_types": self.test_type,
        }
        while True:
            yield make[table]()

    def user(self) -> Row:
        """name, email, age, price, created_at."""
        pick = self.random
        first, last = pick.choice(_FIRST), pick.choice(_LAST)
        email = f"{first}.{last}{pick.randrange(1000)}@{pick.choice(_HOSTS)}".lower() if pick.random() < 0.9 else None
        age = pick.randint(18, 90) if pick.random() < 0.8 else None
        price = f"{pick.lognormvariate(4, 1.2):.2f}" if pick.random() < 0.7 else None
        return f"{first} {last}", email, age, price, self.time()

    def order(self, user_id: int) -> Row:
        """user_id, total, status, created_at."""
        pick = self.random
        return user_id, f"{pick.lognormvariate(4, 1):.2f}", pick.choice(_STATUS), self.time()

    def test_type(self) -> Row:
        """uid, age, temperature, price, is_true, some_text, tags, matrix, metadata, created_at."""
        pick = self.random
        metadata = {
            "device": {
                "kind": pick.choice(_DEVICES),
                "version": f"{pick.randint(1, 9)}.{pick.randrange(20)}.{pick.randrange(10)}",
            },
            "tags": self.words(pick.randrange(4)),
            "score": round(pick.gauss(50, 15), 3),
            "active": pick.random() < 0.7,
            "visits": pick.randrange(1000),
            "note": " ".join(self.words(pick.randrange(1, 12))) if pick.random() < 0.5 else None,
        }
        return (
            uuid.UUID(int=pick.getrandbits(128), version=4), pick.randint(0, 120), round(pick.gauss(20, 8), 2),
            f"{pick.uniform(0, 10_000):.4f}", pick.random() < 0.5, " ".join(self.words(pick.randrange(2, 16))),
            self.words(pick.randrange(5)), [[pick.randrange(100) for _ in range(3)] for _ in range(2)], json.dumps(metadata),
            self.time(),
        )  # fmt: skip

    def time(self) -> datetime:
        """Some moment of two years."""
        return _SINCE + timedelta(microseconds=self.random.randrange(2 * 365 * 86_400 * 1_000_000))

    def words(self, count: int) -> list[str]:
        """So many words."""
        return self.random.choices(_WORDS, k=count)
