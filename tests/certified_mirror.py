"""Drives the Python mirror through a history: the real mirror on a model of nats-server, on a clock that jumps. No server runs."""

from __future__ import annotations

import base64
import logging
import random
import sqlite3
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import psycopg
import trio
import trio._path
from trio.testing import MockClock

from actors.certify.history import COPYING, LIVE, UNPUBLISHED, Expected, Held, History, Step, json_value
from actors.contract.subjects import RANGES, split_suffix
from actors.mirror import run as mirror
from actors.mirror.stores.shapes import decode_columns
from actors.settings.config import NatsConfig
from property_tests.simulation.nats.jetstream import JetStream
from property_tests.simulation.nats.server import NatsServer
from property_tests.simulation.nats.store import Stream
from property_tests.simulation.network import Network
from property_tests.simulation.processes import Process
from property_tests.simulation.timers import Timers
from property_tests.simulation.trace import Trace

SETTLED_S, SETTLED_IN_POSTGRES_S = 7.0, 1.5
"""Of the jumping clock: longer than any pause in which a mirror that has something to do does nothing visible. Where the clock
waits for a real database each jump costs time, and what a mirror must not do was seen in SQLite."""
WITHIN_S = 150.0
ASKER = "{id}"
"""In a history: the id in the last request that named rows by their keys."""
SUBJECTS = {"INIT": ["init.>", "snapshot.init.>", "snapshot.data.>"], "REQUESTS": ["snapshot.request.>"]}
_STATES = {"waiting": COPYING, "stale": COPYING, "live": LIVE, "unpublished": UNPUBLISHED}


class Network0(Network):
    """A network without latency: nothing but real pauses moves the clock."""

    def latency_s(self) -> float:
        return 0.0


