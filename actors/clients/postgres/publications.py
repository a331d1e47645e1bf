"""What a publication publishes, read from the catalog's tables without a lock, so that no ALTER TABLE makes a reader wait.

`pg_publication_tables`, `pg_get_expr` and `pg_relation_size` open the tables, and wait for whoever has locked one; a bridge
that asked them would stop streaming all tables because of one. The rules here are those of PostgreSQL's pg_publication.c and
pgoutput.c. On ordinary connections.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from actors.clients.postgres.catalog import describe_types
from actors.clients.postgres.connection import PgConnection
from actors.contract.publication import Composite, Enum, TableFacts
from actors.contract.table_schema import schema_id
from actors.contract.table_token import table_token
from actors.values.text_values import BUILTIN_TYPES, TypeInfo
from actors.wire.pgoutput import Column, Relation
from actors.wire.sql_names import quoted

_TOASTABLE = "xem"
"""pg_attribute.attstorage of columns whose values may be stored out of line."""


SHOWN_HOLDERS = 11
"""So many partitions with one identity are read: enough to say what is wrong, and how to fix it."""


class PublicationFacts(NamedTuple):
    """The operations that a publication publishes."""

    inserts: bool
    updates: bool
    deletes: bool
    truncates: bool
    via_root: bool


Refusal = Literal["", "no identity", "unpublished", "list under FULL", "generated", "filter"]
"""What CheckCmdReplicaIdentity of PostgreSQL refuses: no usable identity; a column of it left out by the publication's list;
any list under FULL; a generated column of it that is not published; a row filter that reads a column outside of it."""


class PublishedTable(NamedTuple):
    """One table of a publication, as its events name it."""

    relation: Relation
    """As a Relation message describes the table."""
    columns: tuple[str, ...]
    """The published columns."""
    refusal: Refusal
    """Why PostgreSQL refuses the application's updates and deletes, if they are published."""
    refused_for: tuple[str, ...]
    """The columns that it refuses them for."""
    not_full: tuple[str, ...]
    """Of the tables that hold the rows (the table, or partitions), some without REPLICA IDENTITY FULL, as names in SQL."""
    pk: frozenset[str]
    """The primary key's columns; none if some of them are not published."""
    unreadable: str
    """Why the role may not read the published columns of all rows, which snapshots must; empty when it may."""
    is_filtered: bool
    """Some rows are not published."""
    is_partitioned: bool
    toasted: tuple[str, ...]
    """Published columns whose unchanged values PostgreSQL may leave out of an update."""
    children: tuple[str, ...]
    """Tables that inherit from this one and are not published, as names in SQL."""
    without_wal: tuple[str, ...]
    """Unlogged and foreign partitions, as names in SQL: PostgreSQL sends nothing of them, and snapshots have their rows."""
    facts: TableFacts
    row_filter: str = ""
    """The publication's WHERE for this table, as SQL; only from `with_row_filter`."""

    @property
    def schema(self) -> str:
        return self.relation.schema

    @property
    def name(self) -> str:
        return self.relation.name

    @property
    def relation_oid(self) -> int:
        return self.relation.oid

    @property
    def replica_identity(self) -> str:
        return self.relation.replica_identity

    @property
    def token(self) -> str:
        return self.facts.token

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


class Publication(NamedTuple):
    """What was read in one statement."""

    tables: list[PublishedTable]
    """Ordered by name."""
    horizon: int
    """The first xid that was not given out yet: transactions from there on write to the tables as they are published here."""


async def publication_facts(connection: PgConnection, publication: str) -> PublicationFacts | None:
    """Return the publication's options; None when there is no such publication."""
    rows = await connection.query(
        "SELECT pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot FROM pg_publication WHERE pubname = $1", (publication,)
    )
    return PublicationFacts(*(value == "t" for value in rows[0])) if rows else None


async def published_tables(connection: PgConnection, publication: str) -> list[PublishedTable]:
    """Return the tables of a publication, by whichever clause it includes them, ordered by name."""
    return (await PublicationReader(publication).read(connection)).tables


async def published_table(connection: PgConnection, publication: str, relation_oid: int) -> PublishedTable | None:
    """Return one table as this transaction's snapshot has it; None when it is not published."""
    tables = (await PublicationReader(publication).read(connection, relation_oid)).tables
    return tables[0] if tables else None


async def with_row_filter(connection: PgConnection, publication: str, table: PublishedTable) -> PublishedTable:
    """Return the table with its row filter in SQL. PostgreSQL locks the table to print it."""
    if not table.is_filtered:
        return table
    rows = await connection.query(
        "SELECT pg_get_expr(r.prqual, r.prrelid) FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid"
        " WHERE p.pubname = $1 AND r.prrelid = $2",
        (publication, table.relation_oid),
    )
    return table._replace(row_filter=rows[0][0] or "" if rows else "false")


