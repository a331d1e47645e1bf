"""Queries of PostgreSQL's catalog for tables and types. On ordinary connections.

A session finds names in pg_catalog alone. Names for users are printed as `public` sees them (`mood`, not `public.mood`): those
statements qualify every function, so that no function planted in `public` is called instead.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from actors.clients.postgres.connection import PgConnection
from actors.contract.table_schema import CatalogColumn, Description
from actors.values.text_values import BUILTIN_TYPES, Attribute, TypeInfo, without_domains
from actors.wire.pgoutput import Relation

_AS_PUBLIC_SEES_IT = "SET LOCAL search_path = pg_catalog, public; "
_AS_BEFORE = "; SET LOCAL search_path = pg_catalog"
"""Ends such a statement: in a transaction that reads rows, names in their text must not depend on it."""


class TableColumns(NamedTuple):
    """A table's present columns in order; none when the table is gone."""

    columns: tuple[CatalogColumn, ...] = ()
    is_complete: bool = True
    """False when the table is locked, so that the defaults of its columns cannot be read."""


async def describe_columns(connection: PgConnection, relation_oids: Sequence[int]) -> dict[int, TableColumns]:
    """Return tables' columns by OID, without waiting for a lock on a table."""
    oids = ", ".join(str(int(oid)) for oid in relation_oids) or "0"
    rows = await connection.query(
        f"""
        {_AS_PUBLIC_SEES_IT}
        WITH locked AS MATERIALIZED (  -- pg_get_expr opens the table, and would wait
          SELECT l.relation AS oid FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_database b ON b.oid = l.database
          WHERE l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock' AND b.datname = pg_catalog.current_database()
        )
        SELECT a.attrelid, a.attname, a.atttypid, a.atttypmod, NOT (t.typnotnull OR a.attnotnull
            AND NOT EXISTS (  -- from 18 on, rows from before a constraint that is NOT VALID may hold NULL
              SELECT FROM pg_catalog.pg_constraint n WHERE n.conrelid = a.attrelid AND n.contype = 'n' AND NOT n.convalidated
                AND a.attnum = ANY (n.conkey))), a.attgenerated <> '',
          CASE WHEN a.attgenerated = '' AND d.adbin IS NOT NULL AND a.attrelid NOT IN (SELECT oid FROM locked)
            THEN pg_catalog.pg_get_expr(d.adbin, d.adrelid) END,
          coalesce(a.attnum = ANY ((i.indkey::pg_catalog.int2[])[0:i.indnkeyatts - 1]), false),
          d.adbin IS NOT NULL AND a.attrelid IN (SELECT oid FROM locked)
        FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
        LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        LEFT JOIN pg_catalog.pg_index i ON i.indrelid = a.attrelid AND i.indisprimary AND i.indisvalid
        WHERE a.attrelid IN ({oids}) AND a.attnum > 0::pg_catalog.int2 AND NOT a.attisdropped
        ORDER BY a.attrelid, a.attnum
        {_AS_BEFORE}
        """
    )
    found: dict[int, list[CatalogColumn]] = {}
    incomplete: set[int] = set()
    for relation, name, oid, typmod, nullable, generated, default, pk, unknown in rows:
        column = CatalogColumn(
            name or "", int(oid or 0), int(typmod or -1), nullable == "t", default, pk == "t", generated == "t"
        )
        found.setdefault(int(relation or 0), []).append(column)
        if unknown == "t":
            incomplete.add(int(relation or 0))
    return {oid: TableColumns(tuple(columns), oid not in incomplete) for oid, columns in found.items()}


async def format_types(connection: PgConnection, types: Sequence[tuple[int, int]]) -> list[str]:
    """Return each (type OID, typmod) in words, as psql's \\d shows them."""
    if not types:
        return []
    values = ", ".join(f"({i}, {int(oid)}::pg_catalog.oid, {int(typmod)})" for i, (oid, typmod) in enumerate(types))
    rows = await connection.query(
        f"{_AS_PUBLIC_SEES_IT} SELECT pg_catalog.format_type(t.oid, t.typmod) FROM (VALUES {values}) AS t (i, oid, typmod)"
        f" ORDER BY t.i{_AS_BEFORE}"
    )
    return [name or "" for (name,) in rows]


