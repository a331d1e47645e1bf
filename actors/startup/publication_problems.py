"""What is wrong with a publication's tables, one problem per kind, with the statements that fix it. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from actors.clients.postgres.locks import TableLock
from actors.clients.postgres.publications import PublicationFacts, PublishedTable
from actors.telemetry.quantities import LISTED_MAX, listed
from actors.telemetry.telemetry import Problem
from actors.wire.sql_names import quoted


def publication_problems(
    publication: str, facts: PublicationFacts, tables: Sequence[PublishedTable], locks: Sequence[TableLock], role: str
) -> list[Problem]:
    """Return what the look at a publication shows that will matter sooner or later. `locks` are long ones."""
    refused = [t for t in tables if t.refusal and (facts.updates or facts.deletes)]
    found = [
        _no_tables(publication) if not tables else None,
        _no_identity([t for t in refused if t.refusal == "no identity"]),
        _half_identity(publication, [t for t in refused if t.refusal == "unpublished"]),
        _list_under_full(publication, [t for t in refused if t.refusal == "list under FULL"]),
        _hidden_generated(publication, [t for t in refused if t.refusal == "generated"]),
        _filter_outside_identity([t for t in refused if t.refusal == "filter"]),
        not_readable([t for t in tables if t.unreadable], role),
        _holes([t for t in tables if t.is_filtered and facts.updates and t.toasted and t.not_full]),
        _children(publication, [t for t in tables if t.children]),
        _without_wal([t for t in tables if t.without_wal]),
        _without_columns([t for t in tables if not t.columns]),
        _locked(tables, locks),
    ]
    return [problem for problem in found if problem is not None]


def _no_tables(publication: str) -> Problem:
    return Problem(
        "WB116",
        f"publication {publication} has no tables",
        means="nothing will be streamed",
        fix=f"ALTER PUBLICATION {quoted(publication)} ADD TABLE users;",
    )


def _no_identity(tables: Sequence[PublishedTable]) -> Problem | None:
    if not tables:
        return None
    return Problem(
        "WB115",
        f"{_named(tables)} no usable replica identity, yet updates or deletes are published",
        means="PostgreSQL refuses the application's UPDATE and DELETE on it; a deferrable key, an invalid index and a unique "
        "index with a WHERE are none",
        fix=_each(tables, lambda t: f"{_full(t)}   -- or, which costs less: ALTER TABLE {t.qualified} ADD PRIMARY KEY (...)"),
    )  # fmt: skip


def _half_identity(publication: str, tables: Sequence[PublishedTable]) -> Problem | None:
    if not tables:
        return None
    return Problem(
        "WB131",
        f"{_named(tables)} columns of the replica identity that are not published: "
        + listed([f"{_name(t)} ({', '.join(t.refused_for)})" for t in tables]),
        means="PostgreSQL refuses the application's UPDATE and DELETE on it",
        fix=f"ALTER PUBLICATION {quoted(publication)} SET TABLE ...;   -- name all tables, these with those columns too",
    )


def _list_under_full(publication: str, tables: Sequence[PublishedTable]) -> Problem | None:
    if not tables:
        return None
    return Problem(
        "WB134",
        f"{_named(tables)} REPLICA IDENTITY FULL and a list of published columns",
        means="PostgreSQL refuses the application's UPDATE and DELETE on it, even if the list names all columns",
        fix=f"ALTER PUBLICATION {quoted(publication)} SET TABLE ...;   -- name all tables, these without a list; or give them "
        "a key as REPLICA IDENTITY",
    )


def _hidden_generated(publication: str, tables: Sequence[PublishedTable]) -> Problem | None:
    if not tables:
        return None
    return Problem(
        "WB135",
        f"{_named(tables)} generated columns in the replica identity that are not published: "
        + listed([f"{_name(t)} ({', '.join(t.refused_for)})" for t in tables]),
        means="PostgreSQL refuses the application's UPDATE and DELETE on it; FULL has all columns in the identity",
        fix=f"ALTER PUBLICATION {quoted(publication)} SET (publish_generated_columns = stored);   -- virtual columns cannot be "
        "published: then ALTER TABLE ... REPLICA IDENTITY DEFAULT",
    )


def _filter_outside_identity(tables: Sequence[PublishedTable]) -> Problem | None:
    if not tables:
        return None
    return Problem(
        "WB136",
        f"{_named(tables)} a row filter with columns outside the replica identity: "
        + listed([f"{_name(t)} ({', '.join(t.refused_for)})" for t in tables]),
        means="PostgreSQL refuses the application's UPDATE and DELETE on it",
        fix=_each(tables, lambda t: _full(t) + "   -- or filter by columns of the key"),
    )


def not_readable(tables: Sequence[PublishedTable], role: str) -> Problem | None:
    """Return the problem that the bridge's role may not read these tables; None without any."""
    if not tables:
        return None
    to = quoted(role)

    def fix(table: PublishedTable) -> str:
        if "row level security" in table.unreadable:
            return f"ALTER ROLE {to} BYPASSRLS;"
        return f"GRANT USAGE ON SCHEMA {quoted(table.schema)} TO {to}; GRANT SELECT ON {table.qualified} TO {to};"

    reasons = sorted({table.unreadable for table in tables if "may not SELECT" not in table.unreadable})
    if reasons and len({table.unreadable for table in tables}) > 1:  # say whose each is
        reasons = [f"{reason}: {listed([_name(t) for t in tables if t.unreadable == reason])}" for reason in reasons]
    return Problem(
        "WB117",
        f"role {role} may not read {listed([_name(t) for t in tables])}" + (f": it {', '.join(reasons)}" if reasons else ""),
        means="changes are streamed, but no snapshot can be taken",
        fix=_each(tables, fix),
    )


