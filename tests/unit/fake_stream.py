"""A stream in memory that answers JetStream's questions, for tests of the mirror's decisions."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, cast

import trio

from actors.clients.nats.jetstream import JetStream, StoredMessage
from actors.clients.nats.ordered_consumer import Delivered
from actors.mirror.source_stream import SourceStream


def event(table: str, lsn: int, seq: int, *, last: bool = False, operation: str = "insert") -> tuple[str, str, bytes]:
    """Subject, message id and body of one event, of a gap with the operation `gap`."""
    token = "_bridge" if operation == "gap" else table
    body = {
        "subject": f"cdc.{token}.{operation}", "operation": operation.upper(), "msg_id": f"{lsn:x}-{seq}-{token}-{operation}",
        "table": table, "schema": "public", "lsn": lsn, "seq": seq, "xid": 1, "commit_ts": 0, "key": ["id"],
        "data": {"id": seq}, "slot": "s", "reason": "slot lost", "from_lsn": lsn, "to_lsn": lsn + 1, "tables": [table],
        **({"last": True} if last else {}),
    }  # fmt: skip
    return str(body["subject"]), str(body["msg_id"]), json.dumps(body).encode()


FOREIGN = ("cdc.mine.x", "", b"garbage")
"""A message that somebody published by hand."""


@dataclass
class FakeJetStream:
    """Streams by name, each a list of (subject, message id, body); a deleted message is None."""

    streams: dict[str, list[tuple[str, str, bytes] | None]] = field(default_factory=dict)
    first_seq: int = 1
    created: str = "2026-01-01T00:00:00Z"
    stored_at: dict[str, str] = field(default_factory=dict)
    """By stream, when its messages were stored."""
    asked: int = 0
    sent: list[bytes] = field(default_factory=list)

    @property
    def connection(self) -> FakeJetStream:
        return self

    async def send(self, frame: bytes) -> None:
        self.sent.append(frame)

    async def stream_info(self, stream: str, *, deleted_details: bool = False) -> dict[str, Any] | None:
        if stream not in self.streams:
            return None
        messages = enumerate(self.streams[stream], 1)
        deleted = [seq for seq, message in messages if message is None and seq > self.first_seq]
        state: dict[str, Any] = {"first_seq": self.first_seq, "last_seq": len(self.streams[stream])}
        if deleted:
            state |= {"num_deleted": len(deleted)} | ({"deleted": deleted} if deleted_details else {})
        return {"created": self.created, "state": state}

    async def get_message(
        self, stream: str, *, seq: int = 0, next_by_subj: str | None = None, last_by_subj: str | None = None
    ) -> StoredMessage | None:
        self.asked += 1
        found = [
            one for one in range(1, len(self.streams[stream]) + 1) if self._matches(stream, one, next_by_subj or last_by_subj)
        ]
        if last_by_subj is not None:
            found = found[-1:]
        elif next_by_subj is not None:
            found = [one for one in found if one >= seq][:1]
        else:
            found = [one for one in found if one == seq]
        if not found:
            return None
        stored_at = self.stored_at.get(stream, "2026-06-01T00:00:00Z")
        subject, msg_id, body = cast(tuple[str, str, bytes], self.streams[stream][found[0] - 1])
        return StoredMessage(subject, found[0], {"Nats-Msg-Id": msg_id} if msg_id else {}, body, stored_at)

    async def kv_get(self, bucket: str, key: str) -> None:
        return None

    def _matches(self, stream: str, seq: int, pattern: str | None) -> bool:
        message = self.streams[stream][seq - 1]
        if message is None or seq < self.first_seq:
            return False
        return pattern is None or message[0] == pattern or (pattern.endswith(">") and message[0].startswith(pattern[:-1]))


def source_of(js: FakeJetStream, name: str = "CDC") -> SourceStream:
    """The mirror's view of a stream in memory."""
    return SourceStream(cast(JetStream, js), name)


class ReadingConsumer:
    """A consumer that brings everything that the stream has from a sequence on, at once, and then nothing.

    Of all subjects, or of those that begin with some text.
    """

    is_at_end = True

    def __init__(self, js: FakeJetStream, start_seq: int, subjects: str = "") -> None:
        self._coming = [
            Delivered(subject, seq, f"NATS/1.0\r\nNats-Msg-Id: {msg_id}\r\n\r\n".encode(), body)
            for seq, (subject, msg_id, body) in enumerate(filter(None, js.streams["CDC"]), 1)
            if seq >= start_seq and subject.startswith(subjects)
        ]

    async def receive(self, within_s: float) -> list[Delivered]:
        await trio.sleep(0 if self._coming else 0.01)
        coming, self._coming = self._coming, []
        return coming
