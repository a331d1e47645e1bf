"""A mirror's tables against the bridge's record, and what events at a place of the stream do to them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from actors.contract.event_encoder import event_encoder
from actors.contract.records import Column, SnapshotStart
from actors.contract.subjects import CDC_PUBLISHED
from actors.errors import ConfigError
from actors.messages import PublicationChange, PublishedChange
from actors.mirror import following, joining
from actors.mirror.copying import _after_unusable
from actors.mirror.following import Follower
from actors.mirror.gathered import Gathered, NotPublished, SnapshotUnusable
from actors.mirror.holding import Holds
from actors.mirror.joining import join
from actors.mirror.published_tables import PublishedTables
from actors.mirror.replica import Replica
from actors.mirror.state import LIVE, STALE, UNPUBLISHED, WAITING, Checkpoint, TableRecord
from actors.mirror.stores.dialect import Statement
from actors.mirror.stores.shapes import TableShape
from actors.mirror.table_choice import KeptTables, choose_tables, register_tables, tokens_in
from actors.mirror.track import Cursor, Told
from actors.positions import GAP_RANK, Lsn, Position
from tests.unit.fake_stream import FakeJetStream, ReadingConsumer, event, source_of
from tests.unit.open_replica import RECORD, with_replica

COLUMNS = (Column("id", "integer", True),)


def shape(token: str, local: str) -> TableShape:
    return TableShape(token, "public", token, ("", local), COLUMNS, ("INTEGER",), 1)


def published(token: str, lsn: int, change: PublicationChange, version: str = "") -> tuple[str, str, bytes]:
    """A publication event after the transaction of `lsn`."""
    what = PublishedChange(Position(Lsn(lsn), 1, GAP_RANK), token, change, version, "a test", None)
    message = event_encoder("msgpack").published(what)
    return CDC_PUBLISHED, message.msg_id.decode(), message.body


async def go_live(replica: Replica, token: str, seq: int, version: str = "") -> None:
    """As if a copy of this version had just been made."""
    await replica.run([Statement(replica.dialect.create_table(shape(token, token)), [()])])
    record = TableRecord(token, "", token, WAITING).as_live(shape(token, token), "s", 0, 1, version)
    async with replica.still():
        await replica.go_live(
            record, shape(token, token), [], Checkpoint("CDC", "2026-01-01T00:00:00Z", Cursor(seq, Position(Lsn(16), 0, 1)))
        )


def states(replica: Replica) -> dict[str, str]:
    return {token: record.state for token, record in replica.tables.items()}


@pytest.mark.parametrize(
    ("version", "events", "state"),
    [
        ("1", [published("a", 16, "changed", "1")], LIVE),
        ("1", [published("a", 16, "added", "1")], LIVE),
        ("1", [published("a", 16, "added", "2")], STALE),
        ("1", [published("a", 16, "changed", "2")], STALE),
        ("", [published("a", 16, "changed", "1")], STALE),
        ("1", [published("a", 16, "removed")], UNPUBLISHED),
        ("1", [published("a", 16, "removed"), published("a", 16, "added", "2")], STALE),
        ("1", [published("a", 16, "changed", "2"), published("a", 16, "removed")], UNPUBLISHED),
        ("1", [published("c", 16, "removed")], LIVE),
    ],
)  # fmt: skip
@pytest.mark.parametrize("everything", [True, False])
def test_the_follower_obeys_at_the_events_place(
    version: str, events: list[tuple[str, str, bytes]], state: str, everything: bool, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    js = FakeJetStream({"CDC": [
        event("b", 16, 0, last=True), event("a", 32, 1), event("b", 32, 2, last=True), *events, event("a", 48, 3, last=True),
        event("b", 64, 4, last=True),
    ]})  # fmt: skip

    @asynccontextmanager
    async def open_consumer(
        _: Any, stream: str, filters: Sequence[str], start_seq: int, _note: Any = None
    ) -> AsyncGenerator[ReadingConsumer]:
        yield ReadingConsumer(js, start_seq)

    monkeypatch.setattr(following, "open_consumer", open_consumer)

    async def body(replica: Replica) -> None:
        await go_live(replica, "a", 1, version)
        await go_live(replica, "b", 1, "1")
        follower = Follower(replica, source_of(js), Holds(replica), everything=everything)
        end = len(js.streams["CDC"])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follower.run)
            await replica.moved.wait_value(
                lambda _: replica.checkpoint is not None and replica.checkpoint.cursor.stream_seq == end
            )
            nursery.cancel_scope.cancel()
        assert states(replica) == {"a": state, "b": LIVE}
        assert await replica.query("SELECT id FROM a") == ([(1,), (3,)] if state == LIVE else [(1,)]), "as of the event"
        assert await replica.query("SELECT id FROM b") == [(2,), (4,)]
        assert replica.counts.resnapshots["publication"] == (state == STALE)
        record = replica.tables["a"]
        await replica.load()
        assert replica.tables["a"] == record, "stored as it is"

    with_replica(tmp_path, body)


@pytest.mark.parametrize(
    ("version", "told", "told_seq"),
    [
        ("1", published("a", 32, "changed", "1"), 3),
        ("1", published("b", 32, "removed"), 1),
        ("", published("b", 32, "removed"), 0),
        ("1", published("a", 32, "changed", "2"), None),
        ("", published("a", 32, "changed", "2"), None),
        ("1", published("a", 32, "removed"), None),
    ],
)
def test_a_copy_that_is_joining_obeys_too(
    version: str, told: tuple[str, str, bytes], told_seq: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`told_seq` is where the table is known to be published as it is copied; None if the copy is of no use."""
    js = FakeJetStream({"CDC": [event("b", 16, 0, last=True), event("a", 32, 0, last=True), told]})

    @asynccontextmanager
    async def open_consumer(
        _: Any, stream: str, filters: Sequence[str], start_seq: int, _note: Any = None
    ) -> AsyncGenerator[ReadingConsumer]:
        yield ReadingConsumer(js, start_seq)

    monkeypatch.setattr(joining, "open_consumer", open_consumer)

    async def body(replica: Replica) -> None:
        await go_live(replica, "z", 3)
        await register_tables(replica, ["a"])
        staging = shape("a", "staging")
        await replica.run([Statement(replica.dialect.create_table(staging), [()])])
        follower = Follower(replica, source_of(js), Holds(replica), everything=False)
        start = SnapshotStart("a", "public", "a", "s", 16, 1, 1, COLUMNS, "map", "CDC", version)
        gathered = Gathered(start, js.created, 1, staging, 0)
        if told_seq is not None:
            await join(replica, source_of(js), follower, gathered)
            record = replica.tables["a"]
            assert (record.state, record.version) == (LIVE, version)
            assert (record.told_version, record.told_seq) == (version, told_seq)
            return
        with pytest.raises(SnapshotUnusable) as unusable:
            await join(replica, source_of(js), follower, gathered)
        record = _after_unusable(replica.tables["a"], unusable.value)
        assert record.told_seq == 3
        if record.told_version:
            assert record.state == WAITING
            assert [record.takes(*one) for one in (("1", 2), ("2", 2), ("1", 3), ("", 2))] == [False, True, True, False]
        else:
            assert record.state == UNPUBLISHED
        await replica.change("a", lambda held: held.as_told(Told("", 4, "gone")))
        with pytest.raises(NotPublished):
            await join(replica, source_of(js), follower, gathered)

    with_replica(tmp_path, body)