def _holes(tables: Sequence[PublishedTable]) -> Problem | None:
    if not tables:
        return None
    columns = listed([f"{_name(t)} ({', '.join(t.toasted[:3])}{', ...' if len(t.toasted) > 3 else ''})" for t in tables])
    return Problem(
        "WB130",
        f"rows that an UPDATE moves into a row filter may arrive without large values: {columns}",
        means="PostgreSQL sends such a row as an insert without the unchanged values that it stores out of line; each makes "
        "mirrors copy the table again",
        fix=_each(tables, _full),
    )


def _children(publication: str, tables: Sequence[PublishedTable]) -> Problem | None:
    if not tables:
        return None
    children = [child for table in tables for child in table.children]
    return Problem(
        "WB132",
        f"tables that inherit from published ones are not published themselves: {listed(children)}",
        means="PostgreSQL publishes the children that exist when their parent is added, not those that come later: neither "
        "changes nor snapshots have their rows",
        fix=f"ALTER PUBLICATION {quoted(publication)} ADD TABLE {', '.join(children[:LISTED_MAX])};",
    )


def _without_wal(tables: Sequence[PublishedTable]) -> Problem | None:
    if not tables:
        return None
    partitions = [partition for table in tables for partition in table.without_wal]
    return Problem(
        "WB137",
        f"unlogged or foreign partitions of published tables: {listed(partitions)}",
        means="snapshots have their rows, but PostgreSQL sends none of their changes: copies keep what they had",
        fix=" ".join(f"ALTER TABLE {partition} SET LOGGED;" for partition in partitions[:LISTED_MAX])
        + "   -- a foreign table: ALTER TABLE ... DETACH PARTITION",
    )


def _without_columns(tables: Sequence[PublishedTable]) -> Problem | None:
    if not tables:
        return None
    return Problem(
        "WB138",
        f"{_named(tables)} no column that is published",
        means="events say that rows come and go, and nothing else; no snapshot can be taken, so mirrors never copy the table",
        fix=_each(tables, lambda t: f"ALTER TABLE {t.qualified} ADD COLUMN ...;   -- or take the table out of the publication"),
    )


def _locked(tables: Sequence[PublishedTable], locks: Sequence[TableLock]) -> Problem | None:
    if not locks:
        return None
    names = {table.relation_oid: _name(table) for table in tables}
    oldest = locks[0]
    who = f"pid {oldest.pid}" if oldest.pid else "a prepared transaction"
    return Problem(
        "WB133",
        f"{listed(sorted({names[lock.relation_oid] for lock in locks}))} locked by {who} for {oldest.open_for_s} s",
        said=oldest.query[:200],
        means="events go on; snapshots wait, and so do the defaults of the columns in KV schemas",
        fix=f"SELECT pg_cancel_backend({oldest.pid});   -- or wait" if oldest.pid
        else "ROLLBACK PREPARED '...';   -- or COMMIT PREPARED; SELECT gid, prepared FROM pg_prepared_xacts",
    )  # fmt: skip


def _full(table: PublishedTable) -> str:
    """The statements that make old rows complete: partitions do not inherit that from their root."""
    return " ".join(f"ALTER TABLE {name} REPLICA IDENTITY FULL;" for name in table.not_full[:LISTED_MAX])


def _name(table: PublishedTable) -> str:
    return f"{table.schema}.{table.name}"


def _named(tables: Sequence[PublishedTable]) -> str:
    """Begin a sentence about tables: `table public.users has`, or `3 tables (public.a, ...) have`."""
    if len(tables) == 1:
        return f"table {_name(tables[0])} has"
    return f"{len(tables)} tables ({listed([_name(t) for t in tables])}) have"


def _each(tables: Sequence[PublishedTable], fix: Callable[[PublishedTable], str]) -> str:
    lines = list(dict.fromkeys(fix(table) for table in tables[:LISTED_MAX]))
    if len(tables) > LISTED_MAX:
        lines.append(f"-- and the same for {len(tables) - LISTED_MAX} more")
    return "\n".join(lines)
