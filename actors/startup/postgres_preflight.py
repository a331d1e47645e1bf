"""Checks PostgreSQL before the stream starts: refuses what cannot work, with the statement that fixes it.

`CHECKS` is the one list: the bridge makes them in this order and stops at the first refusal, `walbridge doctor` makes them all.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from actors.clients.postgres.connection import PgConnection, SourceRefused
from actors.clients.postgres.publications import publication_facts
from actors.clients.postgres.replication import identify_system, publication_missing
from actors.clients.postgres.slots import SlotState, slot_state
from actors.errors import ConfigError, SourceUnavailable
from actors.settings.config import SourceConfig
from actors.startup.wal_level import QUERY, WalLevel
from actors.telemetry.telemetry import Problem
from actors.wire.sql_names import quoted

OLDEST_VERSION = 140000


class Looked(NamedTuple):
    """What a check has found."""

    found: str
    """In a few words, for a report. The bridge says nothing of what is as it should be."""
    problems: tuple[Problem, ...] = ()
    """What will matter later."""


Check = Callable[[PgConnection, SourceConfig], Awaitable[Looked]]
"""Raises ConfigError or Fatal with the statement that fixes it, SourceUnavailable when the connection ends."""


async def check_postgres(connection: PgConnection, *, slot: str, publication: str, temporary: bool = False) -> list[Problem]:
    """Refuse what cannot work; return problems that will matter later.

    Raises ConfigError or Fatal with the statement that fixes it, SourceUnavailable when the connection ends.
    """
    source = SourceConfig(slot, publication, temporary)
    return [problem for check in CHECKS.values() for problem in (await check(connection, source)).problems]


async def check_again(connection: PgConnection, source: SourceConfig) -> list[Problem]:
    """Return the problems that come and go while the bridge runs: administrators change settings. Raises SourceUnavailable."""
    return [problem for name in AGAIN for problem in (await CHECKS[name](connection, source)).problems]


async def _check_version(connection: PgConnection, _source: SourceConfig) -> Looked:
    major, minor = divmod(connection.server_version, 10000)
    if connection.server_version < OLDEST_VERSION:
        raise ConfigError(
            "WB110", f"PostgreSQL {major} is too old: the bridge needs 14 or later",
            fix="upgrade the server",
        )  # fmt: skip
    return Looked(f"{major}.{minor}")


async def _check_wal_level(connection: PgConnection, _source: SourceConfig) -> Looked:
    ((configured, effective, awaits_restart),) = await connection.query(QUERY)
    level = WalLevel(
        connection.server_version, configured or "", effective, connection.is_standby, awaits_restart=awaits_restart == "t"
    )
    if not level.suffices:
        raise ConfigError("WB111", level.refusal, means="changes cannot be decoded from this WAL", fix=level.fix)
    return Looked(level.words)


async def _check_standby(connection: PgConnection, _source: SourceConfig) -> Looked:
    """Refuse a standby that cannot be read, and find one whose primary does not hear what it needs."""
    if not connection.is_standby:
        return Looked("primary")
    if connection.server_version < 160000:
        raise ConfigError(
            "WB121", f"PostgreSQL at {connection.address} is a standby, and changes cannot be read from one before version 16",
            fix="give the primary's address; or all hosts and target_session_attrs=primary in DATABASE_URL",
        )  # fmt: skip
    ((feedback,),) = await connection.query("SELECT current_setting('hot_standby_feedback')")
    if feedback == "on":
        return Looked("a standby, with hot_standby_feedback")
    deaf = Problem(
        "WB125",
        "the server is a standby with hot_standby_feedback = off",
        means="VACUUM on the primary removes rows that the slot or a snapshot here still needs: the slot is lost then",
        fix="ALTER SYSTEM SET hot_standby_feedback = on; SELECT pg_reload_conf();   -- on the standby",
    )
    return Looked("a standby", (deaf,))


async def _check_role(connection: PgConnection, _source: SourceConfig) -> Looked:
    ((role, allowed),) = await connection.query(
        "SELECT rolname, rolsuper OR rolreplication FROM pg_roles WHERE rolname = current_user"
    )
    if allowed != "t":  # managed servers let members of roles of their own replicate: only trying tells
        try:
            replication = await PgConnection.connect(connection.config, replication=True, application_name="walbridge startup")
        except SourceRefused as exc:
            if exc.code != "WB103":
                raise
            raise ConfigError(
                "WB112", f"role {role} may not replicate", said=exc.said,
                fix=f"ALTER ROLE {quoted(role or '')} REPLICATION;   -- RDS: GRANT rds_replication TO {quoted(role or '')};",
            ) from exc  # fmt: skip
        try:
            await identify_system(replication)
        finally:
            replication.close()
    return Looked(f"{role} may replicate")


async def _check_publication(connection: PgConnection, source: SourceConfig) -> Looked:
    facts = await publication_facts(connection, source.publication)
    if facts is None:
        missing = publication_missing(source.publication, "", await _tables_with_key(connection))
        there = [name or "" for (name,) in await connection.query("SELECT pubname FROM pg_publication ORDER BY 1 LIMIT 20")]
        likely = difflib.get_close_matches(source.publication, there, n=1) or there[:1]
        instead = [f"or read one that is there ({', '.join(there)}): --pub {shlex.quote(name)}" for name in likely]
        raise ConfigError(missing.code, missing.what, means=missing.means, fix="\n".join((missing.fix, *instead)))
    published = {"inserts": facts.inserts, "updates": facts.updates, "deletes": facts.deletes, "truncates": facts.truncates}
    return Looked(f"{source.publication}: {', '.join(name for name, is_on in published.items() if is_on) or 'no operation'}")


async def _tables_with_key(connection: PgConnection) -> list[str]:
    """Return some tables that a publication could hold, for the statement that creates one."""
    rows = await connection.query(
        """
        SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p' AND n.nspname !~ '^pg_'
          AND n.nspname <> 'information_schema' AND c.relhasindex
          AND EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)
        ORDER BY n.nspname <> 'public', 1, 2 LIMIT 10
        """
    )
    return [f"{quoted(schema or '')}.{quoted(table or '')}" for schema, table in rows]


async def _check_pooler(connection: PgConnection, _source: SourceConfig) -> Looked:
    """Find a pooler, which makes up process ids for its clients."""
    ((pid,),) = await connection.query("SELECT pg_backend_pid()")
    if pid == str(connection.backend_pid):
        return Looked("no pooler in between")
    pooler = Problem(
        "WB119",
        f"a connection pooler answers at {connection.address}, not PostgreSQL itself",
        means="most poolers do not pass replication on",
        fix="give PostgreSQL's own address and port, often 5432, with PG_HOST and PG_PORT or DATABASE_URL",
    )
    return Looked("a pooler", (pooler,))


async def _check_wal_limit(connection: PgConnection, _source: SourceConfig) -> Looked:
    ((keep,),) = await connection.query("SELECT current_setting('max_slot_wal_keep_size')")
    if keep != "-1":
        return Looked(f"max_slot_wal_keep_size = {keep}")
    unlimited = Problem(
        "WB120",
        "max_slot_wal_keep_size is -1: nothing limits the WAL that PostgreSQL keeps for the slot",
        means="a bridge that is stopped for long lets PostgreSQL's disk fill up",
        fix="ALTER SYSTEM SET max_slot_wal_keep_size = '100GB'; SELECT pg_reload_conf();   -- what the disk can spare",
    )
    return Looked("no limit", (unlimited,))


async def _check_encoding(connection: PgConnection, _source: SourceConfig) -> Looked:
    """Say what text is no character of Unicode, and what becomes of it."""
    name = connection.server_encoding
    if name == "SQL_ASCII":
        what, means = (
            "the database's encoding is SQL_ASCII: PostgreSQL does not know which characters its bytes are",
            "text is read as UTF-8; each byte that is not UTF-8 is kept as one of the characters U+EF80 to U+EFFF",
        )
    elif name != "UTF8" and not connection.encoding.keeps_bytes:
        what, means = (
            f"the database's encoding is {name}, in which some characters have no place in Unicode",
            "PostgreSQL does not send a row with such a character: the bridge ends there (WB109)",
        )
    else:
        return Looked(name)
    fix = "CREATE DATABASE app_utf8 ENCODING 'UTF8' TEMPLATE template0;   -- and move the data there"
    return Looked(name, (Problem("WB123", what, means=means, fix=fix),))


def _own_names(state: SlotState, database: str) -> str:
    """What gives a bridge a slot of its own; beside another database's bridge it needs a stream of its own, too."""
    if state.database in ("", database) or state.plugin != "pgoutput":
        return "give the bridge a slot of its own: --slot NAME (it is created)"
    word = re.sub("[^a-z0-9]+", "_", database.lower()).strip("_")[:32] or "second"
    return (
        f"walbridge run --slot {word}_slot --stream {word.upper()}   # names of its own, which are made\n"
        f"or read {state.database}: DATABASE_URL or PG_DB, perhaps in another --env-file"
    )