LARGE_ROWS_MIN = 1 << 16
"""A table with fewer rows is not large, whoever asks."""


async def large_tables(connection: PgConnection, tokens: Mapping[int, str]) -> dict[str, int]:
    """Return about how many rows large tables have, by token; `tokens` are by OID.

    A power of two, from PostgreSQL's statistics, which count new rows at once. Takes no lock on a table.
    """
    oids = "{" + ",".join(map(str, tokens)) + "}"
    rows = await connection.query(
        "WITH RECURSIVE held AS (SELECT c.oid AS root, c.oid, c.relkind, c.reltuples FROM pg_class c WHERE c.oid = ANY"
        " ($1::oid[]) UNION ALL SELECT h.root, c.oid, c.relkind, c.reltuples FROM held h JOIN pg_inherits i ON"
        " i.inhparent = h.oid AND h.relkind = 'p' JOIN pg_class c ON c.oid = i.inhrelid) SELECT root,"
        " sum(greatest(reltuples, pg_stat_get_live_tuples(oid), 0))::bigint FROM held WHERE relkind = 'r' GROUP BY root",
        (oids,),
    )
    counted = {tokens[int(oid or 0)]: int(count or 0) for oid, count in rows}
    return {token: 1 << (count.bit_length() - 1) for token, count in sorted(counted.items()) if count >= LARGE_ROWS_MIN}


class PublicationReader:
    """Reads one publication again and again. What has not changed since the last time is not examined again."""

    def __init__(self, publication: str) -> None:
        self._publication = publication
        self._seen: dict[Sequence[str | None], PublishedTable] = {}
        self._type_oids: dict[str | None, frozenset[int]] = {}  # by the text that lists a table's columns
        self._types: dict[int, TypeInfo] = {}

    async def read(self, connection: PgConnection, relation_oid: int | None = None) -> Publication:
        """Read all tables, or one, in one statement, and their types in others. Raises PostgresError, SourceUnavailable."""
        only = "" if relation_oid is None else f" WHERE c.oid = {int(relation_oid)}"
        rows = await connection.query(_statement(connection.server_version) + only + " ORDER BY 1, 2", (self._publication,))
        horizon = int(rows[0][-1] or 0) if rows else 0
        rows = [tuple(row[:-1]) for row in rows]
        types = await self._read_types(connection, rows)
        known = self._seen if types == self._types else {}
        self._types = types
        self._seen = {row: known.get(row) or _table(row, types) for row in rows}
        return Publication(list(self._seen.values()), horizon)

    async def _read_types(self, connection: PgConnection, rows: Sequence[Sequence[str | None]]) -> dict[int, TypeInfo]:
        texts = {row[_COLUMNS] for row in rows}
        known = self._type_oids
        self._type_oids = {
            text: known[text] if text in known else frozenset(column[2] for column in _json(text)) - BUILTIN_TYPES.keys()
            for text in texts
        }
        wanted = frozenset[int]().union(*self._type_oids.values())
        return await describe_types(connection, sorted(wanted)) if wanted else {}


# -- one row of the statement

_COLUMNS = 5
_NO_GENERATED = "-"
"""Ends the options of publications that publish no generated column, not even a listed one: PostgreSQL before 18."""


