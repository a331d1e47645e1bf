"""What a mirror does with answers while a table comes in rounds, on a replica in a file and a bridge that is scripted."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgpack
import pytest
import trio

from actors.clients.nats.jetstream import JetStream
from actors.clients.nats.ordered_consumer import Delivered
from actors.contract.decoding import decode_message
from actors.contract.records import RangesStart
from actors.mirror import named_rows, rounds
from actors.mirror.gathered import SnapshotUnusable
from actors.mirror.replica import Replica
from actors.mirror.rounds import RoundsPlace, _RoundsReader
from actors.mirror.source_stream import SourceStream
from actors.mirror.state import WAITING, TableRecord
from tests.unit.fake_stream import FakeJetStream, event
from tests.unit.open_replica import with_replica

Message = tuple[str, dict[str, Any]]
COLUMNS = [{"name": "id", "type": "integer", "pk": True}, {"name": "v", "type": "text", "pk": False}]


def start(snapshot_id: str, *, stream: str = "CDC", mode: str = "keys") -> Message:
    return "start", {
        "stream": stream, "snapshot_id": snapshot_id, "table": "t", "schema": "public", "mode": mode, "format": "map",
        "schema_id": 1, "relation_id": 1, "version": "v1", "key": ["id"], "rows_expected": 0, "system_id": "1", "timeline": 1,
        "columns": COLUMNS,
    }  # fmt: skip


LSN_STEP = 16


def lsn_after(stream_seq: int) -> int:
    """An LSN between the events at a place and after it."""
    return LSN_STEP * stream_seq + 1


def chunk(snapshot_id: str, stream_seq: int, *rows: dict[str, Any], lsn: int = 0) -> Message:
    return f"snap.{snapshot_id}.0", {
        "table": "t", "operation": "snapshot", "snapshot_id": snapshot_id, "chunk": 0, "snapshot_lsn": lsn or lsn_after(stream_seq),
        "stream_seq": stream_seq, "after": None, "through": None, "left": [], "row_count": len(rows), "data": list(rows),
    }  # fmt: skip


def meta(snapshot_id: str, stream_seq: int, rows: int = 1) -> Message:
    return "meta", {
        "stream": "CDC", "snapshot_id": snapshot_id, "table": "t", "snapshot_lsn": lsn_after(stream_seq), "stream_seq": stream_seq,
        "batch_count": 1, "row_count": rows,
    }  # fmt: skip


def error(kind: str, snapshot_id: str = "") -> Message:
    return "error", {"stream": "CDC", "table": "t", "error_type": kind, "error_message": "no", "snapshot_id": snapshot_id}


def row(number: int, value: str = "right") -> dict[str, Any]:
    return {"id": number, "v": value}


class Scripted(FakeJetStream):
    """A bridge that answers each request for rows with what comes next."""

    def __init__(self, answer: Callable[[list[int]], list[Message]]) -> None:
        super().__init__({"INIT": [], "CDC": [event("other", LSN_STEP * n, 0, last=True) for n in range(1, 10)]})
        self._answer, self._coming = answer, list[Delivered]()
        self.requests: list[list[int]] = []

    async def send(self, frame: bytes) -> None:
        body = frame.split(b"\r\n", 1)[1][:-2]
        keys = [key for (key,) in cast(Any, msgpack.unpackb)(body)["keys"]]
        self.requests.append(keys)
        for kind, fields in self._answer(keys):
            head, _, rest = kind.partition(".")
            subject = f"init.{head}.t+mirror-1" + (f".{rest}" if rest else "")
            header = f"Snapshot-Id: {fields['snapshot_id']}\r\nChunk: 0\r\n" if rest else ""
            self._coming.append(Delivered(subject, 1, f"NATS/1.0\r\n{header}\r\n".encode(), json.dumps(fields).encode()))

    async def receive(self, within_s: float) -> list[Delivered]:
        await trio.sleep(0 if self._coming else 0.001)
        coming, self._coming = self._coming, []
        return coming


def fill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Callable[[list[int]], list[Message]], missing: int = 1
) -> tuple[list[tuple[object, ...]], list[list[int]], RoundsPlace]:
    """Fill rows 1 to `missing`, which lack `v`, at place 5; return the rows, what was asked for, and the place."""
    js = Scripted(answer)

    @asynccontextmanager
    async def open_consumer(*_: Any) -> AsyncGenerator[Any]:
        yield js

    monkeypatch.setattr(named_rows, "open_consumer", open_consumer)
    monkeypatch.setattr(named_rows, "ASK_AGAIN_S", 0.01)
    found: list[Any] = []

    async def body(replica: Replica) -> None:
        replica.tables["t"] = TableRecord("t", "public", "t", WAITING, keyed=True)
        source = SourceStream(cast(JetStream, js), "CDC")
        await source.look()
        async with AsyncExitStack() as stack:
            reader = _RoundsReader(replica, source, "t", stack)
            _, fields = start("snap-1-a", mode="ranges")
            (begun,) = decode_message("init.start.t+ranges", {}, json.dumps(fields).encode())
            assert isinstance(begun, RangesStart)
            await reader._begin(begun, 1)
            assert reader._statements is not None
            assert reader._place is not None
            reader._place = replace(reader._place, stream_seq=5, chunks=1)
            keys = range(1, missing + 1)
            for key in keys:
                await replica.run([*reader._statements.chunk([{"id": key, "v": None}], is_touched=False)])
                await replica.run([reader._statements._note_missing({"id": key})])
            await reader._complete(begun)
            table = replica.dialect.table(reader._statements.shape.local)
            found.extend([await replica.query(f"SELECT id, v FROM {table} ORDER BY id"), reader._place])

    with_replica(tmp_path, cast(Callable[[Replica], Awaitable[None]], body))
    return found[0], js.requests, found[1]


def test_only_the_last_answer_to_the_own_request_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(_: list[int]) -> list[Message]:
        return [
            start("snap-2-a"), chunk("snap-2-a", 6, row(1, "an attempt that failed")), error("no_watermark", "snap-0-a"),
            start("snap-3-a", stream="OTHER"), chunk("snap-3-a", 9, row(1, "foreign")), meta("snap-3-a", 9),
            start("snap-4-a"), chunk("snap-2-a", 9, row(1, "late")), chunk("snap-4-a", 7, row(1)), meta("snap-4-a", 7),
        ]  # fmt: skip

    rows, requests, place = fill(tmp_path, monkeypatch, answer)
    assert (rows, requests, place.stream_seq) == ([(1, "right")], [[1]], 7)


def test_an_answer_from_before_the_copys_place_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seqs = iter([4, 5])

    def answer(_: list[int]) -> list[Message]:
        seq = next(seqs)
        return [start(f"snap-{seq}-a"), chunk(f"snap-{seq}-a", seq, row(1, f"at {seq}")), meta(f"snap-{seq}-a", seq)]

    rows, requests, place = fill(tmp_path, monkeypatch, answer)
    assert (rows, requests, place.stream_seq) == ([(1, "at 5")], [[1], [1]], 5)


@pytest.mark.parametrize("lsn", [lsn_after(5), lsn_after(7)])
def test_an_answer_that_does_not_stand_at_its_place_is_refused(
    lsn: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream was cut short and has grown again: the message at 6 is not before it, or the one at 7 not after it."""

    def answer(_: list[int]) -> list[Message]:
        return [start("snap-2-a"), chunk("snap-2-a", 6, row(1), lsn=lsn), meta("snap-2-a", 6)]

    with pytest.RaisesGroup(SnapshotUnusable, flatten_subgroups=True, allow_unwrapped=True):
        fill(tmp_path, monkeypatch, answer)


