"""A table's snapshot, read into a table of its own beside the live one.

One that is there already is read, if the events behind it lead to the present; else the bridge is asked for a new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from actors.clients.nats.jetstream import JetStream, StoredMessage
from actors.clients.nats.ordered_consumer import Delivered, open_consumer
from actors.contract import subjects
from actors.contract.decoding import array_rows, decode_message
from actors.contract.records import ArrayChunk, Record, Row, SnapshotChunk, SnapshotError, SnapshotMeta, SnapshotStart
from actors.contract.subjects import INIT
from actors.errors import MalformedMessage, SinkUnavailable
from actors.mirror.replica import Replica
from actors.mirror.source_stream import SourceStream
from actors.mirror.state import WAITING
from actors.mirror.stores.dialect import Statement
from actors.mirror.stores.shapes import TableShape
from actors.mirror.track import NEEDED_AS_BEFORE, FollowedTable
from actors.telemetry.log import get_logger
from actors.wire.nats import decode_headers, encode_pub

log = get_logger("mirror")

ASK_AGAIN_S = 30.0
ROWS_MAX = 5_000
"""Rows of a local transaction."""


class SnapshotUnusable(Exception):
    """This snapshot does not lead to where the live tables are: another one is needed."""

    def __init__(self, reason: str, needed_seq: int = NEEDED_AS_BEFORE, *, init_seq: int = 0) -> None:
        """`init_seq`: of its start, if it is not to be read once more."""
        super().__init__(reason)
        self.needed_seq, self.init_seq = needed_seq, init_seq


class SnapshotRefused(Exception):
    """The bridge could not take the snapshot."""


class CannotMirror(Exception):
    """The replica cannot hold this table at all."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """A complete snapshot in its own table."""

    start: SnapshotStart
    created: str
    """When the stream was made that the snapshot's `stream_seq` is of."""
    init_seq: int
    """Of its start, in INIT."""
    staging: TableShape
    rows: int


async def gather(replica: Replica, source: SourceStream, token: str) -> Gathered:
    """Read a snapshot that is there, or ask for one.

    Raises CopyUseless, SnapshotRefused, CannotMirror; TableFault when the rows do not fit; SinkUnavailable.
    """
    js = source.js
    info = await js.stream_info(INIT)
    if info is None:
        raise SinkUnavailable("WB215", f"stream {INIT} is gone", means="waiting until a bridge has made it again")
    started = await _usable_start(replica, source, token)
    if started is None:
        log.info("asking for a snapshot", table=token)
        await _ask(js, token)
    start_seq = started.seq if started is not None else int(info["state"]["last_seq"]) + 1
    filters = [*subjects.snapshot_of_table(token)]
    arrays = subjects.arrays_of_table(token)
    if subjects.covers(info["config"].get("subjects") or (), arrays):
        filters += arrays
    async with open_consumer(js, INIT, filters, start_seq) as consumer:
        reader = _SnapshotReader(replica, source, token)
        while True:
            messages = await consumer.receive(ASK_AGAIN_S)
            if not messages and reader.start is None:
                await _ask(js, token)  # nobody may have been there to hear it
            for message in messages:
                try:
                    record = await _decode(source, message)
                except MalformedMessage as exc:  # somebody else's; if it was the bridge's, its chunk will be missing
                    log.warning(
                        "a message cannot be read: passed over", subject=message.subject, seq=message.seq, reason=exc.what
                    )
                    continue
                gathered = await reader.take(message, record)
                if gathered is not None:
                    return gathered


async def _ask(js: JetStream, token: str) -> None:
    """Ask for a snapshot. A request that is there already is the same."""
    await js.connection.send(encode_pub(subjects.request(token).encode(), b"", b"", None))


async def _decode(source: SourceStream, message: Delivered) -> Record:
    body = await source.unpacked(message)
    headers = decode_headers(message.headers)
    # only those that say where a chunk belongs: the body is unpacked already
    place = {name: value for name, value in headers.items() if name in ("Snapshot-Id", "Chunk")}
    return decode_message(message.subject, place, body)[0]


