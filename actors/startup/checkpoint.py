"""Decides where to resume: the stream's tail is the checkpoint, KV `bridges` and the slot are its witnesses.

Everything here decides from values already read, without I/O. What PostgreSQL does was measured: a slot starts at its
confirmed LSN even if a lower LSN is requested; a higher LSN is honoured; after a failover LSNs restart lower, at the switch
point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from actors.contract.bridge_record import BridgeRecord, Held
from actors.contract.message_ids import position_of
from actors.errors import ConfigError, Fatal
from actors.messages import Gap, LastStored, Transaction
from actors.positions import GAP_RANK, NO_LSN, ROW_RANK, START, Lsn, Position, format_lsn

ACCEPT_GAP = "walbridge run --accept-gap   # once: stores cdc._bridge.gap and continues; replicas take new snapshots"
ACCEPT_UPGRADE = "walbridge run --accept-upgrade   # continues without a gap if slot and stream agree"
RIGHT_SERVER = f"connect to the right server, or:\n{ACCEPT_GAP}"


@dataclass(frozen=True, slots=True)
class StreamTail:
    """The end of the CDC stream."""

    stream: str
    last_seq: int
    """0 for a stream that never held a message."""
    msg_id: str | None
    """Id of the last message still stored; None when all have expired or there never was one."""
    foreign: bool = False
    """The last message has no id."""
    deleted: int = 0
    """How many sequences up to `last_seq` no longer have a message."""
    transaction: Transaction | None = None
    """Of the last message, if that is an event of a row."""
    token: str = ""
    """The table of the last message; empty when that is no table's event."""
    relation_oid: int | None = None
    """The object id of that table at the time."""


@dataclass(frozen=True, slots=True)
class Source:
    """The state of PostgreSQL and the slot."""

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
    """The slot has been read, as far as PostgreSQL remembers."""
    database: str = ""


@dataclass(frozen=True, slots=True)
class Loss:
    """A range of changes that can no longer be read: only a new slot continues, and only with the user's consent."""

    code: str
    reason: str
    from_lsn: Lsn
    fix: str
    to_lsn: Lsn = NO_LSN
    """How far the stream reaches into what the server does not have; 0 if the loss ends where the slot begins."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where and how the pipeline starts."""

    skip: Position
    """Everything up to this position is stored."""
    start_lsn: Lsn
    """For START_REPLICATION; 0 starts at the slot's confirmed LSN."""
    last_seq: int
    """The stream's last sequence: the next publish expects it."""
    proven_lsn: Lsn
    """Everything below is stored, or reported as lost by `gap`; the record confirms this LSN from now on."""
    gap: Gap | None = None
    """A gap event to store before anything else."""
    warning: str = ""
    expected: LastStored | None = None
    """The last stored transaction, if PostgreSQL sends it once more: another one in its place is another history."""


