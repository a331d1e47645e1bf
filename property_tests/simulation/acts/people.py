"""What administrators do to slots, streams, tables and publications."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import trio

from property_tests.simulation.acts.act import Act
from property_tests.simulation.nats.store import Message
from property_tests.simulation.postgres.tables import INT8, Column, Database, Entry, Table
from property_tests.simulation.world import SLOT, World

# -- the slot


async def drop_the_slot(world: World, dice: random.Random) -> None:
    """pg_drop_replication_slot, once its reader was cut off."""
    _perhaps_interrupt(world, dice)
    slot = world.postgres.slots.pop(SLOT, None)
    if slot is not None:
        _cut_readers(world)
        world.is_simple = False
        world.witness.slot_lost()
        world.witness.cause("the slot was dropped")


async def lose_the_slot(world: World, dice: random.Random) -> None:
    """PostgreSQL removes WAL that the slot needs."""
    _perhaps_interrupt(world, dice)
    slot = world.postgres.slots.get(SLOT)
    if slot is not None and not slot.lost:
        slot.lost = "wal_removed"
        _cut_readers(world)
        world.is_simple = False
        world.witness.slot_lost()
        world.witness.cause("the slot was invalidated")


async def move_the_slot(world: World, dice: random.Random) -> None:
    """pg_replication_slot_advance, once its reader was cut off."""
    _perhaps_interrupt(world, dice)
    slot = world.postgres.slots.get(SLOT)
    if slot is not None and not slot.lost:
        _cut_readers(world)
        if slot.confirmed < world.postgres.wal_end:
            slot.confirmed = slot.saved = world.postgres.wal_end
            world.is_simple = False
            world.witness.slot_moved(slot.confirmed)
            world.witness.cause("the slot was moved")


def _perhaps_interrupt(world: World, dice: random.Random) -> None:
    if dice.random() < 0.5:
        world.interrupt_the_next_gap()


def _cut_readers(world: World) -> None:
    for link in world.network.ordered():
        if link.name.startswith("postgres"):
            link.cut()


# -- streams


async def purge_changes(world: World, dice: random.Random) -> None:
    """nats stream purge CDC, all of it or one subject."""
    subject = "" if dice.random() < 0.5 else _some_subject(world, dice)
    await _remove(world, [m for m in world.witness.messages if subject in ("", m.subject)])


def _some_subject(world: World, dice: random.Random) -> str:
    subjects = sorted({m.subject for m in world.witness.messages if ".insert" in m.subject or ".update" in m.subject})
    return dice.choice(subjects) if subjects else ""


async def delete_messages(world: World, dice: random.Random) -> None:
    """nats stream rmm, of some messages."""
    kept = [m for m in world.witness.messages if "_bridge" not in m.subject]
    await _remove(world, dice.sample(kept, min(len(kept), dice.choice((1, 3)))))


async def delete_the_last_messages(world: World, dice: random.Random) -> None:
    """nats stream rmm, of the newest; JetStream may remember their ids for long, and the bridge may just be down."""
    stream = world.nats.jetstream.streams.get("CDC")
    if stream is not None and dice.random() < 0.5:
        stream.config["duplicate_window"] = int(8 * 3600 * 1e9)
    if dice.random() < 0.5:
        for _ in range(60):  # until something is stored that the record does not know yet
            if world.witness.messages and trio.current_time() - world.witness.messages[-1].at < 0.3:
                break
            await trio.sleep(0.05)
        if world.bridge.is_running:
            await world.bridge.kill()
    await _remove(world, [m for m in world.witness.messages[-dice.choice((1, 2, 5)) :] if "_bridge" not in m.subject])


async def _remove(world: World, messages: list[Message]) -> None:
    stream = world.nats.jetstream.streams.get("CDC")
    if stream is not None and messages:
        world.is_simple = False
        world.witness.removed(messages)
        stream.remove([m.seq for m in messages])


async def edit_the_stream(world: World, _: random.Random) -> None:
    """nats stream edit CDC, to retention by interest: it throws away what it has, and whatever comes."""
    stream = world.nats.jetstream.streams.get("CDC")
    if stream is not None:
        stream.config["retention"] = "interest"
        await _remove(world, world.witness.messages)


async def limit_the_stream(world: World, dice: random.Random) -> None:
    """nats stream edit CDC --max-msgs: the oldest messages go, and more with each that comes."""
    stream = world.nats.jetstream.streams.get("CDC")
    if stream is not None:
        world.is_simple = False
        stream.on_limit = world.witness.removed
        stream.config["max_msgs"] = dice.choice((3, 20, -1))
        stream.expire()


async def start_another_bridge(world: World, dice: random.Random) -> None:
    """The bridge of another database joins the account, with tables of the same names, and takes snapshots beside this one."""
    if "postgres2" in world.network.servers or not world.nats.is_up:
        return
    await world.start_other()
    await world.begin_a_replica_anew()
    for _ in range(12):
        await trio.sleep(0.3 * dice.random())
        for name in ("users", "orders"):
            world.nats.published(f"snapshot.request.{name}@CDC2", "", b"", b"")


async def begin_a_replica_anew(world: World, _: random.Random) -> None:
    """Somebody removes the replica's file, and the mirror begins again."""
    await world.begin_a_replica_anew()


