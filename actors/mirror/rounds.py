"""Gathers a snapshot in rounds: chunks and events together, in one local transaction with the place that both have reached.

The rule is that of `contract/ranges.py`. After a kill the copy goes on where it was. When every row is complete, the staging
table is what the source was at the last chunk's place, as after a complete snapshot there, and joins in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any

import trio

from actors.clients.nats.ordered_consumer import Delivered, OrderedConsumer, open_consumer
from actors.clients.nats.snapshot_answers import newest_answer
from actors.contract.decoding import decode_message
from actors.contract.records import (
    AMBIGUOUS,
    Event,
    Gap,
    Published,
    RangesChunk,
    RangesStart,
    Record,
    SchemaChange,
    SnapshotError,
    SnapshotMeta,
    SnapshotStart,
)
from actors.contract.rules import is_other_version, position_of
from actors.contract.subjects import (
    CDC_ALL,
    CDC_NOTICES,
    INIT,
    RANGES,
    cdc_of_table,
    init_error,
    init_start,
    request,
    snapshot_of_table,
)
from actors.errors import MalformedMessage
from actors.mirror.boundaries import Boundaries
from actors.mirror.gathered import (
    Gathered,
    SnapshotRefused,
    SnapshotUnusable,
    check_published,
    decode_answer,
    make_staging,
    staging_shape,
)
from actors.mirror.named_rows import ASK_AGAIN_S, BODY_BYTES_MAX, KEYS_MAX, LOOK_S, ask_by_key, request_body
from actors.mirror.replica import Replica
from actors.mirror.source_stream import SourceStream, bridge_position
from actors.mirror.stores.dialect import Dialect, Statement
from actors.mirror.stores.lenient_statements import LenientStatements, joined
from actors.mirror.stores.row_statements import UnknownColumn
from actors.mirror.stores.store import ApplyConflict
from actors.mirror.track import NEEDED_AS_BEFORE, Told
from actors.positions import GAP_RANK
from actors.telemetry.log import get_logger
from actors.wire.nats import encode_pub

log = get_logger("mirror")

SILENT_S = 1800.0
"""Silence after which a snapshot that has begun is asked for again. A bridge that comes back continues it by itself, and would
take another one for a request that is younger than its start."""
UNANSWERED_MAX = 3
"""Requests without an answer after which the bridge counts as one that knows no rounds."""
EVENTS_S = 0.1
ROWS_MAX = 5_000
"""Changes per local transaction."""
ASKED_MAX = 10
"""How often incomplete rows are asked for: values that are omitted again and again stay unknown."""


class RoundsRefused(Exception):
    """The table cannot be copied in rounds, or nobody answers the request: take a complete snapshot."""


@dataclass(frozen=True, slots=True)
class RoundsPlace:
    """How far a copy in rounds is, as the replica stores it together with the rows."""

    token: str
    snapshot_id: str
    created: str
    """When the stream was created that `stream_seq` is a sequence of."""
    init_seq: int
    """INIT sequence of the start."""
    init_at: int
    """INIT sequence of the last chunk that was taken, or of the start."""
    chunks: int = 0
    rows_done: int = 0
    stream_seq: int = 0
    """All events of the table up to here are applied."""
    lsn: int = 0
    seq: int = -1
    """The last event that was applied is at this position: it is not applied twice."""
    snapshot_lsn: int = 0
    """Of the last chunk."""
    touched: int = 0
    """1 once an event was applied, so that rows of a chunk may be there already."""

    def saved(self, dialect: Dialect) -> Statement:
        """The statement that stores it."""
        return dialect.save("rounds", "token", asdict(self))


def forget_place(dialect: Dialect, token: str) -> Statement:
    """The statement that removes a table's place."""
    return Statement(f"DELETE FROM {dialect.own('rounds')} WHERE token = {dialect.parameter(1)}", [(token,)])


async def load_place(replica: Replica, token: str) -> RoundsPlace | None:
    """Read how far a copy is; None if there is none."""
    names = ", ".join(one.name for one in fields(RoundsPlace))
    dialect = replica.dialect
    rows = await replica.query(f"SELECT {names} FROM {dialect.own('rounds')} WHERE token = {dialect.parameter(1)}", (token,))
    if not rows:
        return None
    token, snapshot_id, created, *numbers = rows[0]  # type: ignore[assignment]
    return RoundsPlace(token, str(snapshot_id), str(created), *(int(str(number)) for number in numbers))


