"""A replica in an SQLite file, with nothing that feeds it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from actors.contract.bridge_record import BridgeRecord
from actors.mirror.mirror_counts import MirrorCounts
from actors.mirror.replica import Replica
from actors.mirror.stores.sqlite import SqliteStore

RECORD = BridgeRecord("slot", "pub", "1", 1)


def with_replica(tmp_path: Path, body: Callable[[Replica], Awaitable[None]]) -> None:
    async def main() -> None:
        store = await SqliteStore.open(str(tmp_path / "replica.db"))
        await store.claim(RECORD)
        replica = Replica(store, "CDC", MirrorCounts())
        await replica.load()
        try:
            with trio.fail_after(20):
                await body(replica)
        finally:
            await store.close()

    trio.run(main)