async def _usable_start(replica: Replica, source: SourceStream, token: str) -> StoredMessage | None:
    """The newest snapshot's start, if that snapshot leads to the present."""
    message = await source.js.get_message(INIT, last_by_subj=subjects.init_start(token))
    if message is None or message.seq <= replica.tables[token].init_seq:
        return None
    start = start_in(message)
    error = await source.js.get_message(INIT, last_by_subj=subjects.init_error(token))
    failed = error is not None and error.seq > message.seq
    if start is None or not await source.look() or failed or message.time < source.created:
        return None
    return message if why_useless(replica, source, start) == "" else None


def start_in(message: StoredMessage) -> SnapshotStart | None:
    """What a message on `init.start.{token}` says; None when no bridge has written it."""
    try:
        start = decode_message(message.subject, {}, message.data)[0]
    except MalformedMessage:
        return None
    return start if isinstance(start, SnapshotStart) else None


def why_useless(replica: Replica, source: SourceStream, start: SnapshotStart) -> str:
    """Why the events behind a snapshot do not lead to the present; empty when they do."""
    if start.stream_seq < replica.tables[start.token].needed_seq:
        return "it is from before what went wrong"
    if source.first_seq > start.stream_seq + 1:
        return "the stream no longer holds what comes behind it"
    return "" if start.stream_seq <= source.last_seq else "the stream was cut short"


class _SnapshotReader:
    """Puts the messages of a table's snapshots in their place: the newest one counts."""

    def __init__(self, replica: Replica, source: SourceStream, token: str) -> None:
        self._replica, self._source, self._token = replica, source, token
        self.start: SnapshotStart | None = None
        self._init_seq, self._created = 0, ""
        self._table: FollowedTable | None = None
        self._chunks = self._rows = 0

    async def take(self, message: Delivered, record: Record) -> Gathered | None:
        """One message; returns the snapshot when it is complete."""
        start = self.start
        if isinstance(record, SnapshotStart):
            if start is None or record.snapshot_id != start.snapshot_id:
                await self._begin(record, message.seq)
        elif isinstance(record, SnapshotError):
            if not record.snapshot_id or start is None or record.snapshot_id == start.snapshot_id:
                raise SnapshotRefused(f"{record.error_type}: {record.error_message}")
        elif start is None or self._table is None:
            pass  # the rest of one that began before
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
        reason = why_useless(self._replica, self._source, start)
        if reason:
            log.debug("waiting for another snapshot", table=self._token, reason=reason)
            self.start = self._table = None
            return
        self.start, self._init_seq, self._created = start, init_seq, self._source.created
        self._chunks = self._rows = 0
        shape = await self._make_table(start)
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

    async def _make_table(self, start: SnapshotStart) -> TableShape:
        """Make the table that a snapshot is gathered in."""
        replica, record = self._replica, self._replica.tables[start.token]
        dialect = replica.dialect
        obstacle = dialect.obstacle([column.name for column in start.columns])
        if obstacle:
            raise CannotMirror(obstacle)
        if record.state == WAITING and await replica.exists(record.local):
            raise CannotMirror(
                f"there is a table {dialect.table(record.local)} already, which is not this mirror's: drop or rename it"
            )
        local = dialect.staging_name(record.local, start.token)
        types = await replica.local_types(start.columns)
        shape = TableShape(
            start.token, start.schema, start.table, local, start.columns, types, start.relation_id, bool(record.keyed)
        )
        before = await replica.make_schema(local)
        statements = [*before, dialect.drop_table(local), dialect.create_table(shape)]
        await replica.run([Statement(sql, [()], token=start.token) for sql in statements])
        return shape

    async def _add(self, table: FollowedTable, rows: Sequence[Row]) -> None:
        """Put a chunk's rows into their table."""
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
