"""One run of servers, applications, bridge, mirror and operator: first faults, then peace, in which all must become equal."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import trio

from actors import bridge
from actors.errors import WalbridgeError
from actors.mirror import run as mirror
from actors.positions import format_lsn
from actors.settings.config import (
    Config,
    HttpConfig,
    LogConfig,
    NatsConfig,
    OtlpConfig,
    PostgresConfig,
    PublishConfig,
    SnapshotConfig,
    SourceConfig,
)
from actors.telemetry.figures import lag_s as lag_of
from property_tests.simulation.nats.server import NatsServer
from property_tests.simulation.network import Network
from property_tests.simulation.plan import Flags, Plan
from property_tests.simulation.postgres.server import Copy, Postgres
from property_tests.simulation.postgres.tables import INT4, INT8, TEXT, Column, Database, Entry, Publication, Table
from property_tests.simulation.processes import Process, in_memory
from property_tests.simulation.replica import differences, look
from property_tests.simulation.timers import Timers
from property_tests.simulation.trace import Trace
from property_tests.simulation.witness import Witness
from property_tests.simulation.workload import Workload

SLOT = "cdc_slot"
HOLD_TIMES = 2
"""`--confirm-hold` in times of the server's `sync_interval`, as documented."""
LIVE_WITHIN_S = 240.0
LOOK_S = 3.0
ACCEPTED = frozenset({"WB107", "WB108", "WB150", "WB151"})
"""Codes with which the bridge asks a person to accept a loss."""
COLUMNS = (Column("id", INT4, 1), Column("v", TEXT, 2), Column("n", INT8, 3), Column("big", TEXT, 4))


