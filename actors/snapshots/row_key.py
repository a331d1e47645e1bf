"""The key by which a table is read in ranges: that of its replica identity, by which events name rows too.

Ranges by another key would lose rows: an UPDATE may move a row from a range that is still to be read into one that was read,
and only if its event names the row by the key that decides this does a reader notice. Keys travel as PostgreSQL's own text and
go back into SQL as literals of the columns' types, so order and equality are the index's, whatever the collation.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from actors.clients.postgres.connection import PgConnection
from actors.clients.postgres.publications import PublishedTable
from actors.contract.records import KeyText, RowRange
from actors.snapshots.failures import SnapshotFailed
from actors.wire.sql_names import quoted

SAMPLED_PAGES = 200
"""Pages of 8 kB that are read to cut a table into ranges."""
RANGE_BYTES_MIN = 4 * 1024 * 1024
"""A smaller range is not worth a connection."""
RANGES_PER_LANE = 4
"""Ranges differ from what the sample promises: with a few for each connection none waits long for the others."""

BY_INDEX = (
    "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_sort = off;"
    " SET LOCAL max_parallel_workers_per_gather = 0; SET LOCAL jit = off; SET LOCAL cursor_tuple_fraction = 0.001"
)
"""Has PostgreSQL follow the index from the first row on: a sort would read the whole range before the first row."""


@dataclass(frozen=True, slots=True)
class RowKey:
    """The columns of the key in the index's order."""

    columns: tuple[str, ...]
    types: tuple[str, ...]
    """As in SQL, with the modifier: a literal cast to `character` alone would be one character."""
    schema: str
    """Where the operators `>` and `<=` of all these types are: a type of an extension has its own."""
    equals: tuple[str, ...]
    """For each column, the schema of `=`."""
    size_bytes: int
    """Of the table's own pages."""

    @property
    def listed(self) -> str:
        """The columns for ORDER BY."""
        return ", ".join(map(quoted, self.columns))

    def condition(self, span: RowRange) -> str:
        """Return the range as a condition in SQL; empty for the whole table."""
        bounds = ((">", span.after), ("<=", span.through))
        row = f"({self.listed})"
        return " AND ".join(
            f"{row} OPERATOR({quoted(self.schema)}.{operator}) ({self.literals(bound)})"
            for operator, bound in bounds
            if bound is not None
        )

    def literals(self, key: KeyText) -> str:
        """Return a key's values in SQL."""
        texts = (text.replace("'", "''") for text in key)
        return ", ".join(f"'{text}'::{name}" for text, name in zip(texts, self.types, strict=True))

    def with_bytes(self, key: KeyText) -> KeyText:
        """Return a key whose values of type bytea may be base64, as events in JSON have them. Raises SnapshotFailed."""
        try:
            return tuple(
                "\\x" + base64.b64decode(text, validate=True).hex() if name == "bytea" and text[:2] != "\\x" else text
                for text, name in zip(key, self.types, strict=True)
            )
        except ValueError as exc:
            raise SnapshotFailed("bad_request", f"a value of a key is not base64: {exc}") from exc

    def joined(self, keys: Sequence[KeyText], row: str) -> str:
        """Return a JOIN of the rows named by `keys` to the alias `row`."""
        values = ", ".join(f"({self.literals(key)})" for key in keys)
        names = [f"_walbridge_key_{i}" for i in range(len(self.columns))]
        equal = " AND ".join(
            f"{row}.{quoted(column)} OPERATOR({quoted(schema)}.=) _walbridge_keys.{name}"
            for column, schema, name in zip(self.columns, self.equals, names, strict=True)
        )
        return f"JOIN (VALUES {values}) AS _walbridge_keys ({', '.join(names)}) ON {equal}"


def where(*conditions: str) -> str:
    """Return a WHERE clause of those conditions that are not empty."""
    given = [condition for condition in conditions if condition]
    return " WHERE " + " AND ".join(f"({condition})" for condition in given) if given else ""


def no_key(words: str) -> SnapshotFailed:
    """The error of a table that cannot be read in ranges."""
    return SnapshotFailed("no_key", f"{words}; request the complete table instead")


