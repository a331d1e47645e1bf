"""What happens to machines: processes are killed; servers crash, lose power, are promoted or restored."""

from __future__ import annotations

import random
import time

import trio

from actors.contract.bridge_record import BridgeRecord
from actors.contract.message_ids import id_in, position_of
from actors.positions import format_lsn
from actors.wire.nats import decode_headers
from property_tests.simulation.acts.act import Act
from property_tests.simulation.plan import flags_of
from property_tests.simulation.world import HOLD_TIMES, SLOT, World


async def kill_bridge(world: World, dice: random.Random) -> None:
    """kill -9, at any time or amid work, and a start soon or later."""
    await _amid_work(world, dice)
    world.away_until["bridge"] = trio.current_time() + dice.choice((0.0, 0.0, 3.0))
    if world.bridge.is_running:
        await world.bridge.kill()


async def _amid_work(world: World, dice: random.Random) -> None:
    """Perhaps wait until something is stored, and a few steps more."""
    if dice.random() < 0.5:
        stored = trio.Event()
        world.witness.on_next_change = stored.set
        with trio.move_on_after(5.0):
            await stored.wait()
        await trio.sleep(dice.choice((0.0, 0.0001, 0.0003, 0.0006, 0.002, 0.95, 1.0)))


async def restart_with_other_flags(world: World, dice: random.Random) -> None:
    """An operator stops the bridge in order and starts it otherwise. What was promised with a hold stays promised."""
    if world.bridge.is_running:
        world.bridge.stop.set()
        with trio.move_on_after(60):
            await world.bridge.finish()
        if world.bridge.is_running:
            await world.bridge.kill()
    world.flags = flags_of(dice)._replace(hold=world.plan.flags.hold, json=world.plan.flags.json)


async def pause_the_bridge(world: World, dice: random.Random) -> None:
    """An operator pauses it, and resumes it later; or forgets to until there is peace."""
    await _amid_work(world, dice)
    process, number, pause = world.bridge, world.bridge.runs, world.bridge.pause
    if not process.is_running or pause is None or not pause.begin(time.time()):
        return
    forgets, seconds = dice.random() < 0.2, dice.choice((0.0, 0.5, 3.0, 12.0))

    async def later() -> None:
        for _ in range(int(seconds / 0.25) + 1):
            await trio.sleep(0.25)
            is_paused = process.is_running and process.runs == number and process.telemetry.state == "paused"
            slot = world.postgres.slots.get(SLOT)
            if is_paused and slot is not None and slot.reader is not None and not world.rival.is_running:
                await trio.sleep(2.0)  # a link that is cut may be noticed late
                if slot.reader is not None and pause.is_on and process.runs == number and not world.rival.is_running:
                    world.wrong.append("the bridge is paused, and its slot is still read")
        if not forgets and process.is_running and process.runs == number:
            pause.end()

    world.start(later)


async def kill_mirror(world: World, dice: random.Random) -> None:
    """kill -9, at any time or amid work, and a start soon or later."""
    await _amid_work(world, dice)
    world.away_until["mirror"] = trio.current_time() + dice.choice((0.0, 1.0, 8.0))
    if world.mirror.is_running:
        await world.mirror.kill()


async def start_a_rival(world: World, dice: random.Random) -> None:
    """A second bridge for the same slot and stream runs for a while."""
    if world.rival.is_running:
        return
    world.start_rival()
    seconds = dice.choice((2.0, 8.0, 20.0))

    async def later() -> None:
        await trio.sleep(seconds)
        if world.rival.is_running:
            await world.rival.kill()

    world.start(later)


async def restart_nats(world: World, dice: random.Random) -> None:
    """nats-server is killed and started again."""
    world.nats.stop()
    await trio.sleep(dice.choice((0.0, 0.3, 4.0)))
    world.nats.start()


async def cut_power_of_nats(world: World, dice: random.Random) -> None:
    """nats-server loses what is not on disk, of each stream another part."""
    await _cut_power(world, dice, postgres=False)


async def cut_power_of_both(world: World, dice: random.Random) -> None:
    """NATS and PostgreSQL lose power together."""
    await _cut_power(world, dice, postgres=True)


async def _cut_power(world: World, dice: random.Random, *, postgres: bool) -> None:
    interval, now = world.plan.sync_s, trio.current_time()
    if now - world.other_history_at < (2 + HOLD_TIMES) * interval + 5:
        return  # the documents say that after a failover a power cut may go unnoticed
    before = _told(world)
    grows = dice.random() < 0.5
    if grows and world.mirror.is_running:  # it comes back when the stream has grown again
        world.away_until["mirror"] = now + 10.0
        await world.mirror.kill()
    jetstream = world.nats.jetstream
    gaps = sum(".gap" in m.subject for m in world.witness.messages)
    world.nats.stop()
    lost = jetstream.power_cut(interval) if interval else {}
    world.trace("world", f"power cut: {lost}")
    if any(lost.values()):
        world.is_simple = False
    if sum(".gap" in m.subject for m in world.witness.messages) < gaps:
        world.witness.cause("a power cut took a gap event", is_vague=True)
    if before > _proven(world) and not (world.plan.flags.hold and _record_is_there(world)):
        world.witness.cause(f"a power cut took what was confirmed, up to {format_lsn(before)}")
    if postgres:
        world.postgres.crash()
    await trio.sleep(dice.choice((0.0, 0.5, 4.0)))
    world.nats.start()
    if postgres:
        await trio.sleep(dice.choice((0.0, 2.0)))
        world.postgres.start()
    if grows:
        await trio.sleep(2.0)
        for _ in range(8):
            await world.workload.transaction()


