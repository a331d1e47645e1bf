"""Snapshots in rounds as a consumer sees them: read from INIT, and joined to the events by the rule alone."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

from tests.servers import HANG_S, StoredMessage, read_messages, with_nats
from walbridge import (
    Delete,
    Gap,
    Insert,
    RangesChunk,
    RangesStart,
    RowsInRounds,
    SnapshotError,
    SnapshotMeta,
    Truncate,
    Update,
    decode_events,
    decode_message,
)


@dataclass
class Rounds:
    """Everything that INIT holds of one snapshot in rounds."""

    start: RangesStart
    chunks: list[RangesChunk] = field(default_factory=list)
    meta: SnapshotMeta | None = None
    error: SnapshotError | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [row for chunk in self.chunks for row in chunk.rows]

    @property
    def places(self) -> list[int]:
        """The chunks' LSNs, each once: as many as rounds."""
        return list(dict.fromkeys(chunk.snapshot_lsn for chunk in self.chunks))


def ask(url: str, part: str, body: object = None) -> None:
    """Publish a request, as anybody may: `users+ranges`."""

    async def publish(client: Any) -> None:
        await client.publish(f"snapshot.request.{part}", b"" if body is None else json.dumps(body).encode())
        await client.flush()

    with_nats(url, publish)


def rounds(url: str, part: str) -> list[Rounds]:
    """The snapshots of `users+ranges` that INIT holds, in order; checks what always holds of them."""
    found: dict[str, Rounds] = {}
    for message in read_messages(url, "INIT"):
        if message.subject.split(".")[2] != part:
            continue
        (record,) = decode_message(message.subject, message.headers, message.data)
        if isinstance(record, RangesStart):
            assert record.snapshot_id not in found
            found[record.snapshot_id] = Rounds(record)
        elif isinstance(record, RangesChunk):
            of = found[record.snapshot_id]
            assert of.meta is None
            assert record.chunk == len(of.chunks), "chunks come in order, from 0, each once"
            before = of.chunks[-1] if of.chunks else None
            assert record.row_count == (before.row_count if before else 0) + len(record.rows)
            assert before is None or record.stream_seq >= before.stream_seq, "places never fall"
            of.chunks.append(record)
        elif isinstance(record, SnapshotMeta):
            of = found[record.snapshot_id]
            assert of.meta is None
            last = of.chunks[-1]
            assert not last.left
            assert (record.batch_count, record.row_count) == (len(of.chunks), last.row_count)
            assert (record.snapshot_lsn, record.stream_seq) == (last.snapshot_lsn, last.stream_seq)
            of.meta = record
        elif isinstance(record, SnapshotError):
            found.setdefault(record.snapshot_id, Rounds(None)).error = record  # type: ignore[arg-type]
    return list(found.values())


def wait_for_rounds(url: str, part: str, count: int = 1) -> list[Rounds]:
    """The snapshots of a part once so many have ended."""
    deadline = time.monotonic() + 2 * HANG_S
    while True:
        found = rounds(url, part)
        if sum(one.meta is not None or one.error is not None for one in found) >= count:
            return found
        assert time.monotonic() < deadline, f"{count} of {part}: {[(one.start, len(one.chunks), one.error) for one in found]}"
        time.sleep(0.05)


def take_rounds(url: str, part: str, body: object = None) -> Rounds:
    """Ask, and return the answer once it is complete."""
    before = sum(one.meta is not None or one.error is not None for one in rounds(url, part))
    ask(url, part, body)
    return wait_for_rounds(url, part, before + 1)[-1]


def copy_of(snapshot: Rounds, events: list[StoredMessage], token: str) -> RowsInRounds:
    """The table by the rule, up to the end of the stream; also checks that every place is exact.

    What is incomplete at the meta stays so here: see `RowsInRounds.missing`.
    """
    assert snapshot.meta is not None, snapshot.error
    copy = RowsInRounds(snapshot.start.key)
    at = 0

    def apply_until(seq: int | None) -> None:
        nonlocal at
        while at < len(events) and (seq is None or events[at].seq <= seq):
            for event in decode_events(events[at].data):
                if isinstance(event, Insert | Update | Delete | Truncate) and event.token == token:
                    copy.apply(event)
                assert not isinstance(event, Gap)
            at += 1

    lsns = [(message.seq, decode_events(message.data)[-1].lsn) for message in events]
    for chunk in snapshot.chunks:
        before = [seq for seq, lsn in lsns if lsn < chunk.snapshot_lsn]
        assert chunk.stream_seq == (before[-1] if before else 0), "the last message with a lower LSN"
        apply_until(chunk.stream_seq)
        copy.chunk(chunk.rows)
    apply_until(None)
    return copy
