"""What networks and overloaded servers do."""

from __future__ import annotations

import random

import trio

from property_tests.simulation.acts.act import Act
from property_tests.simulation.network import Link
from property_tests.simulation.world import World


def _links(world: World, server: str) -> list[Link]:
    return [link for link in world.network.ordered() if link.name.startswith(server)]


async def cut_nats(world: World, dice: random.Random) -> None:
    """A connection to NATS breaks after some bytes."""
    links = _links(world, "nats")
    if links:
        dice.choice(links).cut_after = dice.choice((0, dice.randrange(200), dice.randrange(20_000)))


async def cut_postgres(world: World, dice: random.Random) -> None:
    """A connection to PostgreSQL breaks after some messages."""
    links = _links(world, "postgres")
    if links:
        dice.choice(links).cut_after = dice.choice((0, dice.randrange(8), dice.randrange(60)))


async def silence(world: World, dice: random.Random) -> None:
    """Connections let nothing through for a while, as when a process is stopped or a cable is out."""
    seconds = dice.choice((0.5, 3.0, 12.0, 25.0))
    links = world.network.ordered()
    for link in links if dice.random() < 0.3 else links[:1] and [dice.choice(links)]:
        link.fall_silent(seconds)


async def refuse(world: World, dice: random.Random) -> None:
    """JetStream refuses some or all of what is published."""
    mood = world.nats.jetstream.mood
    mood.refuse_until = trio.current_time() + dice.choice((0.3, 2.0, 8.0))
    mood.refuse_share = dice.choice((0.1, 0.5, 1.0))
    mood.refusal = dice.choice((
        (429, 10167, "too many requests"), (409, 10158, "duplicate message id is in process"),
        (400, 10164, "wrong last sequence"), (503, 10077, "maximum bytes exceeded"), (503, 10008, "JetStream system temporarily unavailable"),
    ))  # fmt: skip


async def lose_the_leader(world: World, dice: random.Random) -> None:
    """Nothing answers in JetStream's name."""
    world.nats.jetstream.mood.leaderless_until = trio.current_time() + dice.choice((0.3, 2.0, 8.0))


async def lose_acknowledgements(world: World, dice: random.Random) -> None:
    """What is published is stored, and nobody says so."""
    world.nats.jetstream.mood.mute_until = trio.current_time() + dice.choice((0.1, 2.0, 15.0))


async def reorder_acknowledgements(world: World, dice: random.Random) -> None:
    """Acknowledgements overtake each other."""
    world.nats.jetstream.mood.late_until = trio.current_time() + dice.choice((2.0, 10.0))


async def lower_the_batch_limit(world: World, dice: random.Random) -> None:
    """The server takes only small atomic batches from now on."""
    world.nats.jetstream.batch_max = dice.choice((2, 5, 50))


NETWORKS = (
    Act(cut_nats, 10), Act(cut_postgres, 10), Act(silence, 6), Act(refuse, 6), Act(lose_the_leader, 4),
    Act(lose_acknowledgements, 6), Act(reorder_acknowledgements, 4), Act(lower_the_batch_limit, 1),
)  # fmt: skip
