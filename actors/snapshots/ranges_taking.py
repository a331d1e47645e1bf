"""Takes a snapshot in rounds: small transactions, each exact, that go on where the last chunk ended (mode `ranges`)."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Literal

import trio

from actors.clients.nats.jetstream import JetStream
from actors.clients.postgres.connection import PostgresError
from actors.clients.postgres.publications import PublishedTable
from actors.contract.decoding import decode_message
from actors.contract.records import KeyText, RangesStart
from actors.contract.round_encoder import RoundMessages, RoundsHead
from actors.contract.snapshot_encoder import new_snapshot_id
from actors.contract.subjects import split_suffix
from actors.errors import SourceUnavailable
from actors.positions import format_lsn
from actors.snapshots.course import ChunkStore, Course, check_start, finish
from actors.snapshots.failures import NoWatermark, SnapshotFailed, TableChanged
from actors.snapshots.lanes import Clock, Cut, KeyedPiece, Lane, keys_in
from actors.snapshots.large_rows import LargeRowSearch, refuse_large_rows
from actors.snapshots.progress import SnapshotBoard
from actors.snapshots.rounds import OpenRound, open_round
from actors.snapshots.row_key import BY_INDEX, RANGE_BYTES_MIN, RANGES_PER_LANE, cut_by_size, where
from actors.snapshots.seats import Seats
from actors.snapshots.setup import GATHER_BYTES_MAX, Cancelling, SnapshotSetup
from actors.telemetry.log import get_logger
from actors.telemetry.telemetry import SnapshotProgress
from actors.wire.sql_names import quoted

log = get_logger("snapshotter")

ATTEMPTS_MAX = 5
"""Rounds in a row without a watermark."""
NEXT_ATTEMPT_S = 2.0
ROUND_MAX_S = 86_400.0

Look = Callable[[], Awaitable[PublishedTable]]
"""Reads the publication again and returns the table. Raises SnapshotFailed when it is not published any more."""


class ShapeChanged(Exception):
    """The table is published differently from when the snapshot began, or is another one: take another snapshot."""


class RangesTaker:
    """Takes one snapshot in rounds, or answers for rows named by their keys. For one task."""

    def __init__(
        self, setup: SnapshotSetup, js: JetStream, board: SnapshotBoard, progress: SnapshotProgress,
        cancelling: Cancelling, seats: Seats, *, look: Look, settled: Callable[[], Awaitable[None]],
        begun: Callable[[], Awaitable[None]],
    ) -> None:  # fmt: skip
        """`settled` waits, for a while, until the stream has told how the table is published. `begun` is called once a start is
        stored, which answers the requests.
        """
        self._setup, self._js, self._board, self._pace = setup, js, board, setup.pace
        self._progress, self._cancelling = progress, cancelling
        self._seats, self._look, self._settled, self._begun = seats, look, settled, begun
        self._round_s = float(setup.config.snapshots.round_s)
        self._search: LargeRowSearch | None = None
        self.course: Course | None = None
        """The snapshot, once its start is stored."""

    async def take(self, token: str, published: PublishedTable, course: Course | None) -> Course:
        """Take a snapshot, or finish `course`, which an earlier run has begun. `token` has the suffix.

        PostgreSQL may be away meanwhile, for any time. Raises ShapeChanged when the snapshot must end and another one should
        begin; SnapshotFailed and what `failure_of` describes; SinkUnavailable when NATS is away.
        """
        self.course = course
        if course is not None:
            log.info("a snapshot continues", table=token, snapshot_id=course.start.snapshot_id, rows=course.rows)
            self._begin_showing(course)
        attempts, is_stale = 0, False
        while self.course is None or self.course.left:
            self._cancelling.check()
            try:
                if is_stale:
                    await self._settled()
                    published, is_stale = await self._look(), False
                await self._round(token, published)
                attempts = 0
            except NoWatermark as exc:
                attempts += 1
                if attempts == ATTEMPTS_MAX:
                    words = f"in {ATTEMPTS_MAX} attempts no LSN divided what a round saw from the rest; request it again"
                    raise SnapshotFailed("no_watermark", str(exc) or words) from exc
                await self._pause(NEXT_ATTEMPT_S)
            except TableChanged:  # or the stream does not say yet how it is published
                is_stale = True
            except SourceUnavailable as exc:
                log.warning("a snapshot waits for PostgreSQL", table=token, reason=str(exc), next_try_s=exc.retry_s)
                await self._pause(exc.retry_s)
            await self._pause(self._pace.debt_s)
        await finish(self._js, self.course, self._setup.encoder)
        return self.course

    async def _pause(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await self._cancelling.is_asked.wait()

    async def _round(self, token: str, published: PublishedTable) -> None:
        """Read for one round, and store what it brings."""
        course, begun_at = self.course, trio.current_time()
        after = None if course is None or course.place is None else course.place.stream_seq
        with self._seats.more() as more:
            await self._open_and_read(token, published, course, after, 1 + more, begun_at)

    async def _open_and_read(
        self, token: str, published: PublishedTable, course: Course | None, after: int | None, lanes: int, begun_at: float
    ) -> None:
        with self._board.reading(self._progress):
            async with open_round(self._setup, self._js, published, lanes=lanes, after=after) as opened:
                if course is None and not await self._has_only_small_rows(token, opened, begun_at):
                    return  # the next round searches on
                await self._read_opened(token, opened, course, begun_at)

    async def _read_opened(self, token: str, opened: OpenRound, course: Course | None, begun_at: float) -> None:
        if course is None:
            course = await self._begin(token, opened, "ranges")
            await self._begun()
        else:
            check_shape(course.start, opened)
            await check_start(self._js, course)
        store = self._store_of(course, opened)
        await self._cut(course, store, opened)
        before = course.rows, len(course.left)
        waited_s = trio.current_time() - begun_at
        clock = Clock.of(max(self._round_s - waited_s, self._round_s / 2))
        await self._read(course, store, opened, clock)
        # rows that a filter leaves out take time as well: a round that brought nothing gets more
        moved = (course.rows, len(course.left)) != before
        self._round_s = float(self._setup.config.snapshots.round_s) if moved else min(ROUND_MAX_S, 2 * self._round_s)

    async def _has_only_small_rows(self, token: str, opened: OpenRound, begun_at: float) -> bool:
        """Search for a row that no message can carry, for half a round; return whether all pages were searched."""
        if self._search is None:
            is_compressed = self._setup.compressor(split_suffix(token)[0]) is not None
            self._search = LargeRowSearch(self._setup.stream.init_payload_max, is_compressed=is_compressed)
        connection = opened.table.connection
        # once, in the order of the pages: the rounds' own settings would read the whole index for it
        await connection.query("SET LOCAL enable_seqscan = on; SET LOCAL enable_tidscan = on")
        until = max(begun_at + self._round_s / 2, trio.current_time() + self._round_s / 4)
        if not await self._search.search(opened.table, opened.key.columns, until):
            return False
        await connection.query(BY_INDEX)
        return True

    async def _refuse_large_rows(self, token: str, opened: OpenRound, source: str) -> None:
        is_compressed = self._setup.compressor(split_suffix(token)[0]) is not None
        payload_max = self._setup.stream.init_payload_max
        key = opened.key.columns
        await refuse_large_rows(opened.table, payload_max, is_compressed=is_compressed, source=source, key=key)

    async def _begin(self, token: str, opened: OpenRound, mode: Literal["ranges", "keys"]) -> Course:
        """Store the start."""
        table, stream = opened.table, self._setup.stream.stream
        compressor = self._setup.compressor(split_suffix(token)[0])
        head = RoundsHead(
            new_snapshot_id(time.time()), token, mode, table.relation, table.description.data_types, table.pk,
            opened.key.columns, stream, table.version, table.watermark.system_id, table.watermark.timeline,
            table.rows_expected if mode == "ranges" else 0, compressor is not None,
            compressor.dictionary_id if compressor else None, table.description.base_types, table.description.types,
        )  # fmt: skip
        message = RoundMessages(head, self._setup.encoder).start()
        seq = await self._js.publish(message.subject, message.body)
        (start,) = decode_message(message.subject, {}, message.body)
        assert isinstance(start, RangesStart), "it has a mode"
        course = self.course = Course(start, seq)
        self._begin_showing(course)
        log.info(
            "snapshot begins", table=token, snapshot_id=start.snapshot_id, snapshot_lsn=format_lsn(opened.place.snapshot_lsn)
        )
        return course

    def _begin_showing(self, course: Course) -> None:
        self._board.begins(self._progress, course.start.snapshot_id, course.start.rows_expected)
        self._progress.rows, self._progress.chunks = course.rows, course.chunks

    def _store_of(self, course: Course, opened: OpenRound) -> ChunkStore:
        blocks = self._setup.blocks_of(opened.table, "map")
        compressor = self._setup.compressor(split_suffix(course.start.token)[0])
        return ChunkStore(self._js, course, self._setup.encoder, blocks, compressor, self._setup.stream.init_payload_max)

    async def _cut(self, course: Course, store: ChunkStore, opened: OpenRound) -> None:
        """Cut what is left so that every connection has something to read."""
        connections = len(opened.connections)
        if len(course.left) >= connections:
            return
        wanted = 1 if connections == 1 else RANGES_PER_LANE * connections
        parts = min(wanted, opened.key.size_bytes // RANGE_BYTES_MIN)
        for number, span in list(course.left.items()):
            found = await cut_by_size(opened.table.connection, opened.table.published, opened.key, span, parts)
            others = [other for one, other in course.left.items() if one != number]
            if len(found) > 1 and store.fits([*others, *found]):
                course.replace(number, found)

    async def _read(self, course: Course, store: ChunkStore, opened: OpenRound, clock: Clock) -> None:
        """Have every connection read ranges, and store what they bring, until the round is over or nothing is left."""
        waiting = list(course.left.items())
        failures: list[Exception] = []
        cuts_out, cuts_in = trio.open_memory_channel[tuple[int, Cut]](0)
        setup = self._setup

        def is_late() -> bool:
            return (
                bool(failures) or self._cancelling.is_asked.is_set()
                or trio.current_time() + self._pace.debt_s >= clock.soft
            )  # fmt: skip

        async def run_lane(lane: Lane, out: trio.MemorySendChannel[tuple[int, Cut]]) -> None:
            try:
                with out:
                    while waiting and not lane.is_over:
                        number, span = waiting.pop(0)
                        async with aclosing(lane.read(span)) as cuts:
                            async for cut in cuts:
                                await out.send((number, cut))
            except (PostgresError, SourceUnavailable, UnicodeDecodeError) as exc:
                failures.append(exc)

        blocks = setup.blocks_of(opened.table, "map")
        stored = None
        async with trio.open_nursery() as nursery:
            with cuts_out:
                for connection in opened.connections:
                    lane = Lane(connection, opened.table, opened.key, blocks, clock, store.room, is_late, setup.events_underway)
                    nursery.start_soon(run_lane, lane, cuts_out.clone())
            try:
                async for number, cut in cuts_in:
                    sent = await store.store(number, cut, opened.place)
                    self._pace.sent(sent)
                    self._board.sent(self._progress, chunks=course.chunks, rows=course.rows, new_bytes=sent)
            except Exception as exc:  # raised here, it would be wrapped in a group
                stored = exc
                nursery.cancel_scope.cancel()
        if stored is not None:
            raise stored
        if failures:
            raise failures[0]

    # -- rows that somebody has named

    async def answer(self, token: str, published: PublishedTable, keys: list[KeyText]) -> Course:
        """Answer with the rows of these keys that exist, at one place. `token` has the asker's suffix.

        Raises NoWatermark, TableChanged and SourceUnavailable when another attempt may succeed; else as `take` does.
        """
        async with open_round(self._setup, self._js, published, lanes=1, after=None) as opened:
            table, key = opened.table, opened.key
            if any(len(one) != len(key.columns) for one in keys):
                raise SnapshotFailed("bad_request", f"a key has {len(key.columns)} values: {', '.join(key.columns)}")
            names = [column.name for column in table.relation.columns]
            columns = ", ".join(f"named.{quoted(name)}" for name in names)
            places = [names.index(name) for name in key.columns]
            rows = f"(SELECT {table.columns} FROM {table.published.own}{where(table.published.row_filter)}) AS named"
            blocks = self._setup.blocks_of(table, "map")
            if "bytea" in key.types:
                keys = [key.with_bytes(one) for one in keys]
            statement = f"SELECT {columns} FROM {rows} {key.joined(list(dict.fromkeys(keys)), 'named')}" if keys else ""
            pieces: list[KeyedPiece] = []
            course: Course | None = None

            async def send(*, is_last: bool) -> Course:
                nonlocal course
                if course is None:
                    course = await self._begin(token, opened, "keys")
                sent = await self._store_of(course, opened).store(0, Cut([*pieces], is_last), opened.place)
                self._board.sent(self._progress, chunks=course.chunks, rows=course.rows, new_bytes=sent)
                pieces.clear()
                return course

            if statement:
                await self._refuse_large_rows(token, opened, f"({statement}) AS named_rows")
                async with aclosing(table.connection.blocks(statement, table.block_rows)) as results:
                    async for result in results:
                        if sum(keyed.size_bytes for keyed in pieces) >= GATHER_BYTES_MAX:
                            await send(is_last=False)
                        pieces.append(KeyedPiece(blocks.piece(result), keys_in(result, places, table.connection)))
            course = await send(is_last=True)
        await finish(self._js, course, self._setup.encoder)
        await self._begun()  # only now: if the bridge is killed before, the request is there still
        return course


def check_shape(start: RangesStart, opened: OpenRound) -> None:
    """Raise ShapeChanged unless what this round sees is what the snapshot began with; SnapshotFailed on a new timeline."""
    table, watermark = opened.table, opened.table.watermark
    if (watermark.system_id, watermark.timeline) != (start.system_id, start.timeline):
        raise SnapshotFailed("new_timeline", "PostgreSQL has begun a new timeline during the snapshot; request it again")
    now = (table.relation.oid, opened.schema_id, table.version, opened.key.columns)
    if now != (start.relation_id, start.schema_id, start.version, start.key):
        raise ShapeChanged
