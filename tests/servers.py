"""What tests hold in their hands: a database of their own, the bridge as a process, what a stream stores."""

from __future__ import annotations

import asyncio
import base64
import datetime
import json
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import msgpack
import nats
import psutil
import psycopg
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from psycopg import sql

from actors.embedded import bridge as embedded_bridge
from actors.embedded.bridge import HANG_S
from actors.embedded.nats import NatsServer
from actors.embedded.postgres import PostgresServer

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[1]
CLEAN = {
    name: value for name, value in os.environ.items() if not name.startswith(("PG", "NATS_", "POSTGRES_", "DATABASE", "BRIDGE"))
}
"""This process's environment without what configures a bridge."""


class Database:
    """A database of a test's own on a running server, and one connection to it that commits each statement."""

    def __init__(self, server: PostgresServer, name: str, *, encoding: str = "UTF8") -> None:
        """Create the database."""
        self.server, self.name = server, name
        create = sql.SQL("CREATE DATABASE {} ENCODING {} TEMPLATE template0").format(
            sql.Identifier(name), sql.Literal(encoding)
        )
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute(create)
        self._connection = self.connect()

    @property
    def dsn(self) -> str:
        """libpq URI of the database, as superuser, password included."""
        return self.server.dsn(self.name)

    def connect(self, *, autocommit: bool = True) -> psycopg.Connection[tuple[Any, ...]]:
        """One more connection; the caller closes it."""
        return psycopg.connect(self.dsn, autocommit=autocommit, client_encoding="UTF8")

    def execute(self, statements: str, params: Sequence[object] | None = None) -> list[tuple[Any, ...]]:
        """Run SQL and return the rows of the last statement; connects anew when the server was restarted.

        Several statements (only without params) are one transaction.
        """
        if self._connection.closed or self._connection.broken:
            self._connection = self.connect()
        cursor = self._connection.execute(statements.encode(), params)
        while cursor.nextset():
            pass
        return cursor.fetchall() if cursor.description else []

    def close(self) -> None:
        """End the connection; the database stays, for servers that end with the test."""
        self._connection.close()

    def drop(self) -> None:
        """Drop the database with its replication slots; whoever is connected is thrown out."""
        self._connection.close()
        with self.connect() as own:
            for (slot,) in own.execute("SELECT slot_name FROM pg_replication_slots WHERE database = current_database()"):
                _drop_slot(own, slot)
        with psycopg.connect(self.server.dsn(), autocommit=True) as admin:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(self.name)))


def _drop_slot(connection: psycopg.Connection[tuple[Any, ...]], slot: str) -> None:
    deadline = time.monotonic() + HANG_S
    while True:
        connection.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots"
                           " WHERE slot_name = %s AND active_pid IS NOT NULL", [slot])  # fmt: skip
        try:
            connection.execute("SELECT pg_drop_replication_slot(%s)", [slot])
        except psycopg.errors.ObjectInUse:  # its walsender is on the way out, or a bridge was quicker than we
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        except psycopg.errors.UndefinedObject:  # a temporary slot went with its connection
            return
        else:
            return


class Bridge(embedded_bridge.Bridge):
    """A bridge on a server of the tests' own or on the compose stack's, which has a user for bridges."""

    def __init__(self, database_url: str, nats: NatsServer | str, folder: Path, *flags: str,
                 env: Mapping[str, str] | None = None, **options: str) -> None:  # fmt: skip
        if hasattr(type(nats), "environment_of"):
            env = {**nats.environment_of("bridge"), **(env or {})}
        super().__init__(database_url, nats, folder, *flags, env=env, **options)


class StoredEvent(NamedTuple):
    """One event as the stream stores it; the events of a packed message share `seq`, `subject` and `headers`."""

    seq: int
    """Stream sequence of the message."""
    subject: str
    headers: dict[str, str]
    body: dict[str, Any]


def read_stream(nats_url: str, stream: str = "CDC", *, start_seq: int = 1, user: str | None = None,
                password: str | None = None) -> list[StoredEvent]:  # fmt: skip
    """Every event that the stream holds now, in stream order, read with nats-py.

    `nats_url` may hold credentials. An absent or empty stream gives []. Needs no running event loop in this thread.
    """
    return asyncio.run(_read_stream(nats_url, stream, start_seq, user, password))


def wait_for_events(nats_url: str, count: int, stream: str = "CDC", *, user: str | None = None,
                    password: str | None = None) -> list[StoredEvent]:  # fmt: skip
    """As `read_stream`, once at least `count` events are there; AssertionError when they never come."""
    deadline = time.monotonic() + HANG_S
    events: list[StoredEvent] = []
    while True:
        with suppress(nats.errors.TimeoutError):  # three servers that elect a leader leave a request without an answer
            events = read_stream(nats_url, stream, user=user, password=password)
        if len(events) >= count:
            return events
        assert time.monotonic() < deadline, f"{len(events)} of {count} events: {[e.subject for e in events[-20:]]}"
        time.sleep(0.05)


class StoredMessage(NamedTuple):
    """One message as the stream stores it."""

    seq: int
    subject: str
    headers: dict[str, str]
    data: bytes


def read_messages(nats_url: str, stream: str = "INIT", *, start_seq: int = 1) -> list[StoredMessage]:
    """Every message that the stream holds now, bodies as they are."""

    async def read(client: Client) -> list[StoredMessage]:
        try:
            return await _messages(client, stream, start_seq)
        except nats.js.errors.NotFoundError:
            return []

    return with_nats(nats_url, read)


