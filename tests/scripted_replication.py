"""A replication stream in memory, and a small table whose changes it brings: pgoutput as PostgreSQL writes it."""

from __future__ import annotations

from collections import deque

import trio

from actors.contract.table_schema import CatalogColumn, Description
from actors.positions import Lsn
from actors.wire.pgoutput import Relation
from tests import pgoutput_bytes as pg

OID = 16401
COLUMNS = [("id", 23, True), ("name", 25, False)]
DESCRIPTION = Description(
    {}, ("integer", "text"), (CatalogColumn("id", 23, -1, False, None, True), CatalogColumn("name", 25, -1, True, None, False))
)


async def describe(_relation: Relation) -> Description:
    """What the catalog would say of the table."""
    return DESCRIPTION


def relation() -> bytes:
    """The Relation message that PostgreSQL sends before the first row."""
    return pg.xlog(pg.relation(OID, "users", COLUMNS))


def transaction(lsn: int, *ids: int) -> list[bytes]:
    """A transaction that commits at `lsn`, ends 8 bytes later, and inserts a row for each id."""
    rows = [pg.xlog(pg.insert(OID, [b"%d" % i, b"name %d" % i]), lsn) for i in ids]
    return [pg.xlog(pg.begin(lsn), lsn), *rows, pg.xlog(pg.commit(lsn, lsn + 8), lsn + 8)]


def message_is_data(message: bytes) -> bool:
    """Not a keepalive."""
    return message[:1] == b"w"


class ScriptedReplication:
    """What `ReplicationStream` is to the pipeline; a test feeds messages and reads the statuses that were sent."""

    def __init__(self) -> None:
        self.statuses: list[tuple[Lsn, Lsn, bool]] = []
        """(received, confirmed, reply wanted) of each status."""
        self.closed = False
        self.error: Exception | None = None
        """What sending a status raises."""
        self.is_renewable = True
        self.renewals: list[Lsn] = []
        self.refuse_renewals = 0
        """So many times no second connection is to be had."""
        self._sent: list[bytes] = []
        self._waiting: deque[bytes] = deque()
        self._news = trio.Event()
        self._end: Exception | None = None

    def feed(self, *messages: bytes) -> None:
        """Let PostgreSQL send these."""
        self._waiting.extend(messages)
        self._news.set()

    def end(self, error: Exception) -> None:
        """Let the connection end once everything fed has been read."""
        self._end = error
        self._news.set()

    @property
    def confirmed(self) -> int:
        """The highest LSN that PostgreSQL has heard to be stored."""
        return max((flushed for _, flushed, _ in self.statuses), default=0)

    async def read_block(self, messages_max: int, bytes_max: int) -> list[bytes]:
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            if self._end is not None:
                raise self._end
            self._news = trio.Event()
            await self._news.wait()
        block: list[bytes] = []
        while self._waiting and len(block) < messages_max and bytes_max > 0:
            block.append(self._waiting.popleft())
            bytes_max -= len(block[-1])
        self._sent += block
        return block

    async def renew(self, start_lsn: Lsn) -> bool:
        """As PostgreSQL does: everything after the transaction that ends at `start_lsn` comes again."""
        await trio.lowlevel.checkpoint()
        if self.refuse_renewals:
            self.refuse_renewals -= 1
            return False
        self.renewals.append(start_lsn)
        ends = [n for n, message in enumerate(self._sent) if message[25:26] == b"C" and message[35:43] == start_lsn.to_bytes(8)]
        self._waiting.extendleft(reversed([m for m in self._sent[ends[-1] + 1 :] if message_is_data(m)]))
        del self._sent[ends[-1] + 1 :]
        self._news.set()
        return True

    async def send_status(self, received: Lsn, flushed: Lsn, applied: Lsn, *, reply_wanted: bool = False) -> None:
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        assert flushed == applied
        self.statuses.append((received, flushed, reply_wanted))

    async def close(self) -> None:
        self.closed = True
