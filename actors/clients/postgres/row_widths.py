"""How wide the rows of a table are, found without reading large values: PostgreSQL knows their sizes from the table alone."""

from __future__ import annotations

from actors.clients.postgres.connection import PgConnection
from actors.clients.postgres.publications import PublishedTable
from actors.wire.pgoutput import Column
from actors.wire.sql_names import quoted

PAGES_MAX = 4_000
"""Pages of 8 kB that are read of a large table."""
CANDIDATES = 20
"""Rows that take the most room as stored: only their values are decompressed."""
_SMALL_BYTES = 30
"""About what any other column adds to a message, its name included."""
_RAW_SIZE_KNOWN = {17, 25, 1042, 1043}
"""bytea, text, char and varchar: octet_length reads the size alone, of compressed values too."""


async def widest_row(connection: PgConnection, table: PublishedTable) -> int:
    """Return about how many bytes the widest of the rows takes in a message; 0 if no column can be large.

    Of a large table a sample is looked at. Raises PostgresError when the table may not be read.
    """
    large = [column for column in table.relation.columns if column.name in table.toasted]
    if not large:
        return 0
    ((pages,),) = await connection.query(
        "SELECT coalesce(sum(greatest(relpages, 0)), 0)::bigint FROM pg_class WHERE oid = $1::oid OR oid IN"
        " (SELECT relid FROM pg_partition_tree($1::oid))",
        (table.relation_oid,),
    )
    percent = 100 * PAGES_MAX / max(int(pages or 0), 1)
    sampled = f" TABLESAMPLE SYSTEM ({percent:.9f})" if percent < 100 else ""
    columns = ", ".join(quoted(column.name) for column in large)
    ((size,),) = await connection.query(
        f"SELECT max({_sum(large, as_stored=False)}) FROM (SELECT {columns} FROM {table.own}{sampled}"
        f" ORDER BY {_sum(large, as_stored=True)} DESC LIMIT {CANDIDATES}) AS widest"
    )
    rest = _SMALL_BYTES * len(table.relation.columns)
    copies = 2 if table.replica_identity == "f" else 1  # an UPDATE brings the old row too
    return (int(size) + rest) * copies if size is not None else 0


def _sum(columns: list[Column], *, as_stored: bool) -> str:
    return " + ".join(f"coalesce({_size(column, as_stored=as_stored)}, 0)::bigint" for column in columns)


def _size(column: Column, *, as_stored: bool) -> str:
    name = quoted(column.name)
    if column.type_oid in _RAW_SIZE_KNOWN:
        return f"octet_length({name})"
    return f"pg_column_size({name})" if as_stored else f"octet_length({name}::text)"