async def _check_slot(connection: PgConnection, source: SourceConfig) -> Looked:
    slot, temporary = source.slot, source.temporary
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
                    fix=f"ALTER SYSTEM SET {name} = {int(most or 0) + 10};   -- then restart PostgreSQL; or drop unused "
                    "slots: SELECT slot_name, active FROM pg_replication_slots",
                )  # fmt: skip
        return Looked(f"{slot} is made at the bridge's first start: {slots} of {slots_max} slots are in use")
    if temporary and state.temporary:
        raise SourceUnavailable(
            "WB104", f"temporary slot {slot} is still there",
            means="its connection has not ended yet, or another bridge uses it: waiting",
            fix="to see its reader: SELECT pid, application_name FROM pg_stat_replication",
        )  # fmt: skip
    for wrong, found in (
        (temporary, "is not temporary: leave out --temporary-slot, or drop it"),
        (state.slot_type != "logical", f"is a {state.slot_type} slot"),
        (state.plugin != "pgoutput", f"decodes with {state.plugin}, not with pgoutput"),
        (state.temporary, "is temporary and ends with the connection that made it"),
        (state.database != database, f"belongs to database {state.database}, not to {database}"),
    ):
        if wrong:
            raise ConfigError("WB114", f"slot {slot} {found}", fix=_own_names(state, database or ""))
    return Looked(f"{slot}, read by process {state.active_pid}" if state.active else f"{slot}, read by nobody now")


CHECKS: Mapping[str, Check] = {
    "version": _check_version,
    "wal_level": _check_wal_level,
    "standby": _check_standby,
    "role": _check_role,
    "publication": _check_publication,
    "slot": _check_slot,
    "pooler": _check_pooler,
    "WAL limit": _check_wal_limit,
    "encoding": _check_encoding,
}
"""What is looked at -> the check."""
AGAIN = ("standby", "pooler", "WAL limit", "encoding")
"""The checks that find problems."""
