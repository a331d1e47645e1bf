"""Whatever is done to a table's publication, and whenever the bridge sees it: a copy ends equal to its source or is not live."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from actors.contract.records import Column, Delete, Event, Insert, Published
from actors.mirror.state import LIVE, UNPUBLISHED, WAITING, TableRecord
from actors.mirror.stores.dialect import SqliteDialect
from actors.mirror.stores.shapes import TableShape
from actors.mirror.track import NEEDED_NOTHING, Cursor, FollowedTable, Track
from actors.positions import START
from tests.examples import examples

SHAPE = TableShape("t", "public", "t", ("", "t"), (Column("id", "integer", True),), ("INTEGER",), 1)
KEYS = st.integers(0, 5)
DEEDS = st.sampled_from(["write", "write", "write", "filter", "swap", "remove", "add", "remove and add", "look", "snapshot"])


def fresh() -> sqlite3.Connection:
    replica = sqlite3.connect(":memory:", isolation_level=None)
    replica.execute(SqliteDialect().create_table(SHAPE))
    return replica


def rows_of(replica: sqlite3.Connection) -> list[int]:
    return [row[0] for row in replica.execute('SELECT "id" FROM "t" ORDER BY "id"')]


class Snapshot(NamedTuple):
    version: str
    stream_seq: int
    lsn: int
    rows: list[int]


@dataclass
class Source:
    """One table, what the stream says of it, and the snapshots that INIT has."""

    rows: set[int] = field(default_factory=set)
    divisor: int = 1
    """The row filter: multiples of it are published."""
    is_published: bool = True
    number: int = 0
    """Of the version: every change of the publication makes a new one."""
    told: str = "0"
    lsn: int = 10
    stream: list[Event] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)

    @property
    def version(self) -> str:
        return str(self.number) if self.is_published else ""

    @property
    def visible(self) -> list[int]:
        return sorted(key for key in self.rows if key % self.divisor == 0)

    def do(self, deed: str, key: int) -> None:
        if deed == "write":
            self.write(key)
        elif deed == "look":
            self.look()
        elif deed == "snapshot":
            self.snapshot()
        else:
            self.number += 1
            if deed == "filter":
                self.divisor = 1 + key % 3
            elif deed == "swap":
                self.rows = {key, key + 1}
            else:
                self.is_published = deed != "remove"
                self.rows ^= {key} if deed == "remove and add" else set()

    def write(self, key: int) -> None:
        kind = Delete if key in self.rows else Insert
        self.rows ^= {key}
        if self.is_published and key % self.divisor == 0:
            self.lsn += 10
            self.stream.append(kind("t", "public", "t", self.lsn, 0, True, 1, 0, ("id",), {"id": key}, ()))

    def look(self) -> None:
        if self.version == self.told:
            return
        change = "removed" if not self.version else "changed" if self.told else "added"
        self.stream.append(Published(self.lsn, 1, "t", change, self.version, ""))
        self.told = self.version

    def snapshot(self) -> None:
        if self.is_published:
            self.snapshots.append(Snapshot(self.version, len(self.stream), self.lsn + 1, self.visible))


class Copy:
    """A replica's table: its record, and rows from the last snapshot on."""

    def __init__(self) -> None:
        self.record = TableRecord("t", "", "t", WAITING)
        self.replica = fresh()

    def read(self, source: Source, number: int) -> None:
        """Copy a snapshot, which is this one of INIT, and apply what comes after it until the end or until it is no longer live."""
        snapshot, dialect = source.snapshots[number], SqliteDialect()
        self.replica.close()
        self.replica = fresh()
        self.replica.executemany('INSERT INTO "t" VALUES (?)', [(key,) for key in snapshot.rows])
        self.record = self.record.as_live(SHAPE, "s", snapshot.lsn, number + 1, snapshot.version)
        followed = {"t": FollowedTable.of(dialect, SHAPE, snapshot.lsn, snapshot.version)}
        track = Track(dialect, Cursor(snapshot.stream_seq, START), followed)
        for seq, event in enumerate(source.stream[snapshot.stream_seq :], snapshot.stream_seq + 1):
            track.take(seq, [event])
            if not self.apply(track):
                self.record = self.record.as_stale("a conflict", NEEDED_NOTHING)
                return
            if stale := track.stale.get("t"):
                self.record = self.record.as_stale(stale.reason, stale.needed_seq)
            if told := track.told.get("t"):
                self.record = self.record.as_told(told)
            if self.record.state != LIVE:
                return

    def apply(self, track: Track) -> bool:
        """Whether the changes fit; else the mirror copies the table again."""
        for statement in track.drain():
            for params in statement.params:
                try:
                    changed = self.replica.execute(statement.sql, params).rowcount
                except sqlite3.IntegrityError:
                    return False
                if statement.counted and changed != 1:
                    return False
        return True


@given(st.lists(st.tuples(DEEDS, KEYS), max_size=30), st.data())
@settings(max_examples=examples(300))
def test_a_copy_ends_equal_or_is_not_live(deeds: list[tuple[str, int]], data: st.DataObject) -> None:
    source = Source()
    for deed, key in deeds:
        source.do(deed, key)
    source.look()
    copy = Copy()
    while copy.record.state != LIVE:
        if copy.record.state == UNPUBLISHED:
            if not source.is_published:
                return
            copy.record = copy.record.as_taken_up()  # as the bridge's record lists it again
        usable = [
            number for number, one in enumerate(source.snapshots)
            if number >= copy.record.init_seq and one.stream_seq >= copy.record.needed_seq
            and copy.record.takes(one.version, one.stream_seq)
        ]  # fmt: skip
        if not usable:
            source.snapshot()
            if not source.is_published:  # the bridge refuses: the table waits until it is published
                return
            continue
        copy.read(source, data.draw(st.sampled_from(usable)))
    # added and removed between two looks: no event says so, and the bridge's record does not list the table
    if source.is_published:
        assert rows_of(copy.replica) == source.visible


@given(st.lists(st.tuples(DEEDS, KEYS), max_size=20))
@settings(max_examples=examples(100))
def test_a_snapshot_of_the_version_that_is_told_later_is_copied_once(deeds: list[tuple[str, int]]) -> None:
    """Between a change and the bridge's look, a snapshot has the new version already."""
    source = Source()
    for deed, key in deeds:
        source.do(deed, key)
    source.is_published = True
    source.number += 1
    source.snapshot()
    source.write(1)
    source.look()
    source.write(2)
    copy = Copy()
    copy.read(source, len(source.snapshots) - 1)
    assert copy.record.state == LIVE
    assert rows_of(copy.replica) == source.visible
    assert copy.record.takes(source.version, 0), "told equal: no other version is wanted"


def test_what_replicas_of_older_versions_hold_is_of_an_unknown_version() -> None:
    record: Any = TableRecord("t", "", "t", LIVE, snapshot_id="s")
    followed = {"t": FollowedTable.of(SqliteDialect(), SHAPE, 0, record.version)}
    for change in ("added", "changed", "removed"):
        track = Track(SqliteDialect(), Cursor(1, START), followed)
        track.take(2, [Published(16, 1, "t", change, "" if change == "removed" else "v", "")])
        assert "t" not in track.tables, change
