"""How fast a mirror applies a backlog, beside PostgreSQL's own subscription; how far behind it is under a load."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from statistics import quantiles
from threading import Thread
from typing import Any, Literal, get_args

import psycopg
from psycopg import sql

from actors.embedded.bridge import Bridge
from actors.embedded.mirror import MirrorProcess
from actors.embedded.nats import NatsServer
from bench.servers import Servers
from bench.stored import open_stored
from bench.usage import UsageSampler
from bench.workload import CONNECTIONS, PUBLICATION, Backlog, backlog, commit_at_rate, empty_table, rows_at_rate

Kind = Literal["sqlite", "postgresql"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LOOK_EVERY_S = 0.01
LAG_LOOK_EVERY_S = 0.002
PATIENCE_S = 300.0
_serial = count(1)

Query = Callable[[str], list[tuple[Any, ...]]]


@dataclass(frozen=True, slots=True)
class ApplyRun:
    """A backlog on its way into a replica."""

    events_per_s: float
    """From the first rows seen in the replica to the last, counted without the first."""
    wall_s: float
    """From the start of the process to the last row."""
    cpu_us_per_event: float
    """Of the mirror's process; 0 for PostgreSQL's own subscription, whose processes are PostgreSQL's."""
    rss_peak_mb: float


@dataclass(frozen=True, slots=True)
class LagRun:
    """A mirror under a steady load."""

    events_per_s: float
    p50_ms: float
    """From the row's clock_timestamp() just before its commit to the look that found it in the replica."""
    p99_ms: float
    max_ms: float
    stored_p50_ms: float
    """Of which: until JetStream has stored it."""
    stored_p99_ms: float
    cpu_us_per_event: float


@dataclass(slots=True)
class AppliedBacklog:
    """A backlog that is in the stream, in a slot, and in no replica; and replicas that are live and empty."""

    servers: Servers
    nats: NatsServer
    written: Backlog
    empty: dict[Kind, str]
    """URLs of replicas to make copies of."""

    def by_subscription(self) -> ApplyRun:
        """PostgreSQL's own apply worker, into another database of the same server."""
        servers = self.servers
        with servers.new_slot(copy_of=self.written.slot) as slot, _database(servers) as name:
            target = servers.postgres.dsn(name)
            with psycopg.connect(target, autocommit=True) as connection:
                with servers.connect() as source:  # the same columns and key
                    (ddl,) = source.execute(_TABLE).fetchone() or ("",)
                connection.execute(str(ddl).encode())
                began = time.time()
                connection.execute(
                    sql.SQL(
                        "CREATE SUBSCRIPTION {} CONNECTION {} PUBLICATION {}"
                        " WITH (create_slot = false, slot_name = {}, copy_data = false)"
                    ).format(
                        sql.Identifier(name),
                        sql.Literal(servers.postgres.dsn()),
                        sql.Identifier(PUBLICATION),
                        sql.Literal(slot),
                    )  # fmt: skip
                )
                try:
                    first, last = self._watch(lambda query: connection.execute(query.encode()).fetchall(), None)
                finally:
                    connection.execute(sql.SQL("ALTER SUBSCRIPTION {} DISABLE").format(sql.Identifier(name)))
                    connection.execute(sql.SQL("ALTER SUBSCRIPTION {} SET (slot_name = NONE)").format(sql.Identifier(name)))
                    connection.execute(sql.SQL("DROP SUBSCRIPTION {}").format(sql.Identifier(name)))
        return ApplyRun(self._rate(first, last), last[1] - began, 0.0, 0.0)

    def by_mirror(self, kind: Kind) -> ApplyRun:
        """`walbridge mirror` on a copy of an empty replica."""
        with _replica(self.servers, kind, copy_of=self.empty[kind]) as url, _reader(url) as query:
            mirror = MirrorProcess(self.nats, url, self.servers.folder)
            began = time.time()
            with mirror.running():
                assert mirror.process is not None
                usage = UsageSampler(mirror.process.pid)
                first, last = self._watch(query, mirror, usage)
                after, before = usage.sample(), usage.last_before(first[1])
                ((rows,),) = query("SELECT count(*) FROM bench")
                if rows != self.written.rows or mirror.stop():
                    raise RuntimeError(f"{rows} rows in the replica: {mirror.log()[-4000:]}")
        cpu_us = (after.cpu_s - before.cpu_s) / self.written.rows * 1e6
        return ApplyRun(self._rate(first, last), last[1] - began, cpu_us, usage.peak_rss_mb())

    def _watch(
        self, query: Query, mirror: MirrorProcess | None, usage: UsageSampler | None = None
    ) -> tuple[tuple[int, float], tuple[int, float]]:
        """The first highest id that was seen, and when; the same of the last. Ids come in order."""
        deadline = time.monotonic() + PATIENCE_S
        first: tuple[int, float] | None = None
        while True:
            if usage is not None:
                usage.sample()
            ((highest,),) = query("SELECT max(id) FROM bench")
            now = time.time()
            if highest is not None and first is None:
                first = highest, now
            if first is not None and highest == self.written.rows:
                return first, (highest, now)
            ended = mirror is not None and mirror.process is not None and mirror.process.poll() is not None
            if ended or time.monotonic() > deadline:
                raise RuntimeError(f"{highest} of {self.written.rows} rows: {mirror.log()[-4000:] if mirror else ''}")
            time.sleep(LOOK_EVERY_S)

    @staticmethod
    def _rate(first: tuple[int, float], last: tuple[int, float]) -> float:
        return (last[0] - first[0]) / (last[1] - first[1])