def _table(row: Sequence[str | None], types: Mapping[int, TypeInfo]) -> PublishedTable:
    (
        schema, name, oid_text, replident, kind, columns_text, attributes_xid, filenode, entries, options, filtered, listed,
        identity_text, pk_text, filter_columns, held, partitions, readable, denied, children, without_wal,
    ) = row  # fmt: skip
    oid, is_partitioned = int(oid_text or 0), kind == "p"
    columns = [_Attribute(*column) for column in _json(columns_text)]
    only = None if listed is None else {int(number) for number in listed.split()}
    sent = [c for c in columns if _is_sent(c, only, options or "")]
    names = {c.number: c.name for c in columns}
    numbers = {c.number for c in sent}
    identity = _numbers(identity_text)
    if replident == "f":
        identity = [c.number for c in sent]
    relation = Relation(
        oid, schema or "", name or "", replident or "d",
        tuple(Column(c.name, c.type_oid, c.typmod, c.number in identity) for c in sent),
    )  # fmt: skip
    pk = _numbers(pk_text)
    holders = [_Holder(*json.loads(holder)) for holder in _json(held)]
    if not is_partitioned:
        key = None if replident == "f" else [names[number] for number in identity]
        holders = [_Holder(key, schema or "", name or "")]
    generated = {c.name: c.number in numbers for c in columns if c.generated}
    reads = [names.get(int(number), "") for number in (filter_columns or "").split()]
    listed_names = None if only is None else {names[number] for number in only}
    refusal, refused_for = _refused(holders, listed_names, generated, reads, (options or "").endswith(_NO_GENERATED))
    made_of = _made_of(sent, types)
    facts = TableFacts(
        table_token(relation.schema, relation.name), oid, _digest([entries, options, filtered, partitions]),
        int(attributes_xid or 0), int(filenode or 0),
        tuple(Enum(t.oid, t.labels) for t in made_of if t.labels),
        tuple(Composite(t.oid, tuple(a[1:] for a in t.attributes)) for t in made_of if t.attributes),
        schema_id(relation, types), tuple((c.name, c.number) for c in sent),
    )  # fmt: skip
    return PublishedTable(
        relation=relation,
        columns=tuple(c.name for c in sent),
        refusal=refusal,
        refused_for=refused_for,
        not_full=tuple(f"{quoted(h.schema)}.{quoted(h.name)}" for h in holders if h.key is not None),
        pk=frozenset(names[number] for number in pk) if numbers.issuperset(pk) else frozenset(),
        unreadable=_unreadable(readable or "", {int(number) for number in (denied or "").split()} & numbers, names),
        is_filtered=bool(filtered),
        is_partitioned=is_partitioned,
        toasted=tuple(c.name for c in sent if c.length == -1 and c.storage in _TOASTABLE),
        children=tuple(_json(children)),
        without_wal=tuple(_json(without_wal)),
        facts=facts,
    )


def _is_sent(column: _Attribute, only: Collection[int] | None, options: str) -> bool:
    """Whether a column is published: `only` are those of the publication's list for the table, if there is one."""
    if options.endswith(_NO_GENERATED):
        return not column.generated and (only is None or column.number in only)
    if only is not None:  # whatever the publication says about generated columns
        return column.number in only
    return not column.generated or (column.generated == "s" and options.endswith("s"))


class _Holder(NamedTuple):
    """A table that holds rows, with the columns of its replica identity: all of them, None, under FULL."""

    key: list[str] | None
    schema: str
    name: str


def _refused(
    holders: Sequence[_Holder],
    listed: Collection[str] | None,
    generated: Mapping[str, bool],
    reads: Sequence[str],
    before_18: bool,
) -> tuple[Refusal, tuple[str, ...]]:
    """The first thing for which PostgreSQL refuses updates, and the columns; `generated` says which of them are published."""
    keys = [holder.key for holder in holders if holder.key is not None]
    in_keys = dict.fromkeys(name for key in keys for name in key)
    has_full = len(keys) < len(holders)
    if not all(keys):
        return "no identity", ()
    if has_full and listed is not None:
        return "list under FULL", ()
    if listed is not None and not in_keys.keys() <= set(listed):
        return "unpublished", tuple(name for name in in_keys if name not in listed)
    hidden = [name for name, is_sent in generated.items() if not is_sent and listed is None and (has_full or name in in_keys)]
    if hidden and not before_18:
        return "generated", tuple(hidden)
    outside = [name for name in dict.fromkeys(reads) if any(name not in key for key in keys)]
    return ("filter", tuple(outside)) if outside else ("", ())


class _Attribute(NamedTuple):
    """A column as the statement lists it."""

    number: int
    name: str
    type_oid: int
    typmod: int
    generated: str
    storage: str
    length: int


def _unreadable(readable: str, denied: Iterable[int], names: Mapping[int, str]) -> str:
    """Why the role may not read: `readable` has a letter for each right: schema, row security, table."""
    if "s" not in readable:
        return "has no USAGE on the schema"
    if "r" not in readable:
        return "sees only the rows that row level security lets it see"
    columns = sorted(names[number] for number in denied)
    return f"may not SELECT {', '.join(columns)}" if columns else ""


def _made_of(columns: Iterable[_Attribute], types: Mapping[int, TypeInfo]) -> list[TypeInfo]:
    """The types that the columns are made of and that are not built in, in the order of their OIDs."""
    found: dict[int, TypeInfo] = {}
    wanted = [c.type_oid for c in columns]
    while wanted:
        info = types.get(wanted.pop())
        if info is not None and info.oid not in found:
            found[info.oid] = info
            wanted += [info.base_oid, *(attribute.type_oid for attribute in info.attributes)]
    return sorted(found.values())


