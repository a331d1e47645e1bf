"""The histories that are written by hand, step by step. `python -m consumers.conformance.make --by-hand` writes their files."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from actors.certify.history import COPYING, UNPUBLISHED, Draft, History
from actors.certify.source import Column, Source

ID, NAME, NOTE = Column("id", "integer", pk=True), Column("name", "text"), Column("note", "text")
USERS = (ID, NAME, NOTE)
ORDERS = (ID, Column("user_id", "integer"), Column("total", "numeric"))
ABSENT: dict[str, Any] = {"state": COPYING, "columns": None}
"""A table of which the consumer can have no rows yet."""


class Writing:
    """A history that is being written, and its source."""

    def __init__(
        self,
        about: str,
        *rules: str,
        name: str,
        needs: tuple[str, ...] = (),
        tables: tuple[str, ...] = ("users",),
        **options: Any,
    ) -> None:
        """`tables`: those that the consumer keeps. `options` are the source's."""
        self.draft = Draft(name, about, rules, tables, needs)
        self.source = Source(**options)
        self.kept: dict[str, Any] = {}
        self.add = self.draft.add

    def begin(self, rows: int = 2, columns: tuple[Column, ...] = USERS, identity: str = "default") -> None:
        """Tables with some rows, and a consumer that has copied them."""
        for name in ("users", *(name for name in self.draft.tables if name != "users")):
            self.source.create(
                name, *(columns if name == "users" else ORDERS), identity=identity if name == "users" else "default"
            )
        self.add(*self.source.begin())
        if rows:
            self.insert(rows)
        self.draft.start()
        names = self.draft.tables
        self._expect("no copy yet: it asks for a snapshot", dict.fromkeys(names, ABSENT), asked=names)
        for name in names:
            self.add(*self.source.copy(name))
        self.live("the snapshot is the copy")

    def begin_without_copy(self, rows: int) -> None:
        """Users with some rows, and a consumer that waits for a snapshot of them."""
        self.source.create("users", *USERS)
        self.add(*self.source.begin())
        self.insert(rows)
        self.draft.start()
        self.expect("no copy yet: it asks for a snapshot", users=ABSENT, asked=("users",))

    def insert(self, count: int, first: int = 1) -> None:
        """Add users in one transaction."""
        with self.transaction() as t:
            for number in range(first, first + count):
                t.insert("users", id=number, name=f"user {number}", note="n" * number)

    def transaction(self) -> Any:
        """A transaction of which the messages come next."""
        return self.source.transaction(self.draft.add)

    def expect(self, why: str, *, asked: tuple[str, ...] = (), record: bool = True, **tables: dict[str, Any]) -> None:
        """What must be true now. `record`: the bridge has written its record, as it does when it is idle."""
        self._expect(why, tables, asked=asked, record=record)

    def _expect(
        self, why: str, tables: Mapping[str, dict[str, Any]], *, asked: tuple[str, ...] = (), record: bool = True
    ) -> None:
        if record:
            self.add(self.source.record())
        self.add({"step": "expect", "why": why, "tables": dict(tables), "asked": list(asked)})

    def live(self, why: str, *, record: bool = True) -> None:
        """The copies must be equal to their tables."""
        self._expect(why, {name: self.source.live(name) for name in self.draft.tables}, record=record)

    def remember(self) -> None:
        """Note the rows of users as of now."""
        self.kept = self.source.live("users")

    def stops(self, why: str) -> None:
        """The consumer must end with an error, and keep the rows of users that were remembered."""
        self.add({"step": "expect", "why": why, "tables": {"users": self.kept}, "asked": [], "stopped": True})

    def keeps(
        self,
        why: str,
        state: str = COPYING,
        *,
        asked: tuple[str, ...] = ("users",),
        record: bool = True,
        **also: dict[str, Any],
    ) -> None:
        """The copy of users must keep the rows that were remembered."""
        self.expect(why, users=self.kept | {"state": state}, asked=asked, record=record, **also)

    def copy_again(self, why: str = "the new snapshot is the copy") -> None:
        """A new snapshot of users, and a change after it."""
        self.add(*self.source.copy("users"))
        self.live(why)
        with self.transaction() as t:
            t.insert("users", **{column.name: _some(column, 90) for column in self.source.tables["users"].columns})
        self.live("and changes follow")


def _some(column: Column, number: int) -> Any:
    """Some value of a column's type."""
    return number if column.type in ("integer", "bigint") else str(number)


