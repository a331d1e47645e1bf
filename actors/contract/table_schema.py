"""Describes a table's schema for KV `schemas` and SCHEMA events (contract, section 6)."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from actors.contract.table_token import table_token
from actors.messages import SchemaChange, Table
from actors.positions import SCHEMA_RANK, Lsn, Position
from actors.values.text_values import TypeInfo
from actors.wire.pgoutput import Relation


class CatalogColumn(NamedTuple):
    """A column as pg_attribute describes it now."""

    name: str
    type_oid: int
    typmod: int
    is_nullable: bool
    column_default: str | None
    is_pk: bool
    is_generated: bool = False


@dataclass(frozen=True, slots=True)
class Description:
    """The catalog's additions to a Relation message."""

    types: Mapping[int, TypeInfo]
    """Types that are not built in, by OID."""
    data_types: tuple[str, ...]
    """Each column's type in words, as format_type prints it."""
    catalog: tuple[CatalogColumn, ...]
    """The table's present columns. They describe the relation only if names and types match (see `matching_catalog`)."""
    base_types: Mapping[str, str] = field(default_factory=dict)
    """By column: the type under its domain, or under an array of a domain, in words."""
    is_complete: bool = True
    """False when the table was locked, so that the defaults of its columns are missing."""


def schema_id(relation: Relation, types: Mapping[int, TypeInfo]) -> int:
    """Hash a table's shape and OID to 32 bits: another shape, or another table of the same name, has another id.

    The shape is the columns' names, types and part in the replica identity; labels and fields of user-defined types belong to
    the types.
    """
    shape = [(c.name, c.type_oid, c.typmod, c.is_key, _type_shape(c.type_oid, types)) for c in relation.columns]
    # escaped: names of a database without an encoding may be any bytes
    return int.from_bytes(hashlib.sha256(json.dumps([relation.oid, shape]).encode("ascii")).digest()[:4], "big")


def _type_shape(oid: int, types: Mapping[int, TypeInfo]) -> object:
    info = types.get(oid)
    if info is None:
        return None
    fields = [(a.name, a.type_oid, a.typmod, _type_shape(a.type_oid, types)) for a in info.attributes]
    return [info.base_oid, info.labels, fields, _type_shape(info.base_oid, types)]


def matching_catalog(relation: Relation, catalog: Sequence[CatalogColumn]) -> dict[str, CatalogColumn] | None:
    """Return the catalog's columns by name if they match the relation's, else None.

    PostgreSQL decodes rows with the catalog of their time, but a query may read a later catalog. The catalog may have more
    columns, since a publication may have only some.
    """
    by_name = {c.name: c for c in catalog}
    for column in relation.columns:
        found = by_name.get(column.name)
        if found is None or (found.type_oid, found.typmod) != (column.type_oid, column.typmod):
            return None
    return by_name


def base_type_field(base_types: Mapping[str, str], column: str) -> dict[str, object]:
    """Return the `base_type` field of a column's description, if it has one."""
    return {"base_type": base_types[column]} if column in base_types else {}


def describe_table(relation: Relation, description: Description) -> SchemaChange:
    """Return the table in this shape with the body for KV `schemas`, without a position yet."""
    catalog = matching_catalog(relation, description.catalog)
    key = tuple(c.name for c in relation.columns if c.is_key)
    pk = frozenset(name for name, c in catalog.items() if c.is_pk) if catalog else frozenset()
    if not pk.issubset(c.name for c in relation.columns):  # rows may be equal in the part that is published
        pk = frozenset()
    protected = pk or (frozenset() if relation.replica_identity == "f" else frozenset(key))
    token = table_token(relation.schema, relation.name)
    table = Table(relation, token, schema_id(relation, description.types), key, protected)
    columns = [
        {
            "name": column.name,
            "position": position,
            "data_type": data_type,
            "is_nullable": catalog[column.name].is_nullable if catalog else None,
            "column_default": catalog[column.name].column_default if catalog else None,
            "pk": column.name in pk if catalog else None,
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
    return SchemaChange(
        table, Position(Lsn(0), 0, SCHEMA_RANK), body, described=catalog is not None, is_complete=description.is_complete
    )
