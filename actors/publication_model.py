"""What the publication publishes and what readers have been told of it: shared by all runs of the pipeline of one bridge.

PostgreSQL's stream carries no DDL, so the publication_monitor looks at the catalog. This class decides what a look means.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

import trio
from trio_util import AsyncValue

from actors.clients.postgres.connection import PgConnection
from actors.clients.postgres.publications import PublicationReader, PublishedTable
from actors.contract.publication import KnownTable, TableFacts
from actors.messages import PublicationChange, PublishedChange


class Difference(NamedTuple):
    """How a look differs from what readers have been told about one table."""

    token: str
    change: PublicationChange | None
    version: str
    reason: str
    reshaped: bool
    before: KnownTable | None = None
    """The table as readers were to know it until then."""
    was_underway: bool = False
    """An earlier difference of the table was not stored yet."""


class PublicationModel:
    """The tables of the last look, and each table as readers know it.

    The publication_monitor writes it; the snapshotter asks it which version of a table its transaction sees. `told` is what KV
    `bridges` holds, `known` also has what is on its way into the stream: a run that ends before that is stored forgets it, and
    the next run finds the difference again.
    """

    def __init__(self, publication: str) -> None:
        self.publication = publication
        self.tables: dict[str, PublishedTable] = {}
        """By token, as of the last look."""
        self.told: dict[str, KnownTable] = {}
        self.known: dict[str, KnownTable] = {}
        self.digest = ""
        """Hash of what KV holds, for the bridge's record."""
        self.wake = trio.Event()
        """Set when the catalog is worth a look before the next one is due."""
        self.looks = AsyncValue(0)
        """How many looks there were."""
        self._looking = trio.Lock()
        self._moves = AsyncValue(0)  # looks that were compared, and events that were stored
        self._underway: set[str] = set()
        self._reader = PublicationReader(publication)
        self._facts: Mapping[str, TableFacts] = {}
        self._tokens: dict[int, str] = {}
        self._horizon = 0
        self.is_first = False
        """Nothing that KV holds is complete yet: what is there now is no news."""

    async def look(self, connection: PgConnection) -> None:
        """Read the catalog. Raises PostgresError and SourceUnavailable."""
        async with self._looking:
            found = await self._reader.read(connection)
        self.tables = {table.token: table for table in found.tables}
        self.seen({token: table.facts for token, table in self.tables.items()}, found.horizon)
        self.looks.value += 1

    def seen(self, facts: Mapping[str, TableFacts], horizon: int) -> None:
        """Take what a look has found, by token."""
        self._facts, self._horizon = facts, horizon
        self._tokens = {found.relation_oid: token for token, found in facts.items()}

    def begin(
        self, told: Mapping[str, KnownTable], last_seq: int, *, is_first: bool, upgraded: bool = False
    ) -> None:  # fmt: skip
        """Start a run. `told` is what KV `bridges` holds; `is_first` if no run has ever written all of it: then a table that it
        lacks is no news.

        Nor is anything after pg_upgrade, which makes the catalog anew: a table of the same OID is published as before.

        What was told in messages that the stream, which ends at `last_seq`, no longer has is told again.
        """
        self._underway = set()
        self.told, self.is_first = dict(told), is_first
        self.known = {token: table for token, table in told.items() if table.told_seq <= last_seq}
        for token, facts in self._facts.items():
            known = self.known.get(token)
            if is_first and token not in told:
                self.known[token] = KnownTable.of(facts, self._horizon)
            elif upgraded and known is not None and known.version and known.relation_oid == facts.relation_oid:
                self.known[token] = replace(KnownTable.of(facts, self._horizon), version=known.version, told_seq=known.told_seq)
        self.digest = digest_of(self.told)

    def compare(self) -> list[Difference]:
        """Return what the last look shows and `known` does not have, and note it there."""
        found: list[Difference] = []
        for token, facts in self._facts.items():
            known = self.known.get(token)
            change: PublicationChange | None
            if known is None and token in self.told:
                change, reason = "changed", "the stream has lost the event that told of its last change"
            elif known is None or not known.version:
                change, reason = "added", "it is published now"
            else:
                reason = known.difference(facts)
                change = "changed" if reason else None
            was_underway = token in self._underway
            if change is not None:
                self._underway.add(token)
                now = self.known[token] = KnownTable.of(facts, self._horizon)
                reshaped = known is not None and known.schema_id != facts.schema_id
                found.append(Difference(token, change, now.version, reason, reshaped, known, was_underway))
            elif known is not None and known.seen_again(facts) != known:
                self.known[token] = known.seen_again(facts)
                if known.schema_id != facts.schema_id:
                    found.append(Difference(token, None, known.version, "", True, known, was_underway))
        gone = [t for t in {**self.told, **self.known} if t not in self._facts and self._is_published(t)]
        for token in sorted(gone):
            known, was_underway = self.known.get(token), token in self._underway
            self.known[token] = replace(known or self.told[token], version="", told_seq=0)
            self._underway.add(token)
            found.append(Difference(token, "removed", "", "it is no longer published", False, known, was_underway))
        self._moves.value += 1
        return found

    def take_back(self, differences: Iterable[Difference]) -> None:
        """Forget what `compare` has noted: nobody can be told now, and the next look finds it again."""
        for difference in differences:
            token = difference.token
            if difference.before is None:
                del self.known[token]
            else:
                self.known[token] = difference.before
            if not difference.was_underway:
                self._underway.discard(token)

    def _is_published(self, token: str) -> bool:
        """Whether readers think that the table is published."""
        return token not in self.known or bool(self.known[token].version)

    def stored(self, change: PublishedChange, seq: int) -> None:
        """Note that the stream holds an event, at `seq` or before."""
        known = self.known.get(change.token)
        if known is None or known.version != change.version:  # an event that tells more is underway
            return
        known = self.known[change.token] = replace(known, told_seq=seq)
        self._underway.discard(change.token)
        self._moves.value += 1
        self.wake.set()

    def unwritten(self) -> dict[str, KnownTable]:
        """What KV is to hold and does not hold yet, apart from what the stream does not hold yet."""
        return {
            token: known for token, known in self.known.items()
            if token not in self._underway and self.told.get(token) != known
        }  # fmt: skip

    def written(self, entries: Mapping[str, KnownTable]) -> None:
        """Note that KV holds these entries, and with them all that it is to hold."""
        self.told |= entries
        self.is_first = False
        self.digest = digest_of(self.told)
        self._moves.value += 1

    def version_of(self, facts: TableFacts) -> tuple[str, int] | None:
        """Return the version of a table as a transaction sees it, and the version's horizon.

        None while the stream does not hold the event that tells of it: if a snapshot were of a version that is never told, its
        readers would not hear of the next change either. Nor would they before KV holds a version of all tables. See `settled`.
        """
        known = self.known.get(facts.token)
        if self.is_first or known is None or not known.version or facts.token in self._underway or known.difference(facts):
            return None
        return known.version, known.horizon

    async def settled(self, token: str) -> None:
        """Have the monitor look, and wait until the stream holds what it tells of the table."""
        before = self._moves.value
        self.wake.set()
        await self._moves.wait_value(lambda moves: moves > before and token not in self._underway and not self.is_first)

    def relation_seen(self, oid: int, token: str, schema_id: int) -> None:
        """Note a Relation message: a look is due if it does not describe what the last look found."""
        known = self.known.get(token)
        if self._tokens.get(oid) != token or known is None or known.schema_id != schema_id:
            self.wake.set()


def digest_of(told: Mapping[str, KnownTable]) -> str:
    """Hash the entries of KV `bridges` that say how tables are published; never empty."""
    return hashlib.sha256(b"\n".join(sorted(_lines(told.items())))).hexdigest()[:16]


def _lines(told: Iterable[tuple[str, KnownTable]]) -> Iterable[bytes]:
    return (token.encode() + b" " + known.encode() for token, known in told)
