"""One round of a snapshot: one exact place in the stream for what several connections read at once."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from actors.clients.nats.jetstream import JetStream
from actors.clients.postgres.connection import PgConnection, PostgresError
from actors.clients.postgres.locks import begin_locked
from actors.clients.postgres.publications import PublishedTable
from actors.contract.round_encoder import ChunkPlace
from actors.contract.table_schema import schema_id
from actors.errors import SourceUnavailable
from actors.snapshots.row_key import BY_INDEX, RowKey, read_row_key
from actors.snapshots.setup import SnapshotSetup
from actors.snapshots.stream_place import check_gaps, place_of, stream_reaches
from actors.snapshots.table_reader import OpenTable, open_table
from actors.snapshots.watermark import wait_for_lsn
from actors.telemetry.log import get_logger

log = get_logger("snapshotter")

OTHER_LOCK_TIMEOUT_S = 1.0
"""Further connections do not wait for long: whoever waits to alter the table waits for the first one."""


@dataclass(frozen=True, slots=True)
class OpenRound:
    """A table in open transactions that all see it at one place."""

    table: OpenTable
    key: RowKey
    place: ChunkPlace
    connections: list[PgConnection]
    """The table's own first."""

    @property
    def schema_id(self) -> int:
        return schema_id(self.table.relation, self.table.description.types)


@asynccontextmanager
async def open_round(
    setup: SnapshotSetup, js: JetStream, published: PublishedTable, *, lanes: int, after: int | None
) -> AsyncGenerator[OpenRound]:
    """Open up to `lanes` connections, at least one, and find the place of what they see. `after` is the place before.

    Raises what `open_table` raises; SnapshotFailed when the table cannot be read by its key, or when changes were lost since
    the place before; SinkUnavailable when NATS is away.
    """
    stream = setup.stream
    async with AsyncExitStack() as stack:
        opening = open_table(setup.config, published, setup.version_of, payload_max=stream.init_payload_max)
        table = await stack.enter_async_context(opening)
        key = await read_row_key(table.connection, table.published)
        await table.connection.query(BY_INDEX)
        lsn = await wait_for_lsn(table.watermark, setup.transactions)
        connections = [table.connection]
        if lanes > 1:
            ((snapshot,),) = await table.connection.query("SELECT pg_export_snapshot()")
            try:
                for _ in range(lanes - 1):
                    opening_one = _open_another(table.connection, table.published, snapshot or "")
                    connections.append(await stack.enter_async_context(opening_one))
            except (PostgresError, SourceUnavailable) as exc:
                log.info("a round is read with fewer connections", table=published.token, reason=str(exc))
        await stream_reaches(setup, lsn)
        if after is not None:
            await check_gaps(js, stream.stream, published.token, after)
        place = await place_of(js, stream.stream, lsn, after)
        yield OpenRound(table, key, place, connections)


@asynccontextmanager
async def _open_another(first: PgConnection, table: PublishedTable, snapshot: str) -> AsyncGenerator[PgConnection]:
    """Open one more transaction with the snapshot that `first` has exported."""
    connection = await PgConnection.connect(first.config, application_name="walbridge snapshot")
    holder: PgConnection | None = None
    try:
        await connection.query("SELECT repeat('x', 1000000)")
        holder = await begin_locked(connection, [table], timeout_s=OTHER_LOCK_TIMEOUT_S)
        await connection.query(f"SET TRANSACTION SNAPSHOT '{snapshot}'")
        await connection.query(BY_INDEX)
        yield connection
    except BaseException:
        await connection.abandon()  # a query may still run: stop it on the server
        raise
    finally:
        connection.close()
        if holder is not None:
            holder.close()
