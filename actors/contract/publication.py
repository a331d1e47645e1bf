"""How a bridge publishes its tables: what is compared to see a change, and what is kept in KV `bridges` (contract, section 2).

A version names one way in which a table is published, as far as the stream's own events do not show it: two copies of a table
are comparable only if the events between them were published under one version. Columns and keys are not part of it: SCHEMA
events tell of them in their place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import orjson


class Enum(NamedTuple):
    """An enum type that a table's columns use."""

    oid: int
    labels: tuple[str, ...]
    """In the order in which they were made, so that a new label is the last."""


class Composite(NamedTuple):
    """A composite type that a table's columns use."""

    oid: int
    fields: tuple[tuple[int, ...], ...]
    """Type OID, typmod and number of each: a value's text has no names."""


class TableFacts(NamedTuple):
    """What the catalog says about a published table, reduced to what can be compared."""

    token: str
    relation_oid: int
    definition: str
    """Hash of the publication's options and entry for the table, the row filter and the partitions."""
    attributes_xid: int
    """The newest transaction that changed the table's columns."""
    filenode: int
    """Changes when the table is rewritten."""
    enums: tuple[Enum, ...]
    composites: tuple[Composite, ...]
    schema_id: int
    columns: tuple[tuple[str, int], ...] = ()
    """Name and number of each published column. PostgreSQL gives no number twice."""


class KnownType(NamedTuple):
    """An enum or composite type when it was last told."""

    oid: int
    labels: int
    """How many there were; 0 for a composite type."""
    digest: str
    """Of these labels, or of the fields."""


@dataclass(frozen=True, slots=True)
class KnownTable:
    """A table as it was last told to readers."""

    relation_oid: int
    definition: str
    attributes_xid: int
    filenode: int
    types: tuple[KnownType, ...]
    schema_id: int
    version: str
    horizon: int
    """Transactions from this xid on have written to the table as it is published in this version; earlier ones may not."""
    columns: Mapping[str, int] = field(default_factory=dict)
    """The published columns' numbers, by a hash of their names. Empty if a bridge wrote the entry that did not look at them."""
    told_seq: int = 0
    """The stream's last sequence when the event that tells of this version was stored; 0 if no event had to."""

    @classmethod
    def of(cls, facts: TableFacts, horizon: int) -> KnownTable:
        """A table that is seen in this version for the first time."""
        return cls(
            facts.relation_oid, facts.definition, facts.attributes_xid, facts.filenode,
            _known_types(facts), facts.schema_id, _digest((*facts[1:7], facts.columns))[:8], horizon, _known_columns(facts),
        )  # fmt: skip

    def seen_again(self, facts: TableFacts) -> KnownTable:
        """The table with what may change without a new version."""
        return replace(
            self, attributes_xid=facts.attributes_xid, filenode=facts.filenode, types=_known_types(facts),
            schema_id=facts.schema_id, columns=_known_columns(facts),
        )  # fmt: skip

    def difference(self, facts: TableFacts) -> str:
        """In words, what has changed although no event in the stream shows it; empty if nothing has."""
        if facts.relation_oid != self.relation_oid:
            return "another table has this name"
        if facts.definition != self.definition:
            return "it is published differently"
        if facts.attributes_xid != self.attributes_xid and facts.filenode != self.filenode:
            return "ALTER TABLE has rewritten its rows"
        # names that come and go are in the SCHEMA event; that one of them now means other values may not be seen there
        if any(self.columns.get(name, number) != number for name, number in _known_columns(facts).items()):
            return "a column was dropped, and another one has its name"
        return self._types_difference(facts)

    def _types_difference(self, facts: TableFacts) -> str:
        known = {known.oid: known for known in self.types}
        for enum in facts.enums:
            before = known.get(enum.oid)
            if before is not None and _digest(enum.labels[: before.labels]) != before.digest:
                return "labels of an enum type were renamed"
        for composite in facts.composites:
            before = known.get(composite.oid)
            if before is not None and _digest(composite.fields) != before.digest:
                return "the fields of a composite type changed"
        return ""

    def encode(self) -> bytes:
        """Return the value for KV `bridges`."""
        return orjson.dumps(
            {
                "version": self.version,
                "relation_id": self.relation_oid,
                "schema_id": self.schema_id,
                "horizon": self.horizon,
                "told_seq": self.told_seq,
                "definition": self.definition,
                "attributes_xid": self.attributes_xid,
                "filenode": self.filenode,
                "numbers": self.columns,
                "types": [list(known) for known in self.types],
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> KnownTable | None:
        """Read a value. None if no bridge wrote it: the table counts as seen for the first time."""
        try:
            raw: dict[str, Any] = orjson.loads(data)
            return cls(
                int(raw["relation_id"]), str(raw["definition"]), int(raw["attributes_xid"]), int(raw["filenode"]),
                tuple(KnownType(int(oid), int(labels), str(digest)) for oid, labels, digest in raw["types"]),
                int(raw["schema_id"]), str(raw["version"]), int(raw["horizon"]),
                {str(name): int(number) for name, number in raw.get("numbers", {}).items()}, int(raw["told_seq"]),
            )  # fmt: skip
        except (ValueError, KeyError, TypeError, AttributeError):
            return None


def _known_columns(facts: TableFacts) -> dict[str, int]:
    # hashed: a table may have 1,600 columns with names of 63 bytes
    return {_digest((name,))[:8]: number for name, number in facts.columns}


def _known_types(facts: TableFacts) -> tuple[KnownType, ...]:
    enums = (KnownType(enum.oid, len(enum.labels), _digest(enum.labels)) for enum in facts.enums)
    return *enums, *(KnownType(composite.oid, 0, _digest(composite.fields)) for composite in facts.composites)


def _digest(value: Sequence[object]) -> str:
    # names of a database without an encoding may be any bytes
    return hashlib.sha256(repr(value).encode("utf-8", "surrogateescape")).hexdigest()[:16]
