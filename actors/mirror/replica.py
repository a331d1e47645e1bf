"""The running mirror's access to its replica: one local transaction at a time, and the state that its tasks share."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import trio
from trio_util import AsyncValue

from actors.contract.records import Column
from actors.mirror.mirror_counts import MirrorCounts
from actors.mirror.state import (
    LIVE,
    UNPUBLISHED,
    Checkpoint,
    TableRecord,
    check_format,
    forget_checkpoint,
    forget_table,
    load_checkpoint,
    load_tables,
    load_verdicts,
)
from actors.mirror.stores.dialect import Statement
from actors.mirror.stores.shapes import TableShape, encode_columns
from actors.mirror.stores.store import Store, WriteAhead
from actors.mirror.track import NEEDED_NOTHING, FollowedTable, Stale, Told, Track
from actors.telemetry.log import get_logger

log = get_logger("mirror")


NOT_PUBLISHED = "WB509"
"""The code for a table of the replica that the bridge does not publish."""


class Changed(Exception):
    """Other tables are live than before, or the checkpoint was replaced: start again from the stored checkpoint."""


class Replica:
    """The replica's durable state, and the lock that makes local transactions follow one another.

    `checkpoint`, `tables` and `shapes` are what the database holds; they change after a local transaction was committed. The
    follower and the copies change them, each through the methods below; every task of the session reads them.
    """

    def __init__(self, store: Store, stream: str, counts: MirrorCounts) -> None:
        self.store, self.stream, self.counts = store, stream, counts
        self.dialect = store.dialect
        self.checkpoint: Checkpoint | None = None
        """None while no table is live."""
        self.tables: dict[str, TableRecord] = {}
        self.shapes: dict[str, TableShape] = {}
        """The shapes of the live tables."""
        self.generation = 0
        """Grows when the set of live tables changes, so that tracks that began before are invalid."""
        self.moved = AsyncValue(0)
        """Grows when `checkpoint` or `generation` has changed."""
        self.to_recopy: trio.MemorySendChannel[str] | None = None
        """Takes the tokens of tables that need a copy; the session makes the copies."""
        self.told_of_others: dict[str, Told] = {}
        """What the stream told of tables that the replica does not have."""
        self.rounds_from_rows = 0
        """Tables with so many rows are copied in rounds; 0 for none."""
        self._lock = trio.Lock()
        self._session = secrets.token_hex(8)

    async def load(self) -> None:
        """Read the durable state and become the replica's owner: a mirror that owned it before can no longer write.

        Raises ReplicaRefused for a replica that a later version has made.
        """
        await check_format(self.store)
        owner = self.dialect.save("owner", "id", {"id": 1, "session": self._session})
        await self.store.run([owner], commit=True)
        self.checkpoint = await load_checkpoint(self.store)
        self.tables = await load_tables(self.store)
        self.shapes = {}
        for token, record in self.tables.items():
            if record.state == LIVE:
                self.shapes[token] = await self.shape_of(record)

    async def shape_of(self, record: TableRecord) -> TableShape:
        """The shape of a table according to its record."""
        columns = record.told_columns
        types = await self.local_types(columns)
        return TableShape(
            record.token, record.source_schema, record.source_table, record.local, columns, types, record.relation_id,
            bool(record.keyed),
        )  # fmt: skip

    def followed(self) -> Mapping[str, FollowedTable]:
        """The live tables, for a new track."""
        return {
            token: FollowedTable.of(self.dialect, shape, self.tables[token].snapshot_lsn, self.tables[token].version)
            for token, shape in self.shapes.items()
        }

    # -- local transactions

    async def run(self, statements: Sequence[Statement]) -> None:
        """Run one complete local transaction."""
        async with self._lock:
            await self._run(statements)

    async def query(self, sql: str, params: Sequence[object] = ()) -> list[tuple[object, ...]]:
        """Read between local transactions."""
        async with self._lock:
            return await self.store.query(sql, params)

    async def verdicts(self) -> dict[str, tuple[int, int]]:
        """Read what `walbridge verify` stored (see `load_verdicts`)."""
        async with self._lock:
            return await load_verdicts(self.store)

    async def write_ahead(self) -> WriteAhead:
        """The state of the write-ahead log."""
        async with self._lock:
            return await self.store.write_ahead()

    async def local_types(self, columns: Sequence[Column]) -> tuple[str, ...]:
        """The columns' types in the replica, as SQL."""
        async with self._lock:
            return await self.store.local_types(columns)

    async def exists(self, local: tuple[str, str]) -> bool:
        """Whether the database has anything of this name."""
        async with self._lock:
            return await self.store.exists(local)

    async def shape_now(self, record: TableRecord) -> TableShape:
        """The shape of a table according to its record; without columns if somebody dropped the table or a column of it."""
        shape = await self.shape_of(record)
        async with self._lock:
            held = await self.store.columns(record.local)
        return shape if held.issuperset(shape.names) else replace(shape, columns=(), local_types=())

    async def make_schema(self, local: tuple[str, str]) -> list[str]:
        """The statements that must run before a table of this name can be created."""
        async with self._lock:
            return await self.store.make_schema(local)

    async def save(self, record: TableRecord) -> None:
        """Store a table's record."""
        await self.run([record.saved(self.dialect)])
        self.tables[record.token] = record

    async def change(self, token: str, change: Callable[[TableRecord], TableRecord]) -> None:
        """Store what `change` makes of a table's record, which other tasks may have changed meanwhile."""
        async with self._lock:
            before = self.tables[token]
            record = change(before)
            if record == before:
                return
            await self._run([record.saved(self.dialect)])
            self.tables[token] = record
        self._note_published({token: before})

    async def leave_unpublished(self, token: str, reason: str) -> None:
        """Stop following a table, or copying it, because the bridge does not publish it."""
        await self.change(token, lambda record: record.as_unpublished(reason))
        if token in self.shapes:
            await self._leave({token: Stale(reason, NEEDED_NOTHING, "publication")})

    async def forget_table(self, token: str) -> None:
        """Remove what is stored about a table that is not live."""
        await self.run(forget_table(self.dialect, token))
        del self.tables[token]

    async def note_conflict(self, token: str, reason: str, *, keyed: bool | None) -> None:
        """Have a live table copied again because a change conflicted with its rows.

        `keyed` is as in TableRecord; None leaves it as it was.
        """
        stale = Stale(reason, NEEDED_NOTHING, "rows")
        await self.change(token, lambda record: record.as_stale(stale.reason, stale.needed_seq, keyed=keyed))
        await self._leave({token: stale})

    async def forget(self, reason: str) -> None:
        """Have all live tables copied again because the stream no longer holds what comes next."""
        async with self._lock:
            live = [token for token, record in self.tables.items() if record.state == LIVE]
            records = {token: record.as_stale(reason, NEEDED_NOTHING) for token, record in self.tables.items()}
            await self._run([forget_checkpoint(self.dialect), *(record.saved(self.dialect) for record in records.values())])
            self.tables |= records
            self.checkpoint = None
        self.moved.value += 1
        await self._leave(dict.fromkeys(live, Stale(reason, NEEDED_NOTHING, "stream")))

    def still_ours(self) -> Statement:
        """The first statement of every local transaction: of two mirrors on a replica, the earlier one fails here."""
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
            log.debug("cannot roll back", reason=str(exc))

    async def _leave(self, stale: Mapping[str, Stale]) -> None:
        """Stop following tables, and pass on those that are still published to be copied again."""
        for token, why in stale.items():
            self.shapes.pop(token, None)
            if self.tables[token].state == UNPUBLISHED:
                continue
            self.counts.resnapshots[why.cause] += 1
            log.warning("a table must be copied again and keeps its rows until then", table=token, reason=why.reason)
        if stale:
            self.generation += 1
            self.moved.value += 1
            for token in stale:
                if self.tables[token].state != UNPUBLISHED:
                    self.need_copy(token)  # without a checkpoint: no other generation may come in between

    def need_copy(self, token: str) -> None:
        """Have the session copy a table."""
        if self.to_recopy is not None:
            self.to_recopy.send_nowait(token)

    def _note_published(self, before: Mapping[str, TableRecord]) -> None:
        """Say which tables are no longer published, and copy those that are published again; `before` has their old records."""
        for token, old in before.items():
            record = self.tables[token]
            if old.state != UNPUBLISHED == record.state:
                drop = f"DROP TABLE {self.dialect.table(record.local)}"
                log.warning(
                    "a table is no longer published and keeps its rows", code=NOT_PUBLISHED, table=token, reason=record.reason,
                    fix=f"publish it again; or if it is not needed, in the replica: {drop}",
                )  # fmt: skip
            elif old.state == UNPUBLISHED != record.state:
                log.info("a table is published again and is copied", table=token)
                self.need_copy(token)

    @asynccontextmanager
    async def still(self) -> AsyncGenerator[Checkpoint | None]:
        """Hold the lock between local transactions, so that the live tables do not move. Yields their checkpoint."""
        async with self._lock:
            yield self.checkpoint

    async def go_live(
        self, record: TableRecord, shape: TableShape, statements: Sequence[Statement], checkpoint: Checkpoint
    ) -> None:
        """Switch in a new copy that is at `checkpoint`: the live tables' one, or the first. Only inside of `still`."""
        if self.checkpoint is None:
            moved = checkpoint.first(self.dialect)
        else:
            moved = self.checkpoint.moved(self.dialect, checkpoint.cursor, checkpoint.last_message)
        await self._run([moved, *statements, record.saved(self.dialect)])
        self.checkpoint = checkpoint
        self.tables[record.token], self.shapes[record.token] = record, shape
        self.generation += 1
        self.counts.snapshots += 1
        self.moved.value += 1

    def begin(self, track: Track) -> LocalTransaction:
        """Turn what a track gathers from now on into local transactions that move the checkpoint too."""
        return LocalTransaction(self, track)


