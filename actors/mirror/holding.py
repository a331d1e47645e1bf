"""Standing still while somebody compares the replica with its source at one LSN (see actors/commands/verify.py).

Who compares leaves a row in the replica: `asked`. The mirror answers `held`: it applies nothing more. Now an LSN is taken in
the source and left here, which is beyond everything that is applied; the mirror goes on up to it, answers `reached`, and stays
until the row is gone, or shows no sign of life.
"""

from __future__ import annotations

from typing import NamedTuple

import trio

from actors.mirror.replica import Replica
from actors.mirror.stores.dialect import Statement
from actors.telemetry.log import get_logger

log = get_logger("mirror")

LOOK_EVERY_S = 0.25
SILENCE_S = 30.0


class Hold(NamedTuple):
    """One row."""

    id: str
    lsn: int
    """0 while it is not known."""


class Holds:
    """What is asked of this mirror."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self.wanted: Hold | None = None
        self._changed = trio.Event()
        self._alive: tuple[str, int, float] = ("", 0, 0.0)

    async def watch(self) -> None:
        """Look for rows, until cancelled."""
        dialect = self._replica.dialect
        while True:
            rows = await self._replica.query(f"SELECT id, lsn, alive FROM {dialect.own('verify')} ORDER BY id")
            if self.wanted is not None:  # it is compared: another one comes after it
                rows.sort(key=lambda row, id_=self.wanted.id: row[0] != id_)  # type: ignore[misc]
            wanted = None
            if rows:
                id_, lsn, alive = str(rows[0][0]), int(str(rows[0][1])), int(str(rows[0][2]))
                now = trio.current_time()
                if (id_, alive) != self._alive[:2]:
                    self._alive = id_, alive, now
                if now - self._alive[2] > SILENCE_S:
                    log.warning("a verification has gone without a word; going on", id=id_)
                    mark = dialect.parameter(1)
                    await self._replica.run([Statement(f"DELETE FROM {dialect.own('verify')} WHERE id = {mark}", [(id_,)])])
                else:
                    wanted = Hold(id_, lsn)
            if wanted != self.wanted:
                self.wanted = wanted
                self._changed.set()
                self._changed = trio.Event()
            await trio.sleep(LOOK_EVERY_S)

    async def stay(self, hold: Hold, state: str) -> None:
        """Answer, and return when something else is wanted."""
        dialect = self._replica.dialect
        sql = f"UPDATE {dialect.own('verify')} SET state = {dialect.parameter(1)} WHERE id = {dialect.parameter(2)}"
        await self._replica.run([Statement(sql, [(state, hold.id)])])
        while self.wanted == hold:
            await self._changed.wait()
