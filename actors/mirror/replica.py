"""The running mirror's hold on its replica: one local transaction at a time, and what all its tasks share."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import trio
from trio_util import AsyncValue

from actors.contract.records import Column
from actors.mirror.progress import MirrorCounts
from actors.mirror.state import LIVE, Checkpoint, TableRecord, forget_place, load_place, load_tables
from actors.mirror.stores.dialect import Statement
from actors.mirror.stores.shapes import TableShape, encode_columns
from actors.mirror.stores.store import Store
from actors.mirror.track import NEEDED_NOTHING, FollowedTable, Stale, Track
from actors.telemetry.log import get_logger

log = get_logger("mirror")


class Changed(Exception):
    """Which tables are live, or where they are, has changed: begin again from the durable place."""


class Replica:
    """Everything that is durable, and the lock that makes local transactions follow one another.

    `place` and `tables` are what the database holds; they change when a local transaction has been committed.
    """

    def __init__(self, store: Store, stream: str, counts: MirrorCounts) -> None:
        self.store, self.stream, self.counts = store, stream, counts
        self.dialect = store.dialect
        self.place: Checkpoint | None = None
        self.tables: dict[str, TableRecord] = {}
        self.shapes: dict[str, TableShape] = {}
        """Of the live tables."""
        self.generation = 0
        """Grows when other tables are live, or from another place, than a track that began before believes."""
        self.moved = AsyncValue(0)
        """Grows when `place` or `generation` has changed."""
        self.left: trio.MemorySendChannel[str] | None = None
        """Tokens of tables that are not live any more, for whoever makes new copies."""
        self._lock = trio.Lock()
        self._session = secrets.token_hex(8)

    async def load(self) -> None:
        """Read what the database holds, and take it over: whoever wrote to it before can do so no longer."""
        owner = self.dialect.save("owner", "id", {"id": 1, "session": self._session})
        await self.store.run([owner], commit=True)
        self.place = await load_place(self.store)
        self.tables = await load_tables(self.store)
        self.shapes = {}
        for token, record in self.tables.items():
            if record.state == LIVE:
                self.shapes[token] = await self.shape_of(record)

    async def shape_of(self, record: TableRecord) -> TableShape:
        """The shape of a table as its record tells it."""
        columns = record.told_columns
        types = await self.local_types(columns)
        return TableShape(
            record.token, record.source_schema, record.source_table, record.local, columns, types, record.relation_id,
            bool(record.keyed),
        )  # fmt: skip

    def followed(self) -> Mapping[str, FollowedTable]:
        """The live tables, for a new track."""
        return {
            token: FollowedTable.of(self.dialect, shape, self.tables[token].snapshot_lsn)
            for token, shape in self.shapes.items()
        }

    # -- local transactions

    async def run(self, statements: Sequence[Statement]) -> None:
        """One whole local transaction."""
        async with self._lock:
            await self._run(statements)

    async def query(self, sql: str, params: Sequence[object] = ()) -> list[tuple[object, ...]]:
        """Read, between local transactions."""
        async with self._lock:
            return await self.store.query(sql, params)

    async def local_types(self, columns: Sequence[Column]) -> tuple[str, ...]:
        """The columns' types here, as SQL."""
        async with self._lock:
            return await self.store.local_types(columns)

    async def exists(self, local: tuple[str, str]) -> bool:
        """Whether there is something of this name."""
        async with self._lock:
            return await self.store.exists(local)

    async def make_schema(self, local: tuple[str, str]) -> list[str]:
        """The statements that must come before a table of this name can be made."""
        async with self._lock:
            return await self.store.make_schema(local)

    async def save(self, record: TableRecord) -> None:
        """Write a table's record."""
        await self.run([record.saved(self.dialect)])
        self.tables[record.token] = record

    async def note_misfit(self, token: str, reason: str, *, keyed: bool | None) -> None:
        """A change did not fit to a live table's rows: it must be copied again. `keyed` as in TableRecord, None: as it was."""
        stale = Stale(reason, NEEDED_NOTHING, "rows")
        await self.save(self.tables[token].as_stale(stale.reason, stale.needed_seq, keyed=keyed))
        await self._leave({token: stale})

    async def forget(self, reason: str) -> None:
        """The stream does not hold what comes next: all live tables must be copied again."""
        live = [token for token, record in self.tables.items() if record.state == LIVE]
        records = {token: self.tables[token].as_stale(reason, NEEDED_NOTHING) for token in self.tables}
        await self.run([forget_place(self.dialect), *(record.saved(self.dialect) for record in records.values())])
        self.tables |= records
        self.place = None
        await self._leave(dict.fromkeys(live, Stale(reason, NEEDED_NOTHING, "stream")))

    def still_ours(self) -> Statement:
        """Begins every local transaction: of two mirrors, the one that came first is refused."""
        mark = self.dialect.parameter
        sql = f"UPDATE {self.dialect.own('owner')} SET session = {mark(1)} WHERE id = 1 AND session = {mark(2)}"
        return Statement(sql, [(self._session, self._session)], counted=True)

    async def _run(self, statements: Sequence[Statement]) -> None:
        try:
            await self.store.run([self.still_ours(), *statements], commit=True)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._roll_back()
            raise

    async def _roll_back(self) -> None:
        try:
            await self.store.rollback()
        except Exception as exc:
            log.debug("no rollback", reason=str(exc))

    async def _leave(self, stale: Mapping[str, Stale]) -> None:
        for token, why in stale.items():
            self.shapes.pop(token, None)
            self.counts.resnapshots[why.cause] += 1
            log.warning("a table must be copied again; until then it stays as it is", table=token, reason=why.reason)
        if stale:
            self.generation += 1
            self.moved.value += 1
            if self.left is not None:
                for token in stale:
                    self.left.send_nowait(token)  # no pause: whoever counts generations must not miss another one

    @asynccontextmanager
    async def still(self) -> AsyncGenerator[Checkpoint | None]:
        """Between local transactions: the live tables do not move meanwhile. Yields the place where they are."""
        async with self._lock:
            yield self.place

    async def go_live(self, record: TableRecord, shape: TableShape, statements: Sequence[Statement], place: Checkpoint) -> None:
        """Switch a new copy in, which is at `place`: that of the live tables, or the first. Only while all stands `still`."""
        moved = place.first(self.dialect) if self.place is None else self.place.moved(self.dialect, place.cursor)
        await self._run([moved, *statements, record.saved(self.dialect)])
        self.place = place
        self.tables[record.token], self.shapes[record.token] = record, shape
        self.generation += 1
        self.counts.snapshots += 1
        self.moved.value += 1

    def begin(self, track: Track) -> LocalTransaction:
        """What a track gathers, from now on, as local transactions that belong together with the place."""
        return LocalTransaction(self, track)