def tail_position(tail: StreamTail, record: BridgeRecord | None) -> Position | None:
    """Return the position of the stream's last message; None when it is unknown.

    Raises ConfigError when something other than a bridge wrote the stream.
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
        return record.position  # written before the message was deleted
    return found


def unheld_at_end(tail: StreamTail, record: BridgeRecord | None) -> int:
    """Return how many sequences after the message at `tail_position` no longer have a message.

    The bridge publishes the changes of these messages again, and JetStream may remember their ids.
    """
    held = tail.last_seq - tail.deleted
    if record is not None and held < record.last_seq <= tail.last_seq:
        held = record.last_seq
    return tail.last_seq - held


def _foreign(tail: StreamTail, found: str) -> ConfigError:
    return ConfigError(
        "WB241",
        f"stream {tail.stream} holds messages that no bridge wrote: {found}",
        means="one bridge writes one stream: its last message is the checkpoint",
        fix="give the bridge a stream of its own: --stream NAME; or, if that message was published by mistake, delete it:\n"
        f"nats stream rmm {tail.stream} {tail.last_seq - tail.deleted}",
    )


def check_owner(record: BridgeRecord | None, stream: str, slot: str, database: str) -> None:
    """Raise ConfigError when the stream belongs to another slot. `database` is where the slot would be."""
    if record is None or record.slot == slot:
        return
    is_elsewhere = bool(record.database) and record.database != database
    whose = f"{record.slot} of database {record.database}" if is_elsewhere else record.slot
    raise ConfigError(
        "WB242",
        f"stream {stream} belongs to slot {whose}, not to {slot}",
        means="two bridges that write one stream would fence each other again and again",
        fix="give this bridge a stream of its own: --stream NAME"
        + ("" if is_elsewhere else f"; or run it with --slot {record.slot}"),
    )


def find_loss(
    source: Source,
    tail: StreamTail,
    record: BridgeRecord | None,
    history: Sequence[BridgeRecord],
    position: Position | None,
) -> Loss | None:
    """Return a loss that only a new slot can fix; None when the slot can still be read, or when nothing was ever read."""
    proven = _proven(source, tail, record, history, position)
    from_lsn = _from(proven, _pending(record, tail))
    if record is not None and record.system_id != source.system_id:
        reason = f"another database cluster: system id {source.system_id}, the stream was written from {record.system_id}"
        return Loss("WB150", reason, from_lsn, f"{RIGHT_SERVER}\nif pg_upgrade made this server: {ACCEPT_UPGRADE}")
    if record is not None and not _descends(record, source):
        reason = f"timeline {source.timeline} of this server does not descend from timeline {record.timeline}"
        return Loss("WB150", reason, from_lsn, RIGHT_SERVER)
    reached = max(proven, _within(record, source, record.confirmed_lsn) if record else NO_LSN)
    witness = _witness_of(tail, record, history)
    of_this_wal = witness is None or (witness.system_id, witness.timeline) == (source.system_id, source.timeline)
    if position is not None and position.rank == ROW_RANK and of_this_wal:
        reached = max(reached, Lsn(position.lsn + 1))  # a row's LSN is where its commit record begins
    if reached > source.wal_end:
        reason = (
            f"the server is older than the stream: its WAL ends at {format_lsn(source.wal_end)}, the stream reaches "
            f"{format_lsn(reached)} (restored from an older copy?)"
        )
        # all that both are known to have in common: nothing if the copy is from before the slot
        from_lsn = min(from_lsn, source.confirmed_lsn or NO_LSN)
        return Loss("WB151", reason, from_lsn, RIGHT_SERVER, reached)
    if source.lost:
        reason = f"slot {source.slot} is lost: {source.lost}"
        return Loss("WB107", reason, from_lsn, ACCEPT_GAP, _void_until(source, tail, record, history, position))
    if source.confirmed_lsn is None and (record is not None or position is not None):
        reason = f"slot {source.slot} was dropped"
        return Loss("WB108", reason, from_lsn, ACCEPT_GAP, _void_until(source, tail, record, history, position))
    return None


def other_history(source: Source, position: Position) -> Loss:
    """Return the loss when PostgreSQL does not send the last stored transaction again, but another in its place.

    The server is a copy from before that transaction, slot included, and has written other WAL since. Nobody knows where the
    two histories part: not before what the slot has confirmed.
    """
    confirmed = source.confirmed_lsn or NO_LSN
    return Loss(
        "WB151",
        f"the server's history is not the stream's: the last stored transaction, at {format_lsn(position.lsn)}, is not in its "
        "WAL (restored from an older copy?)",
        confirmed,
        RIGHT_SERVER,
        Lsn(position.lsn + 1),
    )


def loss_error(loss: Loss) -> Fatal:
    """Return the error that ends the process when the user has not accepted the loss."""
    return Fatal(
        loss.code,
        f"{loss.reason}; changes from {format_lsn(loss.from_lsn)} on can no longer be read",
        means="consumers must learn that changes are missing before the bridge may continue",
        fix=loss.fix,
    )


def start_after_loss(loss: Loss, source: Source, slot_lsn: Lsn, tail: StreamTail, tables: Sequence[str]) -> Start:
    """Continue with a slot that begins at `slot_lsn`, after a gap event."""
    to_lsn = max(slot_lsn, loss.from_lsn, loss.to_lsn)  # another cluster's LSNs may be lower
    gap = _gap(slot_lsn, source, loss.reason, loss.from_lsn, to_lsn, tables)
    return _after_gap(gap, tail, slot_lsn)


def plan_start(
    source: Source,
    tail: StreamTail,
    record: BridgeRecord | None,
    history: Sequence[BridgeRecord],
    position: Position | None,
    tables: Sequence[str],
) -> Start:
    """Continue from the tail, after a gap event if the stream cannot be complete. The slot must be readable.

    `history` holds the older versions of the record: if the stream was cut short, one of them may still prove that no
    confirmed change is missing.
    """
    confirmed = source.confirmed_lsn or NO_LSN
    at = position or START
    if record is None:
        if position is None and source.read_before:
            reason = f"slot {source.slot} was read before, but NATS has no trace of it: stream and record are gone"
            gap = _gap(confirmed, source, reason, NO_LSN, confirmed, tables)
            return _after_gap(gap, tail, confirmed)
        warning = ""
        if position is not None:
            warning = f"KV bridges has no record of stream {tail.stream}: trusting its last message alone"
        elif tail.last_seq:
            warning = f"stream {tail.stream} is empty and KV bridges has no record of it: starting at the slot's position"
        return Start(at, at.lsn, tail.last_seq, confirmed, warning=warning, expected=_expected(tail, None, at, confirmed))
    pending = _pending(record, tail)
    witness = record if pending is not None else _witness_of(tail, record, history) or record
    switch = None if witness.timeline == source.timeline else dict(source.switch_points).get(witness.timeline)
    # a message between transactions is from before its LSN
    is_beyond = switch is not None and (at.lsn > switch or (at.lsn == switch and at.rank != GAP_RANK))
    if switch is not None and (is_beyond or pending is not None):
        reason = f"timeline {witness.timeline} was left at {format_lsn(switch)}: changes read beyond it are void"
        resume, last = max(switch, confirmed), max(Lsn(at.lsn + 1), pending.to_lsn if pending else NO_LSN)
        gap = _gap(resume, source, reason, _from(switch, pending), max(last, resume), tables)
        return _after_gap(gap, tail, resume)
    proven = _proven(source, tail, record, history, position)
    if confirmed > proven:
        if record.last_seq > tail.last_seq:
            reason = f"stream {tail.stream} was cut short: it ends at {tail.last_seq}, {record.last_seq} was stored before"
        else:
            reason = (
                f"slot {source.slot} is beyond what stream {tail.stream} and its record prove: NATS lost the newest messages of"
                " both, or the slot was moved or created again"
            )
        gap = _gap(confirmed, source, reason, _from(proven, pending), confirmed, tables)
        return _after_gap(gap, tail, confirmed)
    if pending is not None:
        return _after_gap(pending, tail, proven)
    return Start(at, at.lsn, tail.last_seq, proven, expected=_expected(tail, record, at, confirmed))


def commit_us_of(tail: StreamTail, record: BridgeRecord | None, at: Position) -> int:
    """Return when the transaction at a start's position was committed, as `BridgeRecord.commit_us`; 0 if nobody knows."""
    if record is not None and record.commit_us and record.position == at:
        return record.commit_us  # its message may have been removed
    found = tail.transaction
    return found.commit_us if found is not None and found.commit_lsn == at.lsn else 0