def join() -> History:
    w = Writing(
        "A snapshot begun before some transactions and read after them: skip those that the snapshot contains, apply the others.",
        "snapshot.join", "snapshot.skip-lsn", "snapshot.meta", name="snapshot-join",
    )  # fmt: skip
    w.source.create("users", *USERS)
    w.draft.add(*w.source.begin())
    w.insert(3)
    w.draft.start()
    w.expect("it asks", users=ABSENT, asked=("users",))
    snapshot = w.source.snapshot("users")
    with w.transaction() as t:  # after stream_seq, below snapshot_lsn: these are in the snapshot's rows
        t.insert("users", id=4, name="in the snapshot")
        t.delete("users", 1)
        t.update("users", 2, name="in the snapshot")
    w.draft.add(snapshot.start())
    chunks = snapshot.chunks(2)
    w.draft.add(chunks[0])
    with w.transaction() as t:
        t.insert("users", id=5, name="after the snapshot")
        t.delete("users", 4)
        t.update("users", 3, name="after the snapshot")
    w.draft.add(*chunks[1:])
    w.expect("without its meta a snapshot does not count", users=ABSENT, record=False)
    w.draft.add(snapshot.meta())
    w.live("rows of the snapshot, and the changes from snapshot_lsn on")
    return w.draft.done()


def unchanged() -> History:
    w = Writing(
        "An UPDATE leaves out a large column that it did not change, and one that does not fit into a message.",
        "update.unchanged", "update.omitted", name="unchanged-and-omitted",
    )  # fmt: skip
    w.begin()
    with w.transaction() as t:
        t.update("users", 1, name="new", unchanged=("note",))
    w.live("the unchanged column keeps its value")
    with w.transaction() as t:
        t.update("users", 2, name="newer", note="too large", omitted=("note",))
    expected = w.source.live("users")
    expected["rows"] = [[id_, name, None if id_ == 2 else note] for id_, name, note in expected["rows"]]
    w.expect("the omitted column is unknown, which is null", users=expected)
    with w.transaction() as t:
        t.update("users", 2, note="fits")
    w.live("until an event has its value")
    return w.draft.done()


def half() -> History:
    w = Writing(
        "A transaction of which only a part has come yet.", "transaction.whole", "message.packed", name="half-a-transaction",
        pack=2,
    )  # fmt: skip
    w.begin()
    w.remember()
    steps: list[Any] = []
    with w.source.transaction(steps.append) as t:
        for number in range(3, 8):
            t.insert("users", id=number, name="one transaction")
        t.delete("users", 1)
    w.draft.add(*steps[:2])
    w.expect("nobody sees half of a transaction", users=w.kept, record=False)
    w.draft.add(*steps[2:])
    w.live("all of it at once")
    return w.draft.done()


def keys() -> History:
    w = Writing(
        "Keys change, two rows exchange their keys, and a key is used again, each within one transaction.",
        "update.old-key",
        "update.key-swap",
        name="key-change-and-swap",
    )
    w.begin(3)
    with w.transaction() as t:
        t.update("users", 1, id=10)
        t.update("users", 2, id=20, name="also renamed")
    w.live("rows are found by the key in `old`")
    with w.transaction() as t:
        t.swap_keys("users", 10, 20, by=99)
    w.live("the rows have exchanged their keys")
    with w.transaction() as t:
        t.delete("users", 10)
        t.insert("users", id=10, name="another row")
        t.update("users", 3, id=1)
        t.update("users", 1, id=3, note="there and back")
    w.live("a key that is free may be used again")
    return w.draft.done()


def full() -> History:
    w = Writing(
        "Under REPLICA IDENTITY FULL `key` names all columns and `old` has the whole row; the real key is `pk` of the snapshot's start.",
        "update.full",
        "delete.key",
        name="replica-identity-full",
    )
    w.begin(3, identity="full")
    with w.transaction() as t:
        t.update("users", 1, name="new", note=None)
        t.update("users", 2, id=7)
        t.delete("users", 3)
    w.live("found by the primary key in `old`")
    return w.draft.done()


def deletes() -> History:
    w = Writing(
        "A DELETE has null for all columns outside of the key, a TRUNCATE has no rows at all, and a transaction does both and more.",
        "delete.key",
        "truncate",
        name="delete-and-truncate",
    )
    w.begin(4)
    with w.transaction() as t:
        t.delete("users", 2)
        t.insert("users", id=5, name=None, note="")
    w.live("the row is gone; an empty text is not null")
    with w.transaction() as t:
        t.insert("users", id=6, name="goes with the others")
        t.truncate("users")
        t.insert("users", id=1, name="the first of the new")
    w.live("what came before the TRUNCATE is gone, what came after it is there")
    with w.transaction() as t:
        t.truncate("users")
    w.live("empty")
    return w.draft.done()


def without_key() -> History:
    w = Writing(
        "A table without a key under REPLICA IDENTITY FULL: a change means one of the rows that are equal in all columns.",
        "table.no-key",
        name="table-without-key",
    )
    w.begin(0, (Column("name", "text"), Column("size", "integer")), "full")
    rows = w.source.tables["users"].rows
    with w.transaction() as t:
        for _ in range(3):
            t.insert("users", name="same", size=1)
        t.insert("users", name="other", size=None)
    w.live("equal rows are kept as often as they are there")
    with w.transaction() as t:
        t.delete("users", next(iter(rows)))
        t.update("users", next(iter(rows)), size=2)
        t.update("users", next(key for key, row in rows.items() if row["name"] == "other"), size=3)
    w.live("one of them is gone, one has changed; a null is found too")
    return w.draft.done()


