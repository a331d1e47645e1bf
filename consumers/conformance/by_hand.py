"""The histories that are written by hand, step by step. `python -m consumers.conformance.make --by-hand` writes their files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from actors.certify.history import COPYING, Draft, History
from actors.certify.source import Column, Source, Transaction, shown_table

ID, NAME, NOTE = Column("id", "integer", pk=True), Column("name", "text"), Column("note", "text")
USERS = (ID, NAME, NOTE)
ABSENT: dict[str, Any] = {"state": COPYING, "columns": None}
"""A table of which the consumer can have no rows yet."""


class Writing:
    """A history that is being written, and its source."""

    def __init__(self, about: str, *rules: str, name: str, **options: Any) -> None:
        self.draft = Draft(name, about, rules, ("users",), options.pop("needs", ()))
        self.source = Source(**options)

    def begin(self, rows: int = 2) -> None:
        """Users with some rows, and a consumer that has copied them."""
        self.source.create("users", *USERS)
        self.draft.add(*self.source.begin())
        self.insert(rows)
        self.draft.start()
        self.expect("no copy yet: it asks for a snapshot", users=ABSENT, asked=("users",))
        self.draft.add(*self.source.copy("users"))
        self.live("the snapshot is the copy")

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
        if record:
            self.draft.add(self.source.record())
        self.draft.add({"step": "expect", "why": why, "tables": tables, "asked": list(asked)})

    def live(self, why: str, *, asked: tuple[str, ...] = ()) -> None:
        """The copy of users must be equal to its table."""
        self.expect(why, users=self.source.live("users"), asked=asked)

    def keeps(self, why: str, state: str = COPYING, *, asked: tuple[str, ...] = ("users",)) -> None:
        """From here on, what the copy holds now is what it must keep; see `kept`."""
        self.expect(why, users=self.kept | {"state": state}, asked=asked)

    def remember(self) -> None:
        """Note the rows as of now."""
        self.kept = self.source.live("users")


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


WRITERS: tuple[Callable[[], History], ...] = (join, unchanged, half)


def histories() -> Iterator[History]:
    """All of them."""
    for write in WRITERS:
        yield write()


__all__ = ["ABSENT", "USERS", "Transaction", "Writing", "histories", "shown_table"]
