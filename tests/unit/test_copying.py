"""Copies of many tables: all are gathered while the first still waits for the live tables, and none waits forever."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from actors.contract.bridge_record import BridgeRecord
from actors.contract.records import Column
from actors.mirror import copying
from actors.mirror.copying import GATHERED_AT_ONCE, JOINED_AT_ONCE, Copier
from actors.mirror.following import Follower
from actors.mirror.holding import Holds
from actors.mirror.mirror_counts import MirrorCounts
from actors.mirror.replica import Replica
from actors.mirror.source_stream import SourceStream
from actors.mirror.state import LIVE, WAITING, Checkpoint, TableRecord
from actors.mirror.stores.shapes import TableShape
from actors.mirror.stores.sqlite import SqliteStore
from actors.mirror.track import Cursor
from actors.positions import Lsn, Position
from tests.unit.fake_stream import FakeJetStream, source_of


def test_all_tables_are_gathered_while_the_live_tables_are_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [f"t{i}" for i in range(3 * max(GATHERED_AT_ONCE, JOINED_AT_ONCE))]
    gathering, joining = 0, 0
    most = {"gather": 0, "join": 0}
    gathered: list[str] = []
    joined: list[str] = []
    reached = trio.Event()

    async def gather(_: object, __: object, token: str) -> Any:
        nonlocal gathering
        gathering += 1
        most["gather"] = max(most["gather"], gathering)
        await trio.sleep(1)
        gathering -= 1
        gathered.append(token)
        return SimpleNamespace(token=token, start=SimpleNamespace(snapshot_lsn=100, stream_seq=7))

    async def join(_: object, __: object, ___: object, copied: Any) -> None:
        nonlocal joining
        assert reached.is_set()
        joining += 1
        most["join"] = max(most["join"], joining)
        await trio.sleep(1)
        joining -= 1
        joined.append(copied.token)
        replica.tables[copied.token] = replace(replica.tables[copied.token], state=LIVE)

    async def wait_for(lsn: int, after_seq: int) -> None:
        assert (lsn, after_seq) == (100, 7)
        await reached.wait()

    monkeypatch.setattr(copying, "gather", gather)
    monkeypatch.setattr(copying, "join", join)
    replica = SimpleNamespace(tables={token: TableRecord(token, "", token, WAITING) for token in tokens})
    copier = Copier(cast(Replica, replica), cast(SourceStream, None), cast(Follower, SimpleNamespace(wait_for=wait_for)))

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for token in tokens:
                nursery.start_soon(copier.copy, token)
            await trio.sleep(60)
            assert sorted(gathered) == sorted(tokens)
            assert joined == []
            reached.set()
        assert len(joined) == len(tokens)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert most == {"gather": GATHERED_AT_ONCE, "join": JOINED_AT_ONCE}


def test_who_waits_for_live_tables_goes_on_when_there_are_none_any_more(tmp_path: Path) -> None:
    async def main() -> None:
        store = await SqliteStore.open(str(tmp_path / "replica.db"))
        await store.claim(BridgeRecord("slot", "pub", "1", 1))
        replica = Replica(store, "CDC", MirrorCounts())
        await replica.load()
        shape = TableShape("b", "public", "b", ("", "b"), (Column("id", "integer", True),), ("INTEGER",), 1)
        live = TableRecord("b", "", "b", WAITING).as_live(shape, "s", 0, 1)
        async with replica.still():
            await replica.go_live(live, shape, [], Checkpoint("CDC", "now", Cursor(5, Position(Lsn(80), 0, 1))))
        follower = Follower(replica, source_of(FakeJetStream({"CDC": []})), Holds(replica), everything=True)
        await follower.wait_for(80, 5)
        await replica.note_conflict("b", "changed by hand", keyed=None)  # the last live table: the checkpoint stays
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(follower.wait_for, 1000, 5)
                await trio.testing.wait_all_tasks_blocked()
                assert follower.joiners == 1
                await replica.forget("the stream was created again")
        assert follower.joiners == 0
        await store.close()

    trio.run(main)
