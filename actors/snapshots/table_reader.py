"""Reads a table as of its watermark: its description, and its rows block by block. On connections of its own."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from psycopg import pq

from actors.clients.postgres.catalog import (
    PublishedTable,
    describe_columns,
    describe_relation,
    published_relation,
    table_version,
)
from actors.clients.postgres.connection import PgConnection, PostgresError
from actors.contract.table_schema import Description, matching_catalog
from actors.settings.config import PostgresConfig
from actors.snapshots.failures import TableChanged
from actors.snapshots.watermark import Watermark, take_watermark
from actors.wire.pgoutput import Relation
from actors.wire.sql_names import quoted

LOCK_TIMEOUT_S = 30.0
BLOCK_ROWS_MAX = 300
BLOCKS_A_CHUNK = 10
WIDE_BLOCK_BYTES = 8 * 1024 * 1024
"""Memory for one block of a table with wide rows, if each row is as large as a message may be."""


@dataclass(frozen=True, slots=True)
class OpenTable:
    """A table in an open transaction that sees it as of the watermark."""

    connection: PgConnection
    relation: Relation
    description: Description
    watermark: Watermark
    rows_expected: int
    """From PostgreSQL's statistics."""
    source: str
    """The table's published rows, as what follows FROM in SQL."""
    _select: str
    _block_rows: int

    @property
    def pk(self) -> frozenset[str]:
        """Names of the primary key's columns."""
        catalog = matching_catalog(self.relation, self.description.catalog) or {}
        return frozenset(name for name, column in catalog.items() if column.is_pk)

    def blocks(self) -> AsyncGenerator[pq.abc.PGresult]:
        """Yield the rows as libpq results of some rows each. Raises PostgresError or SourceUnavailable."""
        return self.connection.blocks(self._select, self._block_rows)


@asynccontextmanager
async def open_table(
    config: PostgresConfig, publication: str, published: PublishedTable, *, payload_max: int
) -> AsyncGenerator[OpenTable]:
    """Lock a table against changes of its shape, take the watermark and open the table for reading; clean up afterwards.

    The order matters: after a rewriting ALTER TABLE between watermark and lock the table would look empty, and a description
    older than the snapshot could describe another shape. Raises TableChanged when `published` is outdated, PostgresError when
    the role may not read the table or the table is gone, SourceUnavailable when PostgreSQL is away or the lock is not granted.
    """
    connection = await PgConnection.connect(config, application_name="walbridge snapshot")
    finished = False
    try:
        # libpq's buffer keeps the size of the largest message so far; a larger buffer makes fewer, larger reads
        await connection.query("SELECT repeat('x', 1000000)")
        await connection.query(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL row_security = off;"
            f" SET LOCAL lock_timeout = {int(LOCK_TIMEOUT_S * 1000)}; LOCK TABLE {published.own} IN ACCESS SHARE MODE",
            timeout_s=LOCK_TIMEOUT_S + 5,
        )
        watermark = await take_watermark(config, connection)
        if await table_version(connection, publication, published.relation_oid) != published.version:
            raise TableChanged
        relation = published_relation(published, await describe_columns(connection, published.relation_oid))
        if not relation.columns:
            raise PostgresError("42P01", f"table {published.schema}.{published.name} was dropped or created again")
        description = await describe_relation(connection, relation)
        ((expected, size),) = await connection.query(
            "SELECT coalesce(sum(greatest(reltuples, 0)), 0)::bigint, coalesce(sum(relpages), 0)::bigint * 8192 FROM pg_class"
            " WHERE oid IN"
            " (SELECT $1::oid UNION SELECT relid FROM pg_partition_tree($1::oid))",
            (published.relation_oid,),
        )
        columns = ", ".join(quoted(column.name) for column in relation.columns)
        width = max(16, int(size or 0) // max(1, int(expected or 0)))
        block_rows = max(1, min(BLOCK_ROWS_MAX, payload_max // BLOCKS_A_CHUNK // width))
        if published.has_toast:  # some rows may be as large as a message, or larger
            block_rows = max(1, min(block_rows, WIDE_BLOCK_BYTES // payload_max))
        source = f"{published.own}{published.where}"
        select = f"SELECT {columns} FROM {source}"
        yield OpenTable(connection, relation, description, watermark, int(expected or 0), source, select, block_rows)
        finished = True
    finally:
        if finished:
            connection.close()
        else:  # a query may still run: stop it on the server
            await connection.abandon()
