"""Checks of `walbridge doctor` on PostgreSQL: those of the bridge's start and monitors, and those for a report alone."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from psycopg import conninfo

from actors.clients.postgres.connection import PgConnection
from actors.clients.postgres.publications import PublishedTable
from actors.clients.postgres.replication import slot_lost
from actors.clients.postgres.session import PINNED, SINCE
from actors.clients.postgres.slot_waits import writers_before_slot
from actors.clients.postgres.slots import slot_health, slot_state
from actors.doctor.checking import Check, Found, NotChecked, warned
from actors.doctor.report import Level
from actors.publication_model import PublicationModel
from actors.publication_monitor import find_problems
from actors.settings.config import PostgresConfig, SourceConfig
from actors.startup.postgres_preflight import CHECKS, Looked
from actors.telemetry.quantities import counted, human_bytes, listed, span
from actors.telemetry.telemetry import Problem
from actors.wal_monitor import held_problem
from actors.wire.sql_names import quoted

DAY_S = 86_400
LASTS_S = 2 * DAY_S
"""For so long the WAL that PostgreSQL keeps should last: a weekend."""
COUNTED_MIN_S = 3600
"""A rate that PostgreSQL has counted for less says nothing of the days to come: it is of the first load of tables."""
EXPIRES_SOON_S = 30 * DAY_S
CONNECTIONS = 8
"""How many a bridge has at the most, while it takes a snapshot."""
HELD_MUCH_BYTES = 1 << 30
LISTED_MAX = 20
"""Tables that a command names."""
ABOUT_TABLES: Mapping[str, tuple[str, ...]] = {
    "tables": ("WB116", "WB138"),
    "identities": ("WB115", "WB131", "WB134", "WB135", "WB136"),
    "large values": ("WB130",),
    "inheritance": ("WB132", "WB137"),
    "right to read": ("WB117",),
    "locks": ("WB133",),
}
"""Check -> codes of the problems with the publication's tables that it is about."""
WORDS = {
    "identities": "PostgreSQL accepts UPDATE and DELETE on every table",
    "large values": "no row filter can let a row through without its large values",
    "inheritance": "no child or partition is left out",
    "right to read": "every table can be read for snapshots",
    "locks": "no table has been locked for long",
}