async def in_rounds(replica: Replica, source: SourceStream, token: str) -> bool:
    """Whether a table is to be copied in rounds: it is large, and the replica's table has its key; or such a copy has begun."""
    if not replica.tables[token].keyed or not replica.rounds_from_rows:
        return False
    if await load_place(replica, token) is not None:
        return True
    record = await source.record()
    return record is not None and record.large.get(token, 0) >= replica.rounds_from_rows


async def gather_in_rounds(replica: Replica, source: SourceStream, token: str) -> Gathered:
    """Copy a table in rounds into its staging table, continuing a copy that an earlier session has begun.

    Raises RoundsRefused, and what `gather` raises.
    """
    async with AsyncExitStack() as stack:
        try:
            return await _RoundsReader(replica, source, token, stack).run()
        except (RoundsRefused, SnapshotRefused, SnapshotUnusable, ApplyConflict):
            await replica.run([forget_place(replica.dialect, token)])
            raise


class _RoundsReader:
    """Reads chunks and events of one table. For one task."""

    def __init__(self, replica: Replica, source: SourceStream, token: str, stack: AsyncExitStack) -> None:
        self._replica, self._source, self._token, self._stack = replica, source, token, stack
        self._part = token + RANGES
        self._start: RangesStart | None = None
        self._place: RoundsPlace | None = None
        self._statements: LenientStatements | None = None
        self._events: OrderedConsumer | None = None
        self._waiting: list[Delivered] = []
        self._boundaries = Boundaries(source, [cdc_of_table(token), CDC_NOTICES])
        self._unreadable: set[tuple[Any, ...]] = set()
        """Keys of rows that no message can carry."""

    async def run(self) -> Gathered:
        """Read until the copy is complete."""
        from_seq = await self._continue()
        unanswered, heard_at = 0, trio.current_time()
        async with open_consumer(self._source.js, INIT, [*snapshot_of_table(self._part)], from_seq) as consumer:
            while True:
                messages = await consumer.receive(LOOK_S)
                check_published(self._replica, self._token)
                now = trio.current_time()
                if messages:
                    heard_at = now
                elif now - heard_at >= (ASK_AGAIN_S if self._start is None else SILENT_S):
                    unanswered, heard_at = unanswered + 1, now
                    if self._start is None and unanswered == UNANSWERED_MAX:
                        raise RoundsRefused("nobody answers")
                    await self._ask()
                for message in messages:
                    record = await decode_answer(self._source, message)
                    if record is not None and (gathered := await self._take(message, record)) is not None:
                        return gathered

    # -- where to begin

    async def _continue(self) -> int:
        """Take up a copy that has begun, or find a snapshot, or ask for one; return the INIT sequence to read from."""
        replica, source = self._replica, self._source
        await source.require()
        place = await load_place(replica, self._token)
        used = replica.tables[self._token].init_seq
        if place is not None and place.created == source.created and place.init_seq > used:
            start = await self._start_at(place.init_seq)
            if start is not None and start.snapshot_id == place.snapshot_id and await self._is_held(place):
                self._start, self._place = start, place
                await self._set_shape(start)
                assert self._statements is not None, "set with the shape"
                if await replica.exists(self._statements.shape.local):
                    log.info("a copy continues", table=self._token, snapshot_id=place.snapshot_id, rows=place.rows_done)
                    return place.init_at + 1
        self._start = self._place = None
        message = await newest_answer(source.js, init_start(self._part), source.name, used)
        failed = message and await newest_answer(source.js, init_error(self._part), source.name, message.seq)
        if message is not None and failed is None:
            return message.seq
        info = await source.js.stream_info(INIT)
        last = int(info["state"]["last_seq"]) if info is not None else 0
        await self._ask()
        return last + 1

    async def _is_held(self, place: RoundsPlace) -> bool:
        """Whether the stream has what comes after a place."""
        return not place.chunks or not self._source.why_out_of_date(place.stream_seq, place.created)

    async def _start_at(self, init_seq: int) -> RangesStart | None:
        message = await self._source.js.get_message(INIT, seq=init_seq)
        if message is None:
            return None
        try:
            (record,) = decode_message(message.subject, {}, message.data)
        except MalformedMessage:
            return None
        return record if isinstance(record, RangesStart) and record.stream == self._source.name else None

    async def _ask(self) -> None:
        log.info("asking for a snapshot in rounds", table=self._token)
        await self._source.js.connection.send(encode_pub(request(self._part, self._source.name).encode(), b"", b"", None))

    # -- one message of INIT

    async def _take(self, message: Delivered, record: Record) -> Gathered | None:
        start, place = self._start, self._place
        if isinstance(record, RangesStart | SnapshotMeta | SnapshotError) and record.stream != self._source.name:
            return None
        if isinstance(record, RangesStart):
            if start is None or record.snapshot_id != start.snapshot_id:
                await self._begin(record, message.seq)
        elif isinstance(record, SnapshotError):
            if record.error_type == AMBIGUOUS:
                return None
            if record.error_type == "no_key":
                raise RoundsRefused(record.error_message)
            if record.error_type == "table_changed" and start is not None:  # another one begins by itself
                self._start = self._place = None
            elif start is None or not record.snapshot_id or record.snapshot_id == start.snapshot_id:
                raise SnapshotRefused(f"{record.error_type}: {record.error_message}")
        elif start is None or place is None:
            pass  # the rest of a snapshot that began earlier
        elif isinstance(record, RangesChunk) and record.snapshot_id == start.snapshot_id:
            if record.chunk > place.chunks:
                raise SnapshotUnusable(f"chunk {place.chunks} is missing", init_seq=place.init_seq)
            if record.chunk == place.chunks:
                await self._chunk(record, start, place, message.seq)
        elif isinstance(record, SnapshotMeta) and record.snapshot_id == start.snapshot_id:
            if (record.batch_count, record.row_count) != (place.chunks, place.rows_done):
                raise SnapshotUnusable("the snapshot is incomplete", init_seq=place.init_seq)
            return await self._complete(start)
        return None

    async def _begin(self, start: RangesStart, init_seq: int) -> None:
        replica = self._replica
        if {column.name for column in start.columns if column.pk} != set(start.key):
            raise RoundsRefused("its events name rows by another key than its primary key")
        await make_staging(replica, start)
        self._start = start
        statements = await self._set_shape(start)
        self._place = place = RoundsPlace(self._token, start.snapshot_id, self._source.created, init_seq, init_seq)
        dialect, missing = replica.dialect, statements.missing_shape
        made = [Statement(dialect.drop_table(missing.local), [()]), Statement(dialect.create_table(missing), [()])]
        await replica.run([*made, place.saved(dialect)])
        await self._close_events()
        log.info("snapshot in rounds begins", table=self._token, snapshot_id=start.snapshot_id, rows=start.rows_expected)

    async def _set_shape(self, start: RangesStart) -> LenientStatements:
        self._statements = LenientStatements(self._replica.dialect, await staging_shape(self._replica, start))
        return self._statements

    async def _chunk(self, chunk: RangesChunk, start: RangesStart, place: RoundsPlace, init_seq: int) -> None:
        replica, statements = self._replica, self._statements
        assert statements is not None, "set with the start"
        if not place.chunks:
            record = replica.tables[self._token]
            await self._source.look()
            reason = self._source.why_out_of_date(chunk.stream_seq)
            if chunk.stream_seq < record.needed_seq:
                reason = "the snapshot is from before the table had to be copied again"
            if not record.takes(start.version, chunk.stream_seq):
                reason = "the snapshot is from before the table was published as it is now"
            if reason:
                raise SnapshotUnusable(reason, init_seq=place.init_seq)
        await self._check_place(chunk, place)
        if place.chunks:
            place = await self._apply_until(chunk.stream_seq, start, place)
        place = replace(
            place, init_at=init_seq, chunks=chunk.chunk + 1, rows_done=place.rows_done + len(chunk.rows),
            stream_seq=chunk.stream_seq, snapshot_lsn=chunk.snapshot_lsn,
        )  # fmt: skip
        rows = joined(statements.chunk(chunk.rows, is_touched=bool(place.touched)))
        missing = replica.dialect.table(statements.missing)
        if place.touched and await replica.query(f"SELECT 1 FROM {missing} LIMIT 1"):
            rows += joined(statements.filled(chunk.rows))
        await replica.run([*rows, place.saved(replica.dialect)])
        self._place = place
        replica.counts.snapshot_rows += len(chunk.rows)

    async def _check_place(self, chunk: RangesChunk, place: RoundsPlace) -> None:
        """Raise SnapshotUnusable unless the chunk comes between the messages at its place.

        They are other ones if the stream was cut short and has grown again since the bridge looked.
        """
        if place.chunks and (chunk.stream_seq, chunk.snapshot_lsn) == (place.stream_seq, place.snapshot_lsn):
            return  # of the same round as the chunk before
        message = await self._source.message_of_a_bridge(chunk.stream_seq)
        at = None if message is None else bridge_position(message.headers)
        following = await self._source.next_of_a_bridge(chunk.stream_seq, CDC_ALL)
        after = None if following is None else following[1]
        # LSNs of gap and publication events are not in the order of the rows' events
        is_late = at is not None and at.rank != GAP_RANK and at.lsn >= chunk.snapshot_lsn
        is_early = after is not None and after.rank != GAP_RANK and after.lsn < chunk.snapshot_lsn
        if is_late or is_early:
            raise SnapshotUnusable("the stream has other messages at the snapshot's place", init_seq=place.init_seq)

    # -- events

    async def _apply_until(self, seq: int, start: RangesStart, place: RoundsPlace) -> RoundsPlace:
        """Apply the table's events up to `seq`."""
        while (following := await self._boundaries.next_after(place.stream_seq)) is not None and following.seq <= seq:
            if not self._waiting:
                consumer = await self._open_events(place)
                self._waiting = await consumer.receive(EVENTS_S)
                if self._waiting:
                    await self._source.check_jumps(place.stream_seq, self._waiting, place.created)
            made: list[Statement] = []
            taken = 0
            for message in self._waiting:
                if message.seq > seq or taken >= ROWS_MAX:
                    break
                taken += 1
                for event in await self._source.decode(message):
                    place = self._take_event(event, message.seq, start, place, made)
                place = replace(place, stream_seq=message.seq)
            del self._waiting[:taken]
            if taken:
                await self._replica.run([*joined(made), place.saved(self._replica.dialect)])
                self._place = place
            elif self._waiting:
                break
        return place

    def _take_event(
        self, event: Event, seq: int, start: RangesStart, place: RoundsPlace, made: list[Statement]
    ) -> RoundsPlace:  # fmt: skip
        statements, init_seq = self._statements, place.init_seq
        assert statements is not None, "set with the start"
        if isinstance(event, Gap):
            if not event.of_table or self._token in event.tables:
                raise SnapshotUnusable(f"changes are permanently lost: {event.reason}", seq, init_seq=init_seq)
        elif isinstance(event, Published):
            version = "" if event.change == "removed" else event.version
            if event.token == self._token and is_other_version(start.version, version):
                told = Told(version, seq, event.reason)
                reason = f"it is published differently: {event.reason}"
                raise SnapshotUnusable(reason, NEEDED_AS_BEFORE, init_seq=init_seq, told=told)
        elif event.token != self._token:
            pass
        elif isinstance(event, SchemaChange):
            if [(c.name, c.type) for c in event.columns] != [(c.name, c.type) for c in start.columns]:
                raise SnapshotUnusable("its columns changed", seq, init_seq=init_seq)
        else:
            position = position_of(event)
            if position[:2] > (place.lsn, place.seq):
                try:
                    made.extend(statements.of(event))
                except (UnknownColumn, KeyError) as exc:
                    raise SnapshotUnusable(f"a change does not fit its columns: {exc}", seq, init_seq=init_seq) from exc
                return replace(place, lsn=position.lsn, seq=position.seq, touched=1)
        return place

    async def _open_events(self, place: RoundsPlace) -> OrderedConsumer:
        if self._events is None:
            opening = open_consumer(self._source.js, self._source.name, self._boundaries.filters, place.stream_seq + 1)
            self._events = await self._stack.enter_async_context(opening)
        return self._events

    async def _close_events(self) -> None:
        self._events, self._waiting = None, []
        await self._stack.aclose()

    # -- the end

    async def _complete(self, start: RangesStart) -> Gathered:
        """Ask for incomplete rows until there is none, and hand over the copy."""
        replica, statements = self._replica, self._statements
        assert statements is not None, "set with the start"
        dialect = replica.dialect
        missing = dialect.table(statements.missing)
        for _ in range(ASKED_MAX):
            while keys := await replica.query(f"SELECT * FROM {missing} LIMIT {KEYS_MAX}"):
                await self._fill(start, keys)
            if not await replica.query(f"SELECT 1 FROM {missing} LIMIT 1"):
                break
        place = self._place
        assert place is not None, "set with the start"
        # the join moves the copy on without this place
        await replica.run([Statement(dialect.drop_table(statements.missing), [()]), forget_place(dialect, self._token)])
        whole = SnapshotStart(
            self._token, start.schema, start.table, start.snapshot_id, place.snapshot_lsn, place.stream_seq, start.relation_id,
            start.columns, "map", start.stream, start.version,
        )  # fmt: skip
        return Gathered(whole, place.created, place.init_seq, statements.shape, place.rows_done)

    async def _fill(self, start: RangesStart, keys: Sequence[Sequence[Any]]) -> None:
        """Ask for rows by their keys, and make just those right, each at the place of its answer.

        A row that no message can carry keeps its unknown columns.
        """
        waiting = [[key for key in keys if tuple(key) not in self._unreadable]]
        await self._leave_unknown([key for key in keys if tuple(key) in self._unreadable])
        while waiting:
            some = waiting.pop(0)
            if not some:
                continue
            body = self._body(start, some)
            chunks = None
            if len(body) <= BODY_BYTES_MAX or len(some) == 1:
                log.info("asking for rows that lack values", table=self._token, rows=len(some))
                chunks = await self._answer(start, body)
            if chunks is not None:
                await self._replace(start, some, chunks)
            elif len(some) > 1:
                middle = len(some) // 2
                waiting[:0] = [some[:middle], some[middle:]]
            else:
                log.warning("a row's values stay unknown: no message can carry it", table=self._token)
                self._unreadable.update(map(tuple, some))
                await self._leave_unknown(some)

    def _body(self, start: RangesStart, keys: Sequence[Sequence[Any]]) -> bytes:
        assert self._statements is not None, "set with the start"
        names = self._statements.missing_shape.names
        order = [names.index(name) for name in start.key]
        return request_body([[key[i] for i in order] for key in keys])

    async def _answer(self, start: RangesStart, body: bytes) -> list[RangesChunk] | None:
        """The rows that a request names; None if one of them cannot be sent."""
        place, source = self._place, self._source
        assert place is not None, "set with the start"

        def check(record: RangesStart) -> None:
            if (record.schema_id, record.version) != (start.schema_id, start.version):
                raise SnapshotUnusable("it is published differently", init_seq=place.init_seq)

        return await ask_by_key(
            source, self._token, body, check=check, since_seq=place.stream_seq,
            too_old=partial(source.check_holds, place.stream_seq, place.created),
            look=partial(check_published, self._replica, self._token),
        )  # fmt: skip

    async def _leave_unknown(self, keys: Sequence[Sequence[Any]]) -> None:
        assert self._statements is not None, "set with the start"
        if keys:
            await self._replica.run([self._statements.not_missing(keys)])

    async def _replace(self, start: RangesStart, keys: Sequence[Sequence[Any]], chunks: Sequence[RangesChunk]) -> None:
        replica, statements = self._replica, self._statements
        assert statements is not None, "set with the start"
        assert self._place is not None, "set with the start"
        await self._check_place(chunks[-1], self._place)
        place = await self._apply_until(chunks[-1].stream_seq, start, self._place)
        place = replace(place, stream_seq=chunks[-1].stream_seq, snapshot_lsn=chunks[-1].snapshot_lsn, touched=1)
        rows = [row for chunk in chunks for row in chunk.rows]
        filled = joined(statements.chunk(rows, is_touched=True))
        await replica.run([*statements.forget(keys), *filled, place.saved(replica.dialect)])
        self._place = place
