"""The statements that bridge and snapshotter send, each recognized by a part of its text and answered from the model.

An unknown statement ends the simulation: a new one needs an answer here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from actors.clients.postgres.connection import PostgresError
from actors.positions import format_lsn
from property_tests.simulation.postgres.slot import Slot
from property_tests.simulation.postgres.tables import INT4, INT8, TEXT, TYPE_WORDS, Entry, Table, passes

if TYPE_CHECKING:
    from property_tests.simulation.postgres.session import PgSession

Rows = list[tuple[str | None, ...]]
Respond = Callable[[Rows | PostgresError], None]
Params = Sequence[str | None]
Answer = Callable[["PgSession", str, Params], Rows]
_LENGTH = {INT4: 4, INT8: 8, TEXT: -1}
_STORAGE = {INT4: "p", INT8: "p", TEXT: "x"}


class UnknownStatement(BaseException):
    """The model lacks an answer: a fault of the simulation, which nothing catches."""


def execute(session: PgSession, sql: str, params: Params, respond: Respond) -> None:
    """Answer a statement, some of them later. Raises PostgresError."""
    if sql.startswith("CREATE_REPLICATION_SLOT"):
        _create_slot(session, sql, respond)
        return
    for part, answer in _ANSWERS:
        if part in sql:
            respond(answer(session, sql, params))
            return
    raise UnknownStatement(" ".join(sql.split())[:300])


# -- the catalog


def _published_tables(session: PgSession, sql: str, _: Params) -> Rows:
    database, server = session.database, session.server
    only = re.search(r"WHERE c\.oid = (\d+)", sql.rpartition("ON true")[2])
    xmax = str(session.snapshot.xmax if session.snapshot is not None else server.next_xid)
    publication = database.publication
    assert publication is not None or not database.published()
    return [
        (*_published_table(table, entry, publication.options if publication else ""), xmax)
        for table, entry in database.published()
        if only is None or table.oid == int(only[1])
    ]


def _published_table(table: Table, entry: Entry, options: str) -> tuple[str | None, ...]:
    columns = [(c.number, c.name, c.type_oid, -1, "", _STORAGE[c.type_oid], _LENGTH[c.type_oid]) for c in table.columns]
    key = f"1 {table.by_name['id'].number}"
    return (
        table.schema, table.name, str(table.oid), table.identity, "r", json.dumps(columns), str(table.attributes_xid),
        str(table.filenode), str(entry.oid), options,
        None if entry.min_id is None else f"filter {entry.min_id}",
        None if entry.columns is None else " ".join(map(str, sorted(entry.columns))),
        key if table.identity == "d" else None, key, None if entry.min_id is None else str(table.by_name["id"].number),
        None, None, "sr", None, None, None,
    )  # fmt: skip


def _columns_of(session: PgSession, sql: str, _: Params) -> Rows:
    found = re.search(r"a\.attrelid IN \(([0-9, ]+)\) AND a\.attnum", sql)
    assert found is not None
    oids = [int(oid) for oid in found[1].split(",")]
    return [
        (str(oid), c.name, str(c.type_oid), "-1", "f" if c.name == "id" else "t", "f", None, "t" if c.name == "id" else "f", "f")
        for oid in sorted(oids) if (table := session.database.tables.get(oid)) is not None for c in table.columns
    ]  # fmt: skip


def _type_words(_session: PgSession, sql: str, _: Params) -> Rows:
    return [(TYPE_WORDS[int(oid)],) for oid in re.findall(r"\(\d+, (\d+)::pg_catalog\.oid", sql)]


def _publication(session: PgSession, _sql: str, _: Params) -> Rows:
    return [] if session.database.publication is None else [("t", "t", "t", "t", "f")]


def _row_filter(session: PgSession, _sql: str, params: Params) -> Rows:
    entry = session.database.entry(int(params[1] or 0))
    return [] if entry is None else [(f"(id >= {entry.min_id})",)]


# -- slots and WAL


def _slot_state(session: PgSession, _sql: str, params: Params) -> Rows:
    slot = session.server.slots.get(params[0] or "")
    if slot is None:
        return []
    at = format_lsn(slot.confirmed)
    is_active = slot.reader is not None
    return [(
        "pgoutput", "logical", "postgres", _bool(slot.temporary), _bool(is_active), "1" if is_active else None,
        None if slot.lost else at, at, "lost" if slot.lost else "reserved", slot.lost,
        str(slot.transactions_read),
    )]  # fmt: skip


def _slot_health(session: PgSession, _sql: str, params: Params) -> Rows:
    slot = session.server.slots.get(params[0] or "")
    if slot is None:
        return []
    at = format_lsn(slot.confirmed)
    return [(_bool(slot.reader is not None), format_lsn(session.server.wal_end), at, at, "reserved", None, "f", "1", "0")]


def _bool(value: bool) -> str:
    return "t" if value else "f"


def _drop_slot(session: PgSession, _sql: str, params: Params) -> Rows:
    session.server.slots.pop(params[0] or "", None)
    return [("",)]


def _create_slot(session: PgSession, sql: str, respond: Respond) -> None:
    """Answer once all transactions that write now have ended."""
    server = session.server
    name, temporary = sql.split('"')[1], " TEMPORARY " in sql
    if name in server.slots:
        respond(PostgresError("42710", f'replication slot "{name}" already exists'))
        return
    era = server.era

    def made() -> None:
        if session.over or server.era != era or name in server.slots:
            return
        point = server.wal_end
        slot = server.slots[name] = Slot(name, point, temporary=temporary, saved=point)
        server.on_slot(slot)
        if temporary:
            session.own_slot(slot)
        exported = ""
        if "export" in sql:
            exported = f"00000003-{session.pid:08X}-1"
            session.exported[exported] = session.take_snapshot(exact=True)
        respond([(name, format_lsn(point), exported, "pgoutput")])

    server.when_ended(made)


def _identify(session: PgSession, _sql: str, _: Params) -> Rows:
    server = session.server
    return [(server.system_id, str(server.timeline), format_lsn(server.wal_end), "postgres")]


def _timeline_history(session: PgSession, _sql: str, _: Params) -> Rows:
    lines = [f"{tli}\t{format_lsn(lsn)}\tno recovery target specified" for tli, lsn in session.server.history]
    return [(f"{session.server.timeline:08X}.history", "\n".join(lines))]


def _emit(session: PgSession, _sql: str, _: Params) -> Rows:
    at = session.server.fill(56)
    session.server.grown()
    return [(format_lsn(at),)]


# -- transactions and snapshots


def _begin_locked(session: PgSession, sql: str, _: Params) -> Rows:
    session.begin()
    for name in re.findall(r'"public"\."(\w+)"', sql):
        table = session.server.database.named(name)
        if table is None:
            session.finish()
            raise PostgresError("42P01", f'relation "public.{name}" does not exist')
        session.locked.add(table.oid)
    return []


def _import_snapshot(session: PgSession, sql: str, _: Params) -> Rows:
    name = sql.split("'")[1]
    for other in session.server.sessions:
        if name in other.exported:
            session.snapshot = other.exported[name]
            return []
    raise PostgresError("22023", f'invalid snapshot identifier: "{name}"')


def _ordinary_snapshot(session: PgSession, _sql: str, _: Params) -> Rows:
    session.snapshot = session.take_snapshot()
    return [(session.snapshot.text, format_lsn(session.server.wal_end))]


def _before_horizon(session: PgSession, _sql: str, params: Params) -> Rows:
    assert session.snapshot is not None
    open_ones = {writer.xid for writer in session.server.writers}
    early = [xid for xid in session.snapshot.in_progress if xid < int(params[0] or 0) and xid in open_ones]
    return [(str(xid), "1") for xid in early]


def rows_of(session: PgSession, sql: str) -> tuple[list[tuple[str, int]], list[list[bytes | None]]]:
    """Columns and rows of a snapshot's SELECT."""
    found = re.fullmatch(r'SELECT (.*) FROM (?:ONLY )?"public"\."(\w+)"(?: WHERE \(id >= (-?\d+)\))?', sql)
    if found is None:
        raise UnknownStatement(sql)
    table = session.database.named(found[2])
    assert table is not None, "its shape is locked"
    names = [name.strip('"') for name in found[1].split(", ")]
    entry = Entry(0, None, None if found[3] is None else int(found[3]))
    rows = [row for row in session.database.rows[table.oid].values() if passes(entry, row)]
    return [(name, table.by_name[name].type_oid) for name in names], [[row.get(name) for name in names] for row in rows]


