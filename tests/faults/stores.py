"""Faults of what NATS has on disk: a power cut, a stream that is deleted, a disk that is full, replicas that come and go."""

from __future__ import annotations

import random
import shutil
import time

from tests.faults.nats_people import ask
from tests.faults.world import Act, World


def cut_the_power_of_nats(world: World, dice: random.Random) -> None:
    """The store becomes an older copy of itself, as a power cut leaves it that takes what was not synced."""
    nats = world.nats
    older = nats.data_dir.with_name(nats.data_dir.name + "-older")
    nats.pause()
    shutil.copytree(nats.data_dir, older)
    nats.resume()
    time.sleep(dice.uniform(0.3, 5))
    if dice.random() < 0.5:
        world.bridge.kill()
    world.to_nats.go_silent()
    with world.witness.cut_short():
        nats.kill()
        shutil.rmtree(nats.data_dir)
        older.rename(nats.data_dir)
        nats.start()
    world.to_nats.cut()
    world.to_nats.heal()


def make_the_stream_anew(world: World, dice: random.Random) -> None:
    """It is deleted; sometimes with the record of what it held."""
    world.to_nats.go_silent()
    with world.witness.made_anew():
        ask(world, "STREAM.DELETE.CDC")
        if dice.random() < 0.3:
            ask(world, "STREAM.PURGE.KV_bridges")
    world.to_nats.heal()


def fill_the_disk(world: World, dice: random.Random) -> None:
    """Nothing more is stored; once there is room, nats-server is started anew, since it does not find out by itself."""
    disk = world.servers.disk
    assert disk is not None
    disk.fill()
    time.sleep(dice.uniform(2, 15))
    if dice.random() < 0.3:
        world.bridge.kill()
        world.bridge.start(ready=False)
        time.sleep(dice.uniform(0, 3))
    disk.free()
    if world.setting.small_disk == "nats":
        world.nats.restart()


def kill_the_leader(world: World, dice: random.Random) -> None:
    cluster = world.servers.cluster
    assert cluster is not None
    leader = cluster.servers[cluster.leader(dice.choice(("CDC", "CDC", "KV_bridges")))]
    leader.kill()
    time.sleep(dice.uniform(0, 6))
    leader.start()


def restart_one_after_another(world: World, dice: random.Random) -> None:
    cluster = world.servers.cluster
    assert cluster is not None
    for server in dice.sample(list(cluster.servers.values()), 3):
        server.restart()
        cluster.wait_for_replicas()


def kill_the_majority(world: World, dice: random.Random) -> None:
    """Nothing can be stored until one of the two is back."""
    cluster = world.servers.cluster
    assert cluster is not None
    victims = dice.sample(list(cluster.servers.values()), 2)
    for victim in victims:
        victim.kill()
    time.sleep(dice.uniform(0.5, 6))
    for victim in victims:
        victim.start()


def step_down(world: World, _dice: random.Random) -> None:
    ask(world, "STREAM.LEADER.STEPDOWN.CDC")


POWER_ACTS: tuple[Act, ...] = (cut_the_power_of_nats,)
ANEW_ACTS: tuple[Act, ...] = (make_the_stream_anew,)
FULL_ACTS: tuple[Act, ...] = (fill_the_disk,)
CLUSTER_ACTS: tuple[Act, ...] = (kill_the_leader, kill_the_leader, restart_one_after_another, kill_the_majority, step_down)
