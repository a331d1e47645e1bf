"""More than one bridge on a stream: rivals, and zombies that wake after another bridge has taken over."""

from __future__ import annotations

import random
import signal
import time

from tests.faults.world import Act, World
from tests.servers import Bridge


def rival_bridge(world: World, dice: random.Random) -> None:
    """Another bridge on the same slot and stream, while ours runs or instead of ours; sometimes with a slot of its own."""
    if dice.random() < 0.3:
        rival_with_its_own_slot(world)
        return
    rival = world.one_more_bridge()
    rival.start(ready=False)
    time.sleep(dice.uniform(0.5, 3))
    if dice.random() < 0.5:
        world.bridge.kill()
        time.sleep(dice.uniform(0, 6))
        world.bridge.start(ready=False)
    time.sleep(dice.uniform(0, 2))
    rival.kill()


def rival_with_its_own_slot(world: World) -> None:
    rival = world.one_more_bridge(slot="rival_slot")
    rival.start(ready=False)
    refused = world.wait(lambda: rival.exit_code is not None, 40)
    rival.kill()
    if not refused or "WB242" not in rival.log():
        raise AssertionError(f"a bridge of another slot was not refused:\n{rival.log()[-2000:]}")
    world.sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = 'rival_slot'")


def wake_a_zombie(world: World, dice: random.Random) -> None:
    """Ours is frozen with messages in its hands, another takes the slot and publishes, and ours wakes."""
    zombie, second = world.bridge, world.one_more_bridge(*world.setting.flags)
    if zombie.exit_code is not None:
        return
    zombie.signal(signal.SIGSTOP)
    try:
        second.start(ready=False)
        taken = world.wait(lambda: _takes_the_slot(world, second), 60)
        time.sleep(dice.uniform(0, 3))
    finally:
        zombie.signal(signal.SIGCONT)
    if not taken:
        second.kill()
        raise AssertionError(f"the slot was not taken over:\n{second.log()[-2000:]}")
    time.sleep(dice.uniform(0.5, 6))
    second.kill()


def _takes_the_slot(world: World, second: Bridge) -> bool:
    """PostgreSQL does not wait for a frozen client forever; an administrator does not wait at all."""
    if second.get("/ready")[0] == 200:
        return True
    world.sql(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots JOIN pg_stat_replication ON pid = active_pid"
        " WHERE slot_name = 'cdc_slot' AND backend_start < now() - interval '3 s'"
    )
    return False


def three_at_once(world: World, dice: random.Random) -> None:
    others = [world.one_more_bridge(*world.setting.flags) for _ in range(2)]
    for other in others:
        other.start(ready=False)
    for _ in range(3):
        time.sleep(dice.uniform(0.5, 3))
        victim = dice.choice((world.bridge, *others))
        victim.kill()
        victim.start(ready=False)
    for other in others:
        other.kill()


RIVAL_ACTS: tuple[Act, ...] = (rival_bridge, wake_a_zombie, wake_a_zombie, three_at_once)