class PostgresSide:
    """PostgreSQL as one run of the doctor sees it."""

    def __init__(self, config: PostgresConfig, source: SourceConfig, *, accept_gap: bool) -> None:
        self._config, self._source, self._accept_gap = config, source, accept_gap
        self._model = PublicationModel(source.publication)
        self._problems: Sequence[Problem] | None = None
        self.has_slot = False
        """The slot is there and of this database, or the bridge can make it."""

    @property
    def tables(self) -> list[PublishedTable]:
        """The publication's tables; none while it could not be read."""
        return list(self._model.tables.values())

    def checks(self) -> dict[str, Check[PgConnection]]:
        """Return the checks by name, in the order in which an administrator would mend what they find."""
        made: dict[str, Check[PgConnection]] = {name: self._of_start(name) for name in CHECKS}
        made["slot"] = self._slot
        made["WAL limit"] = self._wal_limit
        order = ("version", "wal_level", "standby", "pooler", "encoding", "role")
        ordered = {name: made.pop(name) for name in order}
        ordered |= {"login": self._login, "session": self._session, "publication": made.pop("publication")}
        ordered |= {name: self._about_tables(name) for name in ABOUT_TABLES} | {"rights": self._rights}
        return {**ordered, **made, "other slots": self._other_slots}

    def _of_start(self, name: str) -> Check[PgConnection]:
        async def check(connection: PgConnection) -> Found:
            return _found(await CHECKS[name](connection, self._source))

        return check

    # -- the publication's tables

    def _about_tables(self, name: str) -> Check[PgConnection]:
        async def check(connection: PgConnection) -> Found:
            if self._problems is None:
                await self._model.look(connection)
                self._problems = await find_problems(connection, self._model)
            if not self.tables and not self._problems:
                raise NotChecked(f"publication {self._source.publication} does not exist")
            level: Level = "fail" if name == "identities" else "warn"  # it is the application whose statements fail
            found = [(level, problem) for problem in self._problems if problem.code in ABOUT_TABLES[name]]
            return Found(WORDS.get(name) or self._counted(), found)

        return check

    def _listed(self) -> str:
        """The tables as `--tables` takes them."""
        pairs = [f"{_plain_or_quoted(table.schema)}.{_plain_or_quoted(table.name)}" for table in self.tables]
        return shlex.quote(",".join(pairs)) if 0 < len(pairs) <= LISTED_MAX else "TABLES"

    def _counted(self) -> str:
        names = [f"{table.schema}.{table.name}" for table in self.tables]
        return f"{counted(len(names), 'table')}: {listed(names)}" if names else "no table"

    # -- the role

    async def _rights(self, connection: PgConnection) -> Found:
        """Find rights that a bridge does not need."""
        ((role, made_by_initdb, *given),) = await connection.query(
            "SELECT rolname, oid = 10, rolsuper, rolcreaterole, rolcreatedb FROM pg_roles WHERE rolname = current_user"
        )
        names = ("SUPERUSER", "CREATEROLE", "CREATEDB")
        attributes = [name for name, is_given in zip(names, given, strict=True) if is_given == "t"]
        written = [] if "SUPERUSER" in attributes else await self._writable(connection)
        if not attributes and not written:
            return Found(f"{role} may do nothing that a bridge does not need")
        what = [*attributes, *([f"may write to {listed(written)}"] if written else [])]
        # an owner's rights cannot be revoked, and others may use this role
        export = f"walbridge export sql-role --tables {self._listed()}"
        own = f"a role of its own with what a bridge needs: {export}"
        name, taken = quoted(role or ""), list[str]()
        if attributes:
            taken.append(f"ALTER ROLE {name} {' '.join(f'NO{attribute}' for attribute in attributes)};")
        if written:
            taken.append(f"REVOKE INSERT, UPDATE, DELETE, TRUNCATE ON {', '.join(written)} FROM {name};")
        fix = f"{' '.join(taken)}   -- or {own}"
        if made_by_initdb == "t":  # which PostgreSQL does not let anybody change
            fix = f"{export}   # prints a script for {own.partition(':')[0]}; then set POSTGRES_BRIDGE_USER, or DATABASE_URL"
        return warned("", Problem(
            "WB126", f"role {role} may do more than a bridge needs: {', '.join(what)}",
            means="who gets hold of the bridge's password can do it too; a bridge only reads", fix=fix,
        ))  # fmt: skip

    async def _writable(self, connection: PgConnection) -> list[str]:
        oids = ", ".join(str(table.relation_oid) for table in self.tables)
        if not oids:
            return []
        rows = await connection.query(
            "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            f" WHERE c.oid IN ({oids}) AND has_table_privilege(c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE') ORDER BY 1, 2"
        )
        return [f"{quoted(schema or '')}.{quoted(name or '')}" for schema, name in rows]

    async def _login(self, connection: PgConnection) -> Found:
        """Find limits of the role that end or hinder its sessions one day."""
        ((role, limit, left),) = await connection.query(
            "SELECT rolname, CASE WHEN rolsuper THEN -1 ELSE rolconnlimit END,"
            " CASE WHEN isfinite(rolvaliduntil) THEN extract(epoch FROM rolvaliduntil - now())::bigint END"
            " FROM pg_roles WHERE rolname = current_user"
        )
        name = quoted(role or "")
        few = expires = None
        if 0 <= int(limit or 0) < CONNECTIONS:
            few = Problem(
                "WB128", f"role {role} may have {counted(int(limit or 0), 'connection')} at a time",
                means=f"a bridge has up to {CONNECTIONS} while it takes a snapshot",
                fix=f"ALTER ROLE {name} CONNECTION LIMIT -1;",
            )  # fmt: skip
        if left is not None and int(left) < EXPIRES_SOON_S:
            expires = Problem(
                "WB128", f"the password of role {role} expires in {span(int(left))}",
                means="a bridge that is connected goes on; its next connection is refused",
                fix=f"ALTER ROLE {name} VALID UNTIL 'infinity';",
            )  # fmt: skip
        return warned("no limit of its sessions, and its password does not expire soon", few, expires)

    async def _session(self, connection: PgConnection) -> Found:
        """Name what ALTER ROLE and ALTER DATABASE have set: the bridge's sessions overrule what changes their meaning."""
        rows = await connection.query(
            "SELECT DISTINCT unnest(s.setconfig) FROM pg_db_role_setting s WHERE s.setrole IN (0, (SELECT oid FROM pg_roles"
            " WHERE rolname = current_user)) AND s.setdatabase IN (0, (SELECT oid FROM pg_database"
            " WHERE datname = current_database())) ORDER BY 1"
        )
        settings = [row[0] or "" for row in rows]
        ours = PINNED.keys() | SINCE.keys() | {"role", "client_encoding"}
        overruled = [s for s in settings if s.partition("=")[0].lower() in ours]
        kept = [s for s in settings if s not in overruled]
        words = [f"overruled by the bridge: {', '.join(overruled)}"] if overruled else []
        words += [f"in force: {', '.join(kept)}"] if kept else []
        return Found("; ".join(words) or "nothing is set for the role or the database")

    # -- slot and WAL

    async def _slot(self, connection: PgConnection) -> Found:
        slot = self._source.slot
        state, health = await slot_state(connection, slot), await slot_health(connection, slot)
        if self._source.temporary and state is not None and state.temporary:  # the start would wait until it is gone
            self.has_slot = True
            return Found(f"{slot} is temporary, of a bridge that runs, in process {state.active_pid}")
        found = _found(await CHECKS["slot"](connection, self._source))
        self.has_slot = True
        if state is None or health is None:
            return Found(found.words, [("warn", problem) for problem in await writers_before_slot(connection, slot)])
        if state.wal_status == "lost":
            return Found("", [("warn" if self._accept_gap else "fail", slot_lost(slot, state.invalidation_reason))])
        words = f"{found.words}; holds {human_bytes(health.lag_bytes)} of WAL"
        return warned(words, held_problem(slot, health))

    async def _wal_limit(self, connection: PgConnection) -> Found:
        found = _found(await CHECKS["WAL limit"](connection, self._source))
        if found.problems:
            return found
        timeout = "current_setting('idle_replication_slot_timeout')" if connection.server_version >= 180000 else "'0'"
        ((keep_text, keep, idle, rate, since, folder),) = await connection.query(
            "SELECT current_setting('max_slot_wal_keep_size'), pg_size_bytes(current_setting('max_slot_wal_keep_size')),"
            f" extract(epoch FROM {timeout}::interval)::bigint,"
            " (SELECT wal_bytes / greatest(extract(epoch FROM now() - stats_reset), 60) FROM pg_stat_wal)::bigint,"
            " (SELECT extract(epoch FROM now() - stats_reset) FROM pg_stat_wal)::bigint,"
            " CASE WHEN pg_has_role('pg_read_all_settings', 'USAGE') THEN current_setting('data_directory') END"
        )
        limit, per_s, idle_s = int(keep or 0), int(rate or 0), int(idle or 0)
        lasts = limit / per_s if per_s else float("inf")
        free = free_bytes(self._config, folder or "")
        counted_s = int(since or 0)
        at_rate = f" at the average rate of {human_bytes(per_s * 3600)} per hour, counted for {span(counted_s)}"
        short = stops = full = None
        if is_too_short(lasts, counted_s):
            short = Problem(
                "WB127", f"max_slot_wal_keep_size = {keep_text} lasts for {span(lasts)}{at_rate}",
                means="a bridge, or NATS, that is away for longer loses the slot, and with it changes",
                fix=f"ALTER SYSTEM SET max_slot_wal_keep_size = '{max(1, round(per_s * LASTS_S / 2**30))}GB'; "
                "SELECT pg_reload_conf();   -- two days",
            )  # fmt: skip
        if 0 < idle_s < LASTS_S:
            stops = Problem(
                "WB127", f"idle_replication_slot_timeout is {span(idle_s)}",
                means="PostgreSQL gives up the slot of a bridge that is away for longer, and changes are lost",
                fix="ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf();",
            )  # fmt: skip
        if free is not None and free < limit:
            full = Problem(
                "WB127", f"max_slot_wal_keep_size = {keep_text}, and PostgreSQL's disk has {human_bytes(free)} left",
                means="the disk is full, and PostgreSQL stops, before the limit is reached",
                fix=f"ALTER SYSTEM SET max_slot_wal_keep_size = '{max(1, free * 8 // 10 >> 20)}MB'; SELECT pg_reload_conf();",
            )  # fmt: skip
        words = f"{found.words}, which lasts for {span(lasts)}{at_rate}" if per_s else found.words
        words += (
            f"; the disk has {human_bytes(free)} left" if free is not None else "; free disk space cannot be seen from here"
        )
        return warned(words, short, stops, full)

    async def _other_slots(self, connection: PgConnection) -> Found:
        """Find slots that nobody reads and that hold WAL."""
        rows = await connection.query(
            "SELECT slot_name, coalesce(pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()"
            " ELSE pg_current_wal_lsn() END, restart_lsn), 0)::bigint FROM pg_replication_slots"
            " WHERE NOT active AND NOT temporary AND slot_name <> $1 ORDER BY 2 DESC, 1",
            (self._source.slot,),
        )
        held = [(name or "", int(size or 0)) for name, size in rows]
        large = [(name, size) for name, size in held if size >= HELD_MUCH_BYTES]
        if not large:
            return Found(f"{counted(len(held), 'other slot')} that nobody reads" if held else "no other slot without a reader")
        name, size = large[0]
        return warned("", Problem(
            "WB129", f"nobody reads {listed([n for n, _ in large])}: {human_bytes(size)} of WAL are held for {name}",
            means="a slot that is left over fills PostgreSQL's disk, whatever the bridge does",
            fix=f"SELECT pg_drop_replication_slot('{name}');   -- if nobody will come back for it",
        ))  # fmt: skip


def _plain_or_quoted(name: str) -> str:
    return name if re.fullmatch("[a-z_][a-z0-9_]*", name) else quoted(name)


def _found(looked: Looked) -> Found:
    return warned(looked.found, *looked.problems)


def free_bytes(config: PostgresConfig, data_directory: str) -> int | None:
    """Return the free bytes of the server's disk, if it is this machine's and may be looked at; else None."""
    words = conninfo.conninfo_to_dict(config.conninfo)
    host = str(words.get("hostaddr") or words.get("host") or "")
    is_here = not host or host.startswith(("/", "@", "127.")) or host in ("localhost", "::1")
    if is_here and data_directory:
        with suppress(OSError):
            # a container or a tunnel may answer on this machine's address: the folder must be a server's
            if (Path(data_directory) / "PG_VERSION").exists():
                disk = os.statvfs(Path(data_directory) / "pg_wal")
                return disk.f_bavail * disk.f_frsize
    return None


def is_too_short(lasts_s: float, counted_s: int) -> bool:
    """Whether WAL that lasts for `lasts_s`, at a rate that was counted for `counted_s`, is too little for a weekend."""
    return lasts_s < LASTS_S and counted_s >= COUNTED_MIN_S
