"""A copy goes live neither over a message that was deleted meanwhile, nor where the live tables lack what it has already."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from actors.clients.nats.ordered_consumer import Delivered
from actors.contract.bridge_record import BridgeRecord
from actors.contract.records import Column, SnapshotStart
from actors.contract.stream_view import LastMessage
from actors.mirror import joining
from actors.mirror.following import Follower
from actors.mirror.gathered import Gathered
from actors.mirror.holding import Holds
from actors.mirror.joining import join
from actors.mirror.mirror_counts import MirrorCounts
from actors.mirror.replica import Replica
from actors.mirror.source_stream import OutOfDate
from actors.mirror.state import LIVE, WAITING, Checkpoint, TableRecord
from actors.mirror.stores.dialect import Statement
from actors.mirror.stores.shapes import TableShape
from actors.mirror.stores.sqlite import SqliteStore
from actors.mirror.track import Cursor, Track
from actors.positions import Lsn, Position
from tests.unit.fake_stream import FakeJetStream, ReadingConsumer, event, source_of

COLUMNS = (Column("id", "integer", True),)


def shape(token: str, local: str) -> TableShape:
    return TableShape(token, "public", token, ("", local), COLUMNS, ("INTEGER",), 1)


@pytest.mark.parametrize("is_deleted", [False, True])
def test_a_message_deleted_during_the_join(is_deleted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = [event(table, 16 * i, 0, last=True) for i, table in enumerate("bbabb", 1)]
    js = FakeJetStream({"CDC": [*events]})

    class Consumer:
        """It brings what the stream still has of the table."""

        is_at_end = True

        async def receive(self, within_s: float) -> list[Delivered]:
            await trio.sleep(0.01)
            if is_deleted:
                js.streams["CDC"][2] = None
                return []
            sent, js.sent = js.sent, [b"sent"]
            subject, msg_id, body = events[2]
            return [] if sent else [Delivered(subject, 3, f"NATS/1.0\r\nNats-Msg-Id: {msg_id}\r\n\r\n".encode(), body)]

    @asynccontextmanager
    async def open_consumer(_: Any, stream: str, filters: Sequence[str], start_seq: int) -> AsyncGenerator[Consumer]:
        yield Consumer()

    async def main() -> None:
        store = await SqliteStore.open(str(tmp_path / "replica.db"))
        await store.claim(BridgeRecord("slot", "pub", "1", 1))
        replica = Replica(store, "CDC", MirrorCounts())
        await replica.load()
        staging = shape("a", "staging")
        await replica.run([Statement(replica.dialect.create_table(staging), [()])])
        live = TableRecord("b", "", "b", WAITING).as_live(shape("b", "b"), "s", 0, 1)
        async with replica.still():
            await replica.go_live(live, shape("b", "b"), [], Checkpoint("CDC", js.created, Cursor(5, Position(Lsn(80), 0, 1))))
        replica.tables["a"] = TableRecord("a", "", "a", WAITING)
        source = source_of(js)
        follower = Follower(replica, source, Holds(replica), everything=True)
        gathered = Gathered(SnapshotStart("a", "public", "a", "s", 32, 2, 1, COLUMNS, "map", "CDC"), js.created, 1, staging, 0)
        try:
            with trio.fail_after(10):
                await join(replica, source, follower, gathered)
            assert replica.tables["a"].state == LIVE
            assert await store.query("SELECT count(*) FROM a") == [(1,)]
        finally:
            await store.close()

    monkeypatch.setattr(joining, "open_consumer", open_consumer)
    if is_deleted:
        with pytest.raises(OutOfDate, match="deleted from the stream"):
            trio.run(main)
    else:
        trio.run(main)


def test_a_copy_that_is_ahead_of_the_first_one_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two first copies: `a` has read up to 3 when `b` goes live at 1. The events of `b` at 2 must still be applied."""
    js = FakeJetStream({"CDC": [event(table, 16 * i, 0, last=True) for i, table in enumerate("aba", 1)]})
    may_read = trio.Event()

    @asynccontextmanager
    async def open_consumer(_: Any, stream: str, filters: Sequence[str], start_seq: int) -> AsyncGenerator[ReadingConsumer]:
        await may_read.wait()
        yield ReadingConsumer(js, start_seq, "cdc.a.")

    async def main() -> None:
        nonlocal may_read
        may_read = trio.Event()
        store = await SqliteStore.open(str(tmp_path / "replica.db"))
        await store.claim(BridgeRecord("slot", "pub", "1", 1))
        replica = Replica(store, "CDC", MirrorCounts())
        await replica.load()
        for local in ("staging", "b"):
            await replica.run([Statement(replica.dialect.create_table(shape("a", local)), [()])])
        replica.tables = {token: TableRecord(token, "", token, WAITING) for token in "ab"}
        source = source_of(js)
        follower = Follower(replica, source, Holds(replica), everything=True)
        gathered = Gathered(SnapshotStart("a", "public", "a", "s", 48, 0, 1, COLUMNS, "map", "CDC"), js.created, 1,
                            shape("a", "staging"), 0)  # fmt: skip
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(join, replica, source, follower, gathered)
                await trio.sleep(0.5)
                async with replica.still():
                    may_read.set()
                    await trio.sleep(0.5)
                    first = TableRecord("b", "", "b", WAITING).as_live(shape("b", "b"), "s", 0, 1)
                    at = Position(Lsn(16), 0, 1)
                    await replica.go_live(first, shape("b", "b"), [], Checkpoint("CDC", js.created, Cursor(1, at)))
                follower.proven_lsn = 48
                await trio.sleep(1)
                assert replica.tables["a"].state == WAITING
                assert replica.checkpoint is not None
                assert replica.checkpoint.cursor == Cursor(1, at)
                track = Track(replica.dialect, replica.checkpoint.cursor, replica.followed())
                local = replica.begin(track)
                track.advance(3, LastMessage(3, "30-0-a-insert"))
                await local.commit()
                with trio.fail_after(10):
                    await replica.moved.wait_value(lambda _: replica.tables["a"].state == LIVE)
                nursery.cancel_scope.cancel()
        finally:
            await store.close()

    monkeypatch.setattr(joining, "open_consumer", open_consumer)
    trio.run(main, clock=MockClock(rate=20))
