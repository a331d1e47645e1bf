"""The follower starts again when a copy goes live, also while its consumer is being opened."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from actors.clients.nats.ordered_consumer import Delivered
from actors.contract.bridge_record import BridgeRecord
from actors.contract.records import Column
from actors.contract.subjects import CDC_GAPS
from actors.mirror import following
from actors.mirror.following import Follower
from actors.mirror.holding import Holds
from actors.mirror.mirror_counts import MirrorCounts
from actors.mirror.replica import Replica
from actors.mirror.state import WAITING, Checkpoint, TableRecord
from actors.mirror.stores.shapes import TableShape
from actors.mirror.stores.sqlite import SqliteStore
from actors.mirror.track import Cursor
from actors.positions import START
from tests.unit.fake_stream import FakeJetStream, event, source_of


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
        async def open_consumer(_: Any, stream: str, filters: Sequence[str], start_seq: int) -> AsyncGenerator[SilentConsumer]:
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
    assert opened == [["cdc.a.>", CDC_GAPS], ["cdc.a.>", "cdc.b.>", CDC_GAPS]]
