"""A snapshot's exact place in the stream of events: the last message with a lower LSN, and what may not stand before it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import closing

import trio

from actors.clients.nats.jetstream import JetStream, StoredMessage
from actors.clients.postgres.connection import PgConnection
from actors.contract.decoding import decode_message
from actors.contract.message_ids import id_in, position_of
from actors.contract.records import Gap
from actors.contract.round_encoder import ChunkPlace
from actors.contract.subjects import CDC_GAP
from actors.errors import MalformedMessage, SourceUnavailable
from actors.positions import Lsn
from actors.settings.config import PostgresConfig
from actors.snapshots.failures import SnapshotFailed
from actors.snapshots.setup import SnapshotSetup
from actors.snapshots.watermark import STREAM_CATCHES_UP_S, Stored, sequence_before

LOOK_EVERY_S = 0.005
NUDGE_AFTER_S = 0.5
"""PostgreSQL tells of idle WAL only when more of it is written: after this long the bridge writes some."""


async def stream_reaches(setup: SnapshotSetup, lsn: Lsn) -> None:
    """Wait until the stream has every event below `lsn`, and write to the WAL when nobody else does.

    Raises SourceUnavailable if that takes 20 s.
    """
    nudge_at = trio.current_time() + NUDGE_AFTER_S
    with trio.move_on_after(STREAM_CATCHES_UP_S) as deadline:
        while setup.stored_lsn() < lsn:
            await trio.sleep(LOOK_EVERY_S)
            if trio.current_time() >= nudge_at:
                nudge_at += STREAM_CATCHES_UP_S
                await _write_wal(setup.config.postgres)
    if deadline.cancelled_caught:
        raise SourceUnavailable(
            "WB320", "cannot choose a snapshot's place in the stream while the bridge is catching up",
            means="the stream does not have all that the snapshot contains; the snapshot waits",
        )  # fmt: skip


async def _write_wal(config: PostgresConfig) -> None:
    connection = await PgConnection.connect(config, application_name="walbridge snapshot")
    with closing(connection):
        if not connection.is_standby:
            await connection.query("SELECT pg_logical_emit_message(false, 'walbridge', 'snapshot')")


async def place_of(js: JetStream, stream: str, lsn: Lsn, after: int | None) -> ChunkPlace:
    """Return the place of a snapshot at `lsn`, once the stream has every event below.

    `after` is the `stream_seq` of the chunk before, None for the first one. Raises SnapshotFailed when the stream has become
    shorter since.
    """
    info = await js.stream_info(stream)
    state = info["state"] if info is not None else {"first_seq": 1, "last_seq": 0}
    first, last = max(1, int(state["first_seq"])), int(state["last_seq"])
    if after is None:
        # LSNs grow from one gap to the next only
        async for message, gap in _gaps(js, stream, first):
            if not gap.of_table:
                first = message.seq + 1
    elif last < after:
        raise SnapshotFailed("gap", f"stream {stream} was cut short during the snapshot; request it again")
    else:
        first = max(first, after + 1)

    async def look_up(seq: int) -> Stored | None:
        while (message := await js.get_message(stream, seq=seq, next_by_subj=">")) is not None:
            try:
                return Stored(message.seq, position_of(id_in(message.headers) or "").lsn)
            except ValueError:  # somebody else's
                seq = message.seq + 1
        return None

    return ChunkPlace(lsn, await sequence_before(lsn, first, last, look_up))


async def check_gaps(js: JetStream, stream: str, token: str, after: int) -> None:
    """Raise SnapshotFailed if the stream says after sequence `after` that changes of the table are lost or left out."""
    async for _, gap in _gaps(js, stream, after + 1):
        if not gap.of_table or token in gap.tables:
            raise SnapshotFailed("gap", f"changes were lost during the snapshot: {gap.reason}; request it again")


async def _gaps(js: JetStream, stream: str, seq: int) -> AsyncGenerator[tuple[StoredMessage, Gap]]:
    while (message := await js.get_message(stream, seq=seq, next_by_subj=CDC_GAP)) is not None:
        seq = message.seq + 1
        try:
            (record,) = decode_message(message.subject, {}, message.data)
        except (MalformedMessage, ValueError):
            continue
        if isinstance(record, Gap):
            yield message, record