class LocalTransaction:
    """Runs what a track has gathered. Holds the replica's lock while a transaction of the source is half applied."""

    def __init__(self, replica: Replica, track: Track) -> None:
        self._replica, self._track = replica, track
        self._generation = replica.generation
        self._holds = False

    async def flush(self) -> None:
        """Run what is gathered of a large transaction; nobody sees it yet. Raises Changed."""
        await self._hold()
        await self._replica.store.run([self._replica.still_ours(), *self._track.drain()], commit=False)

    async def commit(self) -> None:
        """Run what is gathered together with the new place. Raises Changed when the replica is not what the track believes."""
        replica, track = self._replica, self._track
        await self._hold()
        assert replica.place is not None, "a generation has a place"
        statements = track.drain()
        records = {token: replica.tables[token].as_stale(why.reason, why.needed_seq) for token, why in track.stale.items()}
        for token in track.reshaped & track.tables.keys():
            records[token] = replace(replica.tables[token], columns=encode_columns(track.tables[token].shape.columns))
        track.reshaped = set()
        statements += [record.saved(replica.dialect) for record in records.values()]
        # first of all: were it another mirror's replica, its rows would be there too
        statements[:0] = [replica.still_ours(), replica.place.moved(replica.dialect, track.closed)]
        await replica.store.run(statements, commit=True)
        replica.place = replace(replica.place, cursor=track.closed)
        self._count()
        for token, table in track.tables.items():
            replica.shapes[token] = table.shape
        replica.tables |= records
        self.release()
        replica.moved.value += 1
        if track.stale:
            stale, track.stale = track.stale, {}
            await replica._leave(stale)
            self._generation = replica.generation

    def _count(self) -> None:
        counts, track = self._replica.counts, self._track
        for key, rows in track.applied.items():
            counts.rows[key] = counts.rows.get(key, 0) + rows
        counts.unknown_values += track.unknown_values
        counts.commit_us = track.commit_us or counts.commit_us
        track.applied, track.unknown_values = {}, 0

    async def _hold(self) -> None:
        if not self._holds:
            await self._replica._lock.acquire()
            self._holds = True
            if self._generation != self._replica.generation:
                raise Changed

    def release(self) -> None:
        """Let others in."""
        if self._holds:
            self._holds = False
            self._replica._lock.release()

    async def roll_back(self) -> None:
        """Forget what is not committed. The track is of no use afterwards."""
        if self._holds:
            with trio.CancelScope(shield=True):
                await self._replica._roll_back()
        self.release()