class World:
    """Everything of one run."""

    def __init__(self, plan: Plan, folder: Path, nursery: trio.Nursery, trace: Trace) -> None:
        self.plan, self.trace = plan, trace
        self.dice = random.Random(f"world {plan.seed}")
        self.timers = Timers()
        self.network = Network(self.timers, random.Random(f"network {plan.seed}"), trace)
        self.network.slow_s = plan.slow_s
        self.nats = NatsServer(self.network, random.Random(f"nats {plan.seed}"), trace)
        self.postgres = Postgres(self.network, random.Random(f"postgres {plan.seed}"), trace)
        self.postgres.visible_after_s = plan.visible_after_s
        self.network.servers = {"nats": self.nats, "postgres": self.postgres}
        self.workload = Workload(self.postgres, plan.seed, plan.transactions)
        self.witness = Witness(self.postgres, self.nats.jetstream, trace)
        self.bridge, self.rival, self.mirror = (
            Process(name, nursery, self.network, trace) for name in ("bridge", "rival", "mirror")
        )
        self.other = Process("other", nursery, self.network, trace)
        """The bridge of another database, whose tables have the same names."""
        self.start = nursery.start_soon
        self.flags = plan.flags
        self.accepting = False
        self.away_until: dict[str, float] = {}
        """Processes that somebody keeps down."""
        self.is_peace = False
        self.replica = folder / f"replica-{plan.seed}.db"
        self.copies: list[Copy] = []
        self.other_history_at = -1e9
        """When the server's history changed last."""
        self.is_simple = True
        """No history, shape or publication has changed, and nothing was lost: the replica can be compared at its LSN."""
        self.wrong: list[str] = []
        self.compared = 0

    # -- the beginning

    def set_up(self) -> None:
        """Make tables and publish them."""
        for name in ("users", "orders"):
            self.make_table(name, identity=self.dice.choice("ddf"))
        if self.plan.flags.hold and self.plan.sync_s:
            self.witness.hold_s = self.plan.sync_s

    def make_table(self, name: str, *, identity: str = "d", published: bool = True) -> int:
        """CREATE TABLE, and publish it; return its OID."""
        oid = self.postgres.next_oid
        self.postgres.next_oid += 2
        filenode = self.postgres.next_oid

        def make(database: Database, xid: int) -> None:
            table = Table(oid, name, COLUMNS, identity, filenode, xid, len(COLUMNS) + 1)
            database.with_table(table, {})
            if published:
                database.publication = database.publication or Publication(oid + 1, xid)
                database.publish(oid, Entry(oid + 1))

        self.postgres.alter(make)
        return oid

    # -- processes

    def config(self, flags: Flags) -> Config:
        """The settings of a bridge."""
        hold_s = int(HOLD_TIMES * self.plan.sync_s) if flags.hold else 0
        return Config(
            PostgresConfig("host=postgres"), NatsConfig(("nats://nats:4222",)), SourceConfig(SLOT),
            PublishConfig(mode=flags.mode, confirm_hold_s=hold_s, pack=flags.pack, json=flags.json),  # type: ignore[arg-type]
            SnapshotConfig(), HttpConfig(), LogConfig(), OtlpConfig(), accept_gap=self.accepting,
        )  # fmt: skip

    def start_bridge(self) -> None:
        self.bridge.start(partial(bridge._run, self.config(self.flags), None))

    def start_rival(self) -> None:
        """The same bridge once more, as after a failed hand-over."""
        self.rival.start(partial(bridge._run, self.config(self.flags), None))

    async def start_other(self) -> None:
        """A bridge of another database in the same account."""
        other = Postgres(self.network, random.Random(f"other {self.plan.seed}"), self.trace)
        self.network.servers["postgres2"] = other
        entries: dict[int, Entry] = {}
        for oid, name in ((16400, "users"), (16402, "orders")):
            table, rows = Table(oid, name, COLUMNS), {b"1": {"id": b"1", "v": b"another database's"}}
            other.database.with_table(table, dict(rows))
            entries[oid] = Entry(oid + 1)
        other.database.publication = Publication(16384, 700, entries)
        config = self.config(self.flags)
        self.other.start(partial(bridge._run, replace(
            config, postgres=PostgresConfig("host=postgres2"), source=SourceConfig("other_slot"),
            publish=replace(config.publish, stream="CDC2"),
        ), None))  # fmt: skip
        await trio.sleep(2.0)

    def start_mirror(self) -> None:
        config = mirror.MirrorConfig(NatsConfig(("nats://nats:4222",)), "CDC", f"sqlite:///{self.replica}", ())
        self.mirror.start(partial(mirror._run, config))

    async def begin_a_replica_anew(self) -> None:
        """Somebody removes the replica's file."""
        if self.mirror.is_running:
            await self.mirror.kill()
        for path in self.replica.parent.glob(f"{self.replica.name}*"):
            path.unlink()

    def interrupt_the_next_gap(self) -> None:
        """Cut the bridge off as soon as a gap event is stored: it does not hear of that."""

        def cut() -> None:
            for link in self.network.ordered():
                if link.name.startswith("nats"):
                    link.cut()

        self.witness.on_next_gap = cut

    async def operate(self) -> None:
        """Start again what has ended, as an operator would who reads what it says."""
        while True:
            await trio.sleep(0.5)
            now = trio.current_time()
            pause = self.bridge.pause
            if self.is_peace and pause is not None and pause.end():
                self.trace("operator", "resumed the bridge")
            for process, start in ((self.bridge, self.start_bridge), (self.mirror, self.start_mirror)):
                if process.is_running or self.away_until.get(process.name, 0) > now:
                    continue
                if process.runs and isinstance(process.ended, WalbridgeError):
                    self._read_words(process, process.ended)
                start()
            if self.bridge.telemetry is not None and self.bridge.telemetry.state == "streaming":
                self.accepting = False

    def _read_words(self, process: Process, error: WalbridgeError) -> None:
        """Do what an error asks for."""
        self.trace("operator", f"{process.name}: {error}")
        self.away_until[process.name] = trio.current_time() + 1.0
        if process is self.bridge and error.code in ACCEPTED:
            self.accepting = True
        elif process is self.bridge and error.code == "WB106":
            self._publish_again()
        elif process is self.bridge and error.code == "WB235":
            self.nats.jetstream.streams["CDC"].config["retention"] = "limits"
        else:
            self.wrong.append(f"{process.name} ended: {error}")

    def _publish_again(self) -> None:
        """Create the publication anew, and give up what the slot cannot send."""
        if self.postgres.database.publication is None:
            self.publish_all()
        slot = self.postgres.slots.get(SLOT)
        if slot is not None:
            slot.confirmed = slot.saved = self.postgres.wal_end
            self.witness.cause("the slot was moved beyond what it could not send", is_vague=True)

    def publish_all(self) -> None:
        """CREATE PUBLICATION for all tables."""
        oid = self.postgres.next_oid
        self.postgres.next_oid += 100

        def make(database: Database, xid: int) -> None:
            entries = {table: Entry(oid + number) for number, table in enumerate(sorted(database.tables), 1)}
            database.publication = Publication(oid, xid, entries)

        self.postgres.alter(make)

    # -- what servers do by themselves

    async def sync(self) -> None:
        """nats-server writes to its disk, each stream at a time of its own."""
        interval = self.plan.sync_s
        while interval:
            await trio.sleep(interval / 4)
            for stream in self.nats.jetstream.streams.values():
                if self.dice.random() < 0.25 or trio.current_time() - stream.synced_at >= interval:
                    stream.synced()

    async def checkpoint(self) -> None:
        """PostgreSQL saves its slots now and then, and somebody copies its volume."""
        while True:
            await trio.sleep(self.dice.uniform(3, 12))
            if self.postgres.is_up:
                self.postgres.checkpoint()
                self.copies.append(self.postgres.copy())

    async def heal(self) -> None:
        """End all faults; what was changed stays changed."""
        self.trace("world", "peace")
        self.is_peace = True
        mood = self.nats.jetstream.mood
        mood.refuse_until = mood.leaderless_until = mood.mute_until = mood.late_until = 0.0
        self.nats.jetstream.batch_max = 1000
        for link in self.network.ordered():
            link.heal()
        self.network.slow_s = 0.0
        self.workload.stopped = True
        for process in (self.rival, self.other):
            if process.is_running:
                await process.kill()
        self.nats.start()
        if not self.postgres.is_up:
            self.postgres.start()
        self.away_until.clear()

    # -- what must hold

    async def compare_often(self) -> None:
        """Compare the replica at its own LSN while the run goes on."""
        while True:
            await trio.sleep(LOOK_S)
            seen = look(self.replica)
            if self.is_simple and seen is not None and seen.lsn:
                self.compared += 1
                self.trace("world", f"replica at {format_lsn(seen.lsn)}, {seen.seq}, {dict(seen.states)}")
                source = self.postgres.as_of(max(seen.lsn, self.witness.lsn_at(seen.seq)) + 1)
                self.wrong += [f"at {seen.seq}: {one}" for one in differences(self.replica, seen, source)]

    def unsettled(self) -> str:
        """What is not yet as it must become; empty when all is."""
        telemetry, postgres = self.bridge.telemetry, self.postgres
        slot = postgres.slots.get(SLOT)
        last = max((e.lsn for e in self.witness.evidence.expected), default=0)
        if not self.bridge.is_running or telemetry is None or telemetry.state != "streaming":
            return f"the bridge is {telemetry.state if telemetry else 'not up'}: {telemetry and telemetry.not_ready_reason}"
        if slot is None or slot.confirmed < min(last + 1, postgres.wal_end):
            return f"slot is at {format_lsn(slot.confirmed) if slot else 'nothing'}, the last change at {format_lsn(last)}"
        seen = look(self.replica)
        if seen is None or not self.mirror.is_running:
            return "there is no replica"
        for table, _ in postgres.database.published():
            if seen.states.get(table.name, ("missing",))[0] != "live":
                return f"table {table.name} is not live in the replica: {seen.states.get(table.name)}"
        return "; ".join(differences(self.replica, seen, postgres.database))

    def untrue(self) -> list[str]:
        """What the bridge shows and is not so, while everything is stored and nothing moves."""
        telemetry = self.bridge.telemetry
        if telemetry is None:
            return []
        lag_s, waits = lag_of(telemetry, time.time()), telemetry.backlog.is_waiting
        return [f"the bridge shows a lag of {lag_s:g} s, and everything is stored"] if lag_s or waits else []

    async def settle(self) -> None:
        """Peace: everything must become equal in time."""
        for writer_number in range(2):
            await trio.sleep(0.5 * writer_number)
            await self.workload.transaction()
        words = ""
        with trio.move_on_after(LIVE_WITHIN_S) as deadline:
            quiet = 0
            while quiet < 3:  # equal, and staying so
                await trio.sleep(2.0)
                words = self.unsettled()
                quiet = 0 if words else quiet + 1
        if deadline.cancelled_caught:
            self.wrong.append(f"not settled after {LIVE_WITHIN_S:g} s of peace: {words}")
        else:
            self.wrong += self.untrue()
        self.wrong += self.witness.verdict()


