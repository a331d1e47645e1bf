"""A replication slot, and its reader's view of the WAL."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actors.wire.pgoutput import Relation
from property_tests.simulation.network import Link
from property_tests.simulation.postgres.changes import Commit, messages_of
from tests import pgoutput_bytes as pg

if TYPE_CHECKING:
    from property_tests.simulation.postgres.server import Postgres

_STATUS = struct.Struct(">cQQQqb")
KEEPALIVE_S = 1.0
"""How long after unpublished WAL a sender with nothing to send says how far it is."""


@dataclass
class Slot:
    """A replication slot."""

    name: str
    confirmed: int
    temporary: bool = False
    saved: int = 0
    """What a crash goes back to."""
    lost: str = ""
    reader: object = None
    transactions_read: int = 0


class WalSender:
    """Sends what one slot has to one client."""

    def __init__(self, server: Postgres, slot: Slot, start: int, link: Link, arrive: Callable[[Sequence[bytes]], None]) -> None:
        self.slot = slot
        self.ended = False
        self._server, self._link, self._arrive = server, link, arrive
        self._start = max(start, slot.confirmed)
        self._next, self._told = 0, 0
        self._relations: dict[int, Relation] = {}
        self._pumping = self._keeping = False
        slot.reader = self
        server.on_wal.append(self.pump)
        self.pump()

    def end(self) -> None:
        """The client is gone."""
        if not self.ended:
            self.ended = True
            self._server.on_wal.remove(self.pump)
            if self.slot.reader is self:
                self.slot.reader = None

    def pump(self) -> None:
        """Send what the WAL has got, in a moment."""
        if not self._pumping:
            self._pumping = True
            self._server.network.timers.after(0.0001, self._send)

    def _send(self) -> None:
        self._pumping = False
        server = self._server
        if self.ended:
            return
        while self._next < len(server.wal):
            record = server.wal[self._next]
            self._next += 1
            if isinstance(record, Commit) and record.lsn >= self._start:
                sent = messages_of(record, self._relations)
                if sent and server.database.publication is None:
                    self._fail_without_publication()
                    return
                if sent:
                    self.slot.transactions_read += 1
                    self._say([pg.xlog(message, lsn) for lsn, message in sent])
                    self._told = record.end
        if server.wal_end > self._told and not self._keeping:
            self._keeping = True
            server.network.timers.after(KEEPALIVE_S * (0.1 + server.dice.random()), self._keepalive)

    def _fail_without_publication(self) -> None:
        """PostgreSQL 18 warns and drops the changes; the warning ends the stream at the client."""
        self._say([b"N"])

    def _keepalive(self) -> None:
        self._keeping = False
        if not self.ended:
            self._send()
            self._say([pg.keepalive(self._server.wal_end)])
            self._told = self._server.wal_end

    def _say(self, messages: list[bytes]) -> None:
        self._link.travel(1, messages, self._arrive)

    def status(self, message: bytes) -> None:
        """A standby status update has come."""
        _, _, flushed, _, _, reply = _STATUS.unpack(message)
        if self.ended:
            return
        if flushed > self.slot.confirmed:
            self.slot.confirmed = flushed
            self._server.on_confirmed(self.slot)
        if reply:
            self._send()
            self._say([pg.keepalive(self._server.wal_end)])
