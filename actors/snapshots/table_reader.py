"""A whole table at one LSN: the watermark, the description, and its rows a block at a time. On connections of its own.

The watermark is the consistent point of a temporary slot, whose exported snapshot the reading transaction takes: for an
ordinary snapshot there may be no LSN at all that divides what it sees from what it does not (a commit is in the WAL before
others see it). Making the slot waits for transactions that write; when that takes too long, `invisible transactions` of an
ordinary snapshot are held against what the replication stream has told instead (see `transaction_log`).

https://www.postgresql.org/docs/18/protocol-replication.html#PROTOCOL-REPLICATION-CREATE-REPLICATION-SLOT
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple

from psycopg import pq

from actors.clients.postgres.catalog import (
    PublishedTable,
    describe_columns,
    describe_relation,
    published_relation,
    table_version,
)
from actors.clients.postgres.connection import PgConnection, PostgresError
from actors.clients.postgres.slots import export_snapshot
from actors.contract.table_schema import Description, matching_catalog
from actors.errors import SourceUnavailable
from actors.positions import NO_LSN, Lsn, parse_lsn
from actors.settings.config import PostgresConfig
from actors.snapshots.transaction_log import XidSnapshot, parse_snapshot
from actors.wire.pgoutput import Relation
from actors.wire.sql_names import quoted

LOCK_TIMEOUT_S = 30.0
SLOT_TIMEOUT_S = 5.0
"""So long the exact watermark may wait for transactions that write; then the other way is taken."""
BLOCK_ROWS_MAX = 300
BLOCKS_A_CHUNK = 10
WIDE_BLOCK_BYTES = 8 * 1024 * 1024
"""Of a table with wide rows so much is held at a time, if each row is as large as a message may be."""


class TableChanged(Exception):
    """The table, or what is published of it, is not what it was when the publication was read."""


class Watermark(NamedTuple):
    """The exported snapshot's place in the WAL, or an ordinary snapshot whose place must be found."""

    lsn: Lsn | None
    """None: to be found with `xids`."""
    xids: XidSnapshot | None = None
    insert_lsn: Lsn = NO_LSN
    """Where the WAL ended after the ordinary snapshot was taken."""
    stalled_xids: frozenset[int] = frozenset()
    """Of commits that are in the WAL and wait, unseen, for a synchronous standby."""


@dataclass(frozen=True, slots=True)
class OpenTable:
    """A table in an open transaction that sees it as of the watermark."""

    connection: PgConnection
    relation: Relation
    description: Description
    watermark: Watermark
    rows_expected: int
    """By PostgreSQL's statistics."""
    _select: str
    _block_rows: int

    @property
    def pk(self) -> frozenset[str]:
        """Names of the primary key's columns."""
        catalog = matching_catalog(self.relation, self.description.catalog) or {}
        return frozenset(name for name, column in catalog.items() if column.is_pk)

    def blocks(self) -> AsyncGenerator[pq.abc.PGresult]:
        """The rows, in libpq's results of some rows each. Raises PostgresError or SourceUnavailable."""
        return self.connection.blocks(self._select, self._block_rows)


@asynccontextmanager
async def open_table(
    config: PostgresConfig, publication: str, published: PublishedTable, *, payload_max: int
) -> AsyncGenerator[OpenTable]:
    """Lock a table against changes of its shape, take the watermark and open it for reading; nothing is left afterwards.

    The order matters: a rewriting ALTER TABLE between the watermark and the lock would show an empty table, and a description
    that is older than the snapshot another table. Raises TableChanged when `published` is such a one, PostgresError when the
    role may not read the table or it is gone, SourceUnavailable when PostgreSQL is away or someone else holds the table.
    """
    connection = await PgConnection.connect(config, application_name="walbridge snapshot")
    finished = False
    try:
        # libpq's buffer keeps the size of the largest message it met, and a larger one makes fewer, larger reads
        await connection.query("SELECT repeat('x', 1000000)")
        await connection.query(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL row_security = off;"
            f" SET LOCAL lock_timeout = {int(LOCK_TIMEOUT_S * 1000)}; LOCK TABLE {published.own} IN ACCESS SHARE MODE",
            timeout_s=LOCK_TIMEOUT_S + 5,
        )
        watermark = await _take_watermark(config, connection)
        if await table_version(connection, publication, published.relation_oid) != published.version:
            raise TableChanged
        relation = published_relation(published, await describe_columns(connection, published.relation_oid))
        if not relation.columns:
            raise PostgresError("42P01", f"table {published.schema}.{published.name} was dropped or made anew")
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
        select = f"SELECT {columns} FROM {published.own}{published.where}"
        yield OpenTable(connection, relation, description, watermark, int(expected or 0), select, block_rows)
        finished = True
    finally:
        if finished:
            connection.close()
        else:  # a query may still run: the server must not go on with it
            await connection.abandon()


async def _take_watermark(config: PostgresConfig, connection: PgConnection) -> Watermark:
    replication = await PgConnection.connect(config, replication=True, application_name="walbridge snapshot")
    try:
        lsn, snapshot = await export_snapshot(replication, f"snap_{secrets.token_hex(6)}", timeout_s=SLOT_TIMEOUT_S)
        await connection.query(f"SET TRANSACTION SNAPSHOT '{snapshot}'")
        return Watermark(lsn)
    except (PostgresError, SourceUnavailable) as exc:
        # 53400 and 53300: no slot or sender is free; a time-out: somebody writes, and has not ended yet
        if isinstance(exc, PostgresError) and exc.sqlstate not in ("53400", "53300"):
            raise
    finally:
        replication.close()
    # the first query takes the snapshot; where the WAL ends and who waits is asked after it
    ((xids, insert_lsn),) = await connection.query("SELECT pg_current_snapshot(), pg_current_wal_insert_lsn()")
    stalled = await _stalled_commits(config)
    return Watermark(None, parse_snapshot(xids or ""), parse_lsn(insert_lsn or "0/0"), stalled)


async def _stalled_commits(config: PostgresConfig) -> frozenset[int]:
    """Commits that wait for a synchronous standby. Also writes to the WAL, so that the stream soon passes its present end."""
    connection = await PgConnection.connect(config, application_name="walbridge snapshot")
    try:
        ((synchronous, privileged),) = await connection.query(
            "SELECT current_setting('synchronous_standby_names') <> '', pg_has_role('pg_read_all_stats', 'USAGE')"
        )
        await connection.query("SELECT pg_logical_emit_message(false, 'walbridge', 'snapshot')")
        if synchronous != "t":
            return frozenset()
        if privileged != "t":
            raise PostgresError(
                "42501", "cannot see which commits wait for a synchronous standby",
                hint="GRANT pg_read_all_stats TO CURRENT_USER;   -- of the bridge; or ask again when no transaction is open",
            )  # fmt: skip
        rows = await connection.query(
            "SELECT backend_xid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND backend_xid IS NOT NULL"
        )
        return frozenset(int(xid or 0) for (xid,) in rows)
    finally:
        connection.close()
