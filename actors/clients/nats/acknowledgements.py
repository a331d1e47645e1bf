"""Tracks from the replies to publishes how far the stream has stored what was sent."""

from __future__ import annotations

import re
from collections import Counter

from trio_util import AsyncValue

from actors.errors import BatchTooLarge, SinkFenced, SinkUnavailable, TakenForDuplicate
from actors.wire.jetstream import WRONG_LAST_SEQUENCE, Duplicate, ErrCode, Refused, Stored, parse_publish_reply
from actors.wire.nats import Msg

_FULL = frozenset(
    {
        ErrCode.ACCOUNT_RESOURCES_EXCEEDED,
        ErrCode.INSUFFICIENT_RESOURCES,
        ErrCode.STORAGE_RESOURCES_EXCEEDED,
        ErrCode.STORE_FAILED,
    }
)
"""A stream, an account or a disk has no more room."""


class Acknowledgements:
    """The highest sequence of this run that the stream has stored.

    Written by the NATS connection's reader through `on_reply`, read by the publisher and the acker. Every publish expects
    the sequence before it, so the acknowledgement of one message covers all earlier messages.
    """

    def __init__(self, last_seq: int, rejected: Counter[int] | None = None) -> None:
        """`rejected` counts refusals by JetStream's code, over the life of the process."""
        self._rejected: Counter[int] = Counter() if rejected is None else rejected
        self.reply_prefix = b""
        self.stored_seq = AsyncValue(last_seq)
        self.failure: SinkUnavailable | None = None

    def on_reply(self, message: Msg) -> None:
        """Handle one reply to a publish."""
        reply = parse_publish_reply(message, self.reply_prefix)
        if isinstance(reply, Stored):
            if reply.seq != reply.expected_seq:
                self._fail(_not_at_its_place(reply))
            elif reply.seq > self.stored_seq.value:
                self.stored_seq.value = reply.seq
        elif isinstance(reply, Duplicate):
            self._fail(_duplicate(f"duplicate: true, seq {reply.seq}" if reply.seq else "all messages of a batch were dropped"))
        elif isinstance(reply, Refused):
            self._rejected[reply.err_code or reply.code] += 1
            self._fail(_refused(reply, self.stored_seq.value))

    def _fail(self, error: SinkUnavailable) -> None:
        if self.failure is None:  # the first refusal is the cause, the rest follow from it
            if isinstance(error, SinkFenced):
                error.stored_seq = self.stored_seq.value
            self.failure = error
            self.stored_seq.value = -1  # wakes every task that waits

    async def beyond(self, seq: int) -> int:
        """Wait until more than `seq` is stored; return the stored sequence. Raises SinkUnavailable or SinkFenced."""
        await self.stored_seq.wait_value(lambda stored: stored > seq or stored < 0)
        if self.failure is not None:
            raise self.failure
        return int(self.stored_seq.value)


def _refused(reply: Refused, stored_seq: int) -> SinkUnavailable:
    said = f"{reply.code} {reply.err_code} {reply.description}"
    if reply.err_code in WRONG_LAST_SEQUENCE:
        if reply.description == f"wrong last sequence: {stored_seq}":  # within a batch the server drops duplicates silently
            return _duplicate(said)
        return not_where_left(
            said, "another writer published to it, or an acknowledgement was lost: reading the stream's tail again"
        )
    if reply.err_code == ErrCode.ATOMIC_BATCH_DUPLICATE_ID:
        return _duplicate(said)
    if reply.err_code == ErrCode.ATOMIC_BATCH_TOO_LARGE:
        return _too_large(reply, said)
    return SinkUnavailable(
        "WB221",
        "JetStream refused a message",
        said=said,
        means="nothing is confirmed to PostgreSQL; retrying from the stream's tail",
        fix="nats stream info; nats account info   # what is full" if reply.err_code in _FULL else "",
    )


def _too_large(reply: Refused, said: str) -> BatchTooLarge:
    limit = re.search(r"(\d+)$", reply.description)
    error = BatchTooLarge(
        "WB226",
        "the server takes only smaller atomic batches",
        said=said,
        means="batches are made smaller from here on: a transaction that does not fit into one is seen in parts",
    )
    error.messages_max = int(limit[1]) if limit else 1
    return error


def _not_at_its_place(reply: Stored) -> SinkUnavailable:
    return not_where_left(
        f"stored up to {reply.seq} instead of {reply.expected_seq}",
        "the server ended a batch, or another writer published: reading the stream's tail again",
    )


def _duplicate(said: str) -> TakenForDuplicate:
    return TakenForDuplicate(
        "WB225",
        "JetStream took a message for a duplicate",
        said=said,
        means="it remembers the id of a message that the stream no longer holds: somebody deleted it within the duplicate "
        "window. Sending it again, with its id in header Walbridge-Msg-Id",
    )


def not_where_left(said: str, means: str) -> SinkFenced:
    """Return the error for a stream whose last sequence is not the one that this bridge expected."""
    return SinkFenced("WB220", "the stream is not where this bridge left it", said=said, means=means)