def _fixed(*row: str | None) -> Answer:
    return lambda _session, _sql, _params: [row]


def _nothing(_session: PgSession, _sql: str, _params: Params) -> Rows:
    return []


def _rollback(session: PgSession, _sql: str, _: Params) -> Rows:
    session.finish()
    return []


_ANSWERS: Sequence[tuple[str, Answer]] = (
    ("WITH RECURSIVE pub AS MATERIALIZED", _published_tables),
    ("pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t", _columns_of),
    ("pg_catalog.format_type(t.oid, t.typmod)", _type_words),
    ("SELECT pubinsert, pubupdate", _publication),
    ("SELECT FROM pg_publication WHERE pubname", lambda s, _q, _p: [] if s.database.publication is None else [()]),
    ("SELECT pg_get_expr(r.prqual", _row_filter),
    ("WITH RECURSIVE held AS", _nothing),
    ("l.mode = 'AccessExclusiveLock' AND b.datname", _nothing),
    ("coalesce(wal_status, ''), coalesce(invalidation_reason", _slot_state),
    ("coalesce(s.wal_status, ''), s.safe_wal_size", _slot_health),
    ("SELECT pg_drop_replication_slot", _drop_slot),
    ("IDENTIFY_SYSTEM", _identify),
    ("TIMELINE_HISTORY", _timeline_history),
    ("SELECT pg_postmaster_start_time()", lambda s, _q, _p: [(str(s.server.started_at),)]),
    ("pg_logical_emit_message", _emit),
    ("SELECT pg_is_in_recovery(), pg_last_wal_replay_lsn()", _fixed("f", None)),
    ("SELECT pg_current_wal_insert_lsn()", lambda s, _q, _p: [(format_lsn(s.server.wal_end),)]),
    ("ELSE pg_current_wal_insert_lsn() END", lambda s, _q, _p: [(format_lsn(s.server.wal_end),)]),
    ("SELECT pg_current_snapshot(), pg_current_wal_insert_lsn()", _ordinary_snapshot),
    ("FROM pg_snapshot_xip(pg_current_snapshot())", _before_horizon),
    ("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", _begin_locked),
    ("SET TRANSACTION SNAPSHOT", _import_snapshot),
    ("ROLLBACK", _rollback),
    ("coalesce(sum(greatest(reltuples, 0)), 0)::bigint, coalesce(sum(relpages)", _fixed("0", "0", "f")),
    ("current_setting('synchronous_standby_names') <> ''", _fixed("f", "t")),
    ("SELECT sum(pg_table_size(t.relid))", _fixed("8192")),
    ("SELECT repeat('x', 1000000)", _fixed("x")),
    ("SET lock_timeout", _nothing),
    ("SELECT current_user", _fixed("walbridge")),
    ("SELECT current_database()", _fixed("postgres")),
    ("SELECT current_setting('wal_level')", _fixed("logical", None, "f")),
    ("SELECT current_setting('max_slot_wal_keep_size')", _fixed("10GB")),
    ("SELECT rolname, rolsuper OR rolreplication", _fixed("walbridge", "t")),
    ("SELECT pg_backend_pid()", lambda s, _q, _p: [(str(s.pid),)]),
    ("SELECT (SELECT count(*) FROM pg_replication_slots)", _fixed("1", "10", "1", "10")),
    ("WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p'", _nothing),
    ("unnest(pg_blocking_pids", _nothing),
    ("JOIN pg_prepared_xacts p ON", _nothing),
)
"""A part of the statement -> its answer."""
