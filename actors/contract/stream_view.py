"""What JetStream says that a stream holds, and whether a reader of it can continue from a place. No I/O.

Nothing that Walbridge allows deletes in the middle of the stream, so a message deleted after a reader's place is a lost change.
A NATS server that lost power may come back with a shorter stream, which then grows beyond the reader's place with other
messages: only the id of the message at the place shows that.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

DELETED_MAX = 1_000_000
"""Deleted messages of which the sequences are asked for: the reply has about 10 bytes for each."""


class LastMessage(NamedTuple):
    """The newest message of a bridge at a reader's place, or the one before foreign messages there."""

    seq: int
    message_id: str
    """Its id, from either header."""


UNKNOWN_MESSAGE = LastMessage(0, "")
"""Nothing to compare: before the first message, or the stream had removed it already."""


class FoundMessage(NamedTuple):
    """A message that the stream has now."""

    message_id: str
    time: str
    """When it was stored, as JetStream writes it: RFC 3339, UTC."""


class Place(NamedTuple):
    """How far a reader has read: everything up to `seq` of the stream that was created at `created` (empty: any)."""

    seq: int
    created: str = ""
    last_message: LastMessage = UNKNOWN_MESSAGE
    stored_by: str = ""
    """For a snapshot: when its start was stored. What the stream held then was stored before."""

    @property
    def needs_message(self) -> int:
        """The sequence of the message to compare with; 0 for none."""
        return self.last_message.seq or (self.seq if self.stored_by else 0)


@dataclass(frozen=True, slots=True)
class StreamView:
    """A stream's identity and extent, as of one reply to STREAM.INFO."""

    created: str = ""
    first_seq: int = 0
    last_seq: int = 0
    deleted_count: int = 0
    """Messages that are missing between the first and the last sequence."""
    deleted: Sequence[int] | None = ()
    """Their sequences, ascending; None when they were not asked for."""

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> StreamView:
        """Read a reply; it lists the deleted sequences if they were asked for with `deleted_details`."""
        state = info["state"]
        count, deleted = int(state.get("num_deleted") or 0), state.get("deleted")
        known = array("Q", sorted(deleted)) if deleted else None if count else ()
        return cls(str(info["created"]), int(state["first_seq"]), int(state["last_seq"]), count, known)

    def explained_by(self, earlier: StreamView) -> StreamView | None:
        """This view with the deleted sequences of an earlier one; None when messages were deleted since.

        A deleted message never returns, and is no longer counted once the first sequence is beyond it.
        """
        if self.deleted is not None:
            return self
        if earlier.deleted is None or earlier.created != self.created:
            return None
        kept = earlier.deleted[bisect_right(earlier.deleted, self.first_seq) :]
        return replace(self, deleted=kept) if len(kept) == self.deleted_count else None

    def has_deleted_after(self, seq: int) -> bool:
        """Whether a message after `seq` was deleted; true too when nobody can say."""
        if self.deleted is None:
            return self.deleted_count > 0
        return len(self.deleted) > 0 and self.deleted[-1] > seq


def why_out_of_date(place: Place, view: StreamView, found: FoundMessage | None = None) -> str:
    """Why a reader cannot continue from its place; empty when it can.

    `found` is the message at sequence `place.needs_message`, None when the stream has none there.
    """
    return _why_not_held(place, view) or _why_another(place, found)


def _why_not_held(place: Place, view: StreamView) -> str:
    """Why the stream does not hold everything after the place."""
    if place.created and view.created != place.created:
        return "the stream was created again"
    if view.last_seq < place.seq:
        return "the stream was cut short"
    if view.first_seq > place.seq + 1:
        return "the stream no longer holds what comes next"
    return "messages that come next were deleted from the stream" if view.has_deleted_after(place.seq) else ""


def _why_another(place: Place, found: FoundMessage | None) -> str:
    """Why the stream up to the place is not the one that was read."""
    if place.last_message.seq:
        if found is None:
            return "the stream no longer holds the message that was read last"
        if found.message_id != place.last_message.message_id:
            return "the stream was cut short and has grown again: it holds another message where reading ended"
    # without the Z: JetStream omits trailing zeros of the fraction
    if place.stored_by and found is not None and found.time.rstrip("Z") > place.stored_by.rstrip("Z"):
        return "the stream was cut short and has grown again since the snapshot began"
    return ""
