"""Decides whose ids JetStream remembers although the stream no longer holds the messages."""

from __future__ import annotations

import sys

from actors.errors import SinkFenced, TakenForDuplicate, Transient


class RememberedIds:
    """Messages were deleted at the stream's end within the duplicate window: published again, they are dropped.

    JetStream does not say which ids it remembers, so the bridge learns of them by a fault. The expected sequence alone already
    keeps doubles out.
    """

    def __init__(self) -> None:
        self._fault: Transient | None = None
        self._stuck_at = -1

    def note(self, fault: Transient) -> None:
        """Note the fault that ended a run."""
        self._fault = fault

    def messages(self, last_seq: int, unheld: int) -> int:
        """Return of how many messages the next run must hide the ids from JetStream, the first ones.

        `last_seq` is the stream's last sequence, and `unheld` at its end have no message. A run that got no further hides all.
        """
        fault, self._fault = self._fault, None
        dropped = isinstance(fault, TakenForDuplicate)
        # replicated streams may report the messages after the dropped one first: nobody else has published, but a message of
        # ours was not stored at its place
        fenced_alone = isinstance(fault, SinkFenced) and fault.stored_seq == last_seq
        if not dropped and not fenced_alone:
            return 0
        stuck, self._stuck_at = self._stuck_at == last_seq, last_seq
        return sys.maxsize if stuck else max(1, unheld)
