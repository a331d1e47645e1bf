"""schema_publisher: keeps KV `schemas` equal to the tables' shapes, and asks the catalog for what pgoutput leaves out."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from actors.clients.nats.jetstream import JetStream
from actors.clients.postgres.catalog import PublishedTable, describe_columns, describe_relation, published_relation
from actors.clients.postgres.connection import PgConnection
from actors.contract.event_encoder import EventEncoder
from actors.contract.subjects import CDC, SCHEMAS, init_schema, schema_key
from actors.contract.table_schema import Description, describe_table
from actors.messages import SchemaChange
from actors.wire.pgoutput import Relation


class SchemaPublisher:
    """The schemas of one pipeline. Uses a PostgreSQL connection for the catalog, which the bridge closes.

    A changed schema is written to KV after its SCHEMA event is stored, so that KV never has a shape before the stream does.
    """

    def __init__(self, connection: PgConnection, js: JetStream, encoder: EventEncoder, stream: str = CDC) -> None:
        self._connection, self._js, self._encoder, self._stream = connection, js, encoder, stream
        self._published: dict[str, dict[str, object]] = {}
        self._pending: dict[str, SchemaChange] = {}  # the newest per table, so bounded by the number of tables
        self._news = trio.Event()
        self._writing = trio.Lock()

    async def describe(self, relation: Relation) -> Description:
        """Ask the catalog about a relation. Raises SourceUnavailable."""
        return await describe_relation(self._connection, relation)

    async def publish_current(self, tables: Sequence[PublishedTable]) -> dict[str, int]:
        """Put every published table's present schema into KV; return schema ids by token."""
        known: dict[str, int] = {}
        for published in tables:
            relation = published_relation(published, await describe_columns(self._connection, published.relation_oid))
            change = describe_table(relation, await self.describe(relation))
            known[change.table.token] = change.table.schema_id
            await self._put(change.table.token, change.body)
        return known

    def stored(self, change: SchemaChange) -> None:
        """Note that the stream holds this SCHEMA event: KV is to be updated."""
        self._pending[change.table.token] = change
        self._news.set()

    def refresh(self, change: SchemaChange) -> None:
        """Note that PostgreSQL announced a relation: its catalog entry may have changed even if its shape has not.

        The catalog entry counts only while it still has that shape: an ALTER may have come since.
        """
        token = change.table.token
        published = self._published.get(token)
        same_shape = published is not None and published["schema_id"] == change.table.schema_id
        if published is not None and same_shape and change.described and not _same(published, change.body):
            self.stored(change)

    async def publish_changes(self) -> None:
        """Write changed schemas until cancelled. Raises SinkUnavailable."""
        while True:
            await self._news.wait()
            self._news = trio.Event()
            await self.finish()

    async def finish(self) -> None:
        """Write the schemas that still wait."""
        async with self._writing:
            while self._pending:
                token = next(iter(self._pending))
                change = self._pending.pop(token)
                if await self._put(token, change.body):
                    await self._js.publish(init_schema(token), self._encoder.document(change.body))

    async def _put(self, token: str, body: dict[str, object]) -> bool:
        """Put a schema into KV unless it is there already; return whether it was written."""
        document = self._encoder.document({**body, "timestamp": 0})
        key = schema_key(token, self._stream)
        held = await self._js.kv_get(SCHEMAS, key)
        self._published[token] = body
        if held is not None and _same_document(self._encoder, held[0], document):
            return False
        await self._js.kv_put(SCHEMAS, key, self._encoder.document(body))
        return True


def _same(a: dict[str, object], b: dict[str, object]) -> bool:
    return {**a, "timestamp": 0} == {**b, "timestamp": 0}


def _same_document(encoder: EventEncoder, held: bytes, document: bytes) -> bool:
    """Return whether two schemas are equal except for their time."""
    body = encoder.read_document(held)
    return isinstance(body, dict) and encoder.document({**body, "timestamp": 0}) == document
