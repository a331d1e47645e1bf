"""Queries of PostgreSQL's catalog for publications, tables and types. On ordinary connections.

A session finds names in pg_catalog alone. Names for users are printed as `public` sees them (`mood`, not `public.mood`): those
statements qualify every function, so that no function planted in `public` is called instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import orjson

from actors.clients.postgres.connection import PgConnection
from actors.contract.table_schema import CatalogColumn, Description
from actors.values.text_values import BUILTIN_TYPES, TypeInfo, without_domains
from actors.wire.pgoutput import Column, Relation
from actors.wire.sql_names import quoted

_AS_PUBLIC_SEES_IT = "SET LOCAL search_path = pg_catalog, public; "


class PublicationFacts(NamedTuple):
    """The operations that a publication publishes."""

    inserts: bool
    updates: bool
    deletes: bool
    truncates: bool
    via_root: bool


class PublishedTable(NamedTuple):
    """One table of a publication, as its events name it."""

    schema: str
    name: str
    relation_oid: int
    replica_identity: str
    has_key: bool
    """Updates and deletes can be published: the replica identity is a primary key, an index or FULL."""
    readable: bool
    """The role may SELECT from the table, which snapshots need."""
    columns: tuple[str, ...]
    """The published columns: the publication's column list, or all but generated columns."""
    row_filter: str = ""
    """The publication's WHERE for this table, as SQL; empty when all rows are published."""
    is_partitioned: bool = False
    has_toast: bool = False
    """Some rows are, or were, wider than a page."""
    version: str = ""
    """Changes whenever the table's name, its columns or the publication change."""

    @property
    def qualified(self) -> str:
        """The table's name in SQL."""
        return f"{quoted(self.schema)}.{quoted(self.name)}"

    @property
    def own(self) -> str:
        """The FROM item for the table's own rows: inheritance children are tables of their own."""
        return self.qualified if self.is_partitioned else f"ONLY {self.qualified}"

    @property
    def where(self) -> str:
        """The publication's row filter as a WHERE clause; empty when all rows are published."""
        return f" WHERE {self.row_filter}" if self.row_filter else ""


# `c` is a row of pg_class
_COLUMNS_VERSION = (
    "c.relnamespace || ' ' || c.relname || ' ' || "
    "(SELECT coalesce(string_agg(a.attnum || ' ' || a.attname, ' ' ORDER BY a.attnum), '') FROM pg_attribute a"
    " WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)"
)
_PUBLICATION_VERSION = (
    "SELECT ' ' || hashtextextended("
    "coalesce(string_agg(p.xmin || ' ' || coalesce(r.oid || ' ' || r.xmin, ''), ' ' ORDER BY r.oid), ''), 0)"
    " AS version FROM pg_publication p LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid WHERE p.pubname = $1"
)


async def publication_facts(connection: PgConnection, publication: str) -> PublicationFacts | None:
    """Return the publication's options; None when there is no such publication."""
    rows = await connection.query(
        "SELECT pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot FROM pg_publication WHERE pubname = $1", (publication,)
    )
    return PublicationFacts(*(value == "t" for value in rows[0])) if rows else None


async def published_tables(connection: PgConnection, publication: str) -> list[PublishedTable]:
    """Return the tables of a publication, by whichever clause it includes them, ordered by name."""
    # attnames exists since PostgreSQL 15 and is right for column lists and roots of partitions. Before 18 it includes
    # generated columns, which are never sent then.
    generated = "" if connection.server_version >= 180000 else "AND a.attgenerated = ''"
    names = (
        "(SELECT to_json(array_agg(a.attname ORDER BY a.attnum)) FROM pg_attribute a"
        f" WHERE a.attrelid = c.oid AND a.attname = ANY (t.attnames) {generated})"
    )
    where = "t.rowfilter"
    if connection.server_version < 150000:
        names = where = "NULL"
    rows = await connection.query(
        f"""
        SELECT t.schemaname, t.tablename, c.oid, c.relreplident, {names},
          NOT EXISTS (  -- the identity that counts is that of the table that holds the row: a partition's, not its root's
            SELECT FROM (SELECT c.oid AS relid WHERE c.relkind <> 'p'
              UNION ALL SELECT relid FROM pg_partition_tree(c.oid) WHERE isleaf AND c.relkind = 'p') held
            JOIN pg_class h ON h.oid = held.relid
            WHERE NOT CASE h.relreplident WHEN 'f' THEN true WHEN 'n' THEN false WHEN 'i' THEN EXISTS (
                SELECT FROM pg_index i WHERE i.indrelid = h.oid AND i.indisreplident)
              ELSE EXISTS (SELECT FROM pg_index i WHERE i.indrelid = h.oid AND i.indisprimary) END),
          has_schema_privilege(n.oid, 'USAGE') AND has_any_column_privilege(c.oid, 'SELECT'), {where}, c.relkind = 'p',
          EXISTS (SELECT FROM (SELECT c.oid AS relid UNION SELECT relid FROM pg_partition_tree(c.oid)) part
            JOIN pg_class h ON h.oid = part.relid WHERE h.reltoastrelid <> 0 AND pg_relation_size(h.reltoastrelid) > 0),
          {_COLUMNS_VERSION} || (SELECT version FROM ({_PUBLICATION_VERSION}) p)
        FROM pg_publication_tables t
        JOIN pg_namespace n ON n.nspname = t.schemaname JOIN pg_class c ON c.relname = t.tablename AND c.relnamespace = n.oid
        WHERE t.pubname = $1 ORDER BY 1, 2
        """,
        (publication,),
    )
    found: list[PublishedTable] = []
    for schema, name, oid, identity, columns, has_key, readable, row_filter, is_partitioned, has_toast, version in rows:
        published = tuple(orjson.loads(columns)) if columns else ()
        found.append(
            PublishedTable(
                schema or "",
                name or "",
                int(oid or 0),
                identity or "d",
                has_key == "t",
                readable == "t",
                published,
                row_filter or "",
                is_partitioned == "t",
                has_toast == "t",
                version or "",
            )  # fmt: skip
        )
    return found


