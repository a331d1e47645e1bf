"""Row changes, and how the publication as it was at the time sends them: pgoutput is encoded here, as PostgreSQL does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from actors.wire.pgoutput import Relation
from property_tests.simulation.postgres.tables import TOASTED_FROM, Database, Row, Table, passes
from tests import pgoutput_bytes as pg

Sent = bytes | str | None
"""A value as `tests.pgoutput_bytes` takes it: "u" is an unchanged value that is stored out of line."""


class Change(NamedTuple):
    """One change of one transaction: its effect on the rows, and what is sent of it."""

    lsn: int
    table_oid: int
    key: bytes | None
    """Of the row before; None for an insert."""
    new: Row | None
    """None for a delete; the row's key may be another one. Both None: a truncate."""
    relation: Relation | None = None
    """None when nothing is sent."""
    message: bytes = b""

    def apply(self, database: Database) -> None:
        """Apply to the rows."""
        rows = database.rows.get(self.table_oid)
        if rows is None:
            return
        if self.key is None and self.new is None:
            rows.clear()
        if self.key is not None:
            rows.pop(self.key, None)
        if self.new is not None:
            rows[self.new["id"] or b""] = self.new


def made(lsn: int, database: Database, table: Table, old: Row | None, new: Row | None) -> Change:
    """A change, published as the catalog is now."""
    key = None if old is None else old["id"]
    change = Change(lsn, table.oid, key, new)
    entry = database.entry(table.oid)
    if entry is None:
        return change
    relation = database.relation(table)
    before = old is not None and passes(entry, old)
    after = new is not None and passes(entry, new)
    if old is None and new is None:
        return change._replace(relation=relation, message=pg.truncate([table.oid]))
    if before and after:
        assert old is not None
        assert new is not None
        return change._replace(relation=relation, message=_update(relation, old, new))
    if after:
        assert new is not None
        return change._replace(relation=relation, message=pg.insert(table.oid, _values(relation, new, old)))
    if before:
        assert old is not None
        sent = _values(relation, old) if relation.replica_identity == "f" else _key(relation, old)
        kind = "O" if relation.replica_identity == "f" else "K"
        return change._replace(relation=relation, message=pg.delete(table.oid, sent, kind))
    return change


def _update(relation: Relation, old: Row, new: Row) -> bytes:
    values = _values(relation, new, old)
    if relation.replica_identity == "f":
        return pg.update(relation.oid, values, _values(relation, old), "O")
    return pg.update(relation.oid, values, None if old["id"] == new["id"] else _key(relation, old))


def _values(relation: Relation, row: Row, old: Row | None = None) -> list[Sent]:
    """A row; what is stored out of line and equal in `old` is left out."""
    found: list[Sent] = []
    for column in relation.columns:
        value = row.get(column.name)
        is_toasted = value is not None and len(value) >= TOASTED_FROM
        found.append("u" if old is not None and is_toasted and old.get(column.name) == value else value)
    return found


def _key(relation: Relation, row: Row) -> list[Sent]:
    return [row.get(column.name) if column.is_key else None for column in relation.columns]


def relation_message(relation: Relation) -> bytes:
    """The Relation message."""
    columns = [(c.name, c.type_oid, c.is_key) for c in relation.columns]
    return pg.relation(relation.oid, relation.name, columns, relation.schema, relation.replica_identity)


def messages_of(commit: Commit, known: dict[int, Relation]) -> list[tuple[int, bytes]]:
    """All messages of a transaction with their LSNs; none if nothing of it is published. `known` are relations sent before."""
    sent = [change for change in commit.changes if change.relation is not None]
    if not sent:
        return []
    found = [(sent[0].lsn, pg.begin(commit.lsn, commit.xid, commit.time_us))]
    for change in sent:
        relation = change.relation
        assert relation is not None
        if known.get(relation.oid) != relation:
            known[relation.oid] = relation
            found.append((0, relation_message(relation)))
        found.append((change.lsn, change.message))
    return [*found, (commit.end, pg.commit(commit.lsn, commit.end, commit.time_us))]


class Commit(NamedTuple):
    """A commit record."""

    lsn: int
    end: int
    xid: int
    time_us: int
    """Since 2000, as PostgreSQL counts."""
    changes: Sequence[Change]
    era: int = 0

    def apply(self, database: Database) -> None:
        for change in self.changes:
            change.apply(database)
