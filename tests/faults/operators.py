"""What operators do to the bridge and to mirrors."""

from __future__ import annotations

import random
import time

from tests.faults.tables import TABLES
from tests.faults.world import Act, World

_FLAGS: tuple[tuple[str, ...], ...] = (
    (), ("--pack", "20"), ("--json",), ("--publish", "plain"), ("--publish", "durable"), ("--json", "--pack", "100", "--publish", "plain"),
    ("--snapshot-format", "array", "--zstd"), ("--zstd",), ("--pack", "5", "--snapshot-format", "array"),
)  # fmt: skip


def restart_with_other_flags(world: World, dice: random.Random) -> None:
    world.restart_bridge(*dice.choice(_FLAGS))


def copy_again(world: World, dice: random.Random) -> None:
    mirror = dice.choice(world.mirrors)
    mirror.stop()
    mirror.start_with("--again", ",".join(dice.sample(sorted(TABLES), 2)))
    time.sleep(dice.uniform(0, 1))


def request_snapshots(world: World, dice: random.Random) -> None:
    for table in dice.sample(sorted(TABLES), dice.choice((1, 3))):
        world.bridge.post(f"/snapshot/{table}")


def stop_over_the_page(world: World, dice: random.Random) -> None:
    world.bridge.post("/shutdown")
    time.sleep(dice.uniform(0, 2))
    world.keep_alive()


OPERATORS: tuple[Act, ...] = (
    restart_with_other_flags, restart_with_other_flags, copy_again, request_snapshots, stop_over_the_page
)  # fmt: skip
