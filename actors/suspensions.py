"""Suspended tables: a row was too large for a message, so the table's events are left out until a snapshot has the rows.

The batcher suspends a table and leaves its events out, the snapshotter resumes it; /status and /metrics show suspensions.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from actors.clients.nats.record_store import RecordStore
from actors.contract.bridge_record import Suspended
from actors.contract.table_token import split_token
from actors.messages import Gap
from actors.positions import Lsn, Position
from actors.telemetry.telemetry import Problem, Telemetry


class Suspensions:
    """The suspended tables of one stream, their entries in the bridge's record, and the problems that users see.

    The batcher writes through `suspend` and `record` and reads through `covers` and `begins_at`; the snapshotter writes
    through `resume`. Nothing else writes the record's `suspended` or the telemetry's `suspended_tables`.
    """

    def __init__(self, store: RecordStore, telemetry: Telemetry) -> None:
        self._store, self._telemetry = store, telemetry
        self.tables = dict(store.record.suspended)
        """Tables that may be covered; while this is empty, the batcher need not call `covers`."""
        self._unrecorded: dict[str, str] = {}  # token -> reason
        self._recording = trio.Lock()
        shown = telemetry.suspended_tables
        telemetry.suspended_tables = {
            token: shown.get(token) or _problem(token, "a row was too large for the stream")
            for token, suspended in self.tables.items()
            if not suspended.until
        }

    def covers(self, token: str, position: Position) -> bool:
        """Return whether a table's message at `position` is left out. Positions come in the stream's order."""
        for over in [t for t, s in self.tables.items() if s.until and position.lsn >= s.until]:
            del self.tables[over]
        suspended = self.tables.get(token)
        return suspended is not None and position >= suspended.since

    def begins_at(self, token: str, position: Position) -> bool:
        """Return whether the gap event of a table's suspension takes the place of the change at `position`.

        PostgreSQL sends that change again if the bridge restarts after writing the record and before the gap event is stored.
        """
        suspended = self.tables.get(token)
        return suspended is not None and position == suspended.since

    def suspend(self, token: str, position: Position, reason: str) -> None:
        """Leave out a table's events from `position` on. Call `record` before its gap event is sent."""
        self.tables[token] = Suspended(position)
        self._unrecorded[token] = reason

    async def record(self) -> None:
        """Write the new suspensions into the bridge's record, so that no restart forgets them. Raises what the store raises."""
        if not self._unrecorded:
            return
        async with self._recording:
            new, self._unrecorded = self._unrecorded, {}
            since = {token: self.tables[token] for token in new}
            await self._store.update(suspended={**self._store.record.suspended, **since})
            problems = {token: _problem(token, reason) for token, reason in new.items()}
            self._telemetry.suspended_tables |= problems
            for token, problem in problems.items():
                self._telemetry.journal.note("suspended", problem.what, "bad", table=token)

    async def resume(self, token: str, wal_end: Callable[[], Awaitable[Lsn]]) -> None:
        """Publish a table's events again from the next event on; a snapshot taken after this call has the events left out.

        `wal_end` returns where the WAL ends. Raises what `wal_end` and the store raise.
        """
        suspended = self._store.record.suspended.get(token)
        if suspended is None or suspended.until:
            return
        self.tables.pop(token, None)
        self._unrecorded.pop(token, None)
        # after the table is resumed: every event that was left out is below this LSN
        until = await wal_end()
        async with self._recording:
            if token in self.tables:  # the next row was too large as well
                return
            recorded = self._store.record.suspended
            await self._store.update(suspended={**recorded, token: recorded[token]._replace(until=until)})
            if token not in self.tables:
                self._telemetry.suspended_tables.pop(token, None)


def suspension_gap(token: str, position: Position, slot: str) -> Gap:
    """Make the gap event that takes the place of the change that was too large."""
    reason = f"a row of {token} is larger than the stream takes, even without its largest columns: table suspended"
    return Gap(position, slot, reason, position.lsn, position.lsn, (token,), token)


def _problem(token: str, reason: str) -> Problem:
    schema, table = split_token(token)
    return Problem(
        "WB301",
        f"table {schema}.{table} is suspended: {reason}",
        means="its changes are left out of the stream; the other tables continue",
        fix=f"raise max_payload (and the stream's max_msg_size) or shorten the key of {token}, then resume the table: "
        "walbridge help WB301",
    )
