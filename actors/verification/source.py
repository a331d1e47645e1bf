"""The source's side of a verification: its published tables as of one LSN."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from actors.clients.postgres.catalog import describe_relation
from actors.clients.postgres.connection import PgConnection
from actors.clients.postgres.publications import PublishedTable, published_tables, with_row_filter
from actors.clients.postgres.slot_waits import ON_THE_PRIMARY
from actors.clients.postgres.slots import export_snapshot
from actors.positions import Lsn
from actors.settings.config import PostgresConfig
from actors.values.canonical import Canonical, canonical_for
from actors.wire.pgoutput import Relation
from actors.wire.sql_names import quoted

BLOCK_ROWS = 1_000


class Source:
    """Reads the source's tables in one transaction, which sees them as of the LSN of `take_snapshot`."""

    def __init__(
        self, config: PostgresConfig, connection: PgConnection, tables: dict[str, PublishedTable], *, standby: bool
    ) -> None:
        self._config, self._connection = config, connection
        self.tables = tables
        self.delayed_by = f"the primary delays while it is idle: {ON_THE_PRIMARY}" if standby else "open transactions delay"
        """What makes a snapshot take long, in words that follow "which"."""

    async def take_snapshot(self, timeout_s: float) -> Lsn:
        """Lock the tables against changes of their shape, and import the snapshot of a temporary slot; return its LSN."""
        names = ", ".join(table.own for table in self.tables.values())
        await self._connection.query(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL row_security = off; SET LOCAL lock_timeout = '30s'"
            + (f"; LOCK TABLE {names} IN ACCESS SHARE MODE" if names else "")
        )
        replication = await PgConnection.connect(self._config, replication=True, application_name="walbridge verify")
        try:
            lsn, snapshot = await export_snapshot(replication, f"snap_{secrets.token_hex(6)}", timeout_s=timeout_s)
            await self._connection.query(f"SET TRANSACTION SNAPSHOT '{snapshot}'")
        finally:
            replication.close()
        return lsn

    async def describe(self, table: PublishedTable) -> tuple[Relation, list[Canonical], frozenset[str]]:
        """Describe a table: its columns, the conversions that make their values comparable, and the primary key."""
        connection = self._connection
        relation = table.relation
        description = await describe_relation(connection, relation)
        return relation, [canonical_for(column.type_oid, description.types) for column in relation.columns], table.pk

    async def blocks(self, table: PublishedTable, columns: Sequence[str]) -> AsyncGenerator[list[tuple[Any, ...]]]:
        """Read all rows, one block at a time, with every value as PostgreSQL's text."""
        names = ", ".join(map(quoted, columns))
        async for result in self._connection.blocks(f"SELECT {names} FROM {table.own}{table.where}", BLOCK_ROWS):
            yield [
                tuple(
                    None if (value := result.get_value(row, i)) is None else self._connection.encoding.decode(value)
                    for i in range(result.nfields)
                )
                for row in range(result.ntuples)
            ]


@asynccontextmanager
async def open_source(config: PostgresConfig, publication: str, chosen: tuple[str, ...]) -> AsyncGenerator[Source]:
    """Connect to the source; the chosen tables that are not published are left out."""
    connection = await PgConnection.connect(config, application_name="walbridge verify")
    try:
        published = {table.token: table for table in await published_tables(connection, publication)}
        tables = {t: await with_row_filter(connection, publication, published[t]) for t in chosen if t in published}
        yield Source(config, connection, tables, standby=connection.is_standby)
    finally:
        connection.close()


async def write_to_wal(config: PostgresConfig) -> None:
    """Write a message to the WAL every second until cancelled, so that the bridge soon reads past an LSN.

    A standby cannot; the next WAL of its primary does as well.
    """
    connection = await PgConnection.connect(config, application_name="walbridge verify")
    try:
        while not connection.is_standby:
            await connection.query("SELECT pg_logical_emit_message(false, 'walbridge', 'verify')")
            await trio.sleep(1)
    finally:
        connection.close()