def held_at_start(start: Start, record: BridgeRecord | None, timeline: int) -> tuple[Held, ...]:
    """Return the points with which a hold of confirmations begins: those of the record that still hold, or the stream's end.

    A point of an earlier timeline may be beyond its end.
    """
    points = record.held if record is not None and start.gap is None else ()
    kept = tuple(
        point
        for point in points
        if point.timeline == timeline and point.last_seq <= start.last_seq and point.position <= start.skip
    )
    return kept or (Held(start.last_seq, start.skip, start.proven_lsn, timeline),)


def _expected(tail: StreamTail, record: BridgeRecord | None, at: Position, confirmed: Lsn) -> LastStored | None:
    """Return the last stored transaction, if the bridge continues from it and the slot sends it again."""
    commit_us = commit_us_of(tail, record, at)
    return LastStored(at.lsn, commit_us) if commit_us and at.lsn >= confirmed else None


def _pending(record: BridgeRecord | None, tail: StreamTail) -> Gap | None:
    """Return the gap event that the record announces, unless it is stored as the first message after the record.

    If the stream was cut short since, the gap is decided again instead.
    """
    if record is None or not tail.last_seq - tail.deleted <= record.last_seq <= tail.last_seq:
        return None
    return record.pending_gap


def _proven(
    source: Source, tail: StreamTail, record: BridgeRecord | None, history: Sequence[BridgeRecord], position: Position | None
) -> Lsn:
    """Return the LSN of the server's timeline below which everything is stored, or reported as lost by the pending gap event.

    If the stream was cut short, only versions of the record count whose messages the stream still holds.
    """
    at = position or START
    if record is None:
        return at.lsn
    if _pending(record, tail) is not None:
        return _within(record, source, record.confirmed_lsn)
    witnesses = [
        r for r in (*history, record) if r.position <= at and r.last_seq <= tail.last_seq and r.system_id == record.system_id
    ]
    of_tail = _witness_of(tail, record, history) or record
    return max([_within(of_tail, source, at.lsn), *(_within(r, source, r.confirmed_lsn) for r in witnesses)])


