"""Sends one real event from PostgreSQL through the bridge's own code into JetStream and back, and leaves nothing behind.

The round trip has its own slot, table, publication and stream, so a bridge beside it and its readers see nothing of it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from functools import partial

import trio

from actors.clients.nats.connection import SinkRefused
from actors.clients.nats.jetstream import JetStream, JetStreamError
from actors.clients.postgres.catalog import describe_relation
from actors.clients.postgres.connection import PgConnection
from actors.clients.postgres.replication import ReplicationStream, open_replication_stream
from actors.clients.postgres.slots import create_slot
from actors.contract.decoding import decode_body
from actors.contract.event_encoder import event_encoder
from actors.contract.message_ids import id_in
from actors.contract.subjects import publish_prefix
from actors.decoder import Decoder
from actors.doctor.checking import Found, NotChecked
from actors.doctor.connections import APPLICATION_NAME, open_postgres
from actors.errors import ConfigError, SinkUnavailable, WalbridgeError
from actors.messages import Item, RowChange, RowRun, TransactionRun
from actors.positions import ROW_RANK, Lsn, Position
from actors.settings.config import Config
from actors.startup.streams import passing_config
from actors.telemetry.quantities import age
from actors.wire.jetstream import MSG_ID_HEADER, OutMessage
from actors.wire.sql_names import quoted

CLEAN_UP_S = 5.0


async def round_trip(config: Config, connection: PgConnection, js: JetStream) -> Found:
    """Send a row through both servers. Raises NotChecked, with the reason, where the users may not make what it needs."""
    name = f"walbridge_doctor_{secrets.token_hex(4)}"
    await _may_create(connection)
    replication = await PgConnection.connect(config.postgres, replication=True, application_name=APPLICATION_NAME)
    with closing(replication):
        async with _table(config, connection, name), _stream(js, name) as stream:
            await create_slot(replication, name, temporary=True)
            source = await open_replication_stream(
                config.postgres, slot=name, publication=name, start_lsn=Lsn(0), connection=replication
            )
            began = time.monotonic()
            await connection.query(f"INSERT INTO {quoted(name)}.{quoted(name)} VALUES (1, 'walbridge doctor')")
            message = await _next_event(config, connection, source, publish_prefix(stream))
            read_s = time.monotonic() - began
            try:
                seq = await js.publish(message.subject.decode(), message.body, {MSG_ID_HEADER: message.msg_id.decode()})
            except SinkRefused as exc:
                raise NotChecked(f"the NATS user may not publish to a stream of the doctor's own ({exc.said})") from None
            stored_s = time.monotonic() - began
            stored = await js.get_message(stream, seq=seq)
            if stored is None or id_in(stored.headers) != message.msg_id.decode():
                raise SinkUnavailable("WB212", "JetStream does not give back what it has stored")
            body = decode_body(stored.data)
            expected = {"id": 1, "words": "walbridge doctor"}
            if not isinstance(body, dict) or body.get("data") != expected:
                raise SinkUnavailable("WB212", f"the event that was read back is not the row that was written: {body!r:.200}")
    return Found(f"INSERT, decoded after {age(read_s)}, stored after {age(stored_s)}, read back; all of it is removed")


async def _may_create(connection: PgConnection) -> None:
    ((database, role, allowed, everywhere, standby),) = await connection.query(
        "SELECT current_database(), current_user, has_database_privilege(current_database(), 'CREATE'),"
        " (SELECT string_agg(quote_ident(pubname), ', ') FROM pg_publication WHERE puballtables), pg_is_in_recovery()"
    )
    if standby == "t":
        raise NotChecked("nothing can be written on a standby")
    if allowed != "t":
        raise NotChecked(
            f"the role may not make a schema, which a bridge need not; for this check alone: GRANT CREATE ON DATABASE "
            f"{quoted(database or '')} TO {quoted(role or '')}, and REVOKE it afterwards"
        )
    if everywhere:  # its readers would hear of the table
        raise NotChecked(f"publication {everywhere} is FOR ALL TABLES, so that others would see the table")


@asynccontextmanager
async def _table(config: Config, connection: PgConnection, name: str) -> AsyncGenerator[None]:
    """A schema with a table, and a publication of that table alone."""
    schema = quoted(name)
    drop = f"DROP PUBLICATION IF EXISTS {schema}; DROP SCHEMA IF EXISTS {schema} CASCADE;"

    async def remove() -> None:
        try:
            await connection.query(drop)
        except WalbridgeError:  # the check was cancelled in the middle of a statement, which ends its connection
            async with open_postgres(config) as another:
                await another.query(drop)

    try:
        await connection.query(
            f"CREATE SCHEMA {schema}; CREATE TABLE {schema}.{schema} (id int PRIMARY KEY, words text);"
            f" CREATE PUBLICATION {schema} FOR TABLE {schema}.{schema}"
        )
        yield
    finally:
        await clean_up(f"schema {schema}", remove, drop)


@asynccontextmanager
async def _stream(js: JetStream, name: str) -> AsyncGenerator[str]:
    """A stream in memory; raises NotChecked if the user may not make one."""
    try:
        await js.create_stream(passing_config(name).as_dict())
    except (SinkRefused, JetStreamError) as exc:
        raise NotChecked(f"the NATS user may not make a stream for it ({exc.said or exc.what})") from None
    try:
        yield name
    finally:
        await clean_up(f"stream {name}", partial(js.delete_stream, name), f"nats stream rm {name} --force")


async def clean_up(what: str, remove: Callable[[], Awaitable[object]], fix: str) -> None:
    """Remove what was made, even if the check was cancelled. Raises ConfigError with the command to run if that fails."""
    said = f"no answer within {CLEAN_UP_S:g} s"
    with trio.CancelScope(shield=True, deadline=trio.current_time() + CLEAN_UP_S):
        try:
            await remove()
        except WalbridgeError as exc:
            said = exc.said or exc.what
        else:
            return
    raise ConfigError("WB249", f"{what} is left behind", said=said, fix=fix)


async def _next_event(config: Config, catalog: PgConnection, source: ReplicationStream, prefix: str) -> OutMessage:
    """Read and decode until the first row, and encode its event as the bridge would."""
    start = Position(Lsn(0), 0, ROW_RANK)
    decoder = Decoder(start, {}, encoding=config.publish.encoding, arrays=config.publish.arrays)
    encoder = event_encoder(config.publish.encoding, prefix.encode())
    items: list[Item] = []
    while True:
        block, at = await source.read_block(100, 256 * 1024), 0
        while at < len(block):
            at = decoder.feed(block, at, items)
            if decoder.wanted is not None:
                decoder.define(decoder.wanted, await describe_relation(catalog, decoder.wanted))
        for item in items:
            change = item.change(0) if isinstance(item, RowRun | TransactionRun) else item
            if isinstance(change, RowChange):
                return encoder.row(change, last=True)
