"""Where to go on: the stream's tail is the checkpoint, KV `bridges` and the slot are its witnesses.

Everything here decides from values already read; nothing is read or written. What PostgreSQL and NATS do in each of these
cases was measured: a slot starts again at its confirmed LSN however low the asked one; an LSN above is honoured; after a
failover LSNs run backwards from the switch point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from actors.contract.bridge_record import BridgeRecord
from actors.contract.message_ids import position_of
from actors.errors import ConfigError, Fatal
from actors.messages import Gap
from actors.positions import GAP_RANK, NO_LSN, ROW_RANK, START, Lsn, Position, format_lsn


@dataclass(frozen=True, slots=True)
class StreamTail:
    """The CDC stream's end."""

    stream: str
    last_seq: int
    """0 for a stream that never held a message."""
    msg_id: str | None
    """Of the last message that is there; None when all have expired or there never was one."""
    foreign: bool = False
    """The last message is there and has no id."""
    deleted: int = 0
    """How many sequences up to `last_seq` have no message any more."""


@dataclass(frozen=True, slots=True)
class Source:
    """PostgreSQL's side."""

    slot: str
    system_id: str
    timeline: int
    switch_points: tuple[tuple[int, Lsn], ...]
    wal_end: Lsn
    confirmed_lsn: Lsn | None
    """Of the slot; None when there is no slot."""
    lost: str = ""
    """Why the slot can no longer be read; empty when it can."""
    read_before: bool = False
    """Somebody has read from the slot, as far as PostgreSQL remembers."""
    database: str = ""


@dataclass(frozen=True, slots=True)
class Loss:
    """Changes can no longer be read: only a new slot goes on, and only when a person has said so."""

    code: str
    reason: str
    from_lsn: Lsn
    fix: str


@dataclass(frozen=True, slots=True)
class Start:
    """How the pipeline begins."""

    skip: Position
    """Up to here everything is stored."""
    start_lsn: Lsn
    """For START_REPLICATION; 0 starts at the slot's confirmed LSN."""
    last_seq: int
    """The stream's last sequence: the next publish expects it."""
    proven_lsn: Lsn
    """Everything below is stored, or is told as lost by `gap`: what the record may say of this timeline from now on."""
    gap: Gap | None = None
    """To be stored before anything else."""
    warning: str = ""


def tail_position(tail: StreamTail, record: BridgeRecord | None) -> Position | None:
    """Return the position of the stream's last message; None when nothing shows it.

    Raises ConfigError when the stream belongs to somebody else.
    """
    if tail.foreign:
        raise _foreign(tail, "its last message has no Nats-Msg-Id")
    found: Position | None = None
    if tail.msg_id is not None:
        try:
            found = position_of(tail.msg_id)
        except ValueError as exc:
            raise _foreign(tail, f"its last message has the id {tail.msg_id!r}") from exc
    if record is not None and tail.last_seq and tail.last_seq - tail.deleted < record.last_seq <= tail.last_seq:
        return record.position  # it has seen what was deleted
    return found


def _foreign(tail: StreamTail, found: str) -> ConfigError:
    return ConfigError(
        "WB241",
        f"stream {tail.stream} holds messages that no bridge wrote: {found}",
        means="one bridge writes one stream: its last message is the checkpoint",
        fix="give the bridge a stream of its own: --stream NAME; or, if somebody has published it by mistake, take it out:\n"
        f"nats stream rmm {tail.stream} {tail.last_seq - tail.deleted}",
    )


def check_owner(record: BridgeRecord | None, stream: str, slot: str) -> None:
    """Raises ConfigError when the stream is another slot's."""
    if record is not None and record.slot != slot:
        raise ConfigError(
            "WB242",
            f"stream {stream} belongs to slot {record.slot}, not to {slot}",
            means="two bridges in one stream would take turns refusing each other",
            fix=f"give this bridge a stream of its own: --stream NAME; or run it with --slot {record.slot}",
        )


def find_loss(
    source: Source,
    tail: StreamTail,
    record: BridgeRecord | None,
    history: Sequence[BridgeRecord],
    position: Position | None,
) -> Loss | None:
    """Return what only a new slot can fix. None when the slot can be read on, or when nothing was ever read."""
    again = "walbridge run --accept-gap   # stores cdc._bridge.gap and goes on; replicas take new snapshots"
    proven = _proven(source, tail, record, history, position)
    from_lsn = _from(proven, _pending(record, tail))
    if record is not None and record.system_id != source.system_id:
        reason = f"another database cluster: system id {source.system_id}, the stream was written from {record.system_id}"
        return Loss("WB150", reason, from_lsn, f"connect to the right server, or:\n{again}")
    if record is not None and not _descends(record, source):
        reason = f"timeline {source.timeline} of this server does not descend from timeline {record.timeline}"
        return Loss("WB150", reason, from_lsn, f"connect to the right server, or:\n{again}")
    if source.lost:
        return Loss("WB107", f"slot {source.slot} is lost: {source.lost}", from_lsn, again)
    if source.confirmed_lsn is None and (record is not None or position is not None):
        return Loss("WB108", f"slot {source.slot} was dropped", from_lsn, again)
    reached = max(proven, _within(record, source, record.confirmed_lsn) if record else NO_LSN)
    if position is not None and position.rank == ROW_RANK and (record is None or record.timeline == source.timeline):
        reached = max(reached, Lsn(position.lsn + 1))  # of a row it is where the record of its commit begins
    if reached > source.wal_end:
        reason = (
            f"the server is older than the stream: its WAL ends at {format_lsn(source.wal_end)}, the stream reaches "
            f"{format_lsn(reached)} (restored from an older copy?)"
        )
        return Loss("WB151", reason, from_lsn, f"connect to the right server, or:\n{again}")
    return None


