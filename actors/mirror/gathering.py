"""Gathers a table's snapshot in a staging table beside the live one.

A snapshot that INIT already holds is used if the events after it lead to the present; else the bridge is asked for a new one.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from actors.clients.nats.ordered_consumer import Delivered, open_consumer
from actors.contract import subjects
from actors.contract.decoding import array_rows
from actors.contract.records import (
    AMBIGUOUS,
    ArrayChunk,
    Record,
    Row,
    SnapshotChunk,
    SnapshotError,
    SnapshotMeta,
    SnapshotStart,
)
from actors.contract.subjects import INIT
from actors.errors import SinkUnavailable
from actors.mirror.gathered import Gathered, SnapshotRefused, SnapshotUnusable, check_published, decode_answer, make_staging
from actors.mirror.replica import Replica
from actors.mirror.rounds import RoundsRefused, gather_in_rounds, in_rounds
from actors.mirror.snapshot_requests import ask_for_snapshot, find_usable_start, why_unusable
from actors.mirror.source_stream import SourceStream
from actors.mirror.stores.dialect import Statement
from actors.mirror.track import FollowedTable
from actors.telemetry.log import get_logger
from actors.wire.nats import decode_headers

log = get_logger("mirror")

ASK_AGAIN_S = 30.0
LOOK_S = 2.0
"""How often to look whether the table is still published, while nothing of a snapshot comes."""
ROWS_MAX = 5_000
"""Rows per local transaction."""


async def gather(replica: Replica, source: SourceStream, token: str) -> Gathered:
    """Read a snapshot that INIT holds, or ask for one.

    Raises SnapshotUnusable, SnapshotRefused, NotPublished, CannotMirror; ApplyConflict when the rows do not fit;
    SinkUnavailable.
    """
    js = source.js
    check_published(replica, token)
    info = await js.stream_info(INIT)
    if info is None:
        raise SinkUnavailable("WB215", f"stream {INIT} is gone", means="waiting until a bridge has created it again")
    started, reason = await find_usable_start(replica, source, token)
    if started is None and await in_rounds(replica, source, token):
        try:
            return await gather_in_rounds(replica, source, token)
        except RoundsRefused as exc:
            log.info("a table cannot be copied in rounds: asking for a complete snapshot", table=token, reason=str(exc))
    if started is None:
        log.info("asking for a snapshot", table=token, why=reason)
        await ask_for_snapshot(source, token)
    start_seq = started.seq if started is not None else int(info["state"]["last_seq"]) + 1
    filters = [*subjects.snapshot_of_table(token)]
    arrays = subjects.arrays_of_table(token)
    if subjects.covers(info["config"].get("subjects") or (), arrays):
        filters += arrays
    async with open_consumer(js, INIT, filters, start_seq) as consumer:
        reader, asked_at = _SnapshotReader(replica, source, token), trio.current_time()
        while True:
            messages = await consumer.receive(LOOK_S)
            check_published(replica, token)
            if not messages and trio.current_time() - max(asked_at, reader.heard_at) >= ASK_AGAIN_S:
                # no bridge may have been there to receive it, or the rest of the snapshot was deleted from INIT
                if reader.start is not None:
                    log.info(
                        "asking for another snapshot", table=token, why=f"nothing more of it has come for {ASK_AGAIN_S:g} s"
                    )
                asked_at = trio.current_time()
                await ask_for_snapshot(source, token)
            for message in messages:
                if reader.passes_over(message):
                    continue
                record = await decode_answer(source, message)
                if record is None:
                    continue
                gathered = await reader.take(message, record)
                if gathered is not None:
                    return gathered


class _SnapshotReader:
    """Reads the messages of a table's snapshots in order; a new start replaces the snapshot before it."""

    def __init__(self, replica: Replica, source: SourceStream, token: str) -> None:
        self._replica, self._source, self._token = replica, source, token
        self.start: SnapshotStart | None = None
        self._init_seq, self._created = 0, ""
        self._table: FollowedTable | None = None
        self._chunks = self._rows = 0
        self.heard_at = 0.0
        """When a part of the snapshot came last, on trio's clock."""

    def passes_over(self, message: Delivered) -> bool:
        """Whether a message has rows of another snapshot than this one: an older one, or another bridge's."""
        found = subjects.parse(message.subject)
        if found is None or found.kind not in ("chunk", "array chunk"):
            return False
        return self.start is None or self.start.snapshot_id != (
            found.snapshot_id or decode_headers(message.headers).get("Snapshot-Id")
        )

    async def take(self, message: Delivered, record: Record) -> Gathered | None:
        """Take one message. Returns the snapshot when it is complete."""
        start = self.start
        if isinstance(record, SnapshotStart | SnapshotMeta | SnapshotError) and record.stream != self._source.name:
            return None  # of another bridge that publishes a table of this name
        if isinstance(record, SnapshotStart):
            if start is None or record.snapshot_id != start.snapshot_id:
                await self._begin(record, message.seq)
        elif isinstance(record, SnapshotError):
            if record.error_type == AMBIGUOUS:
                return None  # somebody else's request named no bridge
            if not record.snapshot_id or start is None or record.snapshot_id == start.snapshot_id:
                raise SnapshotRefused(f"{record.error_type}: {record.error_message}")
        elif start is None or self._table is None:
            pass  # the rest of a snapshot that began earlier
        elif isinstance(record, (SnapshotChunk, ArrayChunk)) and record.snapshot_id == start.snapshot_id:
            await self._chunk(record, start, self._table)
        elif isinstance(record, SnapshotMeta) and record.snapshot_id == start.snapshot_id:
            if (record.batch_count, record.row_count) != (self._chunks, self._rows):
                raise SnapshotUnusable(
                    f"{self._chunks} chunks of {self._rows} rows came, {record.batch_count} of {record.row_count} were sent",
                    init_seq=self._init_seq,
                )  # fmt: skip
            return Gathered(start, self._created, self._init_seq, self._table.shape, self._rows)
        return None

    async def _begin(self, start: SnapshotStart, init_seq: int) -> None:
        await self._source.look()
        reason = why_unusable(self._replica, self._source, start)
        if reason:
            log.info("waiting for another snapshot", table=self._token, snapshot_id=start.snapshot_id, reason=reason)
            self.start = self._table = None
            return
        self.heard_at = trio.current_time()
        self.start, self._init_seq, self._created = start, init_seq, self._source.created
        self._chunks = self._rows = 0
        shape = await make_staging(self._replica, start)
        self._table = FollowedTable.of(self._replica.dialect, shape, start.snapshot_lsn)
        log.info("snapshot begins", table=self._token, snapshot_id=start.snapshot_id)

    async def _chunk(self, chunk: SnapshotChunk | ArrayChunk, start: SnapshotStart, table: FollowedTable) -> None:
        if chunk.chunk < self._chunks:
            return
        if chunk.chunk > self._chunks:
            raise SnapshotUnusable(f"chunk {self._chunks} is missing", init_seq=self._init_seq)
        rows = chunk.rows if isinstance(chunk, SnapshotChunk) else array_rows(chunk, start.columns)
        await self._add(table, rows)
        self._chunks += 1
        self._rows += len(rows)
        self.heard_at = trio.current_time()

    async def _add(self, table: FollowedTable, rows: Sequence[Row]) -> None:
        """Add a chunk's rows to the staging table."""
        for first in range(0, len(rows), ROWS_MAX):
            statements: list[Statement] = []
            for row in rows[first : first + ROWS_MAX]:
                sql, params = table.statements.insert(row)
                if statements and statements[-1].sql is sql:
                    statements[-1].params.append(params)
                else:
                    statements.append(Statement(sql, [params], False, table.shape.token))
            await self._replica.run(statements)
        self._replica.counts.snapshot_rows += len(rows)
