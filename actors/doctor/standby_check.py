"""The check of `walbridge doctor` on the standby from which snapshots read rows: whether it may be read, and how far it is."""

from __future__ import annotations

from contextlib import closing
from functools import partial

from actors.clients.postgres.connection import PgConnection
from actors.doctor.checking import Check, Found, warned
from actors.doctor.connections import APPLICATION_NAME
from actors.errors import ConfigError, SourceUnavailable
from actors.settings.config import PostgresConfig, SourceConfig
from actors.snapshots.standby import behind, same_server, wal_end
from actors.startup.postgres_preflight import CHECKS
from actors.telemetry.quantities import human_bytes

BEHIND_BYTES = 64 * 1024 * 1024
"""So much WAL a standby that follows its primary is not behind."""


def standby_check(config: PostgresConfig, source: SourceConfig) -> Check[PgConnection]:
    """Return the check, which is made on a connection to the primary."""
    return partial(_check, config, source)


async def _check(config: PostgresConfig, source: SourceConfig, primary: PgConnection) -> Found:
    asked = await PgConnection.connect(primary.config, application_name=APPLICATION_NAME, replication=True)
    with closing(asked):
        try:
            standby = await PgConnection.connect(config, application_name=APPLICATION_NAME, replication=True)
            with closing(standby):
                identity = await same_server(asked, standby)
                lag_bytes = max(0, await wal_end(asked) - await wal_end(standby))
                problems = (await CHECKS["standby"](standby, source)).problems
                is_standby, address = standby.is_standby, standby.address
        except SourceUnavailable as exc:  # raised on, it would say that the primary is away
            raise ConfigError(exc.code, exc.what, said=exc.said, means=exc.means, fix=exc.fix) from exc
    if not is_standby:
        return Found(f"{address} is the server that the bridge reads: snapshots spare it nothing", level="note")
    if lag_bytes > BEHIND_BYTES:
        return warned("", behind(address, lag_bytes))
    return warned(f"{address}: timeline {identity.timeline}, {human_bytes(lag_bytes)} behind", *problems)
