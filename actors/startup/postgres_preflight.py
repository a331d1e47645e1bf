"""Looks at PostgreSQL before the stream starts: what cannot work is refused with the statement that mends it."""

from __future__ import annotations

from actors.clients.catalog import PublishedTable, publication_facts, published_tables
from actors.clients.postgres import PgConnection
from actors.clients.replication import publication_missing, slot_state
from actors.errors import ConfigError
from actors.telemetry import Problem

OLDEST_VERSION = 140000
MANAGED_REPLICATION_ROLES = ("rds_replication", "rds_superuser", "cloudsqlsuperuser", "azure_pg_admin")
"""Roles that may replicate on managed servers, whose users have no REPLICATION attribute."""


async def check_postgres(connection: PgConnection, *, slot: str, publication: str) -> list[Problem]:
    """Refuse what cannot work; returns what works now and will hurt later.

    Raises ConfigError or Fatal with the mending statement, SourceUnavailable when the connection ends.
    """
    if connection.server_version < OLDEST_VERSION:
        raise ConfigError(
            "WB110", f"PostgreSQL {connection.server_version // 10000} is too old: 14 is the first that the bridge reads",
            fix="upgrade the server",
        )  # fmt: skip
    await _check_wal_level(connection)
    await _check_role(connection)
    facts = await publication_facts(connection, publication)
    if facts is None:
        missing = publication_missing(publication, "")
        raise ConfigError(missing.code, missing.what, means=missing.means, fix=missing.fix)
    await _check_slot(connection, slot)
    tables = await published_tables(connection, publication)
    problems = [_no_identity(t) for t in tables if not t.has_key and (facts.updates or facts.deletes)]
    problems += [_not_readable(t) for t in tables if not t.readable]
    if not tables:
        problems.append(
            Problem(
                "WB116", f"publication {publication} has no tables", means="nothing will be streamed",
                fix=f"ALTER PUBLICATION {_quoted(publication)} ADD TABLE users;",
            )  # fmt: skip
        )
    return problems


async def _check_wal_level(connection: PgConnection) -> None:
    ((level,),) = await connection.query("SELECT current_setting('wal_level')")
    if level != "logical":
        raise ConfigError(
            "WB111", f"wal_level is {level}; it must be logical",
            means="changes cannot be decoded from this WAL",
            fix="ALTER SYSTEM SET wal_level = 'logical';   -- then restart PostgreSQL. "
            "RDS: rds.logical_replication = 1; Cloud SQL: cloudsql.logical_decoding = on",
        )  # fmt: skip


async def _check_role(connection: PgConnection) -> None:
    managed = ", ".join(f"'{role}'" for role in MANAGED_REPLICATION_ROLES)
    ((role, allowed),) = await connection.query(
        f"""
        SELECT current_user, r.rolsuper OR r.rolreplication OR EXISTS (
          SELECT FROM pg_roles m WHERE m.rolname IN ({managed}) AND pg_has_role(current_user, m.oid, 'member'))
        FROM pg_roles r WHERE r.rolname = current_user
        """
    )
    if allowed != "t":
        raise ConfigError(
            "WB112", f"role {role} may not replicate",
            fix=f"ALTER ROLE {_quoted(role or '')} REPLICATION;   -- RDS: GRANT rds_replication TO {_quoted(role or '')};",
        )  # fmt: skip


async def _check_slot(connection: PgConnection, slot: str) -> None:
    state = await slot_state(connection, slot)
    ((database,),) = await connection.query("SELECT current_database()")
    if state is None:
        ((slots, slots_max, senders, senders_max),) = await connection.query(
            "SELECT (SELECT count(*) FROM pg_replication_slots), current_setting('max_replication_slots')::int,"
            " (SELECT count(*) FROM pg_stat_replication), current_setting('max_wal_senders')::int"
        )
        for used, most, name in ((slots, slots_max, "max_replication_slots"), (senders, senders_max, "max_wal_senders")):
            if int(used or 0) >= int(most or 0):
                raise ConfigError(
                    "WB113", f"no room for slot {slot}: {used} of {name} = {most} are in use",
                    means="the bridge needs a slot and a walsender of its own",
                    fix=f"ALTER SYSTEM SET {name} = {int(most or 0) + 10};   -- then restart PostgreSQL; or drop what is "
                    "left over: SELECT slot_name, active FROM pg_replication_slots",
                )  # fmt: skip
        return
    for wrong, found in (
        (state.slot_type != "logical", f"is a {state.slot_type} slot"),
        (state.plugin != "pgoutput", f"decodes with {state.plugin}, not with pgoutput"),
        (state.database != database, f"belongs to database {state.database}, not to {database}"),
    ):
        if wrong:
            raise ConfigError(
                "WB114", f"slot {slot} {found}", fix="give the bridge a slot of its own: --slot NAME (it is created)"
            )


def _no_identity(table: PublishedTable) -> Problem:
    name = f"{_quoted(table.schema)}.{_quoted(table.name)}"
    return Problem(
        "WB115",
        f"table {table.schema}.{table.name} has no replica identity, yet its updates or deletes are published",
        means="PostgreSQL refuses the application's UPDATE and DELETE on it",
        fix=f"ALTER TABLE {name} ADD PRIMARY KEY (...);   -- or: ALTER TABLE {name} REPLICA IDENTITY FULL;",
    )


def _not_readable(table: PublishedTable) -> Problem:
    name = f"{_quoted(table.schema)}.{_quoted(table.name)}"
    return Problem(
        "WB117",
        f"the bridge's role may not SELECT table {table.schema}.{table.name}",
        means="its changes are streamed, but no snapshot of it can be taken",
        fix=f"GRANT SELECT ON {name} TO the_bridge_role;",
    )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