async def purge_snapshots(world: World, _: random.Random) -> None:
    """nats stream purge INIT."""
    stream = world.nats.jetstream.streams.get("INIT")
    if stream is not None:
        stream.remove(list(stream.messages))


# -- tables and the publication


async def _alter(world: World, dice: random.Random, act: Callable[[Database, Table, int], None], *, locks: bool) -> None:
    """Alter one table as soon as nobody is in the way."""
    postgres = world.postgres
    for _ in range(40):
        tables = sorted(postgres.database.tables.values(), key=lambda table: table.oid)
        if not tables or not postgres.is_up:
            return
        table = dice.choice(tables)
        is_locked = any(table.oid in session.locked for session in postgres.sessions)
        if not locks or not (is_locked or world.workload.touched(table)):
            world.is_simple = False
            postgres.alter(partial(_on_table, act, table.oid))
            return
        await trio.sleep(0.25)


def _on_table(act: Callable[[Database, Table, int], None], oid: int, database: Database, xid: int) -> None:
    act(database, database.tables[oid], xid)


async def add_a_column(world: World, dice: random.Random) -> None:
    """ALTER TABLE ADD COLUMN."""

    def act(database: Database, table: Table, xid: int) -> None:
        number = table.next_number
        column = Column(f"c{number}", INT8, number)
        database.tables[table.oid] = replace(
            table, columns=(*table.columns, column), next_number=number + 1, attributes_xid=xid
        )

    await _alter(world, dice, act, locks=True)


async def drop_a_column(world: World, dice: random.Random) -> None:
    """ALTER TABLE DROP COLUMN, of one that somebody may add again under its name."""

    def act(database: Database, table: Table, xid: int) -> None:
        kept = tuple(column for column in table.columns if column.name in ("id", "v", "big"))
        again = dice.random() < 0.5
        number = table.next_number
        database.tables[table.oid] = replace(
            table, columns=(*kept, Column("n", INT8, number)) if again else kept, next_number=number + 1, attributes_xid=xid
        )
        database.rows[table.oid] = {
            key: {name: value for name, value in row.items() if name in ("id", "v", "big")}
            for key, row in database.rows[table.oid].items()
        }

    state = dice.getstate()

    def repeatable(database: Database, table: Table, xid: int) -> None:
        dice.setstate(state)
        act(database, table, xid)

    await _alter(world, dice, repeatable, locks=True)


async def change_the_identity(world: World, dice: random.Random) -> None:
    """ALTER TABLE REPLICA IDENTITY FULL or DEFAULT."""

    def act(database: Database, table: Table, _xid: int) -> None:
        entry = database.entry(table.oid)
        if entry is None or entry.columns is None:
            database.tables[table.oid] = replace(table, identity="d" if table.identity == "f" else "f")

    await _alter(world, dice, act, locks=True)


async def rename_a_table(world: World, dice: random.Random) -> None:
    """ALTER TABLE RENAME."""
    name = f"t{dice.randrange(1000)}"

    def act(database: Database, table: Table, _xid: int) -> None:
        if database.named(name) is None:
            database.tables[table.oid] = replace(table, name=name)

    await _alter(world, dice, act, locks=True)


async def unpublish_a_table(world: World, dice: random.Random) -> None:
    """ALTER PUBLICATION DROP TABLE; back again later, as the case may be. No lock keeps writers out."""

    def act(database: Database, table: Table, _xid: int) -> None:
        if database.publication is not None:
            database.publish(table.oid, None)

    await _alter(world, dice, act, locks=False)
    await trio.sleep(dice.choice((0.1, 2.0)))
    if dice.random() < 0.7:
        world.postgres.next_oid += 10
        oid = world.postgres.next_oid

        def back(database: Database, _xid: int) -> None:
            for number, table in enumerate(sorted(database.tables)):
                if database.publication is not None and database.entry(table) is None:
                    database.publish(table, Entry(oid + number))

        if world.postgres.is_up:
            world.postgres.alter(back)