async def _read_stream(url: str, stream: str, start_seq: int, user: str | None, password: str | None) -> list[StoredEvent]:
    client = await nats.connect(
        url, user=user or urlsplit(url).username, password=password or urlsplit(url).password,
        allow_reconnect=False)  # fmt: skip
    try:
        return [
            StoredEvent(m.seq, m.subject, m.headers, body)
            for m in await _messages(client, stream, start_seq)
            for body in decode_body(m.data)
        ]
    except nats.js.errors.NotFoundError:
        return []
    finally:
        await client.close()


async def _messages(client: Client, stream: str, start_seq: int) -> list[StoredMessage]:
    """One pull request for a large batch at a time: nats-py's own fetch() costs several times as much a message."""
    js = client.jetstream()
    consumer = await js.add_consumer(stream, ConsumerConfig(
        ack_policy=AckPolicy.NONE, deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=start_seq,
        mem_storage=True, inactive_threshold=30.0))  # fmt: skip
    waiting = consumer.num_pending or 0
    inbox = client.new_inbox()
    subscription = await client.subscribe(inbox, pending_msgs_limit=0, pending_bytes_limit=0)
    found: list[StoredMessage] = []
    while waiting:
        batch = min(waiting, 5_000 if stream == "CDC" else 5)  # of large messages the server sends only so many ahead
        request = json.dumps({"batch": batch, "expires": int(HANG_S * 1e9)}).encode()
        await client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer.name}", request, reply=inbox)
        for _ in range(batch):
            message = await subscription.next_msg(timeout=HANG_S)
            headers = dict(message.headers or {})
            assert message.reply, f"the pull request ended early: {headers}"
            # $JS.ACK.<stream>.<consumer>.<deliveries>.<stream sequence>.<consumer sequence>.<time>.<pending>
            found.append(StoredMessage(int(message.reply.split(".")[-4]), message.subject, headers, message.data))
        waiting -= batch
    return found


def decode_body(data: bytes) -> list[dict[str, Any]]:
    """The event maps of a message body, MessagePack or JSON, packed or not.

    A body is a map or a list: as MessagePack it never begins with the byte of `{` or `[`, which are small integers.
    """
    body = json.loads(data) if data[:1] in {b"{", b"["} else msgpack.unpackb(data, strict_map_key=False)
    return body if isinstance(body, list) else [body]


def commit_to_stored_s(url: str) -> list[float]:
    """For each message: JetStream's time of storing minus PostgreSQL's time of commit, same clock."""

    async def ages(connection: Client) -> list[float]:
        info = await connection.jetstream().stream_info("CDC")
        found: list[float] = []
        for seq in range(1, info.state.messages + 1):
            reply = await connection.request("$JS.API.STREAM.MSG.GET.CDC", json.dumps({"seq": seq}).encode())
            message: dict[str, Any] = json.loads(reply.data)["message"]
            body = msgpack.unpackb(base64.b64decode(message["data"]))
            stored = datetime.datetime.fromisoformat(message["time"][:26].rstrip("Z") + "+00:00")
            found.append(stored.timestamp() - body["commit_ts"] / 1e6)
        return found

    return with_nats(url, ages)


def with_nats(url: str, action: Callable[[Client], Awaitable[T]]) -> T:
    """Do something over a connection of nats-py's."""

    async def run() -> T:
        connection = await nats.connect(url)
        try:
            return await action(connection)
        finally:
            await connection.close()

    return asyncio.run(run())


async def ask(client: Client, action: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
    """One request to JetStream's API, past nats-py's own records, which lack fields."""
    reply = await client.request(f"$JS.API.{action}", json.dumps(body or {}).encode(), timeout=5)
    answer: dict[str, Any] = json.loads(reply.data)
    assert "error" not in answer, answer["error"]
    return answer


def edit_stream(url: str, stream: str, **changes: object) -> dict[str, Any]:
    """Edit a stream as an administrator would; returns the configuration from before."""

    async def change(client: Client) -> dict[str, Any]:
        before = (await ask(client, f"STREAM.INFO.{stream}"))["config"]
        await ask(client, f"STREAM.UPDATE.{stream}", {**before, **changes})
        return dict(before)

    return with_nats(url, change)


def wait_for(condition: Callable[[], object], words: Callable[[], object] = lambda: "never came true") -> None:
    """Return once the condition holds; AssertionError with the words when it never does."""
    deadline = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < deadline, words()
        time.sleep(0.05)


def wait_until_drained(bridge: Bridge, database: Database) -> None:
    """Return once the slot is confirmed up to what was written before."""
    (written,) = database.execute("SELECT pg_current_wal_lsn()")[0]
    deadline = time.monotonic() + 2 * HANG_S
    while not database.execute(
        "SELECT confirmed_flush_lsn >= %s::pg_lsn FROM pg_replication_slots WHERE slot_name = 'cdc_slot'", [written]
    )[0][0]:
        assert time.monotonic() < deadline, f"not drained: {bridge.status()}\n{bridge.log()[-4000:]}"
        assert bridge.exit_code is None, bridge.log()[-4000:]
        time.sleep(0.1)


def rss_bytes(bridge: Bridge) -> int:
    """Memory of the bridge's process."""
    assert bridge.process is not None
    return int(psutil.Process(bridge.process.pid).memory_info().rss)
