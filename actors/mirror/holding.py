"""Holds the mirror still while a verification compares the replica with its source at one LSN (see actors/verification/).

A verification inserts a row into the replica: `asked`. The mirror answers `held` and applies nothing more. The verification
then takes an LSN in the source, which is after everything that is applied, and writes it into the row. The mirror continues up
to that LSN, answers `reached`, and stays until the row is deleted or shows no sign of life.
"""

from __future__ import annotations

from typing import NamedTuple

import trio

from actors.mirror.replica import Replica
from actors.mirror.stores.dialect import Statement
from actors.positions import Lsn, format_lsn
from actors.telemetry.log import get_logger

log = get_logger("mirror")

LOOK_EVERY_S = 0.25
SILENCE_S = 15.0


class Hold(NamedTuple):
    """A verification's row."""

    id: str
    lsn: Lsn
    """0 until the verification has taken it."""


class Holds:
    """The verifications that ask this mirror to hold still, one at a time."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self.wanted: Hold | None = None
        self._changed = trio.Event()
        self._alive: tuple[str, int, float] = ("", 0, 0.0)

    async def watch(self) -> None:
        """Look for rows until cancelled."""
        dialect = self._replica.dialect
        while True:
            rows = await self._replica.query(f"SELECT id, lsn, alive FROM {dialect.own('verify')} ORDER BY id")
            if self.wanted is not None:  # it is served first, and others after it
                rows.sort(key=lambda row, id_=self.wanted.id: row[0] != id_)  # type: ignore[misc]
            wanted = None
            if rows:
                id_, lsn, alive = str(rows[0][0]), Lsn(int(str(rows[0][1]))), int(str(rows[0][2]))
                now = trio.current_time()
                if (id_, alive) != self._alive[:2]:
                    self._alive = id_, alive, now
                if now - self._alive[2] > SILENCE_S:
                    log.warning("a verification shows no sign of life; continuing", id=id_)
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
        """Answer with `state`, and return when the verification wants something else."""
        log.info("holding still for a verification", state=state, lsn=format_lsn(hold.lsn))
        dialect = self._replica.dialect
        sql = f"UPDATE {dialect.own('verify')} SET state = {dialect.parameter(1)} WHERE id = {dialect.parameter(2)}"
        await self._replica.run([Statement(sql, [(state, hold.id)])])
        while self.wanted == hold:
            await self._changed.wait()
