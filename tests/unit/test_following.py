"""The follower starts again when a copy goes live or a gap cuts a transaction off, and does not stay in a loop."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from actors.clients.nats.ordered_consumer import Delivered
from actors.contract.bridge_record import BridgeRecord
from actors.contract.records import Column
from actors.contract.subjects import CDC_NOTICES
from actors.mirror import following
from actors.mirror.following import Follower
from actors.mirror.holding import Holds
from actors.mirror.mirror_counts import MirrorCounts
from actors.mirror.replica import Replica
from actors.mirror.state import STALE, WAITING, Checkpoint, TableRecord
from actors.mirror.stores.shapes import TableShape
from actors.mirror.stores.sqlite import SqliteStore
from actors.mirror.track import Cursor
from actors.positions import START
from tests.unit.fake_stream import FakeJetStream, ReadingConsumer, event, source_of


class SilentConsumer:
    """A consumer to which nothing comes."""

    is_at_end = True

    async def receive(self, within_s: float) -> list[Delivered]:
        await trio.sleep(0.01)
        return []


async def go_live(replica: Replica, token: str, checkpoint: Checkpoint) -> None:
    shape = TableShape(token, "public", token, ("", token), (Column("id", "integer", True),), ("INTEGER",), 1)
    record = TableRecord(token, "", token, WAITING).as_live(shape, "s", 0, 1)
    async with replica.still():
        await replica.go_live(record, shape, [], checkpoint)


def test_a_copy_that_goes_live_while_the_consumer_is_opened_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    js = FakeJetStream({"CDC": [event("a", 16, 0, last=True)]})
    checkpoint = Checkpoint("CDC", js.created, Cursor(1, START))
    opened: list[Sequence[str]] = []

    async def main() -> None:
        store = await SqliteStore.open(str(tmp_path / "replica.db"))
        await store.claim(BridgeRecord("slot", "pub", "1", 1))
        replica = Replica(store, "CDC", MirrorCounts())
        await replica.load()
        await go_live(replica, "a", checkpoint)
        follower = Follower(replica, source_of(js), Holds(replica), everything=False)

        @asynccontextmanager
        async def open_consumer(
            _: Any, stream: str, filters: Sequence[str], start_seq: int, _note: Any = None
        ) -> AsyncGenerator[SilentConsumer]:
            opened.append(filters)
            if len(opened) == 1:
                await go_live(replica, "b", checkpoint)
            elif len(opened) == 2:
                nursery.cancel_scope.cancel()
            yield SilentConsumer()

        monkeypatch.setattr(following, "open_consumer", open_consumer)
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(follower.run)
        await store.close()

    trio.run(main)
    assert opened == [["cdc.a.>", CDC_NOTICES], ["cdc.a.>", "cdc.b.>", CDC_NOTICES]]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("later", [8, 0])
def test_transactions_that_gaps_have_cut_off_are_left_out_and_the_gaps_are_taken(
    count: int, later: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off = [(event("a", lsn, 0), event("a", lsn + later, 0, operation="gap")) for lsn in (32, 64)[:count]]
    js = FakeJetStream({"CDC": [event("a", 16, 0, last=True), *itertools.chain(*cut_off)]})
    opened: list[int] = []

    @asynccontextmanager
    async def open_consumer(
        _: Any, stream: str, filters: Sequence[str], start_seq: int, _note: Any = None
    ) -> AsyncGenerator[ReadingConsumer]:
        opened.append(start_seq)
        await trio.lowlevel.checkpoint()  # a request is on its way; an endless loop can be cancelled here
        yield ReadingConsumer(js, start_seq)

    monkeypatch.setattr(following, "open_consumer", open_consumer)

    async def main() -> Replica:
        store = await SqliteStore.open(str(tmp_path / "replica.db"))
        await store.claim(BridgeRecord("slot", "pub", "1", 1))
        replica = Replica(store, "CDC", MirrorCounts())
        await replica.load()
        await go_live(replica, "a", Checkpoint("CDC", js.created, Cursor(1, START)))
        follower = Follower(replica, source_of(js), Holds(replica), everything=False)
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(follower.run)
                await replica.moved.wait_value(lambda _: not replica.shapes)
                nursery.cancel_scope.cancel()
        await store.close()
        return replica

    replica = trio.run(main)
    assert opened[:2] == [2, 2], "read again from the checkpoint"
    assert replica.checkpoint is not None
    assert replica.checkpoint.cursor.stream_seq == 1 + 2 * count
    assert replica.tables["a"].state == STALE, "the gap lost changes of it: it is copied again"
    assert replica.counts.rows == {}, "nothing of the transaction is applied"
