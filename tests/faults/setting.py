"""The setting of a world: how its servers, bridge and mirrors are set up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

BRIDGES_PASSWORD = "faults"


@dataclass(frozen=True, eq=False)
class Setting:
    """Of servers, bridge and mirrors; scenarios of one setting share a world."""

    name: str
    flags: tuple[str, ...] = ()
    """Of the bridge."""
    postgres: Mapping[str, str] = field(default_factory=dict)
    """Lines of postgresql.conf."""
    mirrors: tuple[Literal["sqlite", "postgresql"], ...] = ("sqlite", "postgresql")
    """A PostgreSQL replica is a database of the source's server."""
    is_cluster: bool = False
    """Three nats-servers and three replicas, reached without a proxy."""
    has_users: bool = False
    """NATS knows user `bridge`, whose permissions can be taken; everybody else needs no name."""
    standby: Literal["none", "waited for", "behind"] = "none"
    """Of PostgreSQL: whether the bridge is sent only what the standby has."""
    small_disk: Literal["none", "nats", "postgres"] = "none"


USUAL = Setting("usual")
POWER = Setting("confirmations held for 12 s", flags=("--confirm-hold", "12"))
DURABLE = Setting("durable", flags=("--publish", "durable", "--confirm-hold", "12"))
IMPATIENT = Setting("wal_sender_timeout of 1 s", postgres={"wal_sender_timeout": "1s"})
CLUSTER = Setting("three replicas", is_cluster=True)
USERS = Setting("NATS with users", has_users=True)
FAILOVER = Setting(
    "standby that is waited for", postgres={"synchronized_standby_slots": "standby"}, mirrors=("sqlite",), standby="waited for"
)
BEHIND = Setting("standby that is behind", mirrors=("sqlite",), standby="behind")
SMALL_NATS = Setting("small disk of NATS", small_disk="nats")
SMALL_POSTGRES = Setting("small disk of PostgreSQL", mirrors=("sqlite",), small_disk="postgres")
