"""What the start of a snapshot tells its readers, on a table and a stream in memory."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio

from actors.clients.nats.jetstream import JetStream
from actors.clients.postgres.connection import PgConnection
from actors.clients.postgres.publications import PublishedTable
from actors.contract.event_encoder import event_encoder
from actors.contract.subjects import INIT, init_start
from actors.pace import Pace
from actors.positions import NO_LSN, Lsn
from actors.settings.resolve import resolve
from actors.snapshots import taking
from actors.snapshots.progress import SnapshotBoard
from actors.snapshots.requests import SnapshotRequests
from actors.snapshots.setup import Cancelling, SnapshotSetup
from actors.snapshots.table_reader import OpenTable
from actors.snapshots.taking import SnapshotTaker
from actors.snapshots.transaction_log import TransactionLog
from actors.snapshots.watermark import Watermark, XidSnapshot
from actors.startup.streams import StreamSetup
from actors.telemetry.telemetry import Telemetry
from actors.wire import pgoutput
from actors.wire.text_encoding import UTF8
from tests.scripted_replication import DESCRIPTION, relation
from tests.unit.fake_stream import FakeJetStream, event

CONFIG = resolve({}, {"DATABASE_URL": "postgresql://u@h/db", "NATS_URL": "nats://fake"})
RELATION = cast(pgoutput.Relation, pgoutput.decode(relation(), 25))
PUBLISHED = cast(PublishedTable, None)  # for the connection that is replaced here


class StoringJetStream(FakeJetStream):
    """Streams in memory, of which INIT takes what is published."""

    async def publish(self, subject: str, body: bytes, headers: dict[str, str] | None = None) -> int:
        self.streams[INIT].append((subject, "", body))
        return len(self.streams[INIT])


class EmptyTable:
    """A connection on which the table has no rows."""

    encoding = UTF8

    async def blocks(self, select: str, rows_max: int) -> AsyncGenerator[Any]:
        for result in list[Any]():
            yield result


def start_of(
    watermark: Watermark, js: StoringJetStream, log: TransactionLog, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """Take a snapshot with this watermark; return its start."""

    @asynccontextmanager
    async def open_table(*_: Any, **__: Any) -> AsyncGenerator[OpenTable]:
        yield OpenTable(
            cast(PgConnection, EmptyTable()),
            RELATION,
            frozenset({"id"}),
            "v1",
            DESCRIPTION,
            watermark,
            0,
            False,
            "",
            "",
            1,
            PUBLISHED,
            "",
        )

    monkeypatch.setattr(taking, "open_table", open_table)
    stream = StreamSetup("CDC", b"", "plain", 0, 1 << 20, 1 << 20, requests_kept=False)
    setup = SnapshotSetup(
        CONFIG, stream, event_encoder("json"), log, {}, lambda: False, lambda _: ("v1", 0), lambda: NO_LSN, Pace(Telemetry(), 0)
    )
    client, board = cast(JetStream, js), SnapshotBoard(Telemetry())
    requests = SnapshotRequests(client, {"users"}, stream="CDC", kept=False)

    async def take() -> None:
        taker = SnapshotTaker(setup, client, requests, board, Cancelling())
        await taker.take("users", PUBLISHED, board.running("users"), [])

    trio.run(take)
    start = next(message for message in js.streams[INIT] if message is not None and message[0] == init_start("users"))
    return cast(dict[str, Any], json.loads(start[2]))


def test_readers_of_an_ordinary_snapshot_are_sent_back_to_the_first_event_that_it_does_not_contain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A commit is in the stream before other sessions see it: the stream may hold events that the snapshot lacks."""
    events = [event("users", lsn, 0, last=True) for lsn in (100, 200, 300)]
    js, log = StoringJetStream({"CDC": [*events], INIT: []}), TransactionLog()
    for lsn, xid in ((100, 5), (200, 6), (300, 7)):
        log.add(Lsn(lsn), xid)
    log.reached.value = Lsn(400)
    start = start_of(Watermark(None, XidSnapshot(6, 9, frozenset({6, 7})), Lsn(400)), js, log, monkeypatch)
    assert (start["snapshot_lsn"], start["stream_seq"]) == (200, 1)
    js.streams[INIT].clear()
    start = start_of(Watermark(Lsn(350)), js, log, monkeypatch)
    assert (start["snapshot_lsn"], start["stream_seq"]) == (350, 3), "an exported snapshot contains the whole stream"