def _void_until(
    source: Source, tail: StreamTail, record: BridgeRecord | None, history: Sequence[BridgeRecord], position: Position | None
) -> Lsn:
    """Return the LSN up to which the stream holds changes of a timeline that was left before them; 0 if it holds none."""
    witness = _witness_of(tail, record, history)
    if witness is None or position is None or witness.timeline == source.timeline:
        return NO_LSN
    switch = dict(source.switch_points).get(witness.timeline)
    return Lsn(position.lsn + 1) if switch is not None and position.lsn >= switch else NO_LSN


def _witness_of(tail: StreamTail, record: BridgeRecord | None, history: Sequence[BridgeRecord]) -> BridgeRecord | None:
    """Return the version of the record under which the stream's last message was stored: it names that message's timeline.

    That is not always the newest: the stream may have been cut short since, or a gap event may be decided and not stored.
    Falls back on the record itself when no version is old enough.
    """
    if record is None:
        return None
    last = tail.last_seq - tail.deleted
    for version in (record, *reversed(history)):
        if version.last_seq < last or (version.last_seq == last and version.pending_gap is None):
            return version
    return record


def _gap(at: Lsn, source: Source, reason: str, from_lsn: Lsn, to_lsn: Lsn, tables: Sequence[str]) -> Gap:
    """Make a gap event of the bridge's own: it stands before everything at the LSN where the bridge continues."""
    return Gap(Position(at, 0, GAP_RANK), source.slot, reason, from_lsn, to_lsn, tuple(tables))


def _after_gap(gap: Gap, tail: StreamTail, proven_lsn: Lsn) -> Start:
    """Start with a gap event."""
    return Start(gap.position, NO_LSN, tail.last_seq, proven_lsn, gap._replace(number=tail.last_seq))


def _from(lsn: Lsn, pending: Gap | None) -> Lsn:
    """Return where the missing range begins: a decided gap that is not stored yet is part of it."""
    return lsn if pending is None else min(lsn, pending.from_lsn)


def _within(record: BridgeRecord, source: Source, lsn: Lsn) -> Lsn:
    """Limit an LSN of the record to where its timeline was left: beyond that point the LSN names other WAL."""
    if record.timeline == source.timeline or record.system_id != source.system_id:
        return lsn
    return min(lsn, dict(source.switch_points).get(record.timeline, lsn))


def _descends(record: BridgeRecord, source: Source) -> bool:
    return record.timeline == source.timeline or record.timeline in dict(source.switch_points)
