"""Changes that are larger than servers like: a transaction of 2,000,000 rows, a row of more than 1 GiB as text."""

from __future__ import annotations

import random
import time

from tests.faults.world import Act, World

ROWS = 2_000_000
_PART = 270_000_000
_PATIENCE_S = 900.0


def write_a_large_transaction(world: World, dice: random.Random) -> None:
    """The bridge is killed while it reads it."""
    _publish(world, "bulk", "(id int PRIMARY KEY, v int)")
    world.sql(f"INSERT INTO bulk SELECT g, g % 7 FROM generate_series(1, {ROWS}) g")
    time.sleep(dice.uniform(1, 8))
    world.bridge.kill()
    world.bridge.start(ready=False)
    if not world.wait_until_confirmed(_PATIENCE_S):
        raise AssertionError(f"the transaction is not confirmed: {world.bridge.get('/status')[1]}")
    world.sql("DROP TABLE bulk")


def write_a_row_that_is_too_large_for_text(world: World, _dice: random.Random) -> None:
    """PostgreSQL cannot send it: the bridge ends, and a person gives up what was committed since, as the error says."""
    _publish(world, "huge", "(id int PRIMARY KEY, a bytea, b bytea)")
    if not world.wait_until_confirmed(_PATIENCE_S):
        raise AssertionError(f"not confirmed: {world.bridge.get('/status')[1]}")
    world.writers.pause()
    world.witness.finish()
    before = world.bridge.log().count("WB109")
    world.sql(f"INSERT INTO huge SELECT 1, decode(repeat('ab', {_PART}), 'hex'), decode(repeat('cd', {_PART}), 'hex')")
    deadline = time.monotonic() + _PATIENCE_S
    while world.bridge.exit_code is None or world.bridge.log().count("WB109") == before:
        if time.monotonic() > deadline:
            raise AssertionError(f"no error:\n{world.bridge.log()[-2000:]}")
        time.sleep(1)
    world.sql("SELECT pg_replication_slot_advance('cdc_slot', pg_current_wal_lsn())")
    world.witness.pass_over()
    world.sql("DROP TABLE huge")
    world.bridge.start(ready=False)
    world.writers.go_on()


def _publish(world: World, name: str, columns: str) -> None:
    world.sql(f"CREATE TABLE {name} {columns}")
    world.sql(f"ALTER PUBLICATION cdc_pub ADD TABLE {name}")


TRANSACTION_ACTS: tuple[Act, ...] = (write_a_large_transaction,)
ROW_ACTS: tuple[Act, ...] = (write_a_row_that_is_too_large_for_text,)