async def publish_beside_a_writer(world: World, dice: random.Random) -> None:
    """ALTER PUBLICATION DROP and ADD TABLE, the latter while a transaction is open that has written to the table."""
    postgres = world.postgres
    published = [table for table, _ in postgres.database.published()] if postgres.is_up else []
    if not published:
        return
    world.is_simple = False
    oid = dice.choice(published).oid
    postgres.alter(lambda database, _: database.publish(oid, None) if database.publication is not None else None)
    await trio.sleep(dice.choice((0.0, 1.0)))
    if not postgres.is_up:
        return
    world.start(world.workload.slow_transaction, oid, dice.choice((2.0, 9.0, 15.0)))
    await trio.sleep(0.01)
    postgres.next_oid += 10
    entry = postgres.next_oid

    def back(database: Database, _xid: int) -> None:
        if database.publication is not None and oid in database.tables:
            database.publish(oid, Entry(entry))

    if postgres.is_up:
        postgres.alter(back)


async def publish_a_part(world: World, dice: random.Random) -> None:
    """A row filter, or all rows again."""
    world.postgres.next_oid += 10
    oid, min_id = world.postgres.next_oid, dice.choice((None, 3, 6))

    def act(database: Database, table: Table, _xid: int) -> None:
        if database.publication is not None:
            database.publish(table.oid, Entry(oid, None, min_id))

    await _alter(world, dice, act, locks=False)


async def list_columns(world: World, dice: random.Random) -> None:
    """A column list."""
    world.postgres.next_oid += 10
    oid = world.postgres.next_oid

    def act(database: Database, table: Table, _xid: int) -> None:
        if database.publication is not None and table.identity == "d":
            numbers = frozenset(column.number for column in table.columns if column.name in ("id", "v"))
            database.publish(table.oid, Entry(oid, numbers))

    await _alter(world, dice, act, locks=False)


async def make_a_table(world: World, dice: random.Random) -> None:
    """CREATE TABLE and ALTER PUBLICATION ADD TABLE."""
    name = f"new{dice.randrange(3)}"
    if world.postgres.is_up and world.postgres.database.named(name) is None and world.postgres.database.publication:
        world.is_simple = False
        world.make_table(name)


async def make_a_table_anew(world: World, dice: random.Random) -> None:
    """DROP TABLE and CREATE TABLE of the same name."""
    names: list[str] = []

    def act(database: Database, table: Table, _xid: int) -> None:
        names.append(table.name)
        del database.tables[table.oid], database.rows[table.oid]
        if database.publication is not None:
            database.publish(table.oid, None)

    await _alter(world, dice, act, locks=True)
    if names and world.postgres.is_up and world.postgres.database.publication is not None:
        world.make_table(names[0])


async def create_the_publication_again(world: World, dice: random.Random) -> None:
    """DROP PUBLICATION, and CREATE PUBLICATION after a moment."""
    if not world.postgres.is_up or world.postgres.database.publication is None:
        return
    world.is_simple = False

    def drop(database: Database, _xid: int) -> None:
        database.publication = None

    world.postgres.alter(drop)
    await trio.sleep(dice.choice((0.0, 0.5)))
    if world.postgres.is_up and world.postgres.database.publication is None:
        world.publish_all()


PEOPLE = (
    Act(drop_the_slot, 2), Act(lose_the_slot, 2), Act(move_the_slot, 2), Act(purge_changes, 3), Act(delete_messages, 3),
    Act(delete_the_last_messages, 2), Act(purge_snapshots, 2), Act(edit_the_stream, 2), Act(limit_the_stream, 2),
    Act(start_another_bridge, 2), Act(begin_a_replica_anew, 2), Act(add_a_column, 2), Act(drop_a_column, 2),
    Act(change_the_identity, 2), Act(rename_a_table, 2), Act(unpublish_a_table, 3), Act(publish_a_part, 3), Act(publish_beside_a_writer, 2), Act(list_columns, 2),
    Act(make_a_table, 2), Act(make_a_table_anew, 2), Act(create_the_publication_again, 1),
)  # fmt: skip
