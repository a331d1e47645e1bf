"""snapshotter: serves requests for whole tables, one at a time, beside the stream of events (contract, section 5)."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import trio

from actors.clients.nats.connection import SinkRefused
from actors.clients.nats.jetstream import JetStream, JetStreamError
from actors.clients.nats.publish_window import PublishWindow
from actors.clients.postgres.catalog import PublishedTable, published_tables
from actors.clients.postgres.connection import PgConnection, PostgresError
from actors.contract.bridge_record import BridgeRecord
from actors.contract.compression import Compressor
from actors.contract.event_encoder import EventEncoder, read_any_document
from actors.contract.message_ids import position_of
from actors.contract.snapshot_encoder import Message, SnapshotHead, SnapshotMessages, error_message, new_snapshot_id
from actors.contract.subjects import BRIDGES, CDC, INIT, INIT_STARTS, init_error, init_meta, init_start, parse
from actors.contract.table_token import table_token
from actors.errors import ConfigError, SourceUnavailable
from actors.positions import Lsn, format_lsn, parse_lsn
from actors.settings.config import Config
from actors.snapshots.chunks import ChunkCutter, RowTooLarge
from actors.snapshots.requests import SnapshotRequests
from actors.snapshots.table_reader import OpenTable, TableChanged, Watermark, open_table
from actors.snapshots.transaction_log import TransactionLog, dividing_lsn
from actors.startup.streams import StreamSetup
from actors.telemetry.log import get_logger
from actors.telemetry.telemetry import SnapshotProgress, Telemetry
from actors.values.row_blocks import Piece, RowBlocks
from actors.values.text_values import JSON_OIDS, TEXT, Converter, base_type, converter_for
from actors.wire.jetstream import MSG_ID_HEADER

log = get_logger("snapshotter")

ATTEMPTS_MAX = 5
UNKNOWN_EVERY_S = 60.0
UNKNOWN_AT_ONCE = 100
"""Unknown tables of which a word is said in a minute; more are a mistake, or malice."""
STREAM_CATCHES_UP_S = 20.0
GATHER_BYTES_MAX = 8 * 1024 * 1024
"""What a chunk may hold before it is compressed."""
REMEMBERED_MAX = 200
STEP_ASIDE_S = 0.001
"""So long a snapshot rests between two blocks while events are on their way: it must not be felt in their latency."""

Resume = Callable[[str, Callable[[], Awaitable[Lsn]]], Awaitable[None]]
"""Takes a table's token, and what asks where the WAL ends."""


class SnapshotFailed(Exception):
    """This snapshot ends here: `kind` and words for init.error."""

    def __init__(self, kind: str, words: str) -> None:
        super().__init__(words)
        self.kind = kind


class _NoWatermark(Exception):
    """No LSN divides what the snapshot sees: another one must be taken."""


@dataclass(frozen=True, slots=True)
class SnapshotSetup:
    """What snapshots of this bridge are made with."""

    config: Config
    stream: StreamSetup
    encoder: EventEncoder
    transactions: TransactionLog
    compressors: Mapping[str, Compressor]
    """By table token, with its dictionary; for the others there is one without."""
    resume: Resume
    """A suspended table's events go out again from here on; the snapshot that follows has what was left out."""


