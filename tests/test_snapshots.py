"""Whole tables on request: exact to the row, whatever happens meanwhile (contract, section 5)."""

from __future__ import annotations

from typing import Any

import pytest

from actors.tools.embedded_nats import NatsServer
from tests.conftest import MakeBridge
from tests.servers import Database, read_messages
from tests.snapshots import ask, replica, snapshots, take, wait_for_snapshots

USERS = """
CREATE TABLE users (id bigint PRIMARY KEY, name text, email text, age int, price numeric, created_at timestamptz);
CREATE PUBLICATION cdc_pub FOR TABLE users;
INSERT INTO users SELECT g, 'User-' || g, 'user' || g || '@example.com', g % 90, g * 1.5, '2026-01-02 03:04:05.678+00'
  FROM generate_series(1, 25000) g;
"""


def test_a_table_comes_whole_and_typed(database: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    database.execute(USERS)
    make_bridge(database, nats)
    snapshot = take(nats.url, "users")
    assert snapshot.error is None
    assert snapshot.meta is not None
    start, meta = snapshot.start, snapshot.meta
    assert start["columns"] == [
        {"name": "id", "type": "bigint", "pk": True},
        {"name": "name", "type": "text", "pk": False},
        {"name": "email", "type": "text", "pk": False},
        {"name": "age", "type": "integer", "pk": False},
        {"name": "price", "type": "numeric", "pk": False},
        {"name": "created_at", "type": "timestamp with time zone", "pk": False},
    ]
    assert (start["table"], start["schema"], start["status"], start["format"]) == ("users", "public", "starting", "map")
    assert start["compression_enabled"] is False
    high, low = start["lsn"].split("/")
    assert (int(high, 16) << 32) + int(low, 16) == start["snapshot_lsn"]
    assert (meta["row_count"], meta["batch_count"]) == (25000, len(snapshot.chunks))
    assert all(9000 < len(body["data"]) <= 10000 for body in snapshot.bodies[:-1]), "chunks are full"
    assert {r["id"]: r for r in snapshot.rows}[7] == {
        "id": 7, "name": "User-7", "email": "user7@example.com", "age": 7, "price": "10.5",
        "created_at": "2026-01-02T03:04:05.678Z",
    }  # fmt: skip
    assert len(replica(nats.url, snapshot, "users")) == 25000
