"""A new copy of a table: its snapshot, gathered aside, and the events behind it, up to where the live tables are.

Only then, in one local transaction, it takes the place of what was there: readers see the old table or the new one, never half
of one, and never a table that is ahead of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import trio

from actors.clients.consumer import Delivered, OrderedConsumer, open_consumer
from actors.clients.jetstream import StoredMessage
from actors.errors import SinkUnavailable
from actors.log import get_logger
from actors.lsn import format_lsn
from actors.messages import START
from actors.mirror.decoding import array_rows, decode_message
from actors.mirror.dialect import Statement
from actors.mirror.following import Follower
from actors.mirror.records import (
    ArrayChunk,
    Event,
    Record,
    Row,
    SnapshotChunk,
    SnapshotError,
    SnapshotMeta,
    SnapshotStart,
)
from actors.mirror.replica import Replica
from actors.mirror.shapes import TableShape
from actors.mirror.source_stream import GAPS, OutOfDate, SourceStream
from actors.mirror.state import REFUSED, WAITING, Place
from actors.mirror.store import TableFault
from actors.mirror.track import Cursor, CutOff, FollowedTable, Track
from actors.wire.nats import decode_headers, encode_pub

log = get_logger("mirror")

INIT = "INIT"
COPIES_AT_ONCE = 8
ASK_AGAIN_S = 30.0
RETRY_S = 5.0
ROWS_MAX = 5_000
LOOK_S = 0.1


class CopyUseless(Exception):
    """This snapshot does not lead to where the live tables are: another one is needed."""

    def __init__(self, reason: str, needed_seq: int, *, init_seq: int = 0) -> None:
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
    staging: TableShape
    rows: int


class Copier:
    """Makes new copies for one replica. Each table's copy is a task of its own."""

    def __init__(self, replica: Replica, source: SourceStream, follower: Follower) -> None:
        self._replica, self._source, self._follower = replica, source, follower
        self._js = source.js
        self._held: dict[str, TableShape] = {}
        self._limit = trio.CapacityLimiter(COPIES_AT_ONCE)

    async def ask(self, token: str) -> None:
        """Ask for a snapshot. A request that is there already is the same."""
        await self._js.connection.send(encode_pub(f"snapshot.request.{token}".encode(), b"", b"", None))

    async def copy(self, token: str) -> None:
        """Until the table is live. Raises SinkUnavailable, ReplicaUnavailable, ReplicaRefused."""
        replica = self._replica
        if replica.tables[token].state == REFUSED:
            await replica.save(replace(replica.tables[token], state=WAITING, reason=""))
        while True:
            pause_s = 0.0
            try:
                async with self._limit:  # not while it pauses: a table that cannot be copied must not keep others waiting
                    gathered = await self._gather(token)
                    await self._catch_up(token, gathered)
            except CopyUseless as exc:
                log.warning("a snapshot is of no use: asking for another one", table=token, reason=str(exc))
                stale = replica.tables[token].as_stale(str(exc), exc.needed_seq)
                await replica.save(replace(stale, init_seq=max(stale.init_seq, exc.init_seq)))
            except TableFault as exc:
                log.warning("a snapshot does not fit: asking for another one", table=token, reason=exc.reason)
                stale = replica.tables[token].as_stale(exc.reason, -1, keyed=False if exc.is_duplicate else None)
                await replica.save(stale)
                pause_s = RETRY_S
            except SnapshotRefused as exc:
                log.warning("no snapshot; trying again", table=token, reason=str(exc), next_try_s=ASK_AGAIN_S)
                await replica.save(replace(replica.tables[token], reason=str(exc)))
                pause_s = ASK_AGAIN_S
            except CannotMirror as exc:
                log.error("a table cannot be mirrored; the others go on", table=token, reason=str(exc))  # noqa: TRY400
                await replica.save(replace(replica.tables[token], state=REFUSED, reason=str(exc)))
                return
            except OutOfDate as exc:
                log.warning("the stream has changed: taking another snapshot", table=token, reason=str(exc))
                await replica.save(replica.tables[token].as_stale(str(exc), -1))
                pause_s = LOOK_S
            else:
                return
            await trio.sleep(pause_s)

    # -- the snapshot

    async def _gather(self, token: str) -> Gathered:
        """Read a snapshot that is there, or ask for one, into a table beside the live one."""
        info = await self._js.stream_info(INIT)
        if info is None:
            raise SinkUnavailable("WB215", f"stream {INIT} is gone", means="waiting until a bridge has made it again")
        started = await self._usable_start(token)
        if started is None:
            log.info("asking for a snapshot", table=token)
            await self.ask(token)
        start_seq = started.seq if started is not None else int(info["state"]["last_seq"]) + 1
        filters = [f"init.start.{token}", f"init.snap.{token}.>", f"init.meta.{token}", f"init.error.{token}"]
        if any(subject.startswith(("snapshot.", ">")) for subject in info["config"].get("subjects") or ()):
            filters += [f"snapshot.init.{token}", f"snapshot.data.{token}"]
        async with open_consumer(self._js, INIT, filters, start_seq) as consumer:
            reader = _SnapshotReader(self, token)
            while True:
                messages = await consumer.receive(ASK_AGAIN_S)
                if not messages and reader.start is None:
                    await self.ask(token)  # nobody may have been there to hear it
                for message in messages:
                    done = await reader.take(message, await self._decode(message))
                    if done is not None:
                        return done

    async def _decode(self, message: Delivered) -> Record:
        body = await self._source.unpacked(message)
        return decode_message(message.subject, _only_place(decode_headers(message.headers)), body)[0]

    async def _usable_start(self, token: str) -> StoredMessage | None:
        """The newest snapshot's start, if that snapshot leads to the present."""
        message = await self._js.get_message(INIT, last_by_subj=f"init.start.{token}")
        if message is None or message.seq <= self._replica.tables[token].init_seq:
            return None
        start = decode_message(message.subject, {}, message.data)[0]
        assert isinstance(start, SnapshotStart), "the subject says so"
        error = await self._js.get_message(INIT, last_by_subj=f"init.error.{token}")
        failed = error is not None and error.seq > message.seq
        if not await self._source.look() or failed or message.time < self._source.created:
            return None
        return message if self.is_usable(start) == "" else None

    def is_usable(self, start: SnapshotStart) -> str:
        """Why the events behind a snapshot do not lead to the present; empty when they do."""
        record, source = self._replica.tables[start.token], self._source
        if start.stream_seq < record.needed_seq:
            return "it is from before what went wrong"
        if source.first_seq > start.stream_seq + 1:
            return "the stream no longer holds what comes behind it"
        return "" if start.stream_seq <= source.last_seq else "the stream was cut short"

    async def staging(self, start: SnapshotStart) -> TableShape:
        """Make the table that a snapshot is gathered in."""
        replica, record = self._replica, self._replica.tables[start.token]
        dialect = replica.dialect
        names = [column.name.lower() for column in start.columns]
        if dialect.scheme == "sqlite" and len(set(names)) != len(names):
            raise CannotMirror("two of its columns differ only in upper and lower case, which SQLite cannot tell apart")
        if dialect.row_id(names) is None:
            raise CannotMirror("its columns have all the names by which SQLite tells a row")
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
        await replica.run([Statement(sql, [()]) for sql in statements])
        return shape

    async def add_rows(self, table: FollowedTable, rows: Sequence[Row]) -> None:
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

    # -- the events behind it

    async def _catch_up(self, token: str, gathered: Gathered) -> None:
        """Apply what came behind the snapshot, and switch the new copy in where the live tables are."""
        replica, source, start = self._replica, self._source, gathered.start
        table = FollowedTable.of(replica.dialect, gathered.staging, start.snapshot_lsn)
        track = Track(replica.dialect, Cursor(start.stream_seq, START), {token: table})
        filters = [f"cdc.{token}.>", GAPS]
        self._follower.joiners += 1
        try:
            async with open_consumer(source.js, source.name, filters, start.stream_seq + 1) as consumer:
                await source.check_holds(start.stream_seq, gathered.created)
                events = _Events(source, consumer, track, gathered)
                while True:
                    place = replica.place
                    limit = None if place is None else place.cursor.stream_seq
                    await events.receive(LOOK_S)
                    taken = await events.take(limit)
                    if track.is_dirty:
                        await replica.run(track.drain())
                    if place is None:
                        done = await self._be_first(token, gathered, events, filters, is_idle=not taken)
                    else:
                        done = await self._is_near(track, place, filters) and await self._join(token, gathered, events, filters)
                    if done:
                        return
                    if not taken:
                        await self._wait(place)
        except CutOff as exc:
            raise CopyUseless(exc.stale.reason, exc.stale.needed_seq) from exc
        finally:
            self._follower.joiners -= 1

    async def _wait(self, place: Place | None) -> None:
        """Until the live tables have moved, or a moment."""
        with trio.move_on_after(LOOK_S):
            await self._replica.moved.wait_value(lambda _: self._replica.place != place)

    async def _be_first(
        self, token: str, gathered: Gathered, events: _Events, filters: Sequence[str], *, is_idle: bool
    ) -> bool:
        """No table is live: this one says where the replica is. It must be what the source was at some LSN."""
        track = events.track
        if not events.is_at_a_place and not (is_idle and await self._skip_to_the_end(track, gathered, filters)):
            return False
        await self._prepare(token)
        async with self._replica.still() as place:
            if place is not None:
                return False
            first = Place(self._source.name, gathered.created, track.closed)
            await self._go_live(token, gathered, track, first)
        return True

    async def _skip_to_the_end(self, track: Track, gathered: Gathered, filters: Sequence[str]) -> bool:
        """No event of the table says that the snapshot's LSN is passed: does the bridge's record, at the stream's end?"""
        source = self._source
        record = await source.record()  # before the stream's end is asked for
        await source.check_holds(track.head_seq, gathered.created)
        last = source.last_seq
        following = await source.next_message(track.head_seq, filters)
        if (following is not None and following[0] <= last) or not await source.is_boundary(last, filters):
            return False
        proven = record.confirmed_lsn if record is not None and record.last_seq <= last else 0
        if max(track.closed.position.lsn, proven) < gathered.start.snapshot_lsn:
            return False
        track.close()
        track.advance(last)
        return True

    async def _is_near(self, track: Track, place: Place, filters: Sequence[str]) -> bool:
        """What is left up to the place is little: the live tables may stand still for it."""
        if place.cursor.stream_seq - track.head_seq <= ROWS_MAX:
            return True
        following = await self._source.next_message(track.head_seq, filters)
        return following is None or following[0] > place.cursor.stream_seq

    async def _join(self, token: str, gathered: Gathered, events: _Events, filters: Sequence[str]) -> bool:
        """Come to the place of the live tables while they stand still; whether that place will do.

        It is behind all that they need of one transaction, of which this table may have more.
        """
        replica, source, start = self._replica, self._source, gathered.start
        await self._prepare(token)
        async with replica.still() as place:
            if place is None or place.created != gathered.created or self._follower.is_held:
                return False
            seq, position = place.cursor
            if seq < start.stream_seq or not self._follower.has_reached(start.snapshot_lsn):
                return False
            lsn = await source.lsn_at(seq)
            if lsn is not None:
                if not await source.is_over(lsn):
                    return False
                following = await source.next_message(seq, [GAPS, *(f"cdc.{live}.>" for live in replica.shapes)])
                if following is not None and following[1] == lsn:
                    return False
            await events.take_through(seq, lsn, filters)
            events.track.close()
            cursor = Cursor(seq, max(position, events.track.closed.position))
            await self._go_live(token, gathered, events.track, replace(place, cursor=cursor))
        return True

    async def _prepare(self, token: str) -> None:
        """Ask the database, before everything must stand still, what the table looks like that is there."""
        record = self._replica.tables[token]
        self._held[token] = self._replica.shapes.get(token) or await self._replica.shape_of(record)

    async def _go_live(self, token: str, gathered: Gathered, track: Track, place: Place) -> None:
        """Make the copy the live table, at `place`."""
        replica, start = self._replica, gathered.start
        record = replica.tables[token]
        rest = track.drain()
        shape = replace(track.tables[token].shape, local=record.local)
        dialect, lacks = replica.dialect, self._held.pop(token).lacks(shape)
        if record.state != WAITING and lacks is not None:
            statements = [dialect.add_column(record.local, name, kind) for name, kind in lacks.items()]
            statements += dialect.refill(shape, gathered.staging.local)
        else:
            statements = [
                dialect.drop_table(record.local),
                dialect.rename_table(gathered.staging.local, record.local_name),
            ]
        live = record.as_live(shape, start.snapshot_id, start.snapshot_lsn, gathered.init_seq)
        await replica.go_live(live, shape, [*rest, *(Statement(sql, [()], token=token) for sql in statements)], place)
        log.info(
            "table is live", table=token, rows=gathered.rows, snapshot_id=start.snapshot_id,
            snapshot_lsn=format_lsn(start.snapshot_lsn),
        )  # fmt: skip


