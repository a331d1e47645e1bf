"""The connections of `walbridge doctor`: one to each server, and both together for the checks of the path."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from typing import NamedTuple

from actors.clients.nats.connection import NatsConnection, open_nats
from actors.clients.postgres.connection import PgConnection
from actors.settings.config import Config

APPLICATION_NAME = "walbridge doctor"


class BothSides(NamedTuple):
    """A connection to each server."""

    postgres: PgConnection
    nats: NatsConnection


@asynccontextmanager
async def open_postgres(config: Config) -> AsyncGenerator[PgConnection]:
    """Open a connection that waits for locks no longer than the bridge's own, and close it in the end."""
    connection = await PgConnection.connect(config.postgres, application_name=APPLICATION_NAME)
    with closing(connection):
        await connection.query("SET lock_timeout = '1s'")
        yield connection


@asynccontextmanager
async def open_both(config: Config) -> AsyncGenerator[BothSides]:
    """Open both connections, and close them in the end."""
    async with open_postgres(config) as postgres, open_nats(config.nats, set()) as nats:
        yield BothSides(postgres, nats)