class LocalTransaction:
    """Runs what a track has gathered. Holds the replica's lock while a transaction of the source is half applied."""

    def __init__(self, replica: Replica, track: Track) -> None:
        self._replica, self._track = replica, track
        self._generation = replica.generation
        self._holds = False

    async def flush(self) -> None:
        """Run a part of a large transaction, which nobody sees until it is committed. Raises Changed."""
        await self._hold()
        await self._replica.store.run([self._replica.still_ours(), *self._track.drain()], commit=False)

    async def commit(self) -> None:
        """Run what is gathered and move the checkpoint, in one commit. Raises Changed when the track is invalid by now."""
        replica, track = self._replica, self._track
        await self._hold()
        assert replica.checkpoint is not None, "live tables have a checkpoint"
        statements = track.drain()
        records = {token: replica.tables[token].as_stale(why.reason, why.needed_seq) for token, why in track.stale.items()}
        for token in track.reshaped & track.tables.keys():
            records[token] = replace(replica.tables[token], columns=encode_columns(track.tables[token].shape.columns))
        track.reshaped = set()
        for token, told in track.told.items():
            if token in replica.tables:
                records[token] = records.get(token, replica.tables[token]).as_told(told)
            else:
                replica.told_of_others[token] = told
        before = {token: replica.tables[token] for token in records}
        track.told = {}
        statements += [record.saved(replica.dialect) for record in records.values()]
        # before any row: another mirror of this replica would have applied the same rows already
        statements[:0] = [replica.still_ours(), replica.checkpoint.moved(replica.dialect, track.closed, track.last_message)]
        await replica.store.run(statements, commit=True)
        replica.checkpoint = replace(replica.checkpoint, cursor=track.closed, last_message=track.last_message)
        self._count()
        for token, table in track.tables.items():
            replica.shapes[token] = table.shape
        replica.tables |= records
        self.release()
        replica.moved.value += 1
        replica._note_published(before)
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
        """Let other tasks run local transactions."""
        if self._holds:
            self._holds = False
            self._replica._lock.release()

    async def roll_back(self) -> None:
        """Undo what is not committed. The track is invalid afterwards."""
        if self._holds:
            with trio.CancelScope(shield=True):
                await self._replica._roll_back()
        self.release()
