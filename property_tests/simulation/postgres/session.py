"""The server's side of one connection to PostgreSQL: its transaction, its snapshot, and what it has made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actors.clients.postgres.connection import PostgresError
from property_tests.simulation.network import Link
from property_tests.simulation.postgres.slot import Slot, WalSender
from property_tests.simulation.postgres.statements import Respond, execute
from property_tests.simulation.postgres.tables import Database

if TYPE_CHECKING:
    from property_tests.simulation.postgres.server import Postgres


@dataclass(frozen=True)
class Snapshot:
    """What a transaction sees."""

    database: Database
    xmax: int
    in_progress: tuple[int, ...]

    @property
    def text(self) -> str:
        xmin = min((*self.in_progress, self.xmax))
        return f"{xmin}:{self.xmax}:{','.join(map(str, self.in_progress))}"


class PgSession:
    """One session."""

    def __init__(self, server: Postgres, link: Link) -> None:
        self.server: Postgres = server
        self.link = link
        self.pid: int = 4000 + server.network.opened
        self.in_transaction = False
        self.snapshot: Snapshot | None = None
        self.locked: set[int] = set()
        self.sender: WalSender | None = None
        self.exported: dict[str, Snapshot] = {}
        self.over = False

    @property
    def database(self) -> Database:
        """What a statement sees now."""
        return self.snapshot.database if self.snapshot is not None else self.server.database

    def take_snapshot(self, *, exact: bool = False) -> Snapshot:
        """A snapshot of now: `exact` has all that is in the WAL, an ordinary one what is visible."""
        server = self.server
        open_ones = sorted(w.xid for w in server.writers if not (exact and w.commit is not None))
        return Snapshot(server.as_of_now() if exact else server.database.copy(), server.next_xid, tuple(open_ones))

    def begin(self) -> None:
        self.in_transaction, self.snapshot = True, None

    def finish(self) -> None:
        """End the transaction."""
        self.in_transaction, self.snapshot = False, None
        self.locked.clear()

    def ask(self, sql: str, params: Sequence[str | None], respond: Respond) -> None:
        """Execute a statement."""
        if not self.over:
            try:
                execute(self, sql, params, respond)
            except PostgresError as exc:
                respond(exc)

    def start_replication(self, name: str, start: int, arrive: Callable[[Sequence[bytes]], None], respond: Respond) -> None:
        """START_REPLICATION."""
        slot = self.server.slots.get(name)
        if slot is None:
            respond(PostgresError("42704", f'replication slot "{name}" does not exist'))
        elif slot.reader is not None and slot.reader is not self:
            respond(PostgresError("55006", f'replication slot "{name}" is active for PID 1'))
        elif slot.lost:
            respond(PostgresError("55000", f'can no longer access replication slot "{name}"', slot.lost))
        else:
            respond([])
            self.sender = WalSender(self.server, slot, start, self.link, arrive)

    def own_slot(self, slot: Slot) -> None:
        """A temporary slot that ends with this session."""
        slot.reader = self

    def received(self, data: bytes) -> None:
        """A status."""
        if self.sender is not None:
            self.sender.status(data)

    def ended(self) -> None:
        """The connection is gone. PostgreSQL may need a while to notice."""
        if self.over:
            return
        self.over = True
        server = self.server
        delay = server.dice.choice((0.0, 0.0, 0.05, 2.0)) if self.sender is not None and not self.link.closing else 0.0
        server.network.timers.after(delay, self._clean_up)

    def _clean_up(self) -> None:
        server = self.server
        if self in server.sessions:
            server.sessions.remove(self)
        if self.sender is not None:
            self.sender.end()
        for slot in [s for s in server.slots.values() if s.temporary and s.reader in (self, None)]:
            del server.slots[slot.name]
        self.finish()
