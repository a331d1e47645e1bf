"""Faults of networks: between the bridge and either server, and between mirrors and NATS."""

from __future__ import annotations

import random
import time

from tests.faults.proxy import Proxy
from tests.faults.world import Act, World


def _network(world: World, dice: random.Random) -> Proxy:
    return dice.choice((world.to_postgres, world.to_nats, world.to_nats, world.mirrors_to_nats))


def cut_network(world: World, dice: random.Random) -> None:
    network = _network(world, dice)
    for _ in range(dice.choice((1, 1, 4))):
        network.cut()
        time.sleep(dice.uniform(0, 0.5))


def cut_after_bytes(world: World, dice: random.Random) -> None:
    """In the middle of a message, a greeting, an answer; several times, as connections are made again."""
    network = _network(world, dice)
    for _ in range(dice.choice((1, 3, 6))):
        network.cut_after(dice.choice((0, 1, dice.randrange(2_000), dice.randrange(200_000))))
        time.sleep(dice.uniform(0.1, 1.0))
    network.heal()


def reset_network(world: World, dice: random.Random) -> None:
    network = _network(world, dice)
    for _ in range(dice.choice((1, 3))):
        network.reset()
        time.sleep(dice.uniform(0, 0.7))


def half_close_network(world: World, dice: random.Random) -> None:
    _network(world, dice).half_close()
    time.sleep(dice.uniform(0, 1.5))


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


def one_byte_a_second(world: World, dice: random.Random) -> None:
    network = _network(world, dice)
    network.bytes_per_s = 1
    time.sleep(dice.choice((1, 5, 15)))
    if dice.random() < 0.5:
        network.cut()
    network.heal()


NETWORK_ACTS: tuple[Act, ...] = (
    cut_network, cut_network, cut_after_bytes, cut_after_bytes, reset_network, half_close_network, silence_network,
    silence_network, slow_network, one_byte_a_second,
)  # fmt: skip