async def describe_types(connection: PgConnection, oids: Sequence[int]) -> dict[int, TypeInfo]:
    """Return types that are not built in, and the types they are made of, without those gone from the catalog."""
    found: dict[int, TypeInfo] = {}
    asked: set[int] = set()
    wanted = set(oids)
    while wanted:
        rows = await connection.query(
            """
            SELECT t.oid, t.typtype, coalesce(r.rngsubtype, m.rngsubtype, nullif(t.typbasetype, 0), t.typelem),
              coalesce(e.typdelim, ','), t.typelem <> 0 AND t.typlen = -1 AND t.typcategory = 'A',
              (SELECT json_agg(l.enumlabel ORDER BY l.oid) FROM pg_enum l WHERE l.enumtypid = t.oid),
              (SELECT json_agg(json_build_array(a.attname, a.atttypid::int8, a.atttypmod, a.attnum) ORDER BY a.attnum)
                FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped AND t.typtype = 'c')
            FROM pg_type t LEFT JOIN pg_type e ON e.oid = t.typelem LEFT JOIN pg_range r ON r.rngtypid = t.oid
            LEFT JOIN pg_range m ON m.rngmultitypid = t.oid WHERE t.oid = ANY ($1::oid[])
            """,
            ("{" + ",".join(map(str, sorted(wanted))) + "}",),
        )
        for oid_text, typtype, base_text, delimiter, is_array, labels, attributes in rows:
            oid, base = int(oid_text or 0), int(base_text or 0)
            if typtype == "d":
                found[oid] = TypeInfo(oid, "domain", base)
            elif is_array == "t":
                found[oid] = TypeInfo(oid, "array", base, delimiter or ",")
            else:
                fields = tuple(Attribute(*field) for field in json.loads(attributes or "[]"))
                found[oid] = TypeInfo(oid, "other", base, ",", tuple(json.loads(labels or "[]")), fields)
        asked |= wanted
        wanted = {oid for t in found.values() for oid in (t.base_oid, *(a.type_oid for a in t.attributes)) if oid}
        wanted -= asked | BUILTIN_TYPES.keys()
    return found


async def describe_relations(connection: PgConnection, relations: Sequence[Relation]) -> list[Description]:
    """Return what the catalog adds to each relation, in a few queries for all. No query waits for a lock on a table."""
    unknown = sorted({c.type_oid for relation in relations for c in relation.columns} - BUILTIN_TYPES.keys())
    types = await describe_types(connection, unknown) if unknown else {}
    made_of = {oid: without_domains(oid, types) for oid in unknown}
    bases = {(made_of[oid][0], -1) for oid in unknown if made_of[oid][0] != oid}
    wanted = sorted({(c.type_oid, c.typmod) for relation in relations for c in relation.columns} | bases)
    words = dict(zip(wanted, await format_types(connection, wanted), strict=True))
    catalog = await describe_columns(connection, [relation.oid for relation in relations])
    found: list[Description] = []
    for relation in relations:
        domains = {c.name: made_of[c.type_oid] for c in relation.columns if c.type_oid in made_of}
        base_types = {
            c.name: words[domains[c.name][0], -1] + domains[c.name][1]
            for c in relation.columns
            if c.name in domains and domains[c.name][0] != c.type_oid
        }
        now = catalog.get(relation.oid, TableColumns())
        data_types = tuple(words[c.type_oid, c.typmod] for c in relation.columns)
        found.append(Description(types, data_types, now.columns, base_types, is_complete=now.is_complete))
    return found


async def describe_relation(connection: PgConnection, relation: Relation) -> Description:
    """Return what the catalog adds to a Relation message."""
    return (await describe_relations(connection, [relation]))[0]
