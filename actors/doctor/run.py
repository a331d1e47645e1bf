"""One run of `walbridge doctor`: first PostgreSQL, then NATS, then the path between them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager
from functools import partial

from psycopg import conninfo

from actors.clients.nats.auth import servers_of
from actors.clients.nats.connection import NatsConnection, open_nats
from actors.clients.postgres.connection import PgConnection, address_of
from actors.doctor.checking import check_alone, leave, make_checks
from actors.doctor.connections import open_both, open_postgres
from actors.doctor.http_port import check_port
from actors.doctor.nats_checks import NatsSide
from actors.doctor.path_checks import PathSide
from actors.doctor.postgres_checks import PostgresSide
from actors.doctor.report import GROUPS, Group, Report
from actors.doctor.standby_check import standby_check
from actors.settings.config import Config


async def examine(config: Config, *, with_round_trip: bool, only: Collection[Group] = GROUPS) -> Report:
    """Make the checks of the groups in `only`, and those that they need; report the former. Changes nothing, unless
    `with_round_trip`, which removes what it made.
    """
    report = Report(setup_of(config))

    @asynccontextmanager
    async def postgres() -> AsyncGenerator[PgConnection]:
        async with open_postgres(config) as connection:
            major, minor = divmod(connection.server_version, 10000)
            report.servers["PostgreSQL"] = f"PostgreSQL {major}.{minor}"
            yield connection

    @asynccontextmanager
    async def nats() -> AsyncGenerator[NatsConnection]:
        async with open_nats(config.nats, set()) as connection:
            cluster = connection.info.get("cluster")
            report.servers["NATS"] = f"nats-server {connection.info.get('version')}" + (
                f", cluster {cluster}" if cluster else ""
            )
            yield connection

    source = PostgresSide(config.postgres, config.source, accept_gap=config.accept_gap)
    checks = source.checks()
    if config.standby is not None:
        checks["snapshots' standby"] = standby_check(config.standby, config.source)
    has_postgres = await make_checks(report, "PostgreSQL", checks, postgres)
    if set(only) == {"PostgreSQL"}:
        return report
    sink = NatsSide(config, [table.token for table in source.tables])
    has_nats = await make_checks(report, "NATS", sink.checks(), nats)
    if "Path" in only:
        await _check_path(report, config, source, sink, has_both=has_postgres and has_nats, with_round_trip=with_round_trip)
    report.rows = [row for row in report.rows if row.group in only]
    return report


async def _check_path(
    report: Report, config: Config, source: PostgresSide, sink: NatsSide, *, has_both: bool, with_round_trip: bool
) -> None:
    path = PathSide(config, source, sink).checks(with_round_trip=with_round_trip)
    if has_both:
        await make_checks(report, "Path", path, partial(open_both, config))
    else:
        leave(report, "Path", list(path), "it needs both servers")
    await check_alone(report, "Path", "HTTP port", partial(check_port, config))


def setup_of(config: Config) -> dict[str, str]:
    """Return what is checked, in words without a secret."""
    words = conninfo.conninfo_to_dict(config.postgres.conninfo)
    servers = servers_of(config.nats.urls, set())
    user = config.nats.user or next((server.user for server in servers if server.user), "")
    return {
        "postgres": f"{address_of(words)} as {words.get('user')}",
        "nats": ", ".join(map(str, servers)) + (f" as {user}" if user else ""),
        "slot": config.source.slot,
        "publication": config.source.publication,
        "stream": config.publish.stream,
    }
