"""Makes new copies of tables: gathers a snapshot beside the live table, then applies events up to the live tables' checkpoint.

Only then the copy replaces the old table, in one local transaction: readers see the old table or the new one, never half of
one, and never a table that is ahead of the others.
"""

from __future__ import annotations

from dataclasses import replace

import trio

from actors.mirror.following import Follower
from actors.mirror.gathering import ASK_AGAIN_S, CannotMirror, SnapshotRefused, SnapshotUnusable, gather
from actors.mirror.joining import LOOK_S, join
from actors.mirror.replica import Replica
from actors.mirror.source_stream import OutOfDate, SourceStream
from actors.mirror.state import REFUSED
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

    async def copy(self, token: str) -> None:
        """Copy until the table is live. Raises SinkUnavailable, ReplicaUnavailable, ReplicaRefused."""
        replica, retry_s = self._replica, RETRY_S
        if replica.tables[token].state == REFUSED:
            await replica.save(replica.tables[token].as_taken_up())
        while True:
            pause_s = 0.0
            try:
                # neither limit holds during pauses: a table that cannot be copied must not delay others
                async with self._gathering:
                    gathered = await gather(replica, self._source, token)
                await self._follower.wait_for(gathered.start.snapshot_lsn)
                async with self._joining:
                    await join(replica, self._source, self._follower, gathered)
            except SnapshotUnusable as exc:
                log.warning("cannot use a snapshot; asking for another one", table=token, reason=str(exc))
                stale = replica.tables[token].as_stale(str(exc), exc.needed_seq)
                await replica.save(replace(stale, init_seq=max(stale.init_seq, exc.init_seq)))
            except ApplyConflict as exc:
                pause_s, retry_s = retry_s, min(2 * retry_s, RETRY_S_MAX)
                log.warning(
                    "snapshot conflicts with replica rows; retrying", table=token, reason=exc.reason, next_try_s=pause_s
                )
                keyed = False if exc.is_duplicate else None
                await replica.save(replica.tables[token].as_stale(exc.reason, NEEDED_NOTHING, keyed=keyed))
            except SnapshotRefused as exc:
                log.warning("the bridge took no snapshot; retrying", table=token, reason=str(exc), next_try_s=ASK_AGAIN_S)
                await replica.save(replace(replica.tables[token], reason=str(exc)))
                pause_s = ASK_AGAIN_S
            except CannotMirror as exc:
                log.error("a table cannot be mirrored; the others continue", table=token, reason=str(exc))  # noqa: TRY400
                await replica.save(replace(replica.tables[token], state=REFUSED, reason=str(exc)))
                return
            except OutOfDate as exc:
                log.warning("the stream has changed; using another snapshot", table=token, reason=str(exc))
                await replica.save(replica.tables[token].as_stale(str(exc), NEEDED_NOTHING))
                pause_s = LOOK_S
            else:
                return
            await trio.sleep(pause_s)
