"""A verification's row in the replica, by which it asks the running mirror to hold still (see actors/mirror/holding.py)."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from actors.errors import Fatal, WalbridgeError
from actors.mirror.holding import SILENCE_S
from actors.mirror.state import TableRecord, load_tables, saved_verdict
from actors.mirror.stores.dialect import Statement
from actors.mirror.stores.open import open_store
from actors.mirror.stores.store import ReplicaUnavailable, Store
from actors.positions import Lsn
from actors.verification.comparison import TableReport

LOOK_EVERY_S = 0.1
HELD_WITHIN_S = 20.0
ENDING_S = 10.0
ALIVE_EVERY_S = 2.0


class VerifyFailed(Fatal):
    """The replica could not be compared with its source."""


class HoldRow:
    """The row of one verification. A lock shares its connection with the task that shows signs of life."""

    def __init__(self, store: Store, url: str, timeout_s: float, tell: Callable[[str], None]) -> None:
        """`url` is the replica's, `timeout_s` the user's patience with its mirror, `tell` shows a sentence to the user."""
        self._store, self._url, self._tell, self._id = store, url, tell, secrets.token_hex(8)
        self.answer_within_s = min(HELD_WITHIN_S, timeout_s)
        self._own = store.dialect.own("verify")
        self._lock = trio.Lock()
        self._alive = 0

    @asynccontextmanager
    async def present(self) -> AsyncGenerator[None]:
        """Keep the row in the replica while the body runs."""
        mark = self._store.dialect.parameter
        row = (self._id, "asked", 0, 0)
        await self._run(
            f"INSERT INTO {self._own} (id, state, lsn, alive) VALUES ({mark(1)}, {mark(2)}, {mark(3)}, {mark(4)})", row
        )
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._show_life)
                yield
                nursery.cancel_scope.cancel()
        finally:
            with trio.move_on_after(ENDING_S) as ending:
                ending.shield = True
                try:
                    await self._delete()
                except WalbridgeError as exc:
                    self._tell(f"the mirror continues within {SILENCE_S:g} s: {exc}")

    async def _delete(self) -> None:
        statement = f"DELETE FROM {self._own} WHERE id = {self._store.dialect.parameter(1)}", (self._id,)
        try:
            await self._run(*statement)
        except ReplicaUnavailable:  # a statement that was cut off closes the connection, which would leave the row behind
            self._store = await open_store(self._url, create=False)
            try:
                await self._run(*statement)
            finally:
                await self._store.close()

    async def _show_life(self) -> None:
        mark = self._store.dialect.parameter
        while True:
            await trio.sleep(ALIVE_EVERY_S)
            self._alive += 1
            await self._run(f"UPDATE {self._own} SET alive = {mark(1)} WHERE id = {mark(2)}", (self._alive, self._id))

    async def set_lsn(self, lsn: Lsn) -> None:
        """Ask the mirror to come to `lsn`."""
        mark = self._store.dialect.parameter
        await self._run(f"UPDATE {self._own} SET lsn = {mark(1)} WHERE id = {mark(2)}", (int(lsn), self._id))

    async def wait_held(self) -> None:
        """Wait until the mirror holds still. Raises VerifyFailed.

        A mirror serves one verification after another, and one that was killed until it has shown no sign of life for a while.
        """
        within_s = self.answer_within_s
        if await self._others():
            self._tell(f"another verification may hold the mirror; if it was killed, that ends within {SILENCE_S:g} s")
            within_s += SILENCE_S
        if await self._answers("held", within_s):
            return
        if await self._others():
            raise VerifyFailed(
                "WB512", "another verification of this replica is running, or was killed and no mirror has noticed",
                fix="start walbridge mirror with the same --to, unless it runs; then run verify again",
            )  # fmt: skip
        raise VerifyFailed(
            "WB512", f"no mirror of this replica has answered within {self.answer_within_s:g} s",
            means="only a running mirror can bring the replica to one LSN",
            fix="start walbridge mirror with the same --to, then run verify again",
        )  # fmt: skip

    async def wait_reached(self, within_s: float) -> None:
        """Wait until the mirror has come to the LSN. Raises VerifyFailed."""
        if not await self._answers("reached", within_s):
            raise VerifyFailed(
                "WB514", f"the mirror has not reached the LSN within {within_s:g} s",
                means="the mirror or the bridge is behind or not running", fix="walbridge health; or a longer --timeout",
            )  # fmt: skip

    async def _others(self) -> int:
        """Return how many other verifications ask the mirror to hold still for them."""
        mark = self._store.dialect.parameter
        async with self._lock:
            rows = await self._store.query(f"SELECT count(*) FROM {self._own} WHERE id <> {mark(1)}", (self._id,))
        return int(str(rows[0][0]))

    async def _answers(self, state: str, within_s: float) -> bool:
        """Whether the mirror answers `state` in time. Raises VerifyFailed if it cannot any more."""
        mark = self._store.dialect.parameter
        with trio.move_on_after(within_s):
            while True:
                async with self._lock:
                    rows = await self._store.query(f"SELECT state FROM {self._own} WHERE id = {mark(1)}", (self._id,))
                found = rows[0][0] if rows else "gone"
                if found == state:
                    return True
                if found in ("missed", "gone"):
                    raise VerifyFailed("WB513", "the mirror was past the LSN already", fix="run verify again")
                await trio.sleep(LOOK_EVERY_S)
        return False

    async def store_verdicts(self, reports: Sequence[TableReport]) -> None:
        """Store the verdicts for the mirror's metrics. A table that could not be compared keeps its earlier verdict."""
        now = int(time.time())
        for report in reports:
            if report.is_equal or report.mismatched_keys:
                statement = saved_verdict(self._store.dialect, report.table, now, report.mismatched_keys)
                await self._run(statement.sql, statement.params[0])

    async def tables(self) -> dict[str, TableRecord]:
        """Read the records of the replica's tables."""
        async with self._lock:
            return await load_tables(self._store)

    async def _run(self, sql: str, params: Sequence[Any]) -> None:
        async with self._lock:
            try:
                await self._store.run([Statement(sql, [params])], commit=True)
            except ReplicaUnavailable:
                await self._store.rollback()
                raise