class _ToTrace(logging.Handler):
    """The log of bridge and mirror, in the trace."""

    def __init__(self, trace: Trace) -> None:
        super().__init__(logging.DEBUG if trace.shown else logging.INFO)
        self._trace = trace

    def emit(self, record: logging.LogRecord) -> None:
        fields = " ".join(f"{k}={v}" for k, v in getattr(record, "fields", {}).items() if k != "uptime_s")
        self._trace(record.name, f"{record.getMessage()} {fields}")


@asynccontextmanager
async def world_of(plan: Plan, folder: Path, trace: Trace) -> AsyncGenerator[World]:
    """A world in which servers, operator and applications are at work; all ends with the body."""
    logger, handler = logging.getLogger("walbridge"), _ToTrace(trace)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(handler.level)
    try:
        async with trio.open_nursery() as nursery:
            world = World(plan, folder, nursery, trace)
            with in_memory(world.network):
                world.set_up()
                for task in (
                    world.timers.run,
                    world.sync,
                    world.checkpoint,
                    world.operate,
                    world.workload.run,
                    world.compare_often,
                ):
                    nursery.start_soon(task)
                yield world
                for process in (world.bridge, world.rival, world.other, world.mirror):
                    if process.is_running:
                        await process.kill()
                nursery.cancel_scope.cancel()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
