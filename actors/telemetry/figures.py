"""Each figure that users see, computed in one place: page, /status, `walbridge status`, /metrics and the log agree. No I/O."""

from __future__ import annotations

import math

from actors.positions import Lsn
from actors.telemetry.telemetry import ConsumerHealth, SlotHealth, StreamHealth, Telemetry

ROOM_FROM_SHARE = 0.1
ROOM_UNDER_S = 86400.0
"""How long the WAL budget lasts is said once more than this share is used, or when less than this is left: before that, the
rate is that of single checkpoints."""
FULL_SHARE = 0.9
"""A stream that is fuller than this is about to discard its oldest messages."""
UNREAD_SHARE = 0.8
"""A consumer that has yet to read more than this share of the stream is near the messages that are discarded first."""


def lag_s(t: Telemetry, now_unix_s: float) -> float:
    """The age of the oldest change that PostgreSQL has told of and JetStream has not stored.

    While PostgreSQL has WAL that it has not sent: at least the time since then.
    """
    return max(unstored_s(t, now_unix_s), unread_s(t, now_unix_s))


def unstored_s(t: Telemetry, now_unix_s: float) -> float:
    """The age of the oldest change that was read and is not stored; 0 if there is none."""
    return t.backlog.unstored_s(t.received_lsn, now_unix_s)


def unread_s(t: Telemetry, now_unix_s: float) -> float:
    """For how long, at least, PostgreSQL has had WAL that it has not sent to the bridge; 0 if there is none."""
    return t.backlog.unread_s(t.received_lsn, now_unix_s)


def unread_bytes(t: Telemetry) -> int:
    """WAL that PostgreSQL has written and not sent to the bridge, as of the last look."""
    return t.backlog.unread_bytes(t.received_lsn)


def wal_end(t: Telemetry) -> Lsn:
    """How far PostgreSQL's WAL reaches: by the last look, or by what it has sent since."""
    return max(t.slot.current_lsn, t.received_lsn)


def confirmed_lsn(t: Telemetry) -> Lsn:
    """What is confirmed to PostgreSQL: by the bridge, or by an earlier one."""
    return max(t.confirmed_lsn, t.slot.confirmed_lsn)


def held_bytes(t: Telemetry) -> int:
    """WAL that PostgreSQL's disk holds for the slot."""
    return max(0, wal_end(t) - t.slot.restart_lsn) if t.slot.restart_lsn else 0


def unconfirmed_bytes(t: Telemetry) -> int:
    """WAL after the confirmed LSN."""
    confirmed = confirmed_lsn(t)
    return max(0, wal_end(t) - confirmed) if confirmed else 0


def budget_bytes(slot: SlotHealth) -> int | None:
    """WAL that PostgreSQL may hold for the slot; None without a limit, and when the slot is lost."""
    return slot.lag_bytes + slot.safe_wal_bytes if slot.wal_limited and slot.safe_wal_bytes is not None else None


def room_s(slot: SlotHealth) -> float:
    """How long the WAL budget lasts at the present rate; infinite while that is far off or nobody knows."""
    budget = budget_bytes(slot)
    if budget is None or not math.isfinite(slot.seconds_to_loss):
        return math.inf
    used = slot.lag_bytes > ROOM_FROM_SHARE * budget
    return slot.seconds_to_loss if used or slot.seconds_to_loss < ROOM_UNDER_S else math.inf


def is_discarding(stream: StreamHealth, now_unix_s: float) -> bool:
    """Whether the stream removes its oldest messages, or is about to."""
    by_age = stream.age_max_s and stream.messages and now_unix_s - stream.oldest_unix_s > FULL_SHARE * stream.age_max_s
    return bool(by_age) or (stream.discards_old and fullness(stream) > FULL_SHARE)


def fullness(stream: StreamHealth) -> float:
    """The share of its limit that the stream has reached, in bytes or in messages; 0 without limits."""
    shares = ((stream.bytes, stream.bytes_max), (stream.messages, stream.messages_max))
    return max((used / most for used, most in shares if most), default=0.0)


def is_at_risk(consumer: ConsumerHealth, stream: StreamHealth, now_unix_s: float) -> bool:
    """Whether the consumer may soon lose messages that it has not read."""
    return (
        not consumer.is_left and consumer.pending > 0 and consumer.history_used > UNREAD_SHARE
        and is_discarding(stream, now_unix_s)
    )  # fmt: skip