def inserts_only() -> History:
    w = Writing(
        "A table without key and replica identity, of which only INSERTs are published: rows are added.",
        "table.inserts-only",
        name="table-of-inserts",
    )
    w.begin(0, (Column("name", "text"), Column("size", "integer")), "nothing")
    with w.transaction() as t:
        t.insert("users", name="same", size=1)
        t.insert("users", name="same", size=1)
    w.live("two equal rows")
    return w.draft.done()


def names_no_row() -> History:
    w = Writing(
        "An UPDATE that does not say which row it means, as partitions send it when their root has no key.",
        "change.names-no-row",
        name="change-names-no-row",
    )
    w.begin(0, (Column("name", "text"), Column("size", "integer")))
    with w.transaction() as t:
        t.insert("users", name="a", size=1)
    w.live("an INSERT needs no key")
    w.remember()
    with w.transaction() as t:
        t.update("users", next(iter(w.source.tables["users"].rows)), size=2)
    w.keeps("only a new copy can tell")
    w.copy_again()
    return w.draft.done()


def deferrable() -> History:
    w = Writing(
        "A deferrable key under REPLICA IDENTITY FULL: within a transaction two rows have one key.",
        "key.deferrable",
        name="deferrable-key",
    )
    w.begin(3, identity="full")
    w.remember()
    with w.transaction() as t:
        t.shift_keys("users")
    w.keeps("a copy that keeps rows by their key must be made again")
    w.add(*w.source.copy("users"))
    w.live("the new snapshot is the copy")
    return w.draft.done()


def incomplete_insert() -> History:
    w = Writing(
        "An UPDATE moves a row into the publication's row filter; it comes as an INSERT that lacks the large columns.",
        "insert.incomplete",
        name="incomplete-insert",
    )
    w.begin()
    w.remember()
    with w.transaction() as t:
        t.insert("users", id=3, name="moved in", note="large", unchanged=("note",))
    w.keeps("nobody has the missing value: a new copy")
    w.copy_again()
    return w.draft.done()


# -- shapes


def _shape(
    name: str, about: str, rule: str, columns: tuple[Column, ...], fill: Callable[[dict[str, Any]], dict[str, Any]]
) -> History:
    w = Writing(about, rule, name=name)
    w.begin()
    w.remember()
    w.source.alter("users", columns, fill)
    with w.transaction() as t:
        t.insert("users", **{column.name: _some(column, 3) for column in columns})
    w.keeps("no event has the values of the rows that were there")
    w.copy_again()
    return w.draft.done()


def column_added() -> History:
    return _shape(
        "column-added",
        "A column is added, with a default that old rows have too.",
        "schema.added",
        (*USERS, Column("age", "integer")),
        lambda row: {**row, "age": 7},
    )


def column_renamed() -> History:
    return _shape(
        "column-renamed",
        "A column gets another name.",
        "schema.renamed",
        (ID, Column("title", "text"), NOTE),
        lambda row: {**row, "title": row["name"]},
    )


def column_type() -> History:
    return _shape(
        "column-type",
        "A column gets another type.",
        "schema.type",
        (Column("id", "bigint", pk=True), NAME, NOTE),
        lambda row: row,
    )


def column_moved() -> History:
    return _shape(
        "column-moved",
        "A column is dropped and another one made under its name: it stands at another place.",
        "schema.moved",
        (ID, NOTE, NAME),
        lambda row: {**row, "name": "the default"},
    )


def column_dropped() -> History:
    w = Writing("A column is dropped, and nothing else.", "schema.dropped", name="column-dropped", needs=("drops-columns",))
    w.begin()
    w.source.alter("users", (ID, NAME))
    with w.transaction() as t:
        t.insert("users", id=3, name="without a note")
    w.live("the copy drops it too, and need not be made again")
    return w.draft.done()


def same_shape() -> History:
    w = Writing("A SCHEMA event that says what the copy knows already.", "schema.same", name="same-shape")
    w.begin()
    table = w.source.tables["users"]
    table.told = ()  # the bridge tells of it again
    with w.transaction() as t:
        t.insert("users", id=3, name="as before")
    w.live("nothing has to be copied")
    return w.draft.done()


def other_table() -> History:
    w = Writing(
        "A table is dropped and another one created under its name, with the same columns.",
        "schema.other-table",
        name="other-table",
    )
    w.begin()
    w.remember()
    w.source.create("users", *USERS)
    with w.transaction() as t:
        t.insert("users", id=5, name="of the new table")
    w.keeps("`relation_id` says that it is another table")
    w.copy_again()
    return w.draft.done()


