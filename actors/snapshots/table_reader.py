"""Reads a table as of its watermark: its description, and its rows block by block. On connections of its own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from psycopg import pq

from actors.clients.postgres.catalog import describe_relation
from actors.clients.postgres.connection import PgConnection, PostgresError
from actors.clients.postgres.locks import begin_locked
from actors.clients.postgres.publications import PublishedTable, published_table, with_row_filter
from actors.contract.publication import TableFacts
from actors.contract.table_schema import Description
from actors.errors import SourceUnavailable
from actors.settings.config import Config
from actors.snapshots.failures import TableChanged
from actors.snapshots.standby import caught_up, standby_watermark
from actors.snapshots.watermark import Watermark, check_horizon, take_watermark
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
    pk: frozenset[str]
    """Names of the primary key's columns."""
    version: str
    """How the table is published as of the watermark."""
    description: Description
    watermark: Watermark
    rows_expected: int
    """From PostgreSQL's statistics."""
    has_toast: bool
    """Some rows are, or were, wider than a page."""
    source: str
    """The table's published rows, as what follows FROM in SQL."""
    _select: str
    block_rows: int
    """Rows per result: few where they are wide."""
    published: PublishedTable
    """The table with its row filter in SQL."""
    columns: str
    """The published columns, as what follows SELECT in SQL."""

    @property
    def to_utf8(self) -> Callable[[bytes], bytes] | None:
        """Converts a value's text, where PostgreSQL does not."""
        encoding = self.connection.encoding
        return encoding.to_utf8 if encoding.keeps_bytes else None

    def blocks(self) -> AsyncGenerator[pq.abc.PGresult]:
        """Yield the rows as libpq results of some rows each. Raises PostgresError or SourceUnavailable."""
        return self.connection.blocks(self._select, self.block_rows)


async def small_relations(connection: PgConnection, oids: Sequence[int], *, bytes_max: int) -> list[int]:
    """Return which of these tables are not larger than that, without waiting for a lock: a locked one is in none's way."""
    found: list[int] = []
    await connection.query("SET lock_timeout = '200ms'")
    for oid in oids[:100]:
        try:
            ((size,),) = await connection.query(
                "SELECT sum(pg_table_size(t.relid)) FROM (SELECT $1::oid::regclass AS relid UNION"
                " SELECT relid FROM pg_partition_tree($1::oid)) t",
                (oid,),
            )
        except (PostgresError, SourceUnavailable) as exc:
            if isinstance(exc, SourceUnavailable) and exc.code != "WB118":
                raise
            continue
        if size is not None and int(size) <= bytes_max:
            found.append(oid)
    return found


VersionOf = Callable[[TableFacts], tuple[str, int] | None]
"""Returns the version of a table as a transaction sees it, and the version's horizon; None if readers do not know it yet."""


@asynccontextmanager
async def open_table(
    config: Config, published: PublishedTable, version_of: VersionOf, *, payload_max: int
) -> AsyncGenerator[OpenTable]:
    """Lock a table against changes of its shape, take the watermark and open the table for reading; clean up afterwards.

    On the standby that snapshots are to be read from, if there is one.

    The order matters: after a rewriting ALTER TABLE between watermark and lock the table would look empty, and a description
    older than the snapshot could describe another shape. What is published is read as of the snapshot, too.

    Raises TableChanged when the table is another one by now, or is published in a version that was not told yet; NoWatermark
    while a transaction is open that began to write before the table was published as it is; PostgresError when the role may not
    read the table or the table is gone; SourceUnavailable when PostgreSQL is away or the lock is not granted.
    """
    connection = await PgConnection.connect(config.standby or config.postgres, application_name="walbridge snapshot")
    finished, holder = False, None
    try:
        # libpq's buffer keeps the size of the largest message so far; a larger buffer makes fewer, larger reads
        await connection.query("SELECT repeat('x', 1000000)")
        if config.standby is not None:
            await caught_up(config.postgres, connection)
        try:
            holder = await begin_locked(connection, [published], timeout_s=LOCK_TIMEOUT_S)
        except PostgresError as exc:
            if exc.sqlstate in ("42P01", "3F000", "42703"):  # no such table, schema or column since the look
                raise TableChanged from exc
            raise
        if config.standby is None:
            watermark = await take_watermark(connection)
        else:
            watermark = await standby_watermark(config.postgres, connection)
        publication = config.source.publication
        found = await published_table(connection, publication, published.relation_oid)
        known = version_of(found.facts) if found is not None and found.token == published.token else None
        if found is None or known is None:
            raise TableChanged
        version, horizon = known
        relation = found.relation
        if not relation.columns:
            raise PostgresError("42703", f"table {found.schema}.{found.name} has no column that is published")
        await check_horizon(connection, horizon)
        published = await with_row_filter(connection, publication, found)
        description = await describe_relation(connection, relation)
        ((expected, size, out_of_line),) = await connection.query(
            "SELECT coalesce(sum(greatest(reltuples, 0)), 0)::bigint, coalesce(sum(relpages), 0)::bigint * 8192,"
            " coalesce(bool_or(reltoastrelid <> 0 AND pg_relation_size(reltoastrelid) > 0), false) FROM pg_class WHERE oid IN"
            " (SELECT $1::oid UNION SELECT relid FROM pg_partition_tree($1::oid))",
            (published.relation_oid,),
        )
        columns = ", ".join(quoted(column.name) for column in relation.columns)
        width = max(16, int(size or 0) // max(1, int(expected or 0)))
        block_rows = max(1, min(BLOCK_ROWS_MAX, payload_max // BLOCKS_A_CHUNK // width))
        if out_of_line == "t":  # some rows may be as large as a message, or larger
            block_rows = max(1, min(block_rows, WIDE_BLOCK_BYTES // payload_max))
        source = f"{published.own}{published.where}"
        select = f"SELECT {columns} FROM {source}"
        yield OpenTable(
            connection, relation, found.pk, version, description, watermark, int(expected or 0), out_of_line == "t", source,
            select, block_rows, published, columns,
        )  # fmt: skip
        finished = True
    finally:
        if holder is not None:
            holder.close()
        if finished:
            connection.close()
        else:  # a query may still run: stop it on the server
            await connection.abandon()