@pytest.mark.parametrize("kind", named_rows.PASSING)
def test_a_copy_that_is_complete_but_for_some_rows_outlives_what_passes(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([[error(kind)], [error(kind)], [start("snap-2-a"), chunk("snap-2-a", 5, row(1)), meta("snap-2-a", 5)]])
    rows, requests, _ = fill(tmp_path, monkeypatch, lambda _: next(answers))
    assert (rows, requests) == ([(1, "right")], [[1]] * 3)


def test_a_row_that_no_message_can_carry_stays_unknown_and_the_others_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(keys: list[int]) -> list[Message]:
        if 5 in keys:
            return [error("row_too_large")]
        snapshot_id = f"snap-{keys[0]}-a"
        return [start(snapshot_id), chunk(snapshot_id, 5, *map(row, keys)), meta(snapshot_id, 5, len(keys))]

    rows, requests, _ = fill(tmp_path, monkeypatch, answer, missing=8)
    assert rows == [(n, None if n == 5 else "right") for n in range(1, 9)]
    assert [5] in requests
    assert len(requests) < 8


def test_a_snapshot_that_has_begun_is_not_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bridge may be away for a while: it continues by itself, and would take another one for a younger request."""
    asked: list[str] = []
    looks = iter(range(5))

    async def ask(reader: _RoundsReader) -> None:
        asked.append("without a start" if reader._start is None else "with one")
        if reader._start is None:
            reader._start = cast(RangesStart, object())

    class Silent:
        async def receive(self, within_s: float) -> list[Delivered]:
            await trio.sleep(0.02)
            if next(looks, None) is None:
                raise TimeoutError
            return []

    @asynccontextmanager
    async def open_consumer(*_: Any) -> AsyncGenerator[Any]:
        yield Silent()

    async def begin_at(_: _RoundsReader) -> int:
        return 1

    monkeypatch.setattr(rounds, "open_consumer", open_consumer)
    monkeypatch.setattr(rounds, "ASK_AGAIN_S", 0.01)
    monkeypatch.setattr(_RoundsReader, "_ask", ask)
    monkeypatch.setattr(_RoundsReader, "_continue", begin_at)

    async def body(replica: Replica) -> None:
        replica.tables["t"] = TableRecord("t", "public", "t", WAITING, keyed=True)
        source = SourceStream(cast(JetStream, FakeJetStream({"INIT": [], "CDC": []})), "CDC")
        async with AsyncExitStack() as stack:
            with pytest.raises(TimeoutError):
                await _RoundsReader(replica, source, "t", stack).run()

    with_replica(tmp_path, body)
    assert asked == ["without a start"]