def shape_in_transaction() -> History:
    w = Writing(
        "A transaction changes rows, then a column, then rows, and another table: the one keeps what it was before, the other has all.",
        "schema.added",
        "transaction.whole",
        "transaction.tables",
        name="shape-amid-transaction",
        tables=("users", "orders"),
    )
    w.begin()
    w.remember()
    with w.transaction() as t:
        t.insert("orders", id=1, user_id=1, total="9.50")
        t.update("users", 1, name="before the change of shape")
        w.source.alter("users", (*USERS, Column("age", "integer")), lambda row: {**row, "age": 7})
        t.insert("users", id=3, age=8)
        t.insert("orders", id=2, user_id=3, total="0.10")
    w.keeps("the rows from before the transaction", orders=w.source.live("orders"))
    w.copy_again()
    return w.draft.done()


# -- gaps


def gap_of_a_table() -> History:
    w = Writing("Changes of one table were lost.", "gap.tables", name="gap-of-a-table", tables=("users", "orders"))
    w.begin()
    w.remember()
    w.source.tables["users"].lost = True
    with w.transaction() as t:
        t.insert("users", id=3, name="lost")
    w.add(w.source.gap("users"))
    with w.transaction() as t:
        t.insert("orders", id=1, user_id=3, total="1.00")
    w.keeps("that table is copied again, the other one goes on", orders=w.source.live("orders"))
    w.copy_again()
    return w.draft.done()


def gap_to_lower_lsns() -> History:
    w = Writing(
        "After a failover the source goes on at lower LSNs than before the gap.",
        "gap.lower-lsns",
        name="gap-to-lower-lsns",
        tables=("users", "orders"),
    )
    w.begin()
    with w.transaction() as t:
        t.insert("users", id=3, name="the last before the failover")
    w.live("applied")
    w.remember()
    orders = w.source.live("orders")
    w.source.tables["users"].rows.pop((3,))  # the new primary never had it
    w.add(w.source.gap("users", "orders", reason="diverged timeline", lsn=0x500000))
    w.keeps("all tables are copied again", asked=("users", "orders"), orders=orders | {"state": COPYING})
    with w.transaction() as t:
        t.insert("users", id=4, name="on the new primary")
        t.insert("orders", id=1, user_id=4, total="1.00")
    w.add(*w.source.copy("users"), *w.source.copy("orders"))
    with w.transaction() as t:
        t.update("users", 4, name="after the copy")
        t.delete("orders", 1)
    w.live("events at lower LSNs count like any other")
    return w.draft.done()


def gap_cuts_off() -> History:
    w = Writing(
        "A gap follows half of a transaction, whose rest will never come.",
        "gap.cuts-off",
        "transaction.whole",
        name="gap-cuts-off-transaction",
        tables=("users", "orders"),
    )
    w.begin()
    w.remember()
    orders = w.source.live("orders")
    steps: list[Any] = []
    with w.source.transaction(steps.append) as t:
        t.insert("users", id=3, name="first half")
        t.insert("orders", id=1, user_id=3, total="1.00")
        t.insert("orders", id=2, user_id=3, total="2.00")
    w.add(*w.source.without(steps, slice(2, None)))
    w.add(w.source.gap("users", "orders"))
    w.keeps("nothing of the half is there", asked=("users", "orders"), orders=orders | {"state": COPYING})
    w.add(*w.source.copy("users"), *w.source.copy("orders"))
    w.live("copied again")
    return w.draft.done()


def suspended() -> History:
    w = Writing(
        "A row was too large for a message: none of the table's events are stored until its next snapshot.",
        "gap.suspended",
        name="suspended-table",
        tables=("users", "orders"),
    )
    w.begin()
    w.remember()
    w.add(w.source.suspend("users"))
    with w.transaction() as t:
        t.insert("users", id=3, name="not stored")
        t.insert("orders", id=1, user_id=3, total="1.00")
    w.keeps("it needs a snapshot; the other table goes on", orders=w.source.live("orders"))
    w.copy_again("the snapshot resumes it")
    return w.draft.done()


# -- publication


def published_differently() -> History:
    w = Writing(
        "The table is published with another row filter: the copy is out of date, and so is a snapshot from before.",
        "publication.changed",
        "publication.snapshot",
        name="published-differently",
        needs=("publication",),
    )
    w.begin()
    with w.transaction() as t:
        t.insert("users", id=3, name="filtered out later")
    w.live("applied")
    w.remember()
    early = w.source.snapshot("users")
    early_steps = [early.start(), *early.chunks(), early.meta()]
    w.add(w.source.publish("users", "changed"))
    w.source.tables["users"].rows.pop((3,))
    w.keeps("it is copied again, whatever the LSNs are")
    w.add(*early_steps)
    w.keeps("a snapshot of the old version does not do")
    w.copy_again("one of the new version does")
    return w.draft.done()


def published_the_same() -> History:
    w = Writing(
        "A publication event has the version that the copy has.",
        "publication.same",
        name="published-the-same",
        needs=("publication",),
    )
    w.begin()
    w.add(w.source.publish("users", "changed", version=w.source.tables["users"].version))
    with w.transaction() as t:
        t.insert("users", id=3, name="goes on")
    w.live("there is nothing to do")
    return w.draft.done()