async def read_row_key(connection: PgConnection, table: PublishedTable) -> RowKey:
    """Read the key as the open transaction sees it. Raises SnapshotFailed when events name rows by something else."""
    oid = table.relation_oid
    identities = await connection.query(
        "SELECT c.relreplident FROM pg_class c WHERE c.oid = $1::oid OR c.oid IN"
        " (SELECT relid FROM pg_partition_tree($1::oid) WHERE isleaf)",
        (oid,),
    )
    kinds = {kind for (kind,) in identities}
    if "n" in kinds or table.replica_identity == "n":
        raise no_key("the table has no replica identity, so events name no row")
    if table.is_partitioned and "i" in kinds:
        raise no_key("partitions have an index as replica identity, so events name rows by different columns")
    chosen = "i.indisreplident" if table.replica_identity == "i" else "i.indisprimary"
    operator = (
        "(SELECT quote_ident(n.nspname) || ' ' || o.oprname FROM pg_amop m JOIN pg_operator o ON o.oid = m.amopopr"
        " JOIN pg_namespace n ON n.oid = o.oprnamespace WHERE m.amopfamily = c.opcfamily AND m.amopmethod = c.opcmethod"
        " AND m.amoplefttype = c.opcintype AND m.amoprighttype = c.opcintype AND m.amopstrategy = {})"
    )
    rows = await connection.query(
        f"SELECT a.attname, format_type(a.atttypid, a.atttypmod), {operator.format(5)}, {operator.format(2)},"
        f" {operator.format(3)}, c.opcdefault AND k.sorted_by = a.attcollation AND k.direction = 0,"
        " i.indimmediate AND i.indisvalid AND i.indpred IS NULL,"
        " (SELECT coalesce(sum(pg_relation_size(t.relid)), 0)::bigint"
        "   FROM (SELECT i.indrelid AS relid UNION SELECT relid FROM pg_partition_tree(i.indrelid) WHERE isleaf) t)"
        " FROM pg_index i CROSS JOIN LATERAL unnest(i.indkey::int2[], i.indclass::oid[], i.indcollation::oid[],"
        " i.indoption::int2[]) WITH ORDINALITY AS k (attnum, opclass, sorted_by, direction, place)"
        " JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum JOIN pg_opclass c ON c.oid = k.opclass"
        f" WHERE i.indrelid = $1::oid AND {chosen} AND k.place <= i.indnkeyatts ORDER BY k.place",
        (oid,),
    )
    if not rows:
        raise no_key("the table has no key by which events name its rows")
    names = tuple(str(row[0]) for row in rows)
    if not set(names) <= set(table.columns):
        raise no_key("not all columns of the table's key are published")
    if any(row[6] != "t" for row in rows):
        raise no_key("the table's key is DEFERRABLE: two rows may have the same key for a moment")
    operators = [[str(part).rpartition(" ") for part in row[2:5]] for row in rows]
    schemas = {found[0] for row in operators for found in row[:2]}
    usual = all([found[2] for found in row] == [">", "<=", "="] for row in operators)
    if any(row[5] != "t" for row in rows) or len(schemas) > 1 or not usual:
        raise no_key("the index of the table's key has another order than its columns")
    return RowKey(
        names, tuple(str(row[1]) for row in rows), _unquoted(operators[0][0][0]),
        tuple(_unquoted(row[2][0]) for row in operators), int(rows[0][7] or 0),
    )  # fmt: skip


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


async def cut_by_size(
    connection: PgConnection, table: PublishedTable, key: RowKey, span: RowRange, parts: int
) -> list[RowRange]:
    """Cut a range into about `parts` ranges of one size in bytes, by a sample of the table's pages."""
    if parts < 2:
        return [span]
    percent = min(100.0, 100 * SAMPLED_PAGES * 8192 / max(key.size_bytes, 1))
    # the size as stored: a large value is not read
    size = " + ".join(f"coalesce(pg_column_size({quoted(name)}), 0)" for name in table.columns)
    sampled = (
        f"SELECT {key.listed}, ({size})::numeric AS _walbridge_size FROM {table.own} TABLESAMPLE SYSTEM ({percent:.9f})"
        f"{where(table.row_filter, key.condition(span))}"
    )
    rows = await connection.query(
        f"SELECT {key.listed} FROM (SELECT *, sum(_walbridge_size) OVER (ORDER BY {key.listed}) AS _walbridge_upto,"
        f" sum(_walbridge_size) OVER () AS _walbridge_total FROM ({sampled}) AS sampled) AS cuts"
        f" WHERE floor(_walbridge_upto * {parts} / _walbridge_total) < {parts}"
        f" AND floor(_walbridge_upto * {parts} / _walbridge_total)"
        f" > floor((_walbridge_upto - _walbridge_size) * {parts} / _walbridge_total) ORDER BY {key.listed}"
    )
    bounds: list[KeyText] = [tuple(str(value) for value in row) for row in rows]
    if span.through is not None:
        bounds = [bound for bound in bounds if bound != span.through]
    return [RowRange(*pair) for pair in zip([span.after, *bounds], [*bounds, span.through], strict=True)]
