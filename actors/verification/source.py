"""The source's side of a verification: its published tables as of one LSN."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from actors.clients.postgres.catalog import describe_relation
from actors.clients.postgres.connection import PgConnection
from actors.clients.postgres.locks import begin_locked
from actors.clients.postgres.publications import PublishedTable, published_tables, with_row_filter
from actors.clients.postgres.replication import identify_system
from actors.clients.postgres.slot_waits import ON_THE_PRIMARY
from actors.clients.postgres.slots import export_snapshot
from actors.contract.bridge_record import BridgeRecord
from actors.errors import ConfigError
from actors.positions import Lsn
from actors.settings.config import PostgresConfig
from actors.values.canonical import Canonical, canonical_for
from actors.wire.pgoutput import Relation
from actors.wire.sql_names import quoted

BLOCK_ROWS = 1_000
LOCK_TIMEOUT_S = 30.0


class Source:
    """Reads the source's tables in one transaction, which sees them as of the LSN of `take_snapshot`."""

    def __init__(self, config: PostgresConfig, connection: PgConnection, publication: str) -> None:
        self._config, self._connection, self._publication = config, connection, publication
        self.tables: dict[str, PublishedTable] = {}
        """The published tables by token, as of the last look; after `take_snapshot` those that it locked."""
        self._holder: PgConnection | None = None
        standby = connection.is_standby
        self.delayed_by = f"the primary delays while it is idle: {ON_THE_PRIMARY}" if standby else "open transactions delay"
        """What makes a snapshot take long, in words that follow "which"."""

    async def check_wrote(self, record: BridgeRecord, stream: str) -> None:
        """Raise ConfigError when the bridge of `stream` reads another database than this one."""
        replication = await PgConnection.connect(self._config, replication=True, application_name="walbridge verify")
        try:
            here = await identify_system(replication)
        finally:
            replication.close()
        if record.system_id not in ("", here.system_id):
            what = f"stream {stream} was written from another PostgreSQL than {self._connection.address}"
        elif record.database not in ("", here.database):
            what = f"stream {stream} was written from database {record.database}, not from {here.database}"
        else:
            return
        raise ConfigError(
            "WB510", what, means="rows of two databases that have nothing to do with each other would be compared",
            fix="give the settings of that bridge (DATABASE_URL or PG_DB, perhaps in another --env-file), or --stream NAME",
        )  # fmt: skip

    async def look(self) -> None:
        """Read which tables are published now. Ends the transaction of an earlier snapshot."""
        self._release()
        await self._connection.query("ROLLBACK")
        published = await published_tables(self._connection, self._publication)
        self.tables = {table.token: table for table in published}

    async def take_snapshot(self, chosen: Collection[str], timeout_s: float) -> Lsn:
        """Lock the chosen tables, as far as they are published, and import the snapshot of a temporary slot; return its LSN."""
        self.tables = {token: table for token, table in self.tables.items() if token in chosen}
        chosen_tables = list(self.tables.values())
        self._holder = await begin_locked(self._connection, chosen_tables, timeout_s=min(LOCK_TIMEOUT_S, timeout_s))
        replication = await PgConnection.connect(self._config, replication=True, application_name="walbridge verify")
        try:
            lsn, snapshot = await export_snapshot(replication, timeout_s=timeout_s)
            await self._connection.query(f"SET TRANSACTION SNAPSHOT '{snapshot}'")
        finally:
            replication.close()
        locked, self.tables = self.tables, {}
        for table in await published_tables(self._connection, self._publication):  # as this transaction sees them
            if table.token in locked and table.relation_oid == locked[table.token].relation_oid:
                self.tables[table.token] = await with_row_filter(self._connection, self._publication, table)
        return lsn

    def close(self) -> None:
        """End the transaction."""
        self._release()
        self._connection.close()

    def _release(self) -> None:
        if self._holder is not None:
            self._holder.close()
            self._holder = None

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
async def open_source(config: PostgresConfig, publication: str) -> AsyncGenerator[Source]:
    """Connect to the source."""
    connection = await PgConnection.connect(config, application_name="walbridge verify")
    source = Source(config, connection, publication)
    try:
        yield source
    finally:
        source.close()


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