def unpublished() -> History:
    w = Writing(
        "The table is taken out of the publication, changes, and is put back.",
        "publication.removed",
        "publication.added",
        name="unpublished-and-back",
        needs=("publication",),
    )
    w.begin()
    w.remember()
    table = w.source.tables["users"]
    w.add(w.source.publish("users", "removed", reason="taken out of the publication"))
    w.keeps("it keeps its rows, and waits", UNPUBLISHED, asked=())
    table.rows.pop((1,))
    w.source.tables["users"] = table
    w.add(w.source.publish("users", "added", reason="a new table"))
    w.keeps("it is published again: a new copy")
    w.copy_again()
    return w.draft.done()


# -- snapshots


def snapshot_failed() -> History:
    w = Writing("A snapshot fails after its first rows.", "snapshot.error", name="snapshot-failed")
    w.begin_without_copy(3)
    snapshot = w.source.snapshot("users")
    w.add(snapshot.start(), *w.source.without(snapshot.chunks(2), slice(1, None)))
    w.add(snapshot.error("postgres_error", "could not read block"))
    w.expect("its rows do not count; it asks again", users=ABSENT, asked=("users",))
    w.copy_again()
    return w.draft.done()


def snapshot_begun_again() -> History:
    w = Writing(
        "A bridge was killed amid a snapshot and takes it again, under a new id; rows of both are in the stream.",
        "snapshot.begun-again",
        name="snapshot-begun-again",
    )
    w.begin_without_copy(4)
    first = w.source.snapshot("users")
    w.add(first.start(), *w.source.without(first.chunks(2), slice(1, None)))
    with w.transaction() as t:
        t.delete("users", 1)
        t.update("users", 3, name="changed between the two")
    w.add(*w.source.copy("users", 3))
    w.live("only the second one counts")
    return w.draft.done()


def chunk_missing() -> History:
    w = Writing("A chunk of a snapshot is not in the stream any more.", "snapshot.complete", name="snapshot-incomplete")
    w.begin_without_copy(6)
    snapshot = w.source.snapshot("users")
    w.add(snapshot.start())
    w.add(*w.source.without(snapshot.chunks(2), slice(1, 2)), snapshot.meta())
    w.expect("rows are missing: it asks again", users=ABSENT, asked=("users",))
    w.copy_again()
    return w.draft.done()


def other_bridge() -> History:
    w = Writing(
        "The bridge of another stream publishes a table of the same name, and its answers are in the same stream.",
        "snapshot.stream",
        "snapshot.ambiguous",
        name="snapshot-of-another-bridge",
    )
    w.begin_without_copy(2)
    other = w.source.snapshot("users")
    other.stream, other.stream_seq = "EVEN", 900
    rows = w.source.tables["users"].rows
    w.source.tables["users"].rows = {(7,): {"id": 7, "name": "of the other bridge", "note": None}}
    steps = [other.start(), *other.chunks(), other.meta(), other.error("ambiguous", "several bridges publish users")]
    w.source.tables["users"].rows = rows
    w.add(*steps)
    w.expect("it waits for its own bridge", users=ABSENT)
    snapshot = w.source.snapshot("users")
    w.add(snapshot.start())
    late = w.source.snapshot("users")
    late.stream = "EVEN"
    w.add(late.start(), late.error("postgres_error", "of the other bridge's snapshot"))
    w.add(*snapshot.chunks(), snapshot.meta())
    w.live("the snapshot of its own")
    return w.draft.done()


def snapshot_too_old() -> History:
    w = Writing(
        "The stream does not hold the events after a snapshot any more when it comes.",
        "snapshot.too-old",
        name="snapshot-too-old",
    )
    w.begin_without_copy(2)
    snapshot = w.source.snapshot("users")
    with w.transaction() as t:
        t.insert("users", id=3, name="after stream_seq")
        t.insert("users", id=4, name="after stream_seq too")
    steps = [snapshot.start(), *snapshot.chunks(), snapshot.meta()]
    with w.transaction() as t:
        t.insert("users", id=5, name="the oldest that is left")
    w.add({"step": "purge", "stream": "CDC", "first_seq": w.source.last_seq["CDC"]})
    w.add(*steps)
    w.expect("it asks for a newer one", users=ABSENT, asked=("users",))
    w.copy_again()
    return w.draft.done()


def empty_table() -> History:
    w = Writing("A table without rows: a snapshot without chunks.", "snapshot.empty", name="snapshot-of-an-empty-table")
    w.begin(0)
    with w.transaction() as t:
        t.insert("users", id=1, name="the first")
    w.live("and the first row")
    return w.draft.done()


def stored_snapshot() -> History:
    w = Writing(
        "INIT holds a snapshot from before the consumer, which leads to the present.",
        "snapshot.stored",
        name="snapshot-in-the-stream",
        needs=("stored-snapshots",),
    )
    w.source.create("users", *USERS)
    w.add(*w.source.begin())
    w.insert(2)
    w.add(*w.source.copy("users"))
    with w.transaction() as t:
        t.update("users", 1, name="after it")
    w.draft.start()
    w.live("it need not ask for another one")
    return w.draft.done()