class Driver:
    """The model of NATS, and the mirror as a process on it."""

    def __init__(self, history: History, url: str, nursery: trio.Nursery) -> None:
        self.history, self.url = history, url
        self.settled_s = SETTLED_S if url.startswith("sqlite") else SETTLED_IN_POSTGRES_S
        self.timers, trace = Timers(), Trace(shown=False)
        self.network = Network0(self.timers, random.Random(0), trace)
        self.nats = NatsServer(self.network, random.Random(0), trace)
        self.network.servers = {"nats": self.nats}
        self.mirror = Process("mirror", nursery, self.network, trace)
        self.asked: set[str] = set()
        self.asker = ""
        """The id in the last request that named rows."""
        self.make_stream("REQUESTS")

    @property
    def streams(self) -> dict[str, Stream]:
        return self.nats.jetstream.streams

    def make_stream(self, name: str, first_seq: int = 1) -> None:
        """Create a stream, or create it again."""
        bucket = name.removeprefix("KV_")
        subjects = [f"$KV.{bucket}.>"] if bucket != name else SUBJECTS.get(name, ["cdc.>"])
        jetstream: JetStream = self.nats.jetstream
        for key in [key for key in jetstream.consumers if key[0] == name]:
            jetstream.consumers.pop(key).gone = True
        made = jetstream.streams[name] = Stream({"name": name, "subjects": subjects})
        made.last_seq, made.first_seq = first_seq - 1, first_seq
        if name == "REQUESTS":
            jetstream.stored = self._note_request

    def _note_request(self, stream: Stream, message: Any) -> None:
        if stream.name == "REQUESTS":
            part = message.subject.removeprefix("snapshot.request.").partition("@")[0]
            token, suffix = split_suffix(part)
            if suffix and suffix != RANGES:  # it names rows by their keys
                self.asker, part = suffix[1:], f"{token}+{ASKER}"
            self.asked.add(part)

    async def do(self, step: Step) -> None:
        """Let one step happen."""
        await trio.sleep(0.001)  # each step happens later than the one before
        match step["step"]:
            case "stream":
                self.make_stream(step["stream"], step.get("first_seq", 1))
            case "message":
                headers = "".join(f"{name}: {value}\r\n" for name, value in step["headers"].items())
                block = f"NATS/1.0\r\n{headers}\r\n".encode() if headers else b""
                stream = self.streams[step["stream"]]
                subject = step["subject"].replace(ASKER, self.asker)
                stored = self.nats.jetstream._store(stream, subject, block, base64.b64decode(step["body"]))
                assert stored.seq == step["seq"], f"{stored.seq} instead of {step['seq']}"
            case "kv":
                name = f"KV_{step['bucket']}"
                if name not in self.streams:
                    self.make_stream(name)
                subject = f"$KV.{step['bucket']}.{step['key']}"
                self.nats.jetstream._store(self.streams[name], subject, b"", base64.b64decode(step["value"]))
            case "remove":
                self.streams[step["stream"]].remove(step["seqs"])
            case "purge":
                stream = self.streams[step["stream"]]
                stream.remove([seq for seq in stream.messages if seq < step["first_seq"]])
            case "cut":
                stream = self.streams[step["stream"]]
                for seq in [seq for seq in stream.messages if seq > step["last_seq"]]:
                    del stream.messages[seq]
                stream.last_seq = step["last_seq"]
                self.nats.stop()  # only a server that went down loses messages
                self.nats.start()
            case "start":
                config = mirror.MirrorConfig(
                    NatsConfig(("nats://nats:4222",)),
                    self.history.stream,
                    self.url,
                    self.history.tables,
                    rounds_from_rows=int("rounds" in self.history.needs),
                )
                self.mirror.start(partial(mirror._run, config))
            case "stop":
                await self.mirror.kill()
            case "expect":
                await self.expect(step)
            case other:
                raise AssertionError(f"the runner does not know the step {other}")

    async def expect(self, step: Step) -> None:
        """Wait until all is as the step says, and see that it stays so."""
        if step.get("stopped"):
            with trio.fail_after(WITHIN_S):
                await self.mirror.finish()
            assert isinstance(self.mirror.ended, Exception)
        else:
            await trio.sleep(self.settled_s)
        words = "?"
        with trio.move_on_after(WITHIN_S):
            while words:
                words = self.differences(step)
                if words and not step.get("stopped"):
                    assert self.mirror.is_running, f"{self.history.name}: the mirror ended: {self.mirror.ended}"
                if words:
                    await trio.sleep(self.settled_s / 2)
        assert not words, f"{self.history.name}: {step.get('why', '')}: {words}"
        self.asked = set()

    def differences(self, step: Step) -> str:
        """In words, what is not as the step says; empty when nothing is."""
        found = []
        states = read_states(self.url)
        for token, raw in step["tables"].items():
            wanted = Expected.of(raw)
            state, held = states.get(token, ("", None))
            words = wanted.difference(held)
            if words:
                found.append(f"{token} {words}")
            if _STATES.get(state) != wanted.state and not step.get("stopped"):
                found.append(f"{token} is {state or 'unknown'}, not {wanted.state}")
        asked = set(step.get("asked", ()))
        may = {token for token, raw in step["tables"].items() if raw["state"] == COPYING}
        if not asked <= self.asked:
            found.append(f"no snapshot was asked for of {sorted(asked - self.asked)}")
        surplus = {part for part in self.asked - asked if split_suffix(part)[0] not in may}
        if surplus:
            found.append(f"snapshots were asked for of {sorted(surplus)}")
        return "; ".join(found)


def read_states(url: str) -> dict[str, tuple[str, Held | None]]:
    """By token, a replica's state and what it holds, read over a connection of the runner's own."""
    if url.startswith("sqlite"):
        try:
            with closing(sqlite3.connect(f"file:{url.removeprefix('sqlite:///')}?mode=ro", uri=True)) as replica:
                return _read(lambda sql: _sqlite_rows(replica, sql), "_walbridge_tables", lambda schema, name: f'"{name}"')
        except sqlite3.OperationalError:
            return {}
    with psycopg.connect(url) as connection:
        if connection.execute("SELECT to_regclass('_walbridge.tables')").fetchone() == (None,):
            return {}
        return _read(
            lambda sql: _postgres_rows(connection, sql), "_walbridge.tables", lambda schema, name: f'"{schema}"."{name}"'
        )


