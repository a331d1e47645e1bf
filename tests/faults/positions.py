"""Faults of what PostgreSQL keeps for the bridge: slots that are lost, and a standby that takes the primary's place."""

from __future__ import annotations

import random
import shutil
import time

import psycopg

from tests.faults.database_people import drop_the_slot
from tests.faults.world import Act, World

_SYNCED_S = 60.0


def invalidate_the_slot(world: World, dice: random.Random) -> None:
    """PostgreSQL gives the slot up while the bridge is away: it holds too much WAL, or was idle for too long."""
    world.to_accept |= {"WB107", "WB108"}
    world.bridge.kill()
    setting, value = dice.choice((("max_slot_wal_keep_size", "48MB"), ("idle_replication_slot_timeout", "2s")))
    world.sql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'cdc_slot' AND active")
    for _ in range(5):
        world.sql("CREATE TABLE IF NOT EXISTS filler (v text)")
        world.sql("INSERT INTO filler SELECT repeat(md5(g::text), 30) FROM generate_series(1, 20000) g")
        world.sql("TRUNCATE filler")
        world.sql("SELECT pg_log_standby_snapshot()")
        world.witness.finish()
        time.sleep(0.6)
    world.database.execute(f"ALTER SYSTEM SET {setting} = '{value}'")
    world.sql("SELECT pg_reload_conf()")
    try:
        lost = _wait_until_lost(world)
    finally:
        world.database.execute(f"ALTER SYSTEM RESET {setting}")
        world.sql("SELECT pg_reload_conf()")
    if not lost:
        raise AssertionError(f"the slot was not invalidated: {world.query('SELECT * FROM pg_replication_slots')}")
    world.bridge.start(ready=False)
    world.wait(lambda: world.bridge.get("/ready")[0] == 200, 60)


def _wait_until_lost(world: World) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with world.witness.caught_up():
            world.witness.finish()
            world.sql("CHECKPOINT")
        state = "SELECT wal_status = 'lost' OR invalidation_reason IS NOT NULL FROM pg_replication_slots WHERE slot_name = 'cdc_slot'"
        if world.query(state) == [(True,)]:
            return True
        time.sleep(0.5)
    return False


def fail_over(world: World, dice: random.Random) -> None:
    """The primary is killed, the standby that has everything the bridge was sent is promoted, and gets a standby of its own."""
    _wait_until_slots_are_kept(world)
    time.sleep(dice.uniform(0, 2))
    _take_over(world)


def fail_over_to_one_that_lags(world: World, dice: random.Random) -> None:
    """The bridge has stored what the standby never received: that history is abandoned."""
    _wait_until_slots_are_kept(world)
    world.servers.to_primary.go_silent()
    time.sleep(dice.uniform(0.5, 4))
    world.writers.pause()
    time.sleep(dice.choice((0.0, 2.0)))
    world.witness.finish()
    if dice.random() < 0.5:
        world.bridge.kill()
    _take_over(world)
    world.writers.go_on()


def _wait_until_slots_are_kept(world: World) -> None:
    """On the standby, for good: until then a promotion loses them."""
    standby = world.servers.standby
    assert standby is not None
    (written,) = world.query("SELECT pg_current_wal_lsn()")[0]
    kept = (
        "SELECT count(*) FROM pg_replication_slots WHERE slot_name IN ('cdc_slot', 'witness') AND synced AND NOT temporary"
        " AND invalidation_reason IS NULL AND confirmed_flush_lsn >= %s::pg_lsn"
    )

    def are_kept() -> bool:
        with psycopg.connect(standby.dsn(), autocommit=True, connect_timeout=5) as session:
            return session.execute(kept, [written]).fetchall() == [(2,)]

    if not world.wait(are_kept, _SYNCED_S):
        raise AssertionError(f"the standby does not keep the slots: {standby.log_tail()}")


def _take_over(world: World) -> None:
    gone = world.postgres.data_dir
    switch_lsn = world.servers.promote()
    world.to_postgres.target = world.postgres.port
    world.to_postgres.cut()
    world.database.server = world.postgres
    world.database.close()
    world.witness.failed_over(world.postgres, switch_lsn)
    shutil.rmtree(gone)
    world.servers.add_standby()


SLOT_ACTS: tuple[Act, ...] = (drop_the_slot, invalidate_the_slot)
FAILOVER_ACTS: tuple[Act, ...] = (fail_over,)
LAGGING_ACTS: tuple[Act, ...] = (fail_over_to_one_that_lags,)
