"""Reads both sides and decides where one run of the pipeline starts, then takes the stream over."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from actors.clients.nats.acknowledgements import not_where_left
from actors.clients.nats.jetstream import JetStream, JetStreamError, StoredMessage, where_it_exists
from actors.clients.nats.record_store import RecordStore
from actors.clients.postgres.connection import PgConnection
from actors.clients.postgres.replication import identify_system, timeline_history
from actors.clients.postgres.slots import create_slot, drop_slot, slot_state
from actors.contract.bridge_record import BridgeRecord
from actors.contract.compression import Decompressors
from actors.contract.decoding import decode_body
from actors.contract.event_encoder import EventEncoder
from actors.contract.message_ids import id_in
from actors.contract.subjects import BRIDGES, CDC_ALL, DICTIONARIES, parse
from actors.errors import MalformedMessage
from actors.messages import Transaction
from actors.positions import NO_LSN, Lsn, Position, format_lsn
from actors.settings.config import Config
from actors.startup.checkpoint import (
    Loss,
    Source,
    Start,
    StreamTail,
    check_owner,
    commit_us_of,
    find_loss,
    held_at_start,
    loss_error,
    other_history,
    plan_start,
    start_after_loss,
    tail_position,
    unheld_at_end,
)
from actors.startup.streams import StreamSetup, check_changes
from actors.startup.upgrade import after_upgrade, no_upgrade, why_no_upgrade
from actors.telemetry.log import get_logger
from actors.telemetry.telemetry import Problem
from actors.wire.jetstream import EXPECTED_LAST_SEQUENCE_HEADER, MSG_ID_HEADER, OWN_MSG_ID_HEADER, WRONG_LAST_SEQUENCE

log = get_logger("startup")


@dataclass(frozen=True, slots=True)
class StartPlan:
    """Where one run of the pipeline begins."""

    start: Start
    confirmed_lsn: Lsn
    """The slot's own; no status update reports more before the stream holds more."""
    store: RecordStore
    wal_end: Lsn
    """Where PostgreSQL's WAL ended at the start; below it the bridge is catching up."""
    upgraded: bool = False
    """The server is another one than before, made from it by pg_upgrade, and the user has said so."""
    unheld: int = 0
    """Sequences at the stream's end, after the message from which the bridge continues, that no longer have a message."""
    slot_connection: PgConnection | None = None
    """The connection that created a temporary slot and alone can read it; owned by the stream that is opened on it."""

    def close(self) -> None:
        """Close the slot's connection when no stream will be opened."""
        if self.slot_connection is not None:
            self.slot_connection.close()


async def find_start(
    config: Config,
    connection: PgConnection,
    js: JetStream,
    setup: StreamSetup,
    tables: Mapping[str, int],
    *,
    read_told: Callable[[BridgeRecord | None], Awaitable[Collection[str]]],
    history_diverged: bool = False,
    stored_before: int = 0,
    show: Callable[[Problem], None] = lambda _: None,
) -> StartPlan:
    """Read both sides and decide where to resume; create the slot if there is none, and show what that waits for.

    `tables` are the publication's: token -> OID. `read_told` returns, given the record, those that readers think to be
    published. `stored_before` is the last sequence that this process knows to be stored.

    Raises Fatal when changes are permanently lost and the user has not accepted that, ConfigError when the stream belongs to
    another slot.
    """
    slot, stream, temporary = config.source.slot, config.publish.stream, config.source.temporary
    record, revision, history, tail = await _read_sink(js, stream, setup.last_seq, slot, connection.database)
    position, unheld = tail_position(tail, record), unheld_at_end(tail, record)
    tokens = sorted(tables)
    # A table that was taken out of the publication may have been published when its changes were lost. A run may have begun
    # since that did not come so far: then the record no longer names the table, and readers have not been told yet.
    affected = sorted({*tables, *(_tables_before(record) if record else ()), *await read_told(record)})
    replication = await PgConnection.connect(config.postgres, replication=True, application_name="walbridge startup")
    try:
        source = await _read_source(connection, replication, slot)
        before, upgraded = record, _is_upgrade(config, source, tail, record, position, tables)
        if before is not None and upgraded:
            log.warning(
                "continuing on an upgraded server; leave out --accept-upgrade from now on",
                system_id=source.system_id, before=before.system_id, confirmed_lsn=format_lsn(source.confirmed_lsn or NO_LSN),
            )  # fmt: skip
            record, history = after_upgrade(source, before), ()
        loss = _accepted_loss(config, source, tail, record, history, position, history_diverged=history_diverged)
        if loss is not None and source.lost:
            await drop_slot(connection, slot)
        confirmed_lsn = source.confirmed_lsn
        if source.lost or confirmed_lsn is None:
            confirmed_lsn = await _make_slot(replication, slot, temporary=temporary, show=show)
        if loss is not None:
            start = start_after_loss(loss, source, confirmed_lsn, tail, affected)
        else:
            source = replace(source, confirmed_lsn=confirmed_lsn)
            start = plan_start(source, tail, record, history, position, affected)
    except BaseException:
        replication.close()
        raise
    if not temporary:
        replication.close()
    if start.warning:
        log.warning(start.warning)
    stored_before = max(stored_before, record.last_seq if record is not None else 0)
    if start.gap is None and stored_before > tail.last_seq:
        log.warning(
            f"stream {stream} was cut short; PostgreSQL has kept what is missing, and it is stored again",
            last_seq=tail.last_seq, before=stored_before,
        )  # fmt: skip
    if start.gap is not None:
        log.error(
            "changes are lost; storing a gap event",
            reason=start.gap.reason, from_lsn=format_lsn(start.gap.from_lsn), to_lsn=format_lsn(start.gap.to_lsn),
        )  # fmt: skip
    is_first, no_record = record is None and start.gap is None, BridgeRecord(slot, "", "", 0)
    record = replace(
        record or no_record,  # what is not decided here stays: schemas, suspended tables, large tables, a pause
        publication=config.source.publication, system_id=source.system_id, timeline=source.timeline,
        switch_points=source.switch_points, position=start.skip, last_seq=start.last_seq, confirmed_lsn=start.proven_lsn,
        tables=tuple(tokens), pending_gap=start.gap, database=source.database,
        held=held_at_start(start, record, source.timeline) if config.publish.confirm_hold_s else (),
        commit_us=commit_us_of(tail, record, start.skip) if start.gap is None else 0,
        gaps=(record or no_record).noting(start.gap, start.last_seq + 1, time.time()),
    )  # fmt: skip
    store = RecordStore(js, stream, record, revision)
    if is_first:
        # before anything is read: from then on, a slot that was read and a NATS without a trace of it mean a loss
        await store.update()
    return StartPlan(
        start, confirmed_lsn, store, source.wal_end, upgraded, unheld,
        replication if temporary else None,
    )  # fmt: skip


