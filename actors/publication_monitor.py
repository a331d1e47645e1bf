"""publication_monitor: looks every 30 s at what the publication publishes, and has readers told what has changed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

import trio

from actors.clients.nats.jetstream import JetStream
from actors.clients.nats.record_store import RecordStore
from actors.clients.postgres.catalog import describe_relations
from actors.clients.postgres.connection import PgConnection
from actors.clients.postgres.locks import locked_tables
from actors.clients.postgres.publications import large_tables, publication_facts
from actors.contract.bridge_record import UNFINISHED
from actors.contract.publication import KnownTable
from actors.contract.subjects import BRIDGES, published_key, published_keys
from actors.contract.table_schema import describe_table
from actors.contract.table_token import table_name
from actors.errors import SinkUnavailable, WalbridgeError
from actors.messages import News, SchemaChange
from actors.positions import Lsn, parse_lsn
from actors.publication_model import Difference, PublicationModel
from actors.settings.config import Config
from actors.startup.other_bridges import read_other_bridges, same_tables_elsewhere
from actors.startup.postgres_preflight import check_again
from actors.startup.publication_problems import publication_problems
from actors.telemetry.log import get_logger
from actors.telemetry.telemetry import Problem, Telemetry

log = get_logger("publication_monitor")

LOOK_EVERY_S = 30.0
OTHERS_EVERY = 10
"""Looks at the publication per look at the other bridges."""
LOCKED_LONG_S = 5
LOOK_AGAIN_S = 1.0
"""The shortest time between two looks, and after a fault."""


ShowProblems = Callable[[str, Sequence[Problem]], None]
"""Takes the name of a check and everything that it finds now."""


class PublicationMonitor:
    """Keeps one run's model current. Owns a PostgreSQL connection while it runs.

    `news` is read by the decoder, which gives each its place in the stream. `new_shape` has the schema of a new table written,
    `show` takes what is wrong with the publication's tables, the server's settings and bridges beside this one.
    """

    def __init__(
        self, config: Config, model: PublicationModel, js: JetStream, store: RecordStore,
        new_shape: Callable[[SchemaChange], None], show: ShowProblems, telemetry: Telemetry,
    ) -> None:  # fmt: skip
        self.news: deque[News] = deque()
        self._config, self._model, self._js, self._store = config, model, js, store
        self._new_shape, self._show, self._telemetry = new_shape, show, telemetry
        self._looks = 0

    async def run(self) -> None:
        """Look every 30 s, and when the model asks for it, until cancelled. Raises SinkUnavailable and SinkFenced."""
        while True:
            try:
                connection = await PgConnection.connect(self._config.postgres, application_name="walbridge publication")
                try:
                    await connection.query("SET lock_timeout = '1s'")
                    while True:
                        self._model.wake = trio.Event()
                        await self.look(connection)
                        await self.write()
                        await trio.sleep(LOOK_AGAIN_S)
                        with trio.move_on_after(LOOK_EVERY_S - LOOK_AGAIN_S):
                            await self._model.wake.wait()
                finally:
                    connection.close()
            except SinkUnavailable:
                raise
            except WalbridgeError as exc:  # the replication stream notices by itself when PostgreSQL is away
                log.debug("cannot look at the publication", error=str(exc))
                await trio.sleep(LOOK_EVERY_S / 10)

    async def look(self, connection: PgConnection) -> None:
        """Compare the catalog with what readers know, and queue the difference as news."""
        model = self._model
        await model.look(connection)
        if set(model.tables) != set(self._store.record.tables):
            await self._store.update(tables=tuple(sorted(model.tables)))
        rows = await large_tables(connection, {table.relation_oid: token for token, table in model.tables.items()})
        if rows != self._store.record.large:
            await self._store.update(large=rows)
        self._telemetry.tables = tuple(sorted(model.tables))
        found = model.compare()
        if found:
            try:
                await self._queue(found, connection)
            except BaseException:  # else a connection that ends here would keep the difference from readers for good
                model.take_back(found)
                raise
        self._show("publication", await find_problems(connection, model))
        self._show("source", await check_again(connection, self._config.source))
        if self._looks % OTHERS_EVERY == OTHERS_EVERY - 1:
            others = await read_other_bridges(self._js, self._store.stream)
            self._show("other bridges", same_tables_elsewhere(self._store.record, others))
        self._looks += 1

    async def _queue(self, found: Sequence[Difference], connection: PgConnection) -> None:
        """Make differences news, all or none of them."""
        model = self._model
        lsn = await _after_now(connection)
        shown = [model.tables[d.token] for d in found if d.token in model.tables and (d.reshaped or d.change == "added")]
        described = await describe_relations(connection, [table.relation for table in shown])
        schemas = {t.token: describe_table(t.relation, d) for t, d in zip(shown, described, strict=True)}
        for difference in found:
            token, change = difference.token, difference.change
            if change is not None:
                log.warning(f"table {token}: {difference.reason}", change=change)
                words = f"table {table_name(token)} ({change}): {difference.reason}"
                self._telemetry.journal.note("publication", words, "info" if change == "added" else "warn", table=token)
            schema = schemas.get(token)
            if change == "added" and schema is not None:  # the stream shows the shape before the table's first row
                self._new_shape(schema)
            self.news.append(News(lsn, token, change, difference.version, difference.reason,
                                  schema if difference.reshaped else None))  # fmt: skip

    async def write(self) -> None:
        """Write to KV what readers have been told."""
        model, store = self._model, self._store
        entries = model.unwritten()
        if model.is_first and entries and not store.record.published:
            await store.update(published=UNFINISHED)  # else a start after some entries would take the other tables for new ones
        await write_entries(self._js, store.stream, entries)
        model.written(entries)
        if store.record.published != model.digest:
            await store.update(published=model.digest)


async def find_problems(connection: PgConnection, model: PublicationModel) -> list[Problem]:
    """Return what is wrong with the tables of the model's last look. Raises PostgresError and SourceUnavailable."""
    tables = list(model.tables.values())
    facts = await publication_facts(connection, model.publication)
    ((role,),) = await connection.query("SELECT current_user")
    locks = await locked_tables(connection, {table.relation_oid for table in tables}, longer_than_s=LOCKED_LONG_S)
    return [] if facts is None else publication_problems(model.publication, facts, tables, locks, role or "")