_TABLE = """
SELECT 'CREATE TABLE bench (' || string_agg(format('%I %s', attname, format_type(atttypid, atttypmod)), ', ' ORDER BY attnum)
  || ', PRIMARY KEY (id)); CREATE TABLE bench_big (LIKE bench INCLUDING ALL)'
FROM pg_attribute WHERE attrelid = 'bench'::regclass AND attnum > 0
"""


@contextmanager
def applied_backlog(servers: Servers, rows: int, rows_per_transaction: int) -> Iterator[AppliedBacklog]:
    """Make replicas live while the table is empty, then write the backlog and let a bridge store it."""
    empty_table(servers)
    with servers.new_nats() as nats, servers.new_slot() as slot, _bridge(servers, nats, slot) as bridge:
        bridge.start()
        with _replica(servers, "sqlite") as file, _replica(servers, "postgresql") as database:
            empty: dict[Kind, str] = {"sqlite": file, "postgresql": database}
            for url in empty.values():
                with MirrorProcess(nats, url, servers.folder).running() as mirror, _reader(url) as query:
                    _wait_live(query, url, mirror)
                    if mirror.stop():
                        raise RuntimeError(mirror.log()[-4000:])
            with backlog(servers, rows, rows_per_transaction) as written:
                asyncio.run(_until_stored(nats, rows))
                if bridge.stop():
                    raise RuntimeError(bridge.log()[-4000:])
                yield AppliedBacklog(servers, nats, written, empty)


def mirror_lag(servers: Servers, kind: Kind, per_second: int, seconds: int) -> LagRun:
    """Commit rows one by one, bridge and mirror running, and look for them in the replica all the time."""
    empty_table(servers)
    with (
        servers.new_nats() as nats,
        servers.new_slot() as slot,
        _bridge(servers, nats, slot) as bridge,
        _replica(servers, kind) as url,
    ):
        bridge.start()
        with MirrorProcess(nats, url, servers.folder).running() as mirror, _reader(url) as query:
            _wait_live(query, url, mirror)
            assert mirror.process is not None
            time.sleep(0.5)
            usage = UsageSampler(mirror.process.pid)
            before = usage.sample()
            load = Thread(target=commit_at_rate, args=(servers, per_second, seconds))
            load.start()
            rows = rows_at_rate(per_second, seconds)
            seen = _look(query, rows, mirror)
            load.join()
            after = usage.sample()
        stored = asyncio.run(_stored_ages_ms(nats))
        if bridge.stop():
            raise RuntimeError(bridge.log()[-4000:])
    ages_ms = sorted((at - committed) * 1e3 for committed, at in seen)
    committed = [moment for moment, _ in seen]
    percentiles, until_stored = quantiles(ages_ms, n=100), quantiles(stored, n=100)
    return LagRun(
        rows / (max(committed) - min(committed)), percentiles[49], percentiles[98], ages_ms[-1], until_stored[49],
        until_stored[98], (after.cpu_s - before.cpu_s) / rows * 1e6,
    )  # fmt: skip


