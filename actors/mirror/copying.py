"""Makes new copies of tables: gathers a snapshot beside the live table, then applies events up to the live tables' checkpoint.

Only then the copy replaces the old table, in one local transaction: readers see the old table or the new one, never half of
one, and never a table that is ahead of the others.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from operator import methodcaller

import trio

from actors.mirror.following import Follower
from actors.mirror.gathered import CannotMirror, NotPublished, SnapshotRefused, SnapshotUnusable
from actors.mirror.gathering import ASK_AGAIN_S, gather
from actors.mirror.joining import LOOK_S, join
from actors.mirror.replica import Replica
from actors.mirror.source_stream import OutOfDate, SourceStream
from actors.mirror.state import REFUSED, STALE, WAITING, TableRecord
from actors.mirror.stores.store import ApplyConflict
from actors.mirror.track import NEEDED_NOTHING
from actors.telemetry.log import get_logger

log = get_logger("mirror")

GATHERED_AT_ONCE = 8
"""Tables of which snapshots are requested and read: the bridge always finds the next request, and INIT need not hold more."""
JOINED_AT_ONCE = 8
"""Copies that read the stream's events. Those that wait for the live tables are not among them: they may be any number."""
RETRY_S, RETRY_S_MAX = 5.0, 60.0
"""Pause before a snapshot that conflicted is read again, doubled each time: it may be large, and rarely fits by itself."""


class Copier:
    """Makes new copies for one replica. Each copy runs in a task of its own."""

    def __init__(self, replica: Replica, source: SourceStream, follower: Follower) -> None:
        self._replica, self._source, self._follower = replica, source, follower
        self._gathering, self._joining = trio.CapacityLimiter(GATHERED_AT_ONCE), trio.CapacityLimiter(JOINED_AT_ONCE)
        self._tokens: set[str] = set()

    def is_copying(self, token: str) -> bool:
        """Whether a copy of the table is being made, or is about to be."""
        return token in self._tokens

    async def copy(self, token: str) -> None:
        """Copy until the table is live, or cannot be. Raises SinkUnavailable, ReplicaUnavailable, ReplicaRefused.

        Returns at once when another task copies the table: that one takes notice of what has changed.
        """
        if token in self._tokens:
            return
        self._tokens.add(token)
        try:
            await self._copy(token)
        finally:
            self._tokens.discard(token)

    async def _copy(self, token: str) -> None:
        replica, retry_s = self._replica, RETRY_S
        if replica.tables[token].state == REFUSED:
            await replica.save(replica.tables[token].as_taken_up())
        while replica.tables[token].state in (WAITING, STALE):
            pause_s = 0.0
            try:
                # neither limit holds during pauses: a table that cannot be copied must not delay others
                async with self._gathering:
                    gathered = await gather(replica, self._source, token)
                await self._follower.wait_for(gathered.start.snapshot_lsn, gathered.start.stream_seq)
                async with self._joining:
                    await join(replica, self._source, self._follower, gathered)
            except SnapshotUnusable as exc:
                log.warning("cannot use a snapshot; asking for another one", table=token, reason=str(exc))
                await replica.change(token, partial(_after_unusable, unusable=exc))
            except ApplyConflict as exc:
                pause_s, retry_s = retry_s, min(2 * retry_s, RETRY_S_MAX)
                log.warning(
                    "snapshot conflicts with replica rows; retrying", table=token, reason=exc.reason, next_try_s=pause_s
                )
                keyed = False if exc.is_duplicate else None
                stale = methodcaller("as_stale", exc.reason, NEEDED_NOTHING, keyed=keyed)
                await replica.change(token, stale)
            except SnapshotRefused as exc:
                log.warning("the bridge took no snapshot; retrying", table=token, reason=str(exc), next_try_s=ASK_AGAIN_S)
                await replica.change(token, methodcaller("as_delayed", str(exc)))
                pause_s = ASK_AGAIN_S
            except CannotMirror as exc:
                log.error("a table cannot be mirrored; the others continue", table=token, reason=str(exc))  # noqa: TRY400
                await replica.change(token, methodcaller("as_refused", str(exc)))
            except OutOfDate as exc:
                log.warning("the stream has changed; using another snapshot", table=token, reason=str(exc))
                await replica.change(token, methodcaller("as_stale", str(exc), NEEDED_NOTHING))
                pause_s = LOOK_S
            except NotPublished:
                pass  # whoever found that has said so
            await trio.sleep(pause_s)


def _after_unusable(record: TableRecord, unusable: SnapshotUnusable) -> TableRecord:
    """The record of a table of which a snapshot turned out to be of no use."""
    stale = record.as_stale(str(unusable), unusable.needed_seq)
    stale = replace(stale, init_seq=max(stale.init_seq, unusable.init_seq))
    return stale if unusable.told is None else stale.as_told(unusable.told)