class Snapshotter:
    """Serves one bridge's requests. Owns a PostgreSQL connection or two while a snapshot runs, and nothing in between."""

    def __init__(self, setup: SnapshotSetup, js: JetStream, tables: tuple[str, ...], telemetry: Telemetry) -> None:
        self._setup, self._js, self._telemetry = setup, js, telemetry
        self._config = setup.config
        self._tables = tables
        self._requests = SnapshotRequests(js, tables, kept=setup.stream.requests_kept)
        self._unknown_told: dict[str, float] = {}

    async def run(self) -> None:
        """Until cancelled; what is unfinished then runs again at the next start. Raises SinkUnavailable when NATS is away."""
        await self._requests.listen()
        for token in await self._unfinished():
            log.info("a snapshot was broken off: taking it again", table=token)
            self._requests.add(token)
        while True:
            await self._requests.wait()
            self._show_waiting()
            await self._serve_some()
            self._show_waiting()

    # -- which requests are ours

    async def _serve_some(self) -> None:
        """The first request for a table of ours; if there is none, those for nobody's."""
        waiting = self._requests.waiting
        try:
            tables = {table_token(t.schema, t.name): t for t in await self._published()}
        except (SourceUnavailable, PostgresError) as exc:
            log.warning("waiting for PostgreSQL to take a snapshot", table=waiting[0], reason=str(exc))
            await trio.sleep(SourceUnavailable.retry_s)
            return
        self._requests.known = tables.keys()
        token = next((token for token in waiting if token in tables), None)
        if token is not None:
            await self._take_with_patience(token, tables[token])
            return
        elsewhere = await self._tables_of_other_bridges()
        for token in waiting[:UNKNOWN_AT_ONCE]:
            if self._config.publish.stream != CDC or token in elsewhere:
                self._requests.leave(token)
            else:
                self._requests.leave(token)
                await self._tell_unknown(token, sorted(tables))
                await self._requests.answered(token)

    async def _published(self) -> list[PublishedTable]:
        connection = await PgConnection.connect(self._config.postgres, application_name="walbridge snapshot")
        try:
            return await published_tables(connection, self._config.source.publication)
        finally:
            connection.close()

    async def _tables_of_other_bridges(self) -> set[str]:
        """What other bridges' records list: those answer for it, now or when they run again."""
        found: set[str] = set()
        for stream in await self._js.keys_of(BRIDGES):
            entry = None if stream == self._config.publish.stream else await self._js.kv_get(BRIDGES, stream)
            try:
                found.update(BridgeRecord.decode(entry.data, stream).tables if entry is not None else ())
            except ConfigError:  # not a bridge's: nobody answers for it
                continue
        return found

    async def _tell_unknown(self, token: str, available: list[str]) -> None:
        now = time.monotonic()
        told = self._unknown_told
        for old in [t for t, at in told.items() if now - at >= UNKNOWN_EVERY_S]:
            del told[old]
        if token in told or len(told) >= UNKNOWN_AT_ONCE:
            return
        told[token] = now
        log.warning("a snapshot of an unknown table was asked for", table=token)
        words = f"no table {token} in publication {self._config.source.publication}"
        await self._tell(error_message(self._setup.encoder, token, token, "unknown_table", words, available_tables=available))

    async def _unfinished(self) -> list[str]:
        """Tables whose last snapshot has a start, and neither meta nor error."""
        found: list[str] = []
        for subject in await self._js.subjects_of(INIT, INIT_STARTS):
            start = parse(subject)
            token = start.token if start is not None else ""
            if token in self._tables:
                ids = [await self._last_id(of(token)) for of in (init_start, init_meta, init_error)]
                if ids[0] and ids[0] not in ids[1:]:
                    found.append(token)
        return found

    async def _last_id(self, subject: str) -> str:
        message = await self._js.get_message(INIT, last_by_subj=subject)
        body = read_any_document(message.data) if message is not None else None
        return str(body.get("snapshot_id", "")) if isinstance(body, dict) else ""

    # -- one snapshot

    async def _take_with_patience(self, token: str, published: PublishedTable) -> None:
        """A passing fault of PostgreSQL is tried again; whatever else goes wrong is told, and ends this snapshot alone."""
        progress = self._telemetry.snapshots[token] = SnapshotProgress(token, "running", started_at=time.time())
        failure = SnapshotFailed(
            "no_watermark", f"no LSN divided what {ATTEMPTS_MAX} snapshots saw from what came later; ask again"
        )
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                if attempt > 1:
                    published = await self._look_again(token)
                await self._take(token, published, progress)
            except _NoWatermark:
                continue
            except TableChanged:
                failure = SnapshotFailed(
                    "table_changed", f"the table or its publication was altered {ATTEMPTS_MAX} times in a row; ask again"
                )
            except SourceUnavailable as exc:
                failure = SnapshotFailed("postgres_unavailable", str(exc))
                if attempt < ATTEMPTS_MAX:
                    log.warning("a snapshot must begin again", table=token, reason=str(exc), next_try_s=exc.retry_s)
                    await trio.sleep(exc.retry_s)
            except (SnapshotFailed, PostgresError, RowTooLarge, UnicodeDecodeError, JetStreamError, SinkRefused) as exc:
                failure = _failure(exc)
                break
            else:
                return
        await self._fail(token, published, progress, failure)

    async def _look_again(self, token: str) -> PublishedTable:
        for table in await self._published():
            if table_token(table.schema, table.name) == token:
                return table
        raise SnapshotFailed("unknown_table", f"no table {token} in publication {self._config.source.publication} any more")

    async def _take(self, token: str, published: PublishedTable, progress: SnapshotProgress) -> None:
        setup, config = self._setup, self._config
        await setup.resume(token, self._wal_end)
        info = await self._js.stream_info(setup.stream.stream)
        stream_seq = int(info["state"]["last_seq"]) if info is not None else 0
        limit = setup.stream.init_payload_max
        async with open_table(config.postgres, config.source.publication, published, payload_max=limit) as table:
            lsn = table.watermark.lsn
            if lsn is None:
                lsn = await self._find_lsn(table.watermark)
                stream_seq = min(stream_seq, await self._seq_before(lsn))
            compressor = self._compressor(token)
            head = SnapshotHead(
                new_snapshot_id(time.time()), token, table.relation, table.description.data_types, table.pk, lsn, stream_seq,
                compressor is not None, compressor.dictionary_id if compressor else None, table.description.base_types,
            )  # fmt: skip
            progress.snapshot_id, progress.rows_expected = head.snapshot_id, table.rows_expected
            progress.rows = progress.chunks = progress.bytes = 0
            self._requests.leave(token)
            messages = SnapshotMessages(head, setup.encoder, config.snapshots.format)
            starts = [await self._js.publish(m.subject, m.body, m.headers or None) for m in messages.start()]
            # only now: a bridge that is killed in between finds the request again, or else the start without an end
            await self._requests.answered(token)
            log.info("snapshot begins", table=token, snapshot_id=head.snapshot_id, snapshot_lsn=format_lsn(lsn))
            await self._send_rows(table, messages, compressor, progress)
        if await self._js.get_message(INIT, seq=starts[0]) is None:
            raise SnapshotFailed(
                "start_lost", "stream INIT has dropped the start of this snapshot: it is larger than the stream may be; "
                "nats stream edit INIT --max-bytes=... "
            )  # fmt: skip
        meta = messages.meta(progress.chunks, progress.rows)
        await self._js.publish(meta.subject, meta.body)
        self._finish(progress, "done")
        self._telemetry.snapshots_done += 1
        log.info(
            "snapshot done", table=token, snapshot_id=head.snapshot_id, rows=progress.rows, chunks=progress.chunks,
            bytes=progress.bytes, seconds=round(progress.seconds, 3),
        )  # fmt: skip

    def _compressor(self, token: str) -> Compressor | None:
        if not self._config.snapshots.zstd:
            return None
        return self._setup.compressors.get(token) or Compressor()

    async def _send_rows(
        self, table: OpenTable, messages: SnapshotMessages, compressor: Compressor | None, progress: SnapshotProgress
    ) -> None:
        config, telemetry = self._config, self._telemetry
        blocks = RowBlocks(self._converters(table), config.publish.encoding, config.snapshots.format)
        limit = self._setup.stream.init_payload_max

        def compressed(message: Message) -> Message:
            if compressor is None:
                return message
            return message._replace(body=compressor.compress(message.body), headers=message.headers | compressor.headers)

        cutter = ChunkCutter(
            messages.chunk, compressed, blocks.split, bytes_max=limit,
            gather_bytes_max=limit if compressor is None else max(limit, GATHER_BYTES_MAX),
        )  # fmt: skip
        window = PublishWindow(self._js.connection)

        async def send(made: list[Message]) -> None:
            for message in made:
                await window.send(message.subject, message.body, message.headers)
                progress.bytes += len(message.body)
                telemetry.snapshot_bytes += len(message.body)
            progress.seconds = time.time() - progress.started_at
            telemetry.snapshot_rows += cutter.rows - progress.rows
            progress.chunks, progress.rows = cutter.chunks, cutter.rows

        async with aclosing(table.blocks()) as results:
            async for result in results:
                if telemetry.has_events_on_their_way:  # they go first
                    await trio.sleep(STEP_ASIDE_S)
                piece: Piece = blocks.piece(result)
                made = cutter.add(piece)
                if made:
                    await send(made)
        await send(cutter.finish())
        await window.drain()

    def _converters(self, table: OpenTable) -> list[tuple[str, Converter]]:
        config, types = self._config, table.description.types
        found: list[tuple[str, Converter]] = []
        for column in table.relation.columns:
            base = base_type(column.type_oid, types)
            as_text = config.snapshots.format == "array" and base is not None and base.oid in JSON_OIDS
            convert = converter_for(column.type_oid, types, config.publish.encoding, config.publish.arrays)
            found.append((column.name, TEXT if as_text else convert))
        return found

    # -- the watermark of an ordinary snapshot

    async def _find_lsn(self, watermark: Watermark) -> Lsn:
        """Hold the snapshot against the transactions that the stream has told of, up to where the WAL ended."""
        telemetry, transactions = self._telemetry, self._setup.transactions
        with trio.move_on_after(STREAM_CATCHES_UP_S) as deadline:
            while telemetry.decoded_lsn < watermark.insert_lsn:  # noqa: ASYNC110  (the hot path should not signal for this)
                await trio.sleep(0.01)
        if deadline.cancelled_caught:
            raise SourceUnavailable(
                "WB320", "a snapshot's place in the WAL cannot be told while the bridge is catching up",
                means="transactions that write hold up the exact way, and the stream is behind",
            )  # fmt: skip
        if any(xid & 0xFFFF_FFFF not in transactions for xid in watermark.stalled_xids):
            raise SnapshotFailed(
                "no_watermark", "a commit waits for a synchronous standby since before this bridge started: it is in the WAL, "
                "and nobody sees it; ask again when the standby is back"
            )  # fmt: skip
        assert watermark.xids is not None, "an ordinary snapshot has xids"
        lsn = dividing_lsn(watermark.xids, transactions, watermark.insert_lsn)
        if lsn is None:
            raise _NoWatermark
        log.info("watermark found without a slot: transactions that write hold it up", snapshot_lsn=format_lsn(lsn))
        return lsn

    async def _seq_before(self, lsn: Lsn) -> int:
        """The last sequence of the stream before the first event of `lsn` or later: a bisection, positions only grow."""
        info = await self._js.stream_info(self._setup.stream.stream)
        state = info["state"] if info is not None else {"first_seq": 1, "last_seq": 0}
        low, high = int(state["first_seq"]), int(state["last_seq"]) + 1
        while low < high:
            middle = (low + high) // 2
            message = await self._js.get_message(self._setup.stream.stream, seq=middle, next_by_subj=">")
            if message is None or position_of(message.headers[MSG_ID_HEADER]).lsn >= lsn:
                high = middle
            else:
                low = message.seq + 1
        return low - 1

    async def _wal_end(self) -> Lsn:
        connection = await PgConnection.connect(self._config.postgres, application_name="walbridge snapshot")
        try:
            ((lsn,),) = await connection.query(
                "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END"
            )
            return parse_lsn(lsn or "0/0")
        finally:
            connection.close()

    # -- how it ended

    async def _fail(self, token: str, published: PublishedTable, progress: SnapshotProgress, failure: SnapshotFailed) -> None:
        self._requests.leave(token)
        progress.error = f"{failure.kind}: {failure}"
        self._finish(progress, "failed")
        self._telemetry.snapshots_failed += 1
        log.error("snapshot failed", table=token, kind=failure.kind, reason=str(failure), snapshot_id=progress.snapshot_id)
        await self._tell(
            error_message(
                self._setup.encoder, token, published.name, failure.kind, str(failure), snapshot_id=progress.snapshot_id or None
            )
        )
        await self._requests.answered(token)

    async def _tell(self, message: Message) -> None:
        try:
            await self._js.publish(message.subject, message.body)
        except (JetStreamError, SinkRefused) as exc:
            log.warning("consumers cannot be told of it", subject=message.subject, reason=str(exc))

    def _finish(self, progress: SnapshotProgress, state: Literal["done", "failed"]) -> None:
        progress.state = state
        progress.seconds = time.time() - progress.started_at
        snapshots = self._telemetry.snapshots
        snapshots[progress.table] = snapshots.pop(progress.table)  # the newest last
        for token in list(islice(snapshots, max(0, len(snapshots) - REMEMBERED_MAX))):
            del snapshots[token]

    def _show_waiting(self) -> None:
        snapshots = self._telemetry.snapshots
        self._telemetry.snapshot_requests_waiting = len(self._requests.waiting)
        for token in [t for t, progress in snapshots.items() if progress.state == "waiting"]:
            del snapshots[token]
        for token in self._requests.waiting[:REMEMBERED_MAX]:
            snapshots.setdefault(token, SnapshotProgress(token))


def _failure(exc: Exception) -> SnapshotFailed:
    if isinstance(exc, SnapshotFailed):
        return exc
    if isinstance(exc, PostgresError):
        kind = "permission_denied" if exc.sqlstate == "42501" else "postgres_error"
        return SnapshotFailed(kind, exc.said + (f"; {exc.hint}" if exc.hint else ""))
    if isinstance(exc, RowTooLarge):
        return SnapshotFailed(
            "row_too_large", f"{exc}; raise max_payload of nats-server and max_msg_size of stream INIT, or --zstd"
        )
    if isinstance(exc, UnicodeDecodeError):
        return SnapshotFailed("unreadable_value", f"a text is no UTF-8: {exc}")
    return SnapshotFailed("nats_error", str(exc))