async def foresee_start(config: Config, connection: PgConnection, js: JetStream, tables: Mapping[str, int]) -> Start | None:
    """Decide as `find_start` would now, without changing anything; None if the bridge would begin with a new slot.

    A missing stream or bucket is taken for an empty one, and a new slot for one at the end of the WAL. Raises what `find_start`
    raises.
    """
    slot = config.source.slot
    replication = await PgConnection.connect(config.postgres, replication=True, application_name="walbridge doctor")
    try:
        # a bridge may be at work: what the slot has confirmed by now is in the record that is read next, and what the stream
        # holds then is in the WAL that ends after that
        before = await _read_source(connection, replication, slot)
        record, _, history, tail = await _read_sink(js, config.publish.stream, None, slot, connection.database)
        source = replace(await _read_source(connection, replication, slot), confirmed_lsn=before.confirmed_lsn)
    finally:
        replication.close()
    position = tail_position(tail, record)
    if record is not None and _is_upgrade(config, source, tail, record, position, tables):
        record, history = after_upgrade(source, record), ()
    loss = _accepted_loss(config, source, tail, record, history, position)
    if loss is not None:
        return start_after_loss(loss, source, source.wal_end, tail, ())
    return None if source.confirmed_lsn is None else plan_start(source, tail, record, history, position, ())


def _is_upgrade(
    config: Config, source: Source, tail: StreamTail, record: BridgeRecord | None, position: Position | None,
    tables: Mapping[str, int],
) -> bool:  # fmt: skip
    """Whether the user has said that another server is an upgrade of the record's. Raises Fatal if something contradicts it."""
    if not config.accept_upgrade or record is None or record.system_id == source.system_id:
        return False
    contradiction = why_no_upgrade(source, tail, record, position, tables)
    if contradiction:
        raise no_upgrade(source, record, contradiction)
    return True


def _accepted_loss(
    config: Config, source: Source, tail: StreamTail, record: BridgeRecord | None, history: Sequence[BridgeRecord],
    position: Position | None, *, history_diverged: bool = False,
) -> Loss | None:  # fmt: skip
    """Return the loss with which the bridge goes on, if there is any. Raises Fatal for one that the user has not accepted."""
    loss = find_loss(source, tail, record, history, position)
    if history_diverged and position is not None and (loss is None or loss.code in ("WB107", "WB108")):
        loss = other_history(source, position)  # although the slot that showed it may be gone by now
    if loss is not None and loss.code == "WB108" and config.source.temporary:
        return replace(loss, reason=f"temporary slot {source.slot} ended with its connection")
    if loss is not None and not config.accept_gap:
        raise loss_error(loss)
    return loss