def _wait_live(query: Query, url: str, mirror: MirrorProcess) -> None:
    """Return once both tables are live; until the mirror has made its own tables, asking for them is an error."""
    tables = "_walbridge_tables" if url.startswith("sqlite") else "_walbridge.tables"
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with suppress(sqlite3.Error, psycopg.Error):
            if query(f"SELECT count(*) FROM {tables} WHERE state = 'live'") == [(2,)]:
                return
        if mirror.process is None or mirror.process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"not live: {mirror.log()[-4000:]}")
        time.sleep(0.05)


def _look(query: Query, rows: int, mirror: MirrorProcess) -> list[tuple[float, float]]:
    """(when it was committed, when it was seen here) of every row."""
    # each connection of the load has ids of its own, in order
    highest = [number * 1_000_000_000 for number in range(CONNECTIONS)]
    seen: list[tuple[float, float]] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(seen) < rows:
        ranges = " UNION ALL ".join(
            f"SELECT id, created_at FROM bench WHERE id > {low} AND id < {number + 1}000000000"
            for number, low in enumerate(highest)
        )
        found = query(ranges)
        now = time.time()
        for id_, committed in found:
            number = id_ // 1_000_000_000
            highest[number] = max(highest[number], id_)
            seen.append((_seconds(committed), now))
        if time.monotonic() > deadline:
            raise RuntimeError(f"{len(seen)} of {rows} rows: {mirror.log()[-4000:]}")
        time.sleep(LAG_LOOK_EVERY_S)
    return seen


def _seconds(moment: Any) -> float:
    if isinstance(moment, datetime):
        return moment.timestamp()
    return datetime.fromisoformat(str(moment).rstrip("Z")).replace(tzinfo=UTC).timestamp()


async def _until_stored(nats: NatsServer, rows: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    async with open_stored(nats.url) as stored:
        while await stored.count() < rows:
            if time.monotonic() > deadline:
                raise RuntimeError("the bridge has not stored the backlog")
            await asyncio.sleep(0.1)


async def _stored_ages_ms(nats: NatsServer) -> list[float]:
    async with open_stored(nats.url) as stored:
        return [(stored_at - committed_at) * 1e3 for committed_at, stored_at in await stored.commits()]


@contextmanager
def _bridge(servers: Servers, nats: NatsServer, slot: str) -> Iterator[Bridge]:
    bridge = Bridge(servers.postgres.dsn(), nats, servers.folder, slot=slot, pub=PUBLICATION)
    try:
        yield bridge
    finally:
        bridge.kill()


@contextmanager
def _replica(servers: Servers, kind: Kind, *, copy_of: str | None = None) -> Iterator[str]:
    """The URL of a new replica, or of a copy of one that nobody uses; removed at the end."""
    if kind == "postgresql":
        template = copy_of.rpartition("/")[2].partition("?")[0] if copy_of is not None else "template1"
        with _database(servers, template) as name:
            yield servers.postgres.dsn(name)
        return
    file = servers.folder / f"replica-{next(_serial)}.db"
    if copy_of is not None:
        shutil.copy(copy_of.removeprefix("sqlite:///"), file)
    try:
        yield f"sqlite:///{file}"
    finally:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{file}{suffix}").unlink(missing_ok=True)


@contextmanager
def _database(servers: Servers, template: str = "template1") -> Iterator[str]:
    name = f"replica_{next(_serial)}"
    with servers.connect() as admin:
        admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template)))
        try:
            yield name
        finally:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@contextmanager
def _reader(url: str) -> Iterator[Query]:
    """Read a replica without its mirror, each query as of now."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), timeout=30, isolation_level=None)) as file:
            yield lambda query: file.execute(query).fetchall()
    else:
        with psycopg.connect(url, autocommit=True) as connection:
            yield lambda query: connection.execute(query.encode()).fetchall()
