"""Faults of processes and networks."""

from __future__ import annotations

import random
import signal
import time

import psutil

from actors.embedded.process import descendants
from tests.campaign.proxy import Proxy
from tests.campaign.world import Act, World
from tests.servers import Bridge


def _pause(dice: random.Random, longest_s: float) -> None:
    time.sleep(dice.choice((0.0, dice.uniform(0, longest_s))))


def kill_bridge(world: World, dice: random.Random) -> None:
    world.bridge.kill()
    _pause(dice, 2)
    world.bridge.start(ready=False)


def stop_bridge(world: World, dice: random.Random) -> None:
    if world.bridge.exit_code is None:
        world.bridge.stop()
    _pause(dice, 2)
    world.bridge.start(ready=False)


def freeze_bridge(world: World, dice: random.Random) -> None:
    if world.bridge.exit_code is None:
        world.bridge.signal(signal.SIGSTOP)
        time.sleep(dice.uniform(0.2, 5))
        world.bridge.signal(signal.SIGCONT)


def kill_nats(world: World, dice: random.Random) -> None:
    world.nats.kill()
    _pause(dice, 2)
    world.nats.start()


def stop_nats(world: World, dice: random.Random) -> None:
    world.nats.stop()
    _pause(dice, 1)
    world.nats.start()


def freeze_nats(world: World, dice: random.Random) -> None:
    world.nats.pause()
    time.sleep(dice.uniform(0.2, 4))
    world.nats.resume()


def kill_postgres(world: World, dice: random.Random) -> None:
    world.postgres.kill()
    _pause(dice, 2)
    world.postgres.start()


def stop_postgres(world: World, dice: random.Random) -> None:
    world.postgres.restart(dice.choice(("immediate", "fast")))


def freeze_postgres(world: World, dice: random.Random) -> None:
    assert world.postgres.pid is not None
    family = [psutil.Process(world.postgres.pid), *descendants(world.postgres.pid)]
    for sig in (signal.SIGSTOP, signal.SIGCONT):
        for process in family:
            if process.is_running():
                process.send_signal(sig)
        if sig == signal.SIGSTOP:
            time.sleep(dice.uniform(0.2, 4))


def kill_mirror(world: World, dice: random.Random) -> None:
    mirror = dice.choice(world.mirrors)
    mirror.kill()
    _pause(dice, 3)
    mirror.start()


def freeze_mirror(world: World, dice: random.Random) -> None:
    process = dice.choice(world.mirrors).process
    if process is not None and process.poll() is None:
        process.send_signal(signal.SIGSTOP)
        time.sleep(dice.uniform(0.2, 4))
        process.send_signal(signal.SIGCONT)


def kill_several(world: World, dice: random.Random) -> None:
    world.bridge.kill()
    world.nats.kill()
    if dice.random() < 0.5:
        world.postgres.kill()
        world.postgres.start()
    world.nats.start()
    world.bridge.start(ready=False)


def _network(world: World, dice: random.Random) -> Proxy:
    return dice.choice((world.to_postgres, world.to_nats, world.to_nats, world.mirrors_to_nats))


def cut_network(world: World, dice: random.Random) -> None:
    network = _network(world, dice)
    for _ in range(dice.choice((1, 1, 4))):
        network.cut()
        time.sleep(dice.uniform(0, 0.5))


def silence_network(world: World, dice: random.Random) -> None:
    network = _network(world, dice)
    network.go_silent()
    time.sleep(dice.choice((0.3, 1, 3, 12)))
    if dice.random() < 0.5:
        network.cut()
    network.heal()


def slow_network(world: World, dice: random.Random) -> None:
    network = _network(world, dice)
    network.delay_s = dice.uniform(0.01, 0.3)
    time.sleep(dice.uniform(0.5, 4))
    network.heal()


def rival_bridge(world: World, dice: random.Random) -> None:
    """Another bridge on the same slot and stream, while ours runs or instead of ours; sometimes with a slot of its own."""
    other_slot = dice.random() < 0.3
    slot = "rival_slot" if other_slot else "cdc_slot"
    rival = Bridge(world.role_dsn, f"nats://127.0.0.1:{world.to_nats.port}", world.folder, slot=slot)
    rival.start(ready=False)
    if other_slot:
        refused = world.wait(lambda: rival.exit_code is not None, 40)
        rival.kill()
        if not refused or "WB242" not in rival.log():
            raise AssertionError(f"a bridge of another slot was not refused:\n{rival.log()[-2000:]}")
        world.sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = 'rival_slot'")
        return
    time.sleep(dice.uniform(0.5, 3))
    if dice.random() < 0.5:
        world.bridge.kill()
        time.sleep(dice.uniform(0, 6))
        world.bridge.start(ready=False)
    time.sleep(dice.uniform(0, 2))
    rival.kill()


KILLS: tuple[Act, ...] = (
    kill_bridge, kill_bridge, stop_bridge, freeze_bridge, kill_nats, kill_nats, stop_nats, freeze_nats, kill_postgres,
    stop_postgres, freeze_postgres, kill_mirror, kill_mirror, freeze_mirror, kill_several, cut_network, cut_network,
    silence_network, silence_network, slow_network, rival_bridge,
)  # fmt: skip
