"""Has PostgreSQL look for a row that no message can carry, before a snapshot reads rows.

Reading such a row would cost several times its size in memory, and hold up everything else meanwhile, only to fail.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import trio

from actors.errors import SourceUnavailable
from actors.snapshots.chunks import RowTooLarge
from actors.snapshots.row_key import where
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

PAGES_FIRST = 256
PAGES_MAX = 8192
"""Pages of a step: 64 MB."""
STEP_S = 0.25
"""A step that takes longer is followed by a shorter one."""
QUERY_CANCELED = "57014"


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
    statement = (
        f"SELECT row_key, row_size FROM (SELECT concat_ws(', ', {', '.join(key)}) AS row_key,"
        f" greatest({', '.join(sizes)}) AS row_size FROM {source or table.source}) found WHERE row_size IS NOT NULL LIMIT 1"
    )
    rows = await table.connection.query(statement, names, timeout_s=math.inf)
    if rows:
        ((row, row_size),) = rows
        raise RowTooLarge(int(row_size or 0), bytes_max, row or "")


class LargeRowSearch:
    """Looks for such a row in steps, so that no transaction lasts longer than a round. For one task.

    Rows that move to pages that were searched may be missed: reading them finds them.
    """

    def __init__(self, payload_max: int, *, is_compressed: bool) -> None:
        self._payload_max, self._is_compressed = payload_max, is_compressed
        self._page, self._pages = 0, PAGES_FIRST

    async def search(self, table: OpenTable, key: Sequence[str], until: float) -> bool:
        """Continue in an open transaction until `until` by trio's clock; return whether all pages were searched.

        The transaction is aborted when a step takes longer than that. Raises what `refuse_large_rows` does.
        """
        if not table.has_toast:
            return True
        connection = table.connection
        ((pages,),) = await connection.query(
            "SELECT max(pg_relation_size(oid) / current_setting('block_size')::int) FROM pg_class WHERE relkind = 'r'"
            " AND oid IN (SELECT $1::oid UNION SELECT relid FROM pg_partition_tree($1::oid))",
            (table.published.relation_oid,),
        )
        while self._page < int(pages or 0):
            left_s = until - trio.current_time()
            if left_s <= 0:
                return False
            # a single page must be searched however long that takes
            timeout_ms = 0 if self._pages == 1 else math.ceil(1000 * left_s)
            await connection.query(f"SET LOCAL statement_timeout = {timeout_ms}")
            begun_at, end = trio.current_time(), self._page + self._pages
            some = where(table.published.row_filter, f"ctid >= '({self._page},0)' AND ctid < '({end},0)'")
            try:
                await refuse_large_rows(
                    table, self._payload_max, is_compressed=self._is_compressed, source=table.published.own + some, key=key
                )
            except SourceUnavailable as exc:
                if not timeout_ms or not exc.said.startswith(QUERY_CANCELED):
                    raise
                self._pages = max(1, self._pages // 8)
                return False
            self._page = end
            took_s = trio.current_time() - begun_at
            self._pages = max(1, self._pages // 2 if took_s > STEP_S else min(PAGES_MAX, self._pages * 2))
        await connection.query("SET LOCAL statement_timeout = 0")
        return True