def _numbers(text: str | None) -> list[int]:
    """Read `{count} {number} {number} ...`, of which the first `count` are meant."""
    count, *numbers = [int(number) for number in (text or "0").split()]
    return numbers[:count]


def _json(text: str | None) -> list[Any]:
    return json.loads(text) if text else []  # not orjson: names in a database without an encoding may be any bytes


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode("ascii")).hexdigest()[:16]


# -- the statement

_IDENTITY = """i.indrelid = {table}.oid AND {valid} AND i.indisunique AND i.indimmediate AND i.indpred IS NULL
      AND CASE {table}.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END"""
"""What makes `i` the index that PostgreSQL takes as replica identity (RelationGetIndexList in relcache.c)."""

_VALID = "i.indisvalid"
_VALID_SINCE_18 = "(i.indisvalid OR (i.indisprimary AND {table}.relkind = 'p'))"
"""A root's primary key counts while partitions still lack theirs."""


def _statement(version: int) -> str:
    """One row for each published table, the parameter is the publication's name. A WHERE may follow, with `c` the table."""
    namespaces = "SELECT oid, pnnspid, pnpubid FROM pg_publication_namespace"
    prqual, prattrs = "e.prqual::text", "e.prattrs::text"
    if version < 150000:
        namespaces = "SELECT 0::oid AS oid, 0::oid AS pnnspid, 0::oid AS pnpubid WHERE false"
        prqual = prattrs = "NULL::text"
    excepted = "r.prexcept" if version >= 190000 else "false"  # FOR ALL TABLES EXCEPT (TABLE ...)
    generated = "p.pubgencols::text" if version >= 180000 else f"'{_NO_GENERATED}'"
    identity = _IDENTITY.format(table="c", valid=(_VALID_SINCE_18 if version >= 180000 else _VALID).format(table="c"))
    return f"""
    WITH RECURSIVE pub AS MATERIALIZED (
      SELECT p.oid, p.puballtables, p.pubviaroot,
        -- xmin: options that were other ones between two looks hid changes as well; ADD TABLE and the like do not move it
        concat(p.oid, ' ', p.xmin, ' ',
          p.pubinsert::int, p.pubupdate::int, p.pubdelete::int, p.pubtruncate::int, p.pubviaroot::int, ' ',
          {generated}) AS options
      FROM pg_publication p WHERE p.pubname = $1
    ), publishable AS MATERIALIZED (
      SELECT c.oid, c.relnamespace, c.relkind, c.relispartition FROM pg_class c
      WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND c.oid >= 16384
    ), namespaces AS MATERIALIZED (
      SELECT s.oid, s.pnnspid FROM ({namespaces}) s JOIN pub ON pub.oid = s.pnpubid
    ), excepted AS MATERIALIZED (
      SELECT r.prrelid AS oid FROM pg_publication_rel r JOIN pub ON pub.oid = r.prpubid WHERE {excepted}
    ), named AS MATERIALIZED (  -- by the publication's clauses; each with the entries that name it
      SELECT c.oid, string_agg(x.entry, ' ' ORDER BY x.entry) AS entries FROM publishable c JOIN (
        SELECT c.oid, 'all' AS entry FROM publishable c JOIN pub ON pub.puballtables
          AND NOT (pub.pubviaroot AND c.relispartition)
          AND NOT EXISTS (SELECT FROM excepted e WHERE e.oid IN (c.oid, pg_partition_root(c.oid)))
        UNION ALL SELECT r.prrelid, r.oid::text FROM pg_publication_rel r JOIN pub ON pub.oid = r.prpubid
          WHERE r.prrelid NOT IN (SELECT oid FROM excepted)
        UNION ALL SELECT c.oid, s.oid::text FROM namespaces s JOIN publishable c ON c.relnamespace = s.pnnspid
      ) x ON x.oid = c.oid GROUP BY c.oid
    ), tree AS (  -- each named table, and the partitions below it
      SELECT n.oid AS root, n.oid, n.entries FROM named n
      UNION ALL SELECT t.root, i.inhrelid, t.entries FROM tree t JOIN pg_class p ON p.oid = t.oid AND p.relkind = 'p'
        JOIN pg_inherits i ON i.inhparent = t.oid AND NOT i.inhdetachpending
    ), listed AS MATERIALIZED (
      SELECT n.oid, n.entries FROM named n JOIN pub ON pub.pubviaroot
      WHERE NOT EXISTS (SELECT FROM tree t WHERE t.oid = n.oid AND t.root <> n.oid)
      UNION ALL SELECT t.oid, string_agg(t.entries, ' ' ORDER BY t.entries) FROM tree t JOIN publishable c ON c.oid = t.oid
        JOIN pub ON NOT pub.pubviaroot WHERE c.relkind = 'r' GROUP BY t.oid
    )
    SELECT n.nspname, c.relname, c.oid, c.relreplident, c.relkind,
      (SELECT json_agg(json_build_array(a.attnum, a.attname, a.atttypid::int8, a.atttypmod, a.attgenerated, a.attstorage,
        a.attlen) ORDER BY a.attnum) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
      -- ALTER TABLE ... TYPE ... USING moves both of these, VACUUM FULL and TRUNCATE only the second
      (SELECT max(a.xmin::text::int8) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0), c.relfilenode,
      l.entries, pub.options, md5(f.filter), f.columns,
      (SELECT i.indnkeyatts || ' ' || i.indkey::text FROM pg_index i WHERE {identity}),
      (SELECT i.indnkeyatts || ' ' || i.indkey::text FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary
        AND i.indisvalid),
      (SELECT string_agg(DISTINCT m.found[1], ' ') FROM pg_publication_rel e,
        regexp_matches({prqual}, ':varattno ([0-9]+)', 'g') AS m (found) WHERE e.prrelid = c.oid AND e.prpubid = pub.oid),
      -- the identity that counts is that of the table that holds the row: a partition's, not its root's; some of each kind
      (SELECT json_agg(json_build_array(x.key::json, x.schema, x.name)::text ORDER BY x.schema, x.name) FROM (
        SELECT *, row_number() OVER (PARTITION BY y.key ORDER BY y.schema, y.name) AS number FROM (
          SELECT CASE WHEN h.relreplident <> 'f' THEN coalesce((SELECT json_agg(a.attname ORDER BY a.attname) FROM pg_index i
              JOIN pg_attribute a ON a.attrelid = h.oid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
              WHERE {_IDENTITY.format(table="h", valid=_VALID)})::text, '[]') END AS key,
            hn.nspname AS schema, h.relname AS name
          FROM tree t JOIN pg_class h ON h.oid = t.oid AND h.relkind = 'r' AND h.relpersistence = 'p'
            JOIN pg_namespace hn ON hn.oid = h.relnamespace
          WHERE c.relkind = 'p' AND t.root = c.oid
        ) y
      ) x WHERE x.number <= {SHOWN_HOLDERS}),
      -- nothing tells of partitions that come, go, come back or are truncated when their rows are published as the root's
      (SELECT md5(string_agg(concat(h.oid, ' ', h.relfilenode, ' ', i.xmin), ',' ORDER BY h.oid)) FROM tree t
        JOIN pg_class h ON h.oid = t.oid JOIN pg_inherits i ON i.inhrelid = t.oid WHERE c.relkind = 'p' AND t.root = c.oid),
      CASE WHEN has_schema_privilege(n.oid, 'USAGE') THEN 's' ELSE '' END
        || CASE WHEN row_security_active(c.oid) THEN '' ELSE 'r' END,
      CASE WHEN NOT has_table_privilege(c.oid, 'SELECT') THEN (SELECT string_agg(a.attnum::text, ' ') FROM pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        AND NOT has_column_privilege(c.oid, a.attnum, 'SELECT')) END,
      (SELECT json_agg(quote_ident(kn.nspname) || '.' || quote_ident(k.relname) ORDER BY kn.nspname, k.relname)
        FROM pg_inherits i JOIN pg_class k ON k.oid = i.inhrelid
        JOIN pg_namespace kn ON kn.oid = k.relnamespace WHERE i.inhparent = c.oid AND c.relkind = 'r'
        AND k.oid NOT IN (SELECT oid FROM listed)),
      (SELECT json_agg(quote_ident(hn.nspname) || '.' || quote_ident(h.relname) ORDER BY hn.nspname, h.relname)
        FROM tree t JOIN pg_class h ON h.oid = t.oid AND h.relkind IN ('r', 'f')
        AND (h.relkind = 'f' OR h.relpersistence <> 'p') JOIN pg_namespace hn ON hn.oid = h.relnamespace
        WHERE c.relkind = 'p' AND t.root = c.oid),
      pg_snapshot_xmax(pg_current_snapshot())
    FROM listed l CROSS JOIN pub JOIN pg_class c ON c.oid = l.oid JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN LATERAL (
      SELECT {prqual} AS filter, {prattrs} AS columns FROM pg_publication_rel e WHERE e.prrelid = c.oid AND e.prpubid = pub.oid
        AND NOT pub.puballtables AND c.relnamespace NOT IN (SELECT pnnspid FROM namespaces)
    ) f ON true
    """