Read = Callable[[str], tuple[list[str], list[tuple[Any, ...]]]]


def _sqlite_rows(replica: sqlite3.Connection, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    cursor = replica.execute(sql)
    return [one[0] for one in cursor.description], cursor.fetchall()


def _postgres_rows(connection: psycopg.Connection[Any], sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Of all values their text, as PostgreSQL prints it."""
    connection.execute("SET timezone = 'UTC'")
    cursor = connection.execute(f"SELECT * FROM ({sql}) AS rows LIMIT 0".encode())
    names = [column.name for column in cursor.description or ()]
    quoted = ['"' + name.replace('"', '""') + '"' for name in names]
    # by its output function: the cast of inet to text is another
    listed = ", ".join(f"CASE WHEN {name} IS NOT NULL THEN format('%s', {name}) END" for name in quoted)
    return names, connection.execute(f"SELECT {listed} FROM ({sql}) AS rows".encode()).fetchall()


def _read(read: Read, tables: str, quoted: Callable[[str, str], str]) -> dict[str, tuple[str, Held | None]]:
    found: dict[str, tuple[str, Held | None]] = {}
    _, records = read(f"SELECT token, state, local_schema, local_name, columns, snapshot_id FROM {tables}")
    for token, state, schema, name, columns, snapshot_id in records:
        if not snapshot_id:
            found[token] = (state, None)
            continue
        kinds = {column.name: column.type for column in decode_columns(columns)}
        names, rows = read(f"SELECT * FROM {quoted(schema, name)}")
        found[token] = (
            state,
            Held(tuple(names), [[_as_json(v, kinds.get(n, "")) for v, n in zip(row, names, strict=True)] for row in rows]),
        )
    return found


def _as_json(value: Any, kind: str) -> Any:
    """A value of a replica, as the README lets copies spell it."""
    if isinstance(value, bytes):
        return json_value(value)
    if kind == "bytea" and isinstance(value, str):
        return json_value(bytes.fromhex(value.removeprefix("\\x")))
    return value


@contextmanager
def _in_memory(network: Network, clock: MockClock, *, inline: bool) -> Generator[None]:
    async def now(function: Callable[..., Any], *args: object, **_: object) -> Any:
        await trio.lowlevel.checkpoint()
        return function(*args)

    async def sleep(_scope: object) -> None:
        await trio.sleep_forever()

    began_at = time.time()
    with ExitStack() as stack:
        replaced: list[tuple[Any, str, Any]] = [
            (trio, "open_tcp_stream", network.open_tcp_stream),
            (mirror, "_stop_on_signal", sleep),
            (time, "time", lambda: began_at + clock.current_time()),
        ]
        if inline:  # the clock would not wait for worker threads
            replaced += [(trio.to_thread, "run_sync", now), (trio._path, "run_sync", now)]
        for where, name, instead in replaced:
            stack.enter_context(mock.patch.object(where, name, instead))
        logger = logging.getLogger("walbridge")
        level = logger.level
        logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            logger.setLevel(level)


def run(history: History, url: str) -> None:
    """Drive a mirror with an empty replica at `url` through a history. Raises AssertionError where it does something else."""
    is_inline = url.startswith("sqlite")
    clock = MockClock(autojump_threshold=0 if is_inline else 0.01)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            driver = Driver(history, url, nursery)
            with _in_memory(driver.network, clock, inline=is_inline):
                nursery.start_soon(driver.timers.run)
                for step in history.steps:
                    await driver.do(step)
                if driver.mirror.is_running:
                    await driver.mirror.kill()
                nursery.cancel_scope.cancel()

    try:
        trio.run(main, clock=clock)
    except BaseExceptionGroup as group:
        raise _first(group) from group


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    found = group.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found
