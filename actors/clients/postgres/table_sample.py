"""Samples rows of a published table at random and in bounded memory, to train a compression dictionary."""

from __future__ import annotations

from dataclasses import dataclass

from actors.clients.postgres.catalog import describe_relation
from actors.clients.postgres.connection import PgConnection, PostgresError
from actors.clients.postgres.publications import PublishedTable
from actors.contract.table_schema import Description
from actors.wire.pgoutput import Relation
from actors.wire.sql_names import quoted

PAGES_MAX = 4_000
"""Pages of 8 kB that are read of a large table."""
BLOCK_BYTES = 256 * 1024
BLOCK_ROWS_MAX = 500

Row = tuple[bytes | None, ...]
"""PostgreSQL's text of each column, None for NULL."""


@dataclass(frozen=True, slots=True)
class TableSample:
    """Rows of a table as its events would carry them: the publication's columns, filtered by its row filter."""

    relation: Relation
    """With the columns of the replica identity marked, as a Relation message has them."""
    description: Description
    rows: list[Row]
    rows_expected: int
    """Of the complete table, from PostgreSQL's statistics; 0 without statistics."""
    wal_lsn: int
    """Where the WAL ends; like `next_xid`, a number of the size that events will have."""
    next_xid: int


async def sample_table(connection: PgConnection, published: PublishedTable, *, rows_max: int, bytes_max: int) -> TableSample:
    """Take up to `rows_max` rows and `bytes_max` bytes of text. Raises PostgresError when the table may not be read.

    TABLESAMPLE chooses some blocks of a large table, and a random order some of their rows: neither side holds more in memory
    than the sample.
    """
    relation = published.relation
    if not relation.columns:
        raise PostgresError("42703", f"table {published.schema}.{published.name} has no column that is published")
    description = await describe_relation(connection, relation)
    ((tuples, pages),) = await connection.query(
        "SELECT coalesce(sum(greatest(reltuples, 0)), 0)::bigint, coalesce(sum(pg_relation_size(oid)), 0)::bigint / 8192"
        " FROM pg_class WHERE oid IN (SELECT $1::oid UNION SELECT relid FROM pg_partition_tree($1::oid))",
        (published.relation_oid,),
    )
    ((lsn, xid),) = await connection.query(
        "SELECT (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END - '0/0')::bigint,"
        " pg_snapshot_xmax(pg_current_snapshot())::text::bigint % 4294967296"
    )
    await connection.query(f"BEGIN READ ONLY; {_cursor(published, relation, int(pages or 0), rows_max)}")
    rows = await _fetch(connection, rows_max, bytes_max)
    await connection.query("ROLLBACK")
    return TableSample(relation, description, rows, int(tuples or 0), int(lsn or 0), int(xid or 0))


def _cursor(published: PublishedTable, relation: Relation, pages: int, rows_max: int) -> str:
    columns = ", ".join(quoted(column.name) for column in relation.columns)
    percent = 100 * PAGES_MAX / max(pages, 1)
    sampled = f" TABLESAMPLE SYSTEM ({percent:.9f})" if percent < 100 else ""
    return (
        f"DECLARE sample NO SCROLL CURSOR FOR SELECT {columns} FROM {published.own}{sampled}{published.where}"
        f" ORDER BY random() LIMIT {rows_max}"
    )


async def _fetch(connection: PgConnection, rows_max: int, bytes_max: int) -> list[Row]:
    """Fetch in blocks that stay small whatever the width of a row, since libpq holds a complete block."""
    found: list[Row] = []
    size, block = 0, 10
    while len(found) < rows_max and size < bytes_max:
        rows = await connection.query(f"FETCH {block} FROM sample")
        if not rows:
            break
        for row in rows:
            encoded = tuple(None if value is None else value.encode("utf-8", "surrogateescape") for value in row)
            found.append(encoded)
            size += sum(len(value) for value in encoded if value is not None)
        block = max(1, min(BLOCK_ROWS_MAX, BLOCK_BYTES // max(1, size // len(found))))
    return found