# -- the stream's history


def history_lost() -> History:
    w = Writing(
        "The consumer was away for longer than the stream keeps messages.",
        "history.lost",
        name="history-lost",
        needs=("restart",),
    )
    w.begin()
    w.remember()
    w.draft.stop()
    for number in (3, 4, 5):
        with w.transaction() as t:
            t.insert("users", id=number, name="while it was away")
    w.add({"step": "purge", "stream": "CDC", "first_seq": w.source.last_seq["CDC"]})
    w.draft.start()
    w.keeps("changes are lost: a new copy")
    w.copy_again()
    return w.draft.done()


def history_at_the_edge() -> History:
    w = Writing(
        "The consumer was away until just before the stream would have lost what it needs.",
        "history.edge",
        name="history-at-the-edge",
        needs=("restart",),
    )
    w.begin()
    w.draft.stop()
    place = w.source.last_seq["CDC"]
    with w.transaction() as t:
        t.insert("users", id=3, name="the first that it needs")
    w.add({"step": "purge", "stream": "CDC", "first_seq": place})
    w.draft.start()
    w.live("nothing was lost")
    return w.draft.done()


def removed() -> History:
    w = Writing(
        "Somebody has deleted messages that the consumer had not read.",
        "history.deleted",
        name="messages-deleted",
        needs=("restart",),
    )
    w.begin()
    w.remember()
    w.draft.stop()
    for number in (3, 4, 5):
        with w.transaction() as t:
            t.insert("users", id=number, name="while it was away")
    w.add({"step": "remove", "stream": "CDC", "seqs": [w.source.last_seq["CDC"] - 1]})
    w.draft.start()
    w.keeps("a change is lost: a new copy")
    w.copy_again()
    return w.draft.done()


def removed_before() -> History:
    w = Writing(
        "Somebody has deleted messages that the consumer had read.",
        "history.deleted-before",
        name="old-messages-deleted",
        needs=("restart",),
    )
    w.begin(5)
    for number in (6, 7):
        with w.transaction() as t:
            t.insert("users", id=number, name="read")
    w.live("applied")
    w.draft.stop()
    w.add({"step": "remove", "stream": "CDC", "seqs": [2, 3]})
    w.draft.start()
    with w.transaction() as t:
        t.insert("users", id=8, name="goes on")
    w.live("nothing was lost")
    return w.draft.done()


def made_anew() -> History:
    w = Writing(
        "The stream was deleted and created again while the consumer was away, and has grown beyond its place.",
        "history.made-anew",
        name="stream-made-anew",
        needs=("restart",),
    )
    w.begin()
    w.remember()
    w.draft.stop()
    w.add(w.source.make_stream("CDC"))
    for number in range(3, 12):
        with w.transaction() as t:
            t.insert("users", id=number, name="in the new stream")
    w.draft.start()
    w.keeps("its place is of another stream: a new copy")
    w.copy_again()
    return w.draft.done()


def cut_short() -> History:
    w = Writing(
        "nats-server lost power and with it the newest messages; the stream has grown again, with others.",
        "history.cut",
        name="stream-cut-short",
        needs=("cut", "restart"),
    )
    w.begin()
    for number in (3, 4):
        with w.transaction() as t:
            t.insert("users", id=number, name="will be lost")
    w.live("applied")
    w.remember()
    w.draft.stop()
    w.source.last_seq["CDC"] -= 2
    w.add({"step": "cut", "stream": "CDC", "last_seq": w.source.last_seq["CDC"]})
    for number in (5, 6, 7):
        with w.transaction() as t:
            t.insert("users", id=number, name="stored instead")
    w.draft.start()
    w.keeps("the message at its place has another id: a new copy")
    w.copy_again()
    return w.draft.done()


def resumes() -> History:
    w = Writing(
        "The consumer is killed amid a transaction and after one, and started again.",
        "restart.resume",
        "transaction.whole",
        name="killed-and-started",
        needs=("restart",),
    )
    w.begin()
    w.remember()
    steps: list[Any] = []
    with w.source.transaction(steps.append) as t:
        t.update("users", 1, name="first half")
        t.insert("users", id=3, name="second half")
    w.add(steps[0])
    w.keeps("half of a transaction", "live", asked=(), record=False)
    w.draft.stop()
    w.add(steps[1])
    w.draft.start()
    w.live("it goes on where its copy is, and applies nothing twice")
    w.draft.stop()
    w.draft.start()
    with w.transaction() as t:
        t.insert("users", id=4)
    w.live("and once more")
    return w.draft.done()


# -- messages


