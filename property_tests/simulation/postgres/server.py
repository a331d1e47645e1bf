"""One PostgreSQL server: its WAL, what is visible of it, its slots, and the accidents that befall servers."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import trio

from actors.wire.replication import POSTGRES_EPOCH_US
from property_tests.simulation.determinism import BEGINNING_UNIX_S
from property_tests.simulation.network import Link, Network
from property_tests.simulation.postgres.changes import Change, Commit, made
from property_tests.simulation.postgres.session import PgSession
from property_tests.simulation.postgres.slot import Slot
from property_tests.simulation.postgres.tables import Database, Publication, Row, Table
from property_tests.simulation.trace import Trace

FIRST_LSN = 0x1000000
COMMIT_BYTES = 48
SYSTEM_ID = "7400000000000000001"


class Ddl(NamedTuple):
    """A transaction that changes the catalog."""

    lsn: int
    end: int
    act: Callable[[Database], None]

    def apply(self, database: Database) -> None:
        self.act(database)


Record = Commit | Ddl


@dataclass
class Writer:
    """An open transaction."""

    xid: int
    changes: list[Change] = field(default_factory=list)
    commit: Commit | None = None
    """In the WAL, and not visible yet."""


@dataclass
class Copy:
    """A copy of the volume."""

    records: int
    wal_end: int
    slots: dict[str, Slot]


class Postgres:
    """A server, and those that take its place: a promoted standby, a restored volume."""

    def __init__(self, network: Network, dice: random.Random, trace: Trace) -> None:
        self.is_up = True
        self.system_id, self.timeline, self.era = SYSTEM_ID, 1, 0
        self.history: list[tuple[int, int]] = []
        self.wal: list[Record] = []
        self.wal_end: int = FIRST_LSN
        self.database = Database(publication=Publication(16384, 700))
        self.slots: dict[str, Slot] = {}
        self.writers: list[Writer] = []
        self.next_xid, self.next_oid = 750, 16400
        self.sessions: list[PgSession] = []
        self.on_wal: list[Callable[[], None]] = []
        """Called after the WAL has grown."""
        self.on_commit: Callable[[Commit], None] = lambda _: None
        self.on_confirmed: Callable[[Slot], None] = lambda _: None
        self.on_slot: Callable[[Slot], None] = lambda _: None
        """Called for each slot that is made."""
        self.visible_after_s = 0.0
        """Up to so long a commit stays invisible."""
        self.dice, self.trace, self.network = dice, trace, network
        self.started_at: float = trio.current_time()
        self._waiting: list[tuple[set[int], Callable[[], None]]] = []

    def accept(self, link: Link) -> PgSession | None:
        if not self.is_up:
            return None
        session = PgSession(self, link)
        self.sessions.append(session)
        return session

    # -- WAL

    def fill(self, size: int = 8) -> int:
        """Write WAL that nobody decodes; return where it began."""
        at = self.wal_end
        self.wal_end += size
        return at

    def grown(self) -> None:
        """Tell readers of the WAL."""
        for tell in list(self.on_wal):
            tell()

    def _record_at(self) -> int:
        """Where the next commit record begins. No two eras have one place in common."""
        self.fill((self.era * 8 - self.wal_end) % 64)
        return self.wal_end

    def now_us(self) -> int:
        return int((BEGINNING_UNIX_S + trio.current_time()) * 1e6) - POSTGRES_EPOCH_US

    # -- transactions

    def begin(self) -> Writer:
        writer = Writer(self.next_xid)
        self.next_xid += 1
        self.writers.append(writer)
        return writer

    def change(self, writer: Writer, table: Table, old: Row | None, new: Row | None) -> None:
        """Change a row; both None truncate. Whoever writes holds the row: two transactions never have one row at once."""
        writer.changes.append(made(self.fill(self.dice.choice((24, 64, 160))), self.database, table, old, new))
        self.grown()

    def roll_back(self, writer: Writer) -> None:
        self.fill(32)
        self._ended(writer)

    def commit(self, writer: Writer) -> None:
        """Write the commit record; it is seen a moment later."""
        lsn = self._record_at()
        commit = Commit(lsn, lsn + COMMIT_BYTES, writer.xid, self.now_us(), tuple(writer.changes), self.era)
        self.wal_end = commit.end
        self.wal.append(commit)
        writer.commit = commit
        self.on_commit(commit)
        delay, era = self.dice.random() * self.visible_after_s, self.era
        if self.dice.random() < 0.7 or not delay:
            self._show(writer, era)
        else:
            self.network.timers.after(delay, lambda: self._show(writer, era))
        self.grown()

    def _show(self, writer: Writer, era: int) -> None:
        if era == self.era and writer in self.writers and writer.commit is not None:
            writer.commit.apply(self.database)
            self._ended(writer)

    def _ended(self, writer: Writer) -> None:
        if writer in self.writers:
            self.writers.remove(writer)
        self.grown()
        for xids, act in list(self._waiting):
            xids.discard(writer.xid)
            if not xids:
                self._waiting.remove((xids, act))
                act()

    def when_ended(self, act: Callable[[], None]) -> None:
        """Act once all transactions that write now have ended."""
        xids = {writer.xid for writer in self.writers}
        if xids:
            self._waiting.append((xids, act))
        else:
            act()

    def as_of_now(self) -> Database:
        """Rows with every commit that is in the WAL."""
        found = self.database.copy()
        for commit in sorted(w.commit for w in self.writers if w.commit is not None):
            commit.apply(found)
        return found

    def alter(self, act: Callable[[Database, int], None]) -> None:
        """Change the catalog in a transaction of its own; `act` gets its xid."""
        xid, lsn = self.next_xid, self._record_at()
        self.next_xid += 1

        def apply(database: Database) -> None:
            act(database, xid)

        self.wal_end = lsn + COMMIT_BYTES
        self.wal.append(Ddl(lsn, self.wal_end, apply))
        apply(self.database)
        self.grown()

    def as_of(self, lsn: int) -> Database:
        """The database with every commit below an LSN."""
        found = Database(publication=Publication(16384, 700))
        for record in self.wal:
            if record.lsn < lsn:
                record.apply(found)
        return found

    # -- accidents

    def crash(self) -> None:
        """Stop at once: open transactions are gone, slots go back to what was saved."""
        self.is_up = False
        for link in self.network.ordered():
            if link.session in self.sessions:
                link.cut()
        self._abort_all()
        self.slots = {name: slot for name, slot in self.slots.items() if not slot.temporary}
        for slot in self.slots.values():
            slot.confirmed, slot.reader, slot.transactions_read = slot.saved, None, 0

    def start(self) -> None:
        self.is_up, self.started_at = True, trio.current_time()
        self.fill(64)

    def checkpoint(self) -> None:
        """Save what a crash would go back to."""
        for slot in self.slots.values():
            slot.saved = slot.confirmed

    def fail_over(self, replayed: int, *, synced: dict[str, int]) -> int:
        """Promote a standby that has the WAL up to `replayed` and these slots; return where the timeline was left."""
        self.crash()
        self._cut_back(replayed)
        self.history.append((self.timeline, self.wal_end))
        self.timeline += 1
        self.slots = {name: Slot(name, at, saved=at) for name, at in synced.items()}
        switch = self.wal_end
        self.start()
        return switch

    def copy(self) -> Copy:
        slots = {name: replace(slot, confirmed=slot.saved, reader=None) for name, slot in self.slots.items()}
        return Copy(len(self.wal), self.wal_end, slots)

    def restore(self, copy: Copy) -> None:
        """Put an older copy of the volume in place, slots included."""
        self.crash()
        self._cut_back(copy.wal_end)
        self.slots = {name: replace(slot) for name, slot in copy.slots.items()}
        self.start()

    def _cut_back(self, to: int) -> None:
        self.wal = [record for record in self.wal if record.end <= to]
        self.wal_end = max([to if to % 8 == 0 else FIRST_LSN, *(record.end for record in self.wal)])
        self.era += 1
        self.database = self.as_of(1 << 62)

    def _abort_all(self) -> None:
        for writer in list(self.writers):
            if writer.commit is not None:
                self._show(writer, self.era)
        self.writers.clear()
        self._waiting.clear()
