"""Snapshots as a consumer sees them: asked for, read with nats-py, joined to the events by the contract's rule alone."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import zstandard

from tests.servers import HANG_S, StoredMessage, decode_body, read_messages, read_stream, with_nats


@dataclass
class Snapshot:
    """Everything that INIT holds of one snapshot."""

    start: dict[str, Any]
    chunks: list[StoredMessage] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    meta: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    announced: dict[str, Any] | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All rows as maps."""
        if self.announced is not None:
            names = [column["name"] for column in self.announced["columns"]]
            return [dict(zip(names, row, strict=True)) for body in self.bodies for row in body]
        return [row for body in self.bodies for row in body["data"]]


def ask(url: str, token: str) -> None:
    """Publish a request, as anybody may."""

    async def publish(client: Any) -> None:
        await client.publish(f"snapshot.request.{token}", b"")
        await client.flush()

    with_nats(url, publish)


def snapshots(url: str, token: str, dictionaries: dict[str, bytes] | None = None) -> list[Snapshot]:
    """The snapshots of a table that INIT holds, in order; checks that the messages of each come in order."""
    found: list[Snapshot] = []
    by_id: dict[str, Snapshot] = {}  # those of several bridges may mix
    for message in read_messages(url, "INIT"):
        parts = message.subject.split(".")
        if token not in parts[2:3]:
            continue
        if parts[:2] == ["init", "start"]:
            found.append(Snapshot(decode_body(message.data)[0]))
            assert found[-1].start["snapshot_id"] not in by_id
            by_id[found[-1].start["snapshot_id"]] = found[-1]
        elif parts[:2] == ["snapshot", "init"]:
            announced = decode_body(message.data)[0]
            by_id[announced["snapshot_id"]].announced = announced
        elif parts[:2] in (["init", "snap"], ["snapshot", "data"]):
            body = decode_body(unpacked(message, dictionaries))
            snapshot = by_id[message.headers["Snapshot-Id"]]
            assert int(message.headers["Chunk"]) == len(snapshot.chunks), "chunks come in order, from 0"
            snapshot.chunks.append(message)
            snapshot.bodies.append(body[0] if parts[0] == "init" else body)
        elif parts[:2] == ["init", "meta"]:
            meta = decode_body(message.data)[0]
            snapshot = by_id[meta["snapshot_id"]]
            assert snapshot.meta is None
            assert meta["stream"] == snapshot.start["stream"]
            snapshot.meta = meta
        elif parts[:2] == ["init", "error"]:
            body = decode_body(message.data)[0]
            if body.get("snapshot_id") not in by_id:
                found.append(Snapshot({}))
            by_id.get(body.get("snapshot_id"), found[-1]).error = body
    return found


def unpacked(message: StoredMessage, dictionaries: dict[str, bytes] | None = None) -> bytes:
    """The body of a message, decompressed as its headers say."""
    if message.headers.get("Content-Encoding") != "zstd":
        return message.data
    used = message.headers.get("Dictionary-Id")
    data = zstandard.ZstdCompressionDict((dictionaries or {})[used]) if used else None
    return zstandard.ZstdDecompressor(dict_data=data).decompress(message.data)


def wait_for_snapshots(url: str, token: str, count: int = 1, dictionaries: dict[str, bytes] | None = None) -> list[Snapshot]:
    """The snapshots of a table once so many have ended."""
    deadline = time.monotonic() + HANG_S
    while True:
        found = snapshots(url, token, dictionaries)
        if sum(s.meta is not None or s.error is not None for s in found) >= count:
            return found
        assert time.monotonic() < deadline, f"{count} snapshots of {token}: {[(s.start, s.meta, s.error) for s in found]}"
        time.sleep(0.05)


def take(url: str, token: str) -> Snapshot:
    """Ask for a snapshot and return it once it has ended."""
    before = sum(s.meta is not None or s.error is not None for s in snapshots(url, token))
    ask(url, token)
    return wait_for_snapshots(url, token, before + 1)[-1]


def replica(url: str, snapshot: Snapshot, token: str, key: str = "id") -> dict[Any, dict[str, Any]]:
    """The table by the contract's rule: the snapshot, then every event behind `stream_seq` with `lsn >= snapshot_lsn`.

    Fails on a row that comes twice, and on a change of a row that is not there: both tell of a wrong watermark.
    """
    assert snapshot.meta is not None
    assert snapshot.meta["batch_count"] == len(snapshot.chunks)
    table: dict[Any, dict[str, Any]] = {}
    for row in snapshot.rows:
        assert row[key] not in table, f"twice in the snapshot: {row}"
        table[row[key]] = dict(row)
    assert len(table) == snapshot.meta["row_count"]
    for event in read_stream(url, start_seq=snapshot.start["stream_seq"] + 1):
        body = event.body
        if not event.subject.startswith(f"cdc.{token}.") or body["lsn"] < snapshot.start["snapshot_lsn"]:
            continue
        data = body.get("data", {})
        if body["operation"] == "INSERT":
            assert data[key] not in table, f"doubled: {body} is in snapshot {snapshot.start}"
            table[data[key]] = data
        elif body["operation"] == "UPDATE":
            before = table.pop((body.get("old") or data)[key], None)
            assert before is not None, f"lost: {body} is not in snapshot {snapshot.start}"
            table[data[key]] = before | data
        elif body["operation"] == "DELETE":
            assert table.pop(data[key], None) is not None, f"lost: {body} is not in snapshot {snapshot.start}"
        elif body["operation"] == "TRUNCATE":
            table.clear()
    return table