async def table_version(connection: PgConnection, publication: str, relation_oid: int) -> str:
    """Return `PublishedTable.version` as of this transaction's snapshot, without a lock. Empty when the table is gone."""
    rows = await connection.query(
        f"SELECT {_COLUMNS_VERSION} || (SELECT version FROM ({_PUBLICATION_VERSION}) p) FROM pg_class c WHERE c.oid = $2::oid",
        (publication, relation_oid),
    )
    return (rows[0][0] or "") if rows else ""


async def describe_columns(connection: PgConnection, relation_oid: int) -> list[CatalogColumn]:
    """Return a table's present columns in order; none when the table is gone."""
    rows = await connection.query(
        f"""
        {_AS_PUBLIC_SEES_IT}
        SELECT a.attname, a.atttypid, a.atttypmod, NOT (a.attnotnull OR t.typnotnull), a.attgenerated <> '',
          CASE WHEN a.attgenerated = '' THEN pg_catalog.pg_get_expr(d.adbin, d.adrelid) END,
          coalesce(a.attnum = ANY (i.indkey::pg_catalog.int2[]), false)
        FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
        LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        LEFT JOIN pg_catalog.pg_index i ON i.indrelid = a.attrelid AND i.indisprimary
        WHERE a.attrelid = {int(relation_oid)}::pg_catalog.oid AND a.attnum > 0::pg_catalog.int2 AND NOT a.attisdropped
        ORDER BY a.attnum
        """
    )
    return [
        CatalogColumn(name or "", int(oid or 0), int(typmod or -1), nullable == "t", default, pk == "t", generated == "t")
        for name, oid, typmod, nullable, generated, default, pk in rows
    ]


async def format_types(connection: PgConnection, types: Sequence[tuple[int, int]]) -> list[str]:
    """Return each (type OID, typmod) in words, as psql's \\d shows them."""
    if not types:
        return []
    values = ", ".join(f"({i}, {int(oid)}::pg_catalog.oid, {int(typmod)})" for i, (oid, typmod) in enumerate(types))
    rows = await connection.query(
        f"{_AS_PUBLIC_SEES_IT} SELECT pg_catalog.format_type(t.oid, t.typmod) FROM (VALUES {values}) AS t (i, oid, typmod)"
        " ORDER BY t.i"
    )
    return [name or "" for (name,) in rows]


async def describe_types(connection: PgConnection, oids: Sequence[int]) -> dict[int, TypeInfo]:
    """Return types that are not built in, and the types they are made of, without those gone from the catalog."""
    found: dict[int, TypeInfo] = {}
    wanted = set(oids)
    while wanted:
        rows = await connection.query(
            """
            SELECT t.oid, t.typtype, t.typbasetype, t.typelem, t.typdelim, coalesce(e.typdelim, ','),
              t.typelem <> 0 AND t.typlen = -1 AND t.typcategory = 'A'
            FROM pg_type t LEFT JOIN pg_type e ON e.oid = t.typelem WHERE t.oid = ANY ($1::oid[])
            """,
            ("{" + ",".join(map(str, sorted(wanted))) + "}",),
        )
        for oid_text, typtype, base, element, _, delimiter, is_array in rows:
            oid = int(oid_text or 0)
            if typtype == "d":
                found[oid] = TypeInfo(oid, "domain", int(base or 0))
            elif is_array == "t":
                found[oid] = TypeInfo(oid, "array", int(element or 0), delimiter or ",")
            else:
                found[oid] = TypeInfo(oid, "other")
        asked, wanted = wanted, {t.base_oid for t in found.values() if t.base_oid} - found.keys() - BUILTIN_TYPES.keys()
        wanted -= asked
    return found


async def describe_relation(connection: PgConnection, relation: Relation) -> Description:
    """Return what the catalog adds to a Relation message."""
    unknown = sorted({c.type_oid for c in relation.columns} - BUILTIN_TYPES.keys())
    types = await describe_types(connection, unknown) if unknown else {}
    data_types = await format_types(connection, [(c.type_oid, c.typmod) for c in relation.columns])
    made_of = {c.name: without_domains(c.type_oid, types) for c in relation.columns}
    domains = {c.name: made_of[c.name] for c in relation.columns if made_of[c.name][0] != c.type_oid}
    words = await format_types(connection, [(oid, -1) for oid, _ in domains.values()])
    base_types = {name: f"{word}{brackets}" for (name, (_, brackets)), word in zip(domains.items(), words, strict=True)}
    catalog = await describe_columns(connection, relation.oid)
    return Description(types, tuple(data_types), tuple(catalog), base_types)


def published_relation(published: PublishedTable, columns: Sequence[CatalogColumn]) -> Relation:
    """Return the relation as a Relation message will describe it. Before PostgreSQL 15 a publication has no column lists."""
    wanted = set(published.columns)
    columns_sent = tuple(
        Column(c.name, c.type_oid, c.typmod, False) for c in columns if (c.name in wanted if wanted else not c.is_generated)
    )
    return Relation(published.relation_oid, published.schema, published.name, published.replica_identity, columns_sent)
