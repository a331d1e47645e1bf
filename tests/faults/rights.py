"""Permissions that are taken away and given back."""

from __future__ import annotations

import random
import signal
import time

import psutil

from tests.faults.servers_of import users_with
from tests.faults.world import Act, World


def revoke_in_postgres(world: World, dice: random.Random) -> None:
    there, back = dice.choice((
        ("ALTER ROLE walbridge NOREPLICATION", "ALTER ROLE walbridge REPLICATION"),
        ("ALTER ROLE walbridge NOLOGIN", "ALTER ROLE walbridge LOGIN"),
        ("ALTER ROLE walbridge CONNECTION LIMIT 0", "ALTER ROLE walbridge CONNECTION LIMIT -1"),
        ("REVOKE SELECT ON keyed, pair FROM walbridge", "GRANT SELECT ON keyed, pair TO walbridge"),
        ("REVOKE USAGE ON SCHEMA public FROM PUBLIC", "GRANT USAGE ON SCHEMA public TO PUBLIC"),
    ))  # fmt: skip
    try:
        world.sql(there)
        world.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'walbridge'")
        time.sleep(dice.uniform(0.5, 6))
    finally:
        world.sql(back)


def revoke_in_nats(world: World, dice: random.Random) -> None:
    """The server reads its configuration again and goes on, with the connections that it has."""
    try:
        _reload(world, dice.choice(("cdc.>", "$KV.bridges.>", "$JS.API.>", "$JS.API.STREAM.INFO.>", "snapshot.>", ">")))
        time.sleep(dice.uniform(0.5, 6))
    finally:
        _reload(world, "")


def _reload(world: World, deny: str) -> None:
    nats = world.nats
    assert nats.pid is not None
    nats.config_path.write_text(
        nats.config_path.read_text(encoding="utf-8").replace(nats.extra_config, users_with(deny=deny)), encoding="utf-8"
    )
    nats.extra_config = users_with(deny=deny)
    psutil.Process(nats.pid).send_signal(signal.SIGHUP)


POSTGRES_RIGHTS: tuple[Act, ...] = (revoke_in_postgres,)
NATS_RIGHTS: tuple[Act, ...] = (revoke_in_nats,)
