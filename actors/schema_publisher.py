"""schema_publisher: keeps KV `schemas` equal to the tables' shapes, and asks the catalog for what pgoutput leaves out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import trio

from actors.clients.nats.jetstream import JetStream, KvEntry
from actors.clients.postgres.catalog import describe_relation, describe_relations
from actors.clients.postgres.connection import PgConnection
from actors.clients.postgres.publications import PublishedTable
from actors.contract.event_encoder import EventEncoder
from actors.contract.subjects import CDC, SCHEMAS, init_schema, schema_key
from actors.contract.table_schema import Description, describe_table
from actors.messages import SchemaChange
from actors.wire.pgoutput import Relation

TABLES_AT_ONCE = 200
ASK_AGAIN_S = 30.0
"""How long until locked tables are asked about again."""


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
        self._asking = trio.Lock()
        self._unchecked: Sequence[PublishedTable] = ()
        self._incomplete: dict[str, PublishedTable] = {}  # locked, so that their defaults are not known

    async def describe(self, relation: Relation) -> Description:
        """Ask the catalog about a relation. Raises SourceUnavailable."""
        async with self._asking:
            return await describe_relation(self._connection, relation)

    async def publish_current(self, tables: Sequence[PublishedTable], told: Mapping[str, int]) -> None:
        """Put the present schemas of tables into KV that are not there as yet, as far as `told` says: schema ids by token.

        The other tables' schemas are compared once `publish_changes` runs: they can differ only in defaults and the like.
        """
        new = [table for table in tables if told.get(table.token) != table.facts.schema_id]
        self._unchecked = [table for table in tables if told.get(table.token) == table.facts.schema_id]
        await self._check(new)

    async def _check(self, tables: Sequence[PublishedTable]) -> None:
        for start in range(0, len(tables), TABLES_AT_ONCE):
            some = tables[start : start + TABLES_AT_ONCE]
            async with self._asking:
                described = await describe_relations(self._connection, [table.relation for table in some])
            changes = [describe_table(table.relation, about) for table, about in zip(some, described, strict=True)]
            held = await self._js.kv_get_all(SCHEMAS, [schema_key(c.table.token, self._stream) for c in changes])
            await self._js.kv_put_all(SCHEMAS, dict(filter(None, [self._entry(change, held) for change in changes])))
            self._incomplete |= {
                table.token: table for table, change in zip(some, changes, strict=True) if not change.is_complete
            }

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
        """Write changed schemas until cancelled. Raises SinkUnavailable and SourceUnavailable."""
        unchecked, self._unchecked = self._unchecked, []
        await self._check(unchecked)
        while True:
            with trio.move_on_after(ASK_AGAIN_S if self._incomplete else float("inf")):
                await self._news.wait()
            self._news = trio.Event()
            await self.finish()
            incomplete, self._incomplete = list(self._incomplete.values()), {}
            await self._check(incomplete)

    async def finish(self) -> None:
        """Write the schemas that still wait."""
        async with self._writing:
            while self._pending:
                token = next(iter(self._pending))
                change = self._pending.pop(token)
                key = schema_key(token, self._stream)
                entry = self._entry(change, await self._js.kv_get_all(SCHEMAS, [key]))
                if entry is not None:
                    await self._js.kv_put(SCHEMAS, *entry)
                    await self._js.publish(init_schema(token), self._encoder.document(change.body))

    def _entry(self, change: SchemaChange, held: Mapping[str, KvEntry]) -> tuple[str, bytes] | None:
        """Return the key and value to write; None when KV holds the same already, or more than a locked table shows."""
        token, body = change.table.token, change.body
        key = schema_key(token, self._stream)
        self._published[token] = body
        before = self._encoder.read_document(held[key].data) if key in held else None
        if isinstance(before, dict) and before.get("schema_id") == body["schema_id"]:
            same = self._encoder.document({**before, "timestamp": 0}) == self._encoder.document({**body, "timestamp": 0})
            if same or not (change.is_complete and change.described):
                return None
        return key, self._encoder.document(body)


def _same(a: dict[str, object], b: dict[str, object]) -> bool:
    return {**a, "timestamp": 0} == {**b, "timestamp": 0}
