"""A reader that keeps a transaction open makes a SQLite replica's log grow: the mirror says so, and the log shrinks afterwards."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import trio

from actors.contract.bridge_record import BridgeRecord
from actors.mirror import write_ahead
from actors.mirror.mirror_counts import MirrorCounts
from actors.mirror.replica import Replica
from actors.mirror.stores.dialect import Statement
from actors.mirror.stores.sqlite import WAL_KEPT_BYTES, SqliteStore
from actors.mirror.write_ahead import WATCH_EVERY_S, watch_write_ahead

MB = 1024 * 1024


def test_a_long_reader_is_named_and_the_log_is_cut_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "replica.db"
    wal = tmp_path / "replica.db-wal"
    monkeypatch.setattr(write_ahead, "HELD_BYTES_MAX", 20 * MB)

    async def main() -> None:
        store = await SqliteStore.open(str(path))
        await store.claim(BridgeRecord("slot", "pub", "1", 1))
        replica = Replica(store, "CDC", MirrorCounts())
        await replica.load()
        await replica.run([Statement("CREATE TABLE t (id int, v blob)", [()])])

        async def write(count: int) -> None:
            for i in range(count):
                await replica.run([Statement("INSERT INTO t VALUES (?, zeroblob(?))", [(i, MB)])])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch_write_ahead, replica)
            await write(WAL_KEPT_BYTES // MB + 1)
            with closing(sqlite3.connect(path, isolation_level=None)) as reader:
                reader.execute("BEGIN")
                reader.execute("SELECT count(*) FROM t").fetchone()
                await write(15)
                await trio.sleep(WATCH_EVERY_S + 1)
                assert not caplog.records, "little is held"
                await write(15)
                await trio.sleep(3 * WATCH_EVERY_S)
                assert wal.stat().st_size > 30 * MB
                assert replica.counts.wal_bytes == wal.stat().st_size
                (warned,) = caplog.records
                assert "a reader keeps a transaction open on the replica" in warned.getMessage()
                reader.execute("ROLLBACK")
            await write(3)
            await trio.sleep(WATCH_EVERY_S + 1)
            await write(1)
            assert wal.stat().st_size <= WAL_KEPT_BYTES
            await trio.sleep(WATCH_EVERY_S + 1)
            assert replica.counts.wal_bytes <= WAL_KEPT_BYTES
            assert len(caplog.records) == 1
            nursery.cancel_scope.cancel()
        await store.close()

    trio.run(main, clock=trio.testing.MockClock(rate=100))
