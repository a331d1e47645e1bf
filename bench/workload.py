"""What is written to PostgreSQL: a backlog in a slot, or transactions at a steady rate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import LiteralString

from bench.servers import Servers

PUBLICATION = "cdc_pub"
CONNECTIONS = 4

# The loops run in the server: a client that sends 5,000 statements a second would take a core from what is measured.
SCHEMA = f"""
CREATE TABLE bench (id bigint PRIMARY KEY, name text, email text, age int, price numeric, created_at timestamptz);
CREATE TABLE bench_big (LIKE bench INCLUDING ALL);
CREATE PUBLICATION {PUBLICATION} FOR TABLE bench, bench_big;

CREATE PROCEDURE fill(total bigint, rows_per_transaction int) LANGUAGE plpgsql AS $$
DECLARE first bigint := 1;
BEGIN
  WHILE first <= total LOOP
    INSERT INTO bench
      SELECT i, 'customer ' || i, 'customer' || i || '@example.org', i % 90, (i % 100000) / 100.0, clock_timestamp()
      FROM generate_series(first, least(first + rows_per_transaction - 1, total)) AS i;
    COMMIT;
    first := first + rows_per_transaction;
  END LOOP;
END $$;

CREATE PROCEDURE pace(first bigint, transactions int, per_second float8) LANGUAGE plpgsql AS $$
DECLARE began timestamptz := clock_timestamp(); ahead_s float8; i bigint;
BEGIN
  FOR n IN 0 .. transactions - 1 LOOP
    ahead_s := n / per_second - extract(epoch FROM clock_timestamp() - began);
    IF ahead_s > 0 THEN PERFORM pg_sleep(ahead_s); END IF;
    i := first + n;
    INSERT INTO bench VALUES
      (i, 'customer ' || i, 'customer' || i || '@example.org', i % 90, (i % 100000) / 100.0, clock_timestamp());
    COMMIT;
  END LOOP;
END $$;
"""


@dataclass(frozen=True, slots=True)
class Backlog:
    """Committed rows that nobody has read yet."""

    slot: str
    """To be copied for each reader, never read itself."""
    rows: int
    rows_per_transaction: int
    end_lsn: str
    """Where its last transaction ends, as PostgreSQL writes it."""


def create_schema(servers: Servers) -> None:
    """The table, its publication and the procedures of the load."""
    with servers.connect() as connection:
        connection.execute(SCHEMA.encode())


@contextmanager
def backlog(servers: Servers, rows: int, rows_per_transaction: int) -> Iterator[Backlog]:
    """Write a backlog behind a new slot, which is dropped at the end."""
    empty_table(servers)
    fill = ("CALL fill(%s, %s)", (rows, rows_per_transaction))
    with written_behind_slot(servers, *fill, events=rows, each=rows_per_transaction) as written:
        yield written


@contextmanager
def written_behind_slot(
    servers: Servers, call: LiteralString, arguments: Sequence[object], *, events: int, each: int
) -> Iterator[Backlog]:
    """Call what writes `events` row changes, `each` per transaction, behind a new slot, which is dropped at the end."""
    with servers.new_slot() as slot:
        with servers.connect() as connection:
            connection.execute("SET synchronous_commit = off")
            connection.execute(call, arguments)
            row = connection.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
            connection.execute("CHECKPOINT")  # write and flush now, not while it is being read
        assert row is not None
        yield Backlog(slot, events, each, row[0])


def empty_table(servers: Servers) -> None:
    """Make room for another load of the same ids."""
    with servers.connect() as connection:
        connection.execute("TRUNCATE bench")
        connection.execute("CHECKPOINT")


def commit_at_rate(servers: Servers, per_second: int, seconds: int) -> None:
    """Commit transactions of one row at a steady rate over several connections; returns when all are committed.

    Synchronous commits: with synchronous_commit=off PostgreSQL would hold the WAL back for up to 0.6 s.
    """

    def one(number: int) -> None:
        share = per_second / CONNECTIONS
        with servers.connect() as connection:
            first = 1 + number * 1_000_000_000
            connection.execute("CALL pace(%s, %s, %s)", [first, round(share * seconds), share])

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(one, range(CONNECTIONS)))


def rows_at_rate(per_second: int, seconds: int) -> int:
    """How many rows `commit_at_rate` writes."""
    return CONNECTIONS * round(per_second / CONNECTIONS * seconds)
