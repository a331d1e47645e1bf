"""What administrators of NATS do to streams, buckets, consumers and the server, and later undo."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping
from typing import Any

from nats.aio.client import Client

from tests.faults.witness import once
from tests.faults.world import Act, World


def ask(world: World, action: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
    """A request to JetStream's API; refusals are answers as well."""

    async def request(client: Client) -> dict[str, Any]:
        reply = await client.request(f"$JS.API.{action}", json.dumps(body or {}).encode(), timeout=5)
        return dict(json.loads(reply.data))

    return once(world.nats.url, request)


def purge_the_stream(world: World, dice: random.Random) -> None:
    with world.witness.caught_up():
        ask(world, "STREAM.PURGE.CDC", dice.choice(({}, {"keep": 100}, {})))


def purge_a_subject(world: World, dice: random.Random) -> None:
    subject = dice.choice(("cdc.keyed.>", "cdc.pair.insert", "cdc.bag.>", "cdc.swap_a.>", "cdc._bridge.>", "cdc.keyed.schema"))
    with world.witness.caught_up():
        ask(world, "STREAM.PURGE.CDC", {"filter": subject})


def delete_messages(world: World, dice: random.Random) -> None:
    with world.witness.caught_up():
        last = ask(world, "STREAM.INFO.CDC")["state"]["last_seq"]
        for seq in {last - dice.randrange(200) for _ in range(dice.choice((1, 1, 10)))} | {last - dice.choice((0, 1, 5))}:
            ask(world, "STREAM.MSG.DELETE.CDC", {"seq": seq})


def _edit_for_a_while(world: World, dice: random.Random, stream: str, **changes: object) -> None:
    with world.witness.caught_up():
        before = ask(world, f"STREAM.INFO.{stream}")["config"]
        ask(world, f"STREAM.UPDATE.{stream}", {**before, **changes})
    time.sleep(dice.choice((0.0, dice.uniform(0, 4))))
    ask(world, f"STREAM.UPDATE.{stream}", before)


def limit_the_age(world: World, dice: random.Random) -> None:
    _edit_for_a_while(world, dice, dice.choice(("CDC", "CDC", "INIT")), max_age=10**9, duplicate_window=10**9)


def limit_the_size(world: World, dice: random.Random) -> None:
    _edit_for_a_while(
        world, dice, "CDC", **dice.choice(({"max_bytes": 200_000}, {"max_msgs": 100}, {"max_msgs_per_subject": 1}))
    )


def keep_by_interest(world: World, dice: random.Random) -> None:
    _edit_for_a_while(world, dice, "CDC", retention="interest")


def seal_against_writers(world: World, dice: random.Random) -> None:
    _edit_for_a_while(world, dice, "CDC", **dice.choice(({"no_ack": True}, {"allow_batched": False}, {"max_msg_size": 60_000},
                                                         {"discard": "new", "max_msgs": 10})))  # fmt: skip


def forget_a_key(world: World, dice: random.Random) -> None:
    bucket, key = dice.choice((("bridges", "CDC"), ("bridges", ">"), ("schemas", ">"), ("schemas", "keyed")))
    ask(world, f"STREAM.PURGE.KV_{bucket}", {"filter": f"$KV.{bucket}.{key}"})


def purge_snapshots(world: World, dice: random.Random) -> None:
    ask(world, f"STREAM.PURGE.{dice.choice(('INIT', 'REQUESTS'))}")


def delete_consumers(world: World, dice: random.Random) -> None:
    stream = dice.choice(("CDC", "CDC", "INIT", "REQUESTS"))
    for name in ask(world, f"CONSUMER.NAMES.{stream}").get("consumers") or ():
        ask(world, f"CONSUMER.DELETE.{stream}.{name}")


def lower_the_payload(world: World, dice: random.Random) -> None:
    """Until the next time; messages that fitted no longer do."""
    world.nats.max_payload = None if world.nats.max_payload else 64 * 1024
    world.nats.restart()
    time.sleep(dice.uniform(0, 2))


def request_what_nobody_has(world: World, dice: random.Random) -> None:
    async def publish(client: Client) -> None:
        for table in ("nobody_knows_this", "keyed@CDC", "bag", "pair+part", "a b"[: dice.choice((1, 3))].replace(" ", "=20")):
            await client.publish(f"snapshot.request.{table}", b"{}")
        await client.flush()

    once(world.nats.url, publish)


REMOVAL_ACTS: tuple[Act, ...] = (purge_the_stream, purge_a_subject, delete_messages, forget_a_key, purge_snapshots)
EDIT_ACTS: tuple[Act, ...] = (limit_the_age, limit_the_size, keep_by_interest, seal_against_writers, lower_the_payload)
NATS_PEOPLE: tuple[Act, ...] = (
    purge_the_stream, purge_a_subject, purge_a_subject, delete_messages, delete_messages, limit_the_age, limit_the_size,
    keep_by_interest, seal_against_writers, forget_a_key, forget_a_key, purge_snapshots, delete_consumers, lower_the_payload,
    request_what_nobody_has,
)  # fmt: skip
