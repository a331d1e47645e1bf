"""Where transactions end in the stream, for a reader of some of its subjects.

A bridge writes the messages of a transaction next to each other, and the last one says that it is the last. That message may be
on a subject that is not read here, so the stream itself is asked. Only a gap can follow an incomplete transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from actors.contract.records import Event, Gap
from actors.contract.subjects import CDC_ALL
from actors.mirror.source_stream import SourceStream, bridge_position
from actors.mirror.track import Track
from actors.positions import GAP_RANK


class Incomplete(Exception):
    """A gap follows an incomplete transaction, whose rest will never come: it must not be applied by halves."""

    def __init__(self, lsn: int, seq: int) -> None:
        """`seq` is the gap's sequence."""
        super().__init__(lsn)
        self.lsn, self.seq = lsn, seq


class Next(NamedTuple):
    """The next message of a bridge on the subjects that are read."""

    seq: int
    lsn: int
    is_gap: bool
    """Whether it is a gap event of the bridge, which does not belong to any transaction."""


class Boundaries:
    """Answers whether a transaction is complete, up to some message, on the subjects `filters`.

    An answer stays true: the stream only grows. For any number of tasks.
    """

    def __init__(self, source: SourceStream, filters: Sequence[str]) -> None:
        self._source = source
        self.filters = tuple(filters)

    async def next_after(self, seq: int) -> Next | None:
        """The next message after `seq` on these subjects; None when there is none yet."""
        found = [await self._source.next_of_a_bridge(seq, pattern) for pattern in self.filters]
        first = min((one for one in found if one is not None), default=None)
        return None if first is None else Next(first[0], first[1].lsn, first[1].rank == GAP_RANK)

    async def is_whole(self, lsn: int, seq: int) -> bool:
        """Whether the transaction of `lsn`, read up to `seq`, is complete and has no more on these subjects.

        Before a gap the answer is no: `close_before` decides when the gap is read.
        """
        return await self._has_ended(lsn) and not await self._may_have_more(lsn, seq)

    async def is_whole_at(self, seq: int) -> tuple[bool, int | None]:
        """Whether no transaction with messages up to `seq` has more on these subjects; and the transaction that is at `seq`.

        A message that was deleted by hand belongs to no transaction.
        """
        message = await self._source.message_of_a_bridge(seq)
        position = None if message is None else bridge_position(message.headers)
        if position is None:
            return True, None
        return await self.is_whole(position.lsn, seq), position.lsn

    async def close_before(self, track: Track, seq: int, events: Sequence[Event]) -> None:
        """Close the track's open transaction if the events of the message at `seq` do not belong to it.

        Raises Incomplete when they are a gap, the transaction has not ended before it and the track does not leave it out yet.
        """
        first, open_lsn = events[0], track.open_lsn
        is_bridges_gap = isinstance(first, Gap) and not first.of_table  # it is part of no transaction, whatever its LSN
        if open_lsn is None or (open_lsn == first.lsn and not is_bridges_gap):
            return
        is_cut_off = isinstance(first, Gap) and not await self._has_ended(open_lsn, before_seq=seq)
        if is_cut_off and not track.leaves_out(open_lsn, seq - 1):
            raise Incomplete(open_lsn, seq)
        track.close()

    async def end_without_more(self, seq: int) -> int | None:
        """The stream's last sequence as of the last look, if none of these subjects has a message after `seq` up to there."""
        last = self._source.last_seq
        following = await self.next_after(seq)
        return last if following is None or following.seq > last else None

    async def _has_ended(self, lsn: int, before_seq: int | None = None) -> bool:
        """Whether the transaction of `lsn` has ended before the stream's end, or before `before_seq`."""
        await self._source.require()
        message = await self._source.message_of_a_bridge(self._source.last_seq if before_seq is None else before_seq - 1)
        if message is None:  # deleted by hand, or the stream never had any: nothing can be waited for
            return True
        position = bridge_position(message.headers)
        if position is None or position.lsn != lsn or position.rank == GAP_RANK:  # nothing follows a gap of the bridge's own
            return True
        return await self._source.ends_its_transaction(message)

    async def _may_have_more(self, lsn: int, seq: int) -> bool:
        """Whether the transaction of `lsn`, which has ended and has the message at `seq`, may have more on these subjects.

        JetStream looks for one filter per request, so all subjects are asked first: the messages of a transaction are next to
        each other, and the next one of all mostly answers for every filter.
        """
        message = await self._source.js.get_message(self._source.name, seq=seq + 1, next_by_subj=CDC_ALL)
        if message is None:
            return False
        position = bridge_position(message.headers)
        if position is not None and position.lsn != lsn and position.rank != GAP_RANK:
            return False
        following = await self.next_after(seq)  # also after a foreign message, which proves nothing
        return following is not None and (following.lsn == lsn or following.is_gap)