async def write_entries(js: JetStream, stream: str, entries: Mapping[str, KnownTable]) -> None:
    """Put entries into KV `bridges`. Raises SinkUnavailable."""
    await js.kv_put_all(BRIDGES, {published_key(token, stream): known.encode() for token, known in entries.items()})


async def read_entries(js: JetStream, stream: str) -> dict[str, KnownTable]:
    """Read the entries of a stream's tables from KV `bridges`. Raises SinkUnavailable."""
    keys = await js.keys_of(BRIDGES, published_keys(stream))
    entries = await js.kv_get_all(BRIDGES, keys)
    read = ((key.removeprefix(published_key("", stream)), KnownTable.decode(entry.data)) for key, entry in entries.items())
    return {token: known for token, known in read if known is not None}


async def _after_now(connection: PgConnection) -> Lsn:
    """Return where the WAL ends, and write to it, so that an idle stream soon passes that place."""
    ((standby, replayed),) = await connection.query("SELECT pg_is_in_recovery(), pg_last_wal_replay_lsn()")
    if standby == "t":  # whatever comes next from the primary moves the stream on
        return parse_lsn(replayed or "0/0")
    ((lsn,),) = await connection.query("SELECT pg_current_wal_insert_lsn()")
    await connection.query("SELECT pg_logical_emit_message(false, 'walbridge', 'publication')")
    return parse_lsn(lsn or "0/0")
