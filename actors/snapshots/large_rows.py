"""Has PostgreSQL look for a row that no message can carry, before a snapshot reads rows.

Reading such a row would cost several times its size in memory, and hold up everything else meanwhile, only to fail.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from actors.snapshots.chunks import RowTooLarge
from actors.snapshots.table_reader import OpenTable
from actors.values.text_values import base_type
from actors.wire.sql_names import quoted

COMPRESSION_RATIO_MAX = 64
"""Rows that would have to be compressed by more than this are not even tried."""
_SHORT = frozenset({16, 20, 21, 23, 26, 700, 701, 1082, 1083, 1114, 1184, 1266, 2950})
"""Numbers, bool, dates and times, uuid."""
_LENGTH_IS_STORED = frozenset({17, 25, 1042, 1043})
"""bytea and text: PostgreSQL knows the length of such a value without reading it."""
_COMPRESSION_MAX = 256
"""A stored value is at least its size divided by this (LZ4)."""
_OTHERS_FACTOR = 16
"""Values of other types are a problem only above so many times a message: their text may be longer than what is sent."""


async def refuse_large_rows(
    table: OpenTable, payload_max: int, *, is_compressed: bool, source: str = "", key: Sequence[str] = ()
) -> None:
    """Raise RowTooLarge, with the row's key, if a row has a value that no message of `payload_max` bytes can carry.

    Rows that are somewhat too large may pass. Reads the table's pages once more, but of its large values only those whose
    length is not known otherwise. `source`, as what follows FROM in SQL, has some of the table's rows; `key` names the
    columns that are shown in the error where there is no primary key. Raises PostgresError and SourceUnavailable.
    """
    if not table.has_toast:
        return
    bytes_max = payload_max * (COMPRESSION_RATIO_MAX if is_compressed else 1)  # it may still fit compressed
    sizes: list[str] = []
    for column in table.relation.columns:
        name, base = quoted(column.name), base_type(column.type_oid, table.description.types)
        oid = 0 if base is None else base.oid
        if oid in _LENGTH_IS_STORED:
            sizes.append(f"nullif(greatest(octet_length({name}), {bytes_max}), {bytes_max})")
        elif oid not in _SHORT:
            others_max = bytes_max * _OTHERS_FACTOR
            size = f"nullif(greatest(octet_length({name}::text), {others_max}), {others_max})"
            sizes.append(f"CASE WHEN pg_column_size({name}) > {others_max // _COMPRESSION_MAX} THEN {size} END")
    if not sizes:
        return
    names = sorted(table.pk) or [*key]
    key = [f"${i}::text || '=' || left({quoted(name)}::text, 100)" for i, name in enumerate(names, 1)] or ["'ctid=' || ctid"]
    rows = await table.connection.query(
        f"SELECT row_key, row_size FROM (SELECT concat_ws(', ', {', '.join(key)}) AS row_key,"
        f" greatest({', '.join(sizes)}) AS row_size FROM {source or table.source}) found WHERE row_size IS NOT NULL LIMIT 1",
        names,
        timeout_s=math.inf,
    )
    if rows:
        ((row, row_size),) = rows
        raise RowTooLarge(int(row_size or 0), bytes_max, row or "")