def loss_error(loss: Loss) -> Fatal:
    """The words with which the process ends when nobody has accepted the loss."""
    return Fatal(
        loss.code,
        f"{loss.reason}; changes from {format_lsn(loss.from_lsn)} on can no longer be read",
        means="consumers must be told that changes are missing before the bridge may go on",
        fix=loss.fix,
    )


def start_after_loss(loss: Loss, source: Source, slot_lsn: Lsn, tail: StreamTail, tables: Sequence[str]) -> Start:
    """Go on with a slot that begins at `slot_lsn`; the gap event goes first."""
    gap = Gap(Position(slot_lsn, 0, GAP_RANK), source.slot, loss.reason, loss.from_lsn, slot_lsn, tuple(tables))
    return _after_gap(gap, tail, slot_lsn)


def plan_start(
    source: Source,
    tail: StreamTail,
    record: BridgeRecord | None,
    history: Sequence[BridgeRecord],
    position: Position | None,
    tables: Sequence[str],
) -> Start:
    """Go on from the tail, with a gap event first where the stream cannot be whole. The slot can be read.

    `history` are the older versions of the record: of a stream that was cut short one of them may still prove that
    nothing confirmed is missing.
    """
    confirmed = source.confirmed_lsn or NO_LSN
    at = position or START
    if record is None:
        if position is None and source.read_before:
            reason = f"slot {source.slot} was read before, but there is no trace of it in NATS: stream and record are gone"
            gap = Gap(Position(confirmed, 0, GAP_RANK), source.slot, reason, NO_LSN, confirmed, tuple(tables))
            return _after_gap(gap, tail, confirmed)
        warning = ""
        if position is not None:
            warning = f"KV bridges has no record of stream {tail.stream}: trusting its last message alone"
        elif tail.last_seq:
            warning = f"stream {tail.stream} is empty and KV bridges has no record of it: starting at the slot's position"
        return Start(at, at.lsn, tail.last_seq, confirmed, warning=warning)
    pending = _pending(record, tail)
    switch = None if record.timeline == source.timeline else dict(source.switch_points)[record.timeline]
    if switch is not None and (at.lsn >= switch or pending is not None):
        reason = f"timeline {record.timeline} was left at {format_lsn(switch)}: what was read beyond is void"
        resume, last = max(switch, confirmed), max(at.lsn, pending.to_lsn if pending else NO_LSN)
        gap = Gap(Position(resume, 0, GAP_RANK), source.slot, reason, _from(switch, pending), max(last, resume), tuple(tables))
        return _after_gap(gap, tail, resume)
    proven = _proven(source, tail, record, history, position)
    if confirmed > proven:
        if record.last_seq > tail.last_seq:
            reason = f"stream {tail.stream} was cut short: it ends at {tail.last_seq}, {record.last_seq} was stored before"
        else:
            reason = f"slot {source.slot} was moved or made anew: it is beyond what was ever confirmed"
        gap = Gap(Position(confirmed, 0, GAP_RANK), source.slot, reason, _from(proven, pending), confirmed, tuple(tables))
        return _after_gap(gap, tail, confirmed)
    if pending is not None:
        return _after_gap(pending, tail, proven)
    return Start(at, at.lsn, tail.last_seq, proven)


def _pending(record: BridgeRecord | None, tail: StreamTail) -> Gap | None:
    """The gap event that the record announces, unless it is stored: it is the first message after the record.

    Of a stream that has been cut short since, what is missing is decided again.
    """
    if record is None or not tail.last_seq - tail.deleted <= record.last_seq <= tail.last_seq:
        return None
    return record.pending_gap


def _proven(
    source: Source, tail: StreamTail, record: BridgeRecord | None, history: Sequence[BridgeRecord], position: Position | None
) -> Lsn:
    """Everything below this LSN of the server's timeline is stored, or is told as lost by the pending gap event.

    The stream may have been cut short: then only those versions of the record count whose messages it still holds.
    """
    at = position or START
    if record is None:
        return at.lsn
    if _pending(record, tail) is not None:
        return _within(record, source, record.confirmed_lsn)
    witnesses = [
        r for r in (*history, record) if r.position <= at and r.last_seq <= tail.last_seq and r.system_id == record.system_id
    ]
    return max([_within(record, source, at.lsn), *(_within(r, source, r.confirmed_lsn) for r in witnesses)])


def _after_gap(gap: Gap, tail: StreamTail, proven_lsn: Lsn) -> Start:
    """Begin with a gap event."""
    return Start(gap.position, NO_LSN, tail.last_seq, proven_lsn, gap._replace(number=tail.last_seq))


def _from(lsn: Lsn, pending: Gap | None) -> Lsn:
    """Where what is missing begins: a gap that was decided and is not stored yet is part of it."""
    return lsn if pending is None else min(lsn, pending.from_lsn)


def _within(record: BridgeRecord, source: Source, lsn: Lsn) -> Lsn:
    """An LSN of the record's time, no further than to where its timeline was left: beyond, it names other WAL."""
    if record.timeline == source.timeline or record.system_id != source.system_id:
        return lsn
    return min(lsn, dict(source.switch_points).get(record.timeline, lsn))


def _descends(record: BridgeRecord, source: Source) -> bool:
    return record.timeline == source.timeline or record.timeline in dict(source.switch_points)