def foreign() -> History:
    w = Writing(
        "Somebody else publishes on the subjects of events and of snapshots.", "message.foreign", name="foreign-messages"
    )
    w.begin()
    source, lsn = w.source, w.source.lsn + 0x80
    body = {
        "subject": "cdc.users.insert", "operation": "INSERT", "table": "users", "schema": "public", "relation_id": 16385,
        "key": ["id"], "data": {"id": 66, "name": "foreign", "note": None}, "lsn": lsn, "seq": 0, "xid": 1, "commit_ts": 1,
        "msg_id": f"{lsn:x}-0-users-insert", "last": True,
    }  # fmt: skip
    w.add(
        source.message("CDC", "cdc.users.insert", {}, body),
        source.raw_message("CDC", "cdc.users.insert", {}, b"hello"),
        source.raw_message("CDC", "cdc.users.update", {"Nats-Msg-Id": "order-17"}, b"{}"),
        source.message("CDC", "cdc.users.insert", {"Nats-Msg-Id": "order-18"}, body),
        source.raw_message("CDC", "cdc.users.delete", {"X-Trace": "abc"}, b""),
        source.raw_message("INIT", "init.snap.users.mine.0", {}, b"\xc1"),
    )
    with w.transaction() as t:
        t.insert("users", id=3, name="of the bridge")
    w.live("a message without a bridge's id is passed over")
    return w.draft.done()


def unreadable() -> History:
    w = Writing(
        "A message has a bridge's id, and a body that cannot be read: what comes after it would not be certain.",
        "message.unreadable",
        name="unreadable-message",
    )
    w.begin()
    w.remember()
    lsn = w.source.lsn + 0x100
    w.add(w.source.raw_message("CDC", "cdc.users.insert", {"Nats-Msg-Id": f"{lsn:x}-0-users-insert"}, b"\x85\xa7subject"))
    w.stops("it stops before it, and keeps its rows")
    return w.draft.done()


def another_id() -> History:
    w = Writing(
        "A message has a bridge's id, and a body of another event: the event of that id is missing, or somebody forges messages.",
        "message.unreadable",
        name="body-of-another-event",
    )
    w.begin()
    w.remember()
    lsn = w.source.lsn + 0x100
    steps: list[Any] = []
    with w.source.transaction(steps.append) as t:
        t.insert("users", id=3, name="of another event")
    steps[0]["headers"] = {"Nats-Msg-Id": f"{lsn + 0x100:x}-0-users-insert"}
    w.add(*steps)
    w.stops("it stops before it, and keeps its rows")
    return w.draft.done()


def own_ids() -> History:
    w = Writing(
        "Where JetStream would drop a message as a duplicate, the bridge sends its id in `Walbridge-Msg-Id`.",
        "message.own-id",
        name="ids-in-the-other-header",
    )
    w.begin()
    steps: list[Any] = []
    with w.source.transaction(steps.append) as t:
        t.insert("users", id=3, name="sent again")
        t.insert("users", id=4, name="sent again")
    for step in steps:
        step["headers"] = {"Walbridge-Msg-Id": step["headers"].pop("Nats-Msg-Id")}
    w.add(*steps)
    w.live("they are events like all others")
    return w.draft.done()


def json_numbers() -> History:
    w = Writing(
        "In JSON a bigint beyond 2^53-1 is a string that `raw` names, in keys too.",
        "message.encoding",
        "values.bigint",
        name="json-bigints",
        is_json=True,
    )
    columns = (Column("id", "bigint", pk=True), Column("n", "bigint"), NAME)
    w.begin(0, columns)
    big = 2**53
    with w.transaction() as t:
        t.insert("users", id=big + 1, n=-big - 3, name="beyond")
        t.insert("users", id=big - 1, n=2**63 - 1, name=str(big + 1))
        t.insert("users", id=3, n=None, name="\u2603 \U0001f600 \u00e4")
    w.live("the digits are the same")
    with w.transaction() as t:
        t.update("users", big + 1, n=big + 2)
        t.update("users", big - 1, id=big)
        t.delete("users", 3)
    w.live("rows are found by such a key")
    with w.transaction() as t:
        t.delete("users", big + 1)
    w.add(w.source.gap("users"))
    w.remember()
    w.keeps("to be copied from a snapshot")
    w.add(*w.source.copy("users"))
    w.live("a snapshot's `raw` has the row and the column")
    return w.draft.done()


def compressed() -> History:
    w = Writing(
        "Bodies are compressed, with a dictionary and without one, and some are not.",
        "message.compressed",
        name="compressed-bodies",
        needs=("zstd",),
        dictionaries={"users": dictionary(), "orders": b""},
        tables=("users", "orders"),
    )
    w.begin(3)
    with w.transaction() as t:
        t.insert("users", id=4, name="user 4", note="with a dictionary")
        t.insert("orders", id=1, user_id=4, total="1.00")
    w.live("each message's headers say how to read it")
    w.source.compress_no_more()
    with w.transaction() as t:
        t.update("users", 4, name="plain")
    w.live("a bridge may send both in turn")
    return w.draft.done()