class _Events:
    """A table's events behind its snapshot, taken as far as they are wanted."""

    def __init__(self, source: SourceStream, consumer: OrderedConsumer, track: Track, gathered: Gathered) -> None:
        self.track = track
        self._source, self._consumer = source, consumer
        self._created, self._snapshot_lsn = gathered.created, gathered.start.snapshot_lsn
        self._waiting: list[Delivered] = []
        self._seen = track.head_seq

    @property
    def is_at_a_place(self) -> bool:
        """Everything of whole transactions has been taken, and the snapshot's LSN is passed."""
        return self.track.open_lsn is None and self.track.closed.position.lsn >= self._snapshot_lsn

    async def receive(self, within_s: float) -> None:
        """Have some at hand, if there are any. Raises OutOfDate when some are gone."""
        if not self._waiting:
            self._waiting = await self._consumer.receive(within_s)
            if self._waiting:
                await self._source.check_jumps(self._seen, self._waiting, self._created)
                self._seen = self._waiting[-1].seq

    async def take(self, limit: int | None) -> int:
        """What is at hand up to the sequence `limit`, or without one to the first place that will do; how many messages."""
        taken = 0
        for message in self._waiting:
            if limit is not None and message.seq > limit:
                break
            events = await self._source.decode(message)
            if self.track.open_lsn not in (None, events[0].lsn):
                self.track.close()
            if limit is None and self.is_at_a_place:
                break
            self._take(message, events)
            taken += 1
            if self.track.gathered >= ROWS_MAX:
                break
        del self._waiting[:taken]
        return taken

    async def take_through(self, seq: int, lsn: int | None, filters: Sequence[str]) -> None:
        """Everything up to `seq`, and behind it what belongs to the transaction of `lsn`."""
        while True:
            following = await self._source.next_message(self.track.head_seq, filters)
            if following is None or (following[0] > seq and following[1] != lsn):
                return
            await self.receive(LOOK_S)
            while self._waiting:
                events = await self._source.decode(self._waiting[0])
                if self._waiting[0].seq > seq and events[0].lsn != lsn:
                    return
                self._take(self._waiting.pop(0), events)

    def _take(self, message: Delivered, events: Sequence[Event]) -> None:
        self.track.take(message.seq, events)
        for stale in self.track.stale.values():
            raise CopyUseless(stale.reason, stale.needed_seq)