async def take_over(plan: StartPlan, js: JetStream, encoder: EventEncoder) -> StartPlan:
    """Tie the stream to this slot and server, and store the gap event, if any; return the plan without the gap.

    The record announces the gap event before it is stored and drops the announcement afterwards, so that after any
    interruption the next start neither forgets the gap nor reports it twice. Only the slot's reader may call this. Raises
    SinkUnavailable, and SinkFenced when another bridge has written to the stream or the record.
    """
    await plan.store.update()
    gap, last_seq = plan.start.gap, plan.start.last_seq
    if gap is None:
        return plan
    message = encoder.gap(gap)
    expected, seq = {EXPECTED_LAST_SEQUENCE_HEADER: str(last_seq)}, 0
    try:
        for id_header in (MSG_ID_HEADER, OWN_MSG_ID_HEADER):  # the second if JetStream remembers the id of a lost message
            if seq <= last_seq:
                headers = expected | {id_header: message.msg_id.decode()}
                seq = await js.publish(message.subject.decode(), message.body, headers)
    except JetStreamError as exc:
        if exc.err_code not in WRONG_LAST_SEQUENCE:
            raise
        raise not_where_left(exc.said, "another writer published to it: reading the stream's tail again") from exc
    await check_changes(js, plan.store.stream)  # a stream that does not keep it has acknowledged it as well
    await plan.store.update(pending_gap=None, last_seq=seq)
    return replace(plan, start=replace(plan.start, last_seq=seq, gap=None))


async def _read_sink(
    js: JetStream, stream: str, last_seq: int | None, slot: str, database: str
) -> tuple[BridgeRecord | None, int, Sequence[BridgeRecord], StreamTail]:
    """Read the record, its revision and older versions, and the tail, at `last_seq` or wherever it is after that.

    Raises ConfigError when the stream is another slot's.
    """
    record, revision, history = await _read_record(js, stream)
    check_owner(record, stream, slot, database)
    if record is not None:
        history = [*record.of_held(), *history]
    if last_seq is None:
        info = await js.stream_info(stream)
        last_seq = int(info["state"]["last_seq"]) if info is not None else 0
    return record, revision, history, await _read_tail(js, stream, last_seq)


async def _read_record(js: JetStream, stream: str) -> tuple[BridgeRecord | None, int, Sequence[BridgeRecord]]:
    entry = await where_it_exists(js.kv_get(BRIDGES, stream))
    if entry is None:
        return None, 0, ()
    record = BridgeRecord.decode(entry[0], stream)
    older = await js.kv_history(BRIDGES, stream)
    return record, entry[1], [BridgeRecord.decode(old.data, stream) for old in older if old.data]


async def _read_tail(js: JetStream, stream: str, last_seq: int) -> StreamTail:
    # The message at last_seq may have been deleted by hand; with ">" nats-server 2.15 finds no earlier message then. The doctor
    # looks before the stream is made.
    message = await where_it_exists(js.get_message(stream, last_by_subj=CDC_ALL))
    if message is None:
        return StreamTail(stream, last_seq, None, deleted=last_seq)
    # Another bridge may have stored more since `last_seq` was read, even one that was just killed. What is published from
    # there is refused, but not always the second batch of several: its place may by chance be where the stream ends now.
    last_seq = max(last_seq, message.seq)
    msg_id = id_in(message.headers)
    event = await _last_event_of(js, message)
    subject = parse(message.subject)
    return StreamTail(
        stream, last_seq, msg_id, msg_id is None, last_seq - message.seq, _transaction_of(event),
        subject.token if subject is not None else "", event.get("relation_id"),
    )  # fmt: skip


async def _last_event_of(js: JetStream, message: StoredMessage) -> dict[str, Any]:
    """The last event of a stored message; empty when it is none, and where its dictionary is gone."""
    decompressors = Decompressors()
    try:
        needed = decompressors.missing(message.headers)
        if needed is not None:
            entry = await js.kv_get(DICTIONARIES, needed)
            if entry is None:
                return {}
            decompressors.add(needed, entry.data)
        body = decode_body(decompressors.unpack(message.headers, message.data))
        last = body[-1] if isinstance(body, list) and body else body
        return last if isinstance(last, dict) else {}
    except (MalformedMessage, ValueError):
        return {}


def _transaction_of(event: Mapping[str, Any]) -> Transaction | None:
    """The transaction of an event of a row; None of any other."""
    try:
        return Transaction(Lsn(int(event["lsn"])), int(event["xid"]), int(event["commit_ts"]))
    except (KeyError, TypeError, ValueError):
        return None


async def _read_source(connection: PgConnection, replication: PgConnection, slot: str) -> Source:
    identity = await identify_system(replication)
    switch_points: tuple[tuple[int, Lsn], ...] = ()
    if identity.timeline > 1:
        switch_points = tuple(await timeline_history(replication, identity.timeline))
    state = await slot_state(connection, slot)
    lost = ""
    if state is not None and state.wal_status == "lost":
        lost = state.invalidation_reason or "PostgreSQL removed WAL that it still needed"
    return Source(
        slot,
        identity.system_id,
        identity.timeline,
        switch_points,
        identity.wal_end,
        None if state is None else state.confirmed_flush_lsn or NO_LSN,
        lost,
        state is not None and state.transactions_read > 0,
        identity.database,
    )


async def _make_slot(replication: PgConnection, slot: str, *, temporary: bool, show: Callable[[Problem], None]) -> Lsn:
    log.info("creating the replication slot", slot=slot, temporary=temporary)
    return await create_slot(replication, slot, temporary=temporary, show=show)


def _tables_before(record: BridgeRecord) -> set[str]:
    """Return tokens of the tables that were published at the record's time, or that its pending gap event names."""
    return {*record.tables, *(record.pending_gap.tables if record.pending_gap else ())}