def _no_single_frame(name: str, about: str, damage: Callable[[bytes], bytes]) -> History:
    w = Writing(
        about,
        "message.one-frame",
        name=name,
        needs=("zstd",),
        dictionaries={"users": b""},
    )
    w.begin()
    w.remember()
    steps: list[Any] = []
    with w.source.transaction(steps.append) as t:
        t.insert("users", id=3, name="not exactly one frame")
    steps[0]["body"] = base64.b64encode(damage(base64.b64decode(steps[0]["body"]))).decode()
    w.add(*steps)
    w.stops("it refuses the message, and stops")
    return w.draft.done()


def two_frames() -> History:
    return _no_single_frame(
        "more-than-one-frame", "A compressed body has something after its frame.", lambda body: body + b"more"
    )


def cut_off_frame() -> History:
    return _no_single_frame("frame-cut-off", "A compressed body lacks its last byte.", lambda body: body[:-1])


def late_dictionary() -> History:
    w = Writing(
        "A message names a dictionary that the bucket does not have yet.",
        "message.dictionary",
        name="dictionary-comes-late",
        needs=("zstd",),
        dictionaries={"users": dictionary()},
    )
    w.begin_without_copy(2)
    late = [step for step in w.draft.steps if step["step"] == "kv" and step["bucket"] == "dictionaries"]
    w.draft.steps = [step for step in w.draft.steps if step not in late]
    w.add(*w.source.copy("users"))
    w.expect("it waits: nothing can be read without it", users=ABSENT, record=False)
    w.add(*late)
    w.live("and goes on")
    return w.draft.done()


def other_tables() -> History:
    w = Writing(
        "Transactions end with events of a table that the consumer does not keep.",
        "transaction.filter",
        name="other-tables-events",
    )
    w.source.create("orders", *ORDERS)
    w.begin()
    with w.transaction() as t:
        t.insert("users", id=3, name="not the last of its transaction")
        t.insert("orders", id=1, user_id=3, total="1.00")
    with w.transaction() as t:
        t.insert("orders", id=2, user_id=3, total="1.00")
    with w.transaction() as t:
        t.insert("users", id=4, name="of a later one")
    w.live("a transaction is complete when another one follows")
    return w.draft.done()


def two_tables() -> History:
    w = Writing(
        "One transaction changes two tables, and half of it has come.",
        "transaction.tables",
        "transaction.whole",
        name="two-tables-at-once",
        tables=("users", "orders"),
    )
    w.begin()
    w.remember()
    orders = w.source.live("orders")
    steps: list[Any] = []
    with w.source.transaction(steps.append) as t:
        t.update("users", 1, name="has an order")
        t.insert("orders", id=1, user_id=1, total="19.99")
        t.update("users", 2, name="has an order too")
        t.insert("orders", id=2, user_id=2, total="5.00")
    w.add(*steps[:3])
    w.keeps("neither table shows any of it", "live", asked=(), record=False, orders=orders)
    w.add(steps[3])
    w.live("both show all of it")
    return w.draft.done()


def every_table() -> History:
    w = Writing(
        "A consumer of all tables: one is added to the publication later.",
        "publication.new-table",
        name="every-table",
        tables=(),
        needs=("every-table", "publication"),
    )
    w.source.create("users", *USERS)
    w.add(*w.source.begin())
    w.insert(2)
    w.draft.start()
    w.expect("it finds the tables in the bridge's record", users=ABSENT, asked=("users",))
    w.add(*w.source.copy("users"))
    w.expect("copied", users=w.source.live("users"))
    w.source.create("orders", *ORDERS)
    w.add(w.source.publish("orders", "added", reason="a new table"))
    with w.transaction() as t:
        t.insert("orders", id=1, user_id=1, total="1.00")
    w.expect("it takes up the new one", users=w.source.live("users"), orders=ABSENT, asked=("orders",))
    w.add(*w.source.copy("orders"))
    w.expect("copied too", users=w.source.live("users"), orders=w.source.live("orders"))
    return w.draft.done()


def dictionary() -> bytes:
    """A zstd dictionary."""
    return (Path(__file__).parents[2] / "dictionaries" / "users.zstd.dict").read_bytes()


WRITERS: tuple[Callable[[], History], ...] = (
    join, unchanged, half, keys, full, deletes, without_key, inserts_only, names_no_row, deferrable, incomplete_insert, column_added,
    column_renamed, column_type, column_moved, column_dropped, same_shape, other_table, shape_in_transaction, gap_of_a_table,
    gap_to_lower_lsns, gap_cuts_off, suspended, published_differently, published_the_same, unpublished, snapshot_failed,
    snapshot_begun_again, chunk_missing, other_bridge, snapshot_too_old, empty_table, stored_snapshot, history_lost,
    history_at_the_edge, removed, removed_before, made_anew, cut_short, resumes, foreign, unreadable, another_id, own_ids, json_numbers, compressed,
    two_frames, cut_off_frame, late_dictionary, other_tables, two_tables, every_table,
)  # fmt: skip


def histories() -> Iterator[History]:
    """All of them."""
    for write in WRITERS:
        yield write()