class _SnapshotReader:
    """Puts the messages of a table's snapshots in their place: the newest one counts."""

    def __init__(self, copier: Copier, token: str) -> None:
        self._copier, self._token = copier, token
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
                raise CopyUseless(
                    f"{self._chunks} chunks of {self._rows} rows came, {record.batch_count} of {record.row_count} were sent",
                    0, init_seq=self._init_seq,
                )  # fmt: skip
            return Gathered(start, self._created, self._init_seq, self._table.shape, self._rows)
        return None

    async def _begin(self, start: SnapshotStart, init_seq: int) -> None:
        await self._copier._source.look()
        reason = self._copier.is_usable(start)
        if reason:
            log.debug("waiting for another snapshot", table=self._token, reason=reason)
            self.start = self._table = None
            return
        self.start, self._init_seq, self._created = start, init_seq, self._copier._source.created
        self._chunks = self._rows = 0
        shape = await self._copier.staging(start)
        self._table = FollowedTable.of(self._copier._replica.dialect, shape, start.snapshot_lsn)
        log.info("snapshot begins", table=self._token, snapshot_id=start.snapshot_id)

    async def _chunk(self, chunk: SnapshotChunk | ArrayChunk, start: SnapshotStart, table: FollowedTable) -> None:
        if chunk.chunk < self._chunks:
            return
        if chunk.chunk > self._chunks:
            raise CopyUseless(f"chunk {self._chunks} is missing", 0, init_seq=self._init_seq)
        rows = chunk.rows if isinstance(chunk, SnapshotChunk) else array_rows(chunk, start.columns)
        await self._copier.add_rows(table, rows)
        self._chunks += 1
        self._rows += len(rows)


def _only_place(headers: dict[str, str]) -> dict[str, str]:
    """The headers that say where a chunk belongs; the body is unpacked already."""
    return {name: headers[name] for name in ("Snapshot-Id", "Chunk") if name in headers}