def _records(world: World) -> list[BridgeRecord]:
    stream = world.nats.jetstream.streams.get("KV_bridges")
    return [] if stream is None else [BridgeRecord.decode(m.data, "CDC") for m in stream.of("$KV.bridges.CDC") if m.data]


def _record_is_there(world: World) -> bool:
    return bool(_records(world))


def _told(world: World) -> int:
    """The LSN that may be confirmed to PostgreSQL by now, or is about to be."""
    slot = world.postgres.slots.get(SLOT)
    return max([r.confirmed_lsn for r in _records(world)] + [slot.confirmed if slot is not None else 0])


def _proven(world: World) -> int:
    """The LSN below which what is left of stream and record proves that nothing is missing."""
    stream = world.nats.jetstream.streams.get("CDC")
    if stream is None:
        return 0
    versions = [one for record in _records(world) for one in (record, *record.of_held())]
    proven = [r.confirmed_lsn for r in versions if r.last_seq <= stream.last_seq]
    last = next(reversed(stream.messages.values()), None)
    if last is not None:
        proven.append(position_of(id_in(decode_headers(last.headers)) or "").lsn)
    return max(proven, default=0)


async def crash_postgres(world: World, dice: random.Random) -> None:
    """PostgreSQL goes down at once: its slots fall back to what was saved."""
    world.postgres.crash()
    await trio.sleep(dice.choice((0.0, 1.0, 6.0)))
    world.postgres.start()


def _other_history(world: World, era: int, from_lsn: int) -> int:
    world.is_simple = False
    world.other_history_at = trio.current_time()
    return world.witness.abandoned(era, from_lsn)


async def promote_a_standby(world: World, dice: random.Random) -> None:
    """A standby takes over: it may lag, and may have the slot or not."""
    postgres = world.postgres
    slot, era = postgres.slots.get(SLOT), postgres.era
    ends = [record.end for record in postgres.wal]
    lag = dice.choice((0, 0, 1, 3, 8))
    oldest = postgres.history[-1][1] if postgres.history else 0  # a standby of this timeline has its beginning
    replayed = max(oldest, ends[max(0, len(ends) - 1 - lag)]) if lag and ends else postgres.wal_end
    synced: dict[str, int] = {}
    if slot is not None and dice.random() < 0.6 and not slot.lost:
        synced[SLOT] = min(slot.confirmed, replayed)
    switch = postgres.fail_over(replayed, synced=synced)
    void = _other_history(world, era, switch)
    world.copies.clear()
    world.trace("world", f"promoted at {format_lsn(switch)}, {void} events are void, slots {list(synced)}")
    if not synced:
        world.witness.slot_lost()
        world.witness.cause("the promoted standby lacks the slot", is_vague=True)
    elif void:
        world.witness.cause("the promoted standby lacks changes")


async def restore_a_volume(world: World, dice: random.Random) -> None:
    """An older copy of PostgreSQL's volume is put in place."""
    if not world.copies:
        return
    postgres = world.postgres
    copy, era = dice.choice(world.copies[-3:]), postgres.era
    is_down = dice.random() < 0.5  # then the new history may be longer before the bridge sees it
    if is_down and world.bridge.is_running:
        world.away_until["bridge"] = trio.current_time() + 4.0
        await world.bridge.kill()
    postgres.restore(copy)
    void = _other_history(world, era, copy.wal_end)
    slot = postgres.slots.get(SLOT)
    world.witness.restored(has_slot=slot is not None and not slot.lost)
    world.copies.clear()
    world.trace("world", f"restored to {format_lsn(copy.wal_end)}, {void} events are void")
    world.witness.cause("an older copy of the server", is_vague=True)
    for _ in range(12 if is_down else 0):
        await world.workload.transaction()


MACHINES = (
    Act(kill_bridge, 10), Act(restart_with_other_flags, 5), Act(pause_the_bridge, 4), Act(kill_mirror, 6), Act(start_a_rival, 4), Act(restart_nats, 5),
    Act(cut_power_of_nats, 9), Act(cut_power_of_both, 5), Act(crash_postgres, 5), Act(promote_a_standby, 3),
    Act(restore_a_volume, 2),
)  # fmt: skip
