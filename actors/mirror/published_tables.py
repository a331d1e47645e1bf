"""Keeps a mirror's tables in step with those that the bridge publishes: adds new ones, and notes those that are gone.

The stream's publication events say it exactly, and the follower and the copies obey them at their place. They are read only
while a table is live or being copied, and older bridges write none; so the bridge's record, which lists the tables, is compared
too. Whichever of the two is of a later sequence counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import methodcaller

import trio

from actors.contract.bridge_record import BridgeRecord
from actors.mirror.replica import Replica
from actors.mirror.source_stream import SourceStream
from actors.mirror.state import LIVE, UNPUBLISHED, TableRecord
from actors.mirror.table_choice import KeptTables, register_tables
from actors.mirror.track import Told
from actors.telemetry.log import get_logger

log = get_logger("mirror")

LOOK_EVERY_S = 5.0
GONE = "the bridge does not list it among its tables"


class PublishedTables:
    """Compares the tables that are kept with those that the bridge publishes. For one task."""

    def __init__(self, replica: Replica, kept: KeptTables, is_copying: Callable[[str], bool]) -> None:
        """`is_copying` says whether a table's copy is being made."""
        self._replica, self._kept, self._is_copying = replica, kept, is_copying
        self._lacking: frozenset[str] | None = None
        """Tables that were not in the last record; None before the first."""

    async def watch(self, source: SourceStream) -> None:
        """Compare every few seconds, and as soon as the stream tells of a new table. Runs until cancelled."""
        while True:
            with trio.move_on_after(LOOK_EVERY_S):
                await self._replica.moved.wait_value(lambda _: self._has_new_tables())
            record = await source.record()
            if record is not None:
                await self.compare(record)

    async def compare(self, record: BridgeRecord) -> None:
        """Compare with the bridge's record.

        A table that is missing there must be missing twice in a row, as the record may be a moment behind the stream. The first
        record of a session is old enough.
        """
        told = dict(self._replica.told_of_others)
        published = frozenset(record.tables)
        missing = frozenset(self._kept.tokens) - published
        for token in self._kept.tokens:
            table = self._replica.tables[token]
            if record.last_seq < table.told_seq:
                continue
            if token in published:
                if table.state == UNPUBLISHED:
                    await self._replica.change(token, TableRecord.as_taken_up)
            elif table.state == UNPUBLISHED:
                await self._forget_if_dropped(table)
            elif (self._lacking is None or token in self._lacking) and self._is_past(record, table):
                await self._replica.leave_unpublished(token, GONE)
        self._lacking = missing
        if self._kept.everything:
            await self._add_new(record, told)
        for token, one in told.items():
            if self._replica.told_of_others[token] is one:  # else something newer was told meanwhile
                del self._replica.told_of_others[token]

    def _has_new_tables(self) -> bool:
        return self._kept.everything and any(told.version for told in self._replica.told_of_others.values())

    def _is_past(self, record: BridgeRecord, table: TableRecord) -> bool:
        """Whether the mirror has read all that the record covers: until then an event may come that says when it was so."""
        checkpoint = self._replica.checkpoint
        return table.state != LIVE or (checkpoint is not None and checkpoint.cursor.stream_seq >= record.last_seq)

    async def _add_new(self, record: BridgeRecord, told: Mapping[str, Told]) -> None:
        replica = self._replica
        listed = [token for token in record.tables if token not in told or told[token].seq <= record.last_seq]
        added = [token for token, one in told.items() if one.version and one.seq > record.last_seq]
        for token in dict.fromkeys([*listed, *added]):
            if token in replica.tables:
                continue
            await register_tables(replica, [token])
            if token in told and told[token].version:  # a removal that is older than the record is void
                await replica.change(token, methodcaller("as_told", told[token]))
            log.info("a table is published and is taken up", table=token)
            replica.need_copy(token)

    async def _forget_if_dropped(self, table: TableRecord) -> None:
        """Forget a table of which the replica has no rows, unless it was asked for by name."""
        if not self._kept.everything or self._is_copying(table.token):
            return
        if not table.was_live or not await self._replica.exists(table.local):
            await self._replica.forget_table(table.token)
            log.info("a table that is not published any more is not in the replica; it is forgotten", table=table.token)
