"""A table's schema as KV `schemas` and SCHEMA events show it (contract, section 6)."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import orjson

from actors.contract.table_token import table_token
from actors.messages import SchemaChange, Table
from actors.positions import SCHEMA_RANK, Lsn, Position
from actors.values.text_values import TypeInfo
from actors.wire.pgoutput import Relation


class CatalogColumn(NamedTuple):
    """A column as pg_attribute has it now."""

    name: str
    type_oid: int
    typmod: int
    is_nullable: bool
    column_default: str | None
    is_pk: bool
    is_generated: bool = False


@dataclass(frozen=True, slots=True)
class Description:
    """What the catalog adds to a Relation message."""

    types: Mapping[int, TypeInfo]
    """The types that are not PostgreSQL's own, by OID."""
    data_types: tuple[str, ...]
    """Each column's type in words, as format_type prints it."""
    catalog: tuple[CatalogColumn, ...]
    """The table's columns now. They describe the relation only if names and types are the same (see `matching_catalog`)."""
    base_types: Mapping[str, str] = field(default_factory=dict)
    """By column: what its domain, or the array of a domain, is made of, in words."""


def schema_id(relation: Relation) -> int:
    """32 bits that distinguish one shape of a table from another, and from another table that has taken its name."""
    shape = [(c.name.encode("utf-8", "surrogateescape").hex(), c.type_oid, c.typmod) for c in relation.columns]
    return int.from_bytes(hashlib.sha256(orjson.dumps([relation.oid, shape])).digest()[:4], "big")


def matching_catalog(relation: Relation, catalog: Sequence[CatalogColumn]) -> dict[str, CatalogColumn] | None:
    """The catalog's columns by name if they are those of the relation, else None.

    Rows are decoded with the catalog of their time; the catalog that a query reads may be later. Published columns may be a
    part of the table's, so the catalog may have more.
    """
    by_name = {c.name: c for c in catalog}
    for column in relation.columns:
        found = by_name.get(column.name)
        if found is None or (found.type_oid, found.typmod) != (column.type_oid, column.typmod):
            return None
    return by_name


def base_type_field(base_types: Mapping[str, str], column: str) -> dict[str, object]:
    """What a column's description has beside its type, if anything."""
    return {"base_type": base_types[column]} if column in base_types else {}


def describe_table(relation: Relation, description: Description) -> SchemaChange:
    """The table in this shape and the body for KV `schemas`, at no position yet."""
    catalog = matching_catalog(relation, description.catalog)
    key = tuple(c.name for c in relation.columns if c.is_key)
    pk = frozenset(name for name, c in catalog.items() if c.is_pk) if catalog else frozenset()
    protected = pk or (frozenset() if relation.replica_identity == "f" else frozenset(key))
    token = table_token(relation.schema, relation.name)
    table = Table(relation, token, schema_id(relation), key, protected)
    columns = [
        {
            "name": column.name,
            "position": position,
            "data_type": data_type,
            "is_nullable": catalog[column.name].is_nullable if catalog else None,
            "column_default": catalog[column.name].column_default if catalog else None,
            "pk": catalog[column.name].is_pk if catalog else None,
            "type_oid": column.type_oid,
        }
        | base_type_field(description.base_types, column.name)
        for position, (column, data_type) in enumerate(zip(relation.columns, description.data_types, strict=True), 1)
    ]
    body: dict[str, object] = {
        "table": relation.name,
        "schema": f"{relation.schema}.{relation.name}",
        "timestamp": int(time.time()),
        "schema_id": table.schema_id,
        "relation_id": relation.oid,
        "columns": columns,
    }
    return SchemaChange(table, Position(Lsn(0), 0, SCHEMA_RANK), body, described=catalog is not None)
