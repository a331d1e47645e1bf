"""Faults of processes: they are killed, stopped or frozen, alone and in pairs."""

from __future__ import annotations

import random
import signal
import time
from contextlib import suppress

import psutil

from actors.embedded.process import descendants
from tests.faults.world import Act, World


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
    _signal_postgres(world, signal.SIGSTOP)
    time.sleep(dice.uniform(0.2, 4))
    _signal_postgres(world, signal.SIGCONT)


def _signal_postgres(world: World, sig: signal.Signals) -> None:
    assert world.postgres.pid is not None
    for process in (psutil.Process(world.postgres.pid), *descendants(world.postgres.pid)):
        with suppress(psutil.NoSuchProcess):
            process.send_signal(sig)


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


PROCESSES = ("bridge", "mirror", "postgres", "nats")


def strike_a_pair(world: World, dice: random.Random) -> None:
    """Two processes, each killed or frozen, for a while in which neither answers."""
    struck = [(name, dice.choice(("kill", "freeze"))) for name in dice.sample(PROCESSES, 2)]
    for name, how in struck:
        _strike(world, name, how)
        _pause(dice, 0.5)
    _pause(dice, 4)
    for name, how in dice.sample(struck, 2):
        _bring_back(world, name, how)


def _strike(world: World, name: str, how: str) -> None:
    match name, how:
        case "bridge", "kill":
            world.bridge.kill()
        case "bridge", _:
            world.bridge.signal(signal.SIGSTOP)
        case "mirror", "kill":
            world.mirrors[0].kill()
        case "mirror", _:
            _signal_mirror(world, signal.SIGSTOP)
        case "postgres", "kill":
            world.postgres.kill()
        case "postgres", _:
            _signal_postgres(world, signal.SIGSTOP)
        case "nats", "kill":
            world.nats.kill()
        case _:
            world.nats.pause()


def _bring_back(world: World, name: str, how: str) -> None:
    match name, how:
        case "bridge", "kill":
            world.bridge.start(ready=False)
        case "bridge", _:
            world.bridge.signal(signal.SIGCONT)
        case "mirror", "kill":
            world.mirrors[0].start()
        case "mirror", _:
            _signal_mirror(world, signal.SIGCONT)
        case "postgres", "kill":
            world.postgres.start()
        case "postgres", _:
            _signal_postgres(world, signal.SIGCONT)
        case "nats", "kill":
            world.nats.start()
        case _:
            world.nats.resume()


def _signal_mirror(world: World, sig: signal.Signals) -> None:
    process = world.mirrors[0].process
    if process is not None and process.poll() is None:
        process.send_signal(sig)


BRIDGE_ACTS: tuple[Act, ...] = (kill_bridge, kill_bridge, stop_bridge, freeze_bridge)
MIRROR_ACTS: tuple[Act, ...] = (kill_mirror, kill_mirror, freeze_mirror)
POSTGRES_ACTS: tuple[Act, ...] = (kill_postgres, stop_postgres, freeze_postgres)
NATS_ACTS: tuple[Act, ...] = (kill_nats, kill_nats, stop_nats, freeze_nats)
SEVERAL_ACTS: tuple[Act, ...] = (kill_several, strike_a_pair)