def test_what_was_told_later_counts() -> None:
    record = TableRecord("a", "", "a", STALE, snapshot_id="s").as_told(Told("2", 7, "added"))
    assert record.as_told(Told("", 5, "removed, before")) == record
    gone = record.as_told(Told("", 9, "removed"))
    assert (gone.state, gone.reason) == (UNPUBLISHED, "removed")
    assert gone.as_stale("a gap", 10).state == UNPUBLISHED
    assert gone.as_refused("no").state == gone.as_delayed("later").state == UNPUBLISHED
    assert gone.as_told(Told("3", 10, "added")).state == STALE
    assert gone.as_stale("another stream", -1).told_seq == 0, "the sequences of another stream are not comparable"


@pytest.mark.parametrize("chosen", [(), ("a", "b")])
def test_the_bridges_record_counts_where_no_event_was_read(chosen: tuple[str, ...], tmp_path: Path) -> None:
    async def body(replica: Replica) -> None:
        await go_live(replica, "a", 10)
        await register_tables(replica, ["b"])
        replica.to_recopy, copied = trio.open_memory_channel[str](10)
        kept = KeptTables(replica, chosen)
        watch = PublishedTables(replica, kept, lambda _: False)
        both = replace(RECORD, tables=("a", "b"), last_seq=10)
        await watch.compare(both)
        assert states(replica) == {"a": LIVE, "b": WAITING}
        await watch.compare(replace(both, tables=("b",)))
        assert states(replica)["a"] == LIVE, "the record may be a moment behind the stream"
        await watch.compare(replace(both, tables=("b",), last_seq=11))
        assert states(replica)["a"] == LIVE, "an event may come that says where"
        await watch.compare(replace(both, tables=("b",)))
        assert states(replica) == {"a": UNPUBLISHED, "b": WAITING}
        assert "a" not in replica.shapes
        await watch.compare(replace(both, tables=("a", "b", "c"), last_seq=12))
        assert copied.receive_nowait() == "a"
        assert states(replica)["a"] == STALE
        assert ("c" in replica.tables) == (not chosen)
        if not chosen:
            assert copied.receive_nowait() == "c"
        assert kept.tokens == (chosen or ("a", "b", "c"))
        with pytest.raises(trio.WouldBlock):
            copied.receive_nowait()

    with_replica(tmp_path, body)


def test_an_event_counts_against_an_older_record(tmp_path: Path) -> None:
    async def body(replica: Replica) -> None:
        await go_live(replica, "a", 10)
        await replica.leave_unpublished("a", "gone")
        await replica.change("a", lambda record: record.as_told(Told("", 10, "removed")))
        watch = PublishedTables(replica, KeptTables(replica, ()), lambda _: False)
        replica.told_of_others = {"b": Told("1", 9, "added"), "c": Told("", 9, "removed"), "d": Told("", 3, "removed")}
        await watch.compare(replace(RECORD, tables=("a", "c", "d"), last_seq=8))
        assert states(replica) == {"a": UNPUBLISHED, "b": WAITING, "d": WAITING}
        assert replica.tables["b"].told_version == "1"
        await watch.compare(replace(RECORD, tables=("a", "d"), last_seq=8))
        assert states(replica)["b"] == WAITING, "the record is older than what added it"

    with_replica(tmp_path, body)


def test_a_table_that_the_user_dropped_in_the_replica_is_forgotten(tmp_path: Path) -> None:
    async def body(replica: Replica) -> None:
        for token in ("a", "b"):
            await go_live(replica, token, 10)
        watch = PublishedTables(replica, KeptTables(replica, ()), lambda _: False)
        record = replace(RECORD, tables=("b",), last_seq=10)
        for _ in range(2):
            await watch.compare(record)
        assert states(replica) == {"a": UNPUBLISHED, "b": LIVE}, "its rows are there"
        await replica.run([Statement("DROP TABLE a", [()])])
        await PublishedTables(replica, KeptTables(replica, ("a", "b")), lambda _: False).compare(record)
        assert "a" in replica.tables, "it was asked for by name"
        await watch.compare(record)
        assert states(replica) == {"b": LIVE}

    with_replica(tmp_path, body)


def test_a_name_that_was_published_once_is_no_wrong_name(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/replica.db"
    assert trio.run(tokens_in, url) == ()
    assert list(tmp_path.iterdir()) == [], "asking creates no file"

    async def body(replica: Replica) -> None:
        await register_tables(replica, ["old", "sales/old"])

    with_replica(tmp_path, body)
    known = trio.run(tokens_in, url)
    record = replace(RECORD, tables=("new",))
    assert choose_tables(["old", "sales.old", "new"], record.tables, known=known) == ("old", "sales/old", "new")
    with pytest.raises(ConfigError, match="'odl' is no table"):
        choose_tables(["odl"], record.tables, known=known)
