"""A nats-server with JetStream in memory: it speaks the wire protocol over memory streams, and does what a test tells it.

It knows as much of JetStream as the bridge's pipeline uses: streams that check the expected last sequence, fast-ingest and
atomic batches, key-value buckets, and reading single messages. What it must do comes from the protocol's documents, not from our encoders:
https://docs.nats.io/reference/reference-protocols/nats-protocol
https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-50.md
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import trio
from trio.testing import memory_stream_pair

from actors.clients.nats.connection import NatsConnection, open_nats
from actors.settings.config import Config
from tests.servers import decode_body

INFO = {"server_id": "FAKE", "version": "2.15.0", "headers": True, "max_payload": 1024 * 1024, "jetstream": True}
WRONG_LAST_SEQUENCE = {"code": 400, "err_code": 10071, "description": "wrong last sequence"}
NOT_FOUND = {"code": 404, "err_code": 10037, "description": "no message found"}
STREAMS = {"cdc.": "CDC", "init.": "INIT", "$KV.bridges.": "KV_bridges", "$KV.schemas.": "KV_schemas"}


@dataclass(frozen=True)
class Stored:
    """A message as a stream holds it."""

    seq: int
    subject: str
    headers: dict[str, str]
    data: bytes


@dataclass
class Publish:
    """One PUB or HPUB as it came."""

    subject: str
    reply: str
    headers: dict[str, str]
    data: bytes


@dataclass
class FakeNats:
    """One server and what its streams hold. `refusal` is what it answers to publishes on `cdc.>` instead of storing them."""

    streams: dict[str, list[Stored]] = field(default_factory=lambda: {name: [] for name in STREAMS.values()})
    refusal: dict[str, object] | None = None
    taken: list[str] = field(default_factory=lambda: ["cdc.>", "init.>", "$KV.>"])
    """Subjects that every stream claims to take."""
    remembered: dict[str, int] = field(default_factory=dict)
    """Ids of messages that were deleted within the duplicate window, and their sequences."""
    batch_messages_max: int = 1000
    """Of an atomic batch."""
    batches: list[int] = field(default_factory=list)
    """How many messages each atomic batch had that was committed."""
    silent: bool = False
    """Store, but withhold the acknowledgements of events until `speak`."""

    def __post_init__(self) -> None:
        self._client: trio.abc.Stream | None = None
        self._subscriptions: dict[str, int] = {}
        self._held: list[tuple[str, dict[str, object]]] = []
        self._staged: dict[str, list[Publish]] = {}

    # -- what a test does

    @asynccontextmanager
    async def connected(self, config: Config) -> AsyncIterator[NatsConnection]:
        """A connection of the bridge's own client, handshake included."""
        async with trio.open_nursery() as nursery:

            async def serve(stream: trio.abc.Stream) -> None:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):  # the client has gone
                    await self._serve(stream)

            async def open_tcp_stream(_host: str, _port: int) -> trio.abc.Stream:
                ours, theirs = memory_stream_pair()
                nursery.start_soon(serve, ours)
                return theirs

            with mock.patch("trio.open_tcp_stream", open_tcp_stream):
                async with open_nats(config.nats, set()) as connection:
                    yield connection
            nursery.cancel_scope.cancel()

    async def speak(self, *, one: bool = False) -> None:
        """Send the acknowledgements that were withheld, and withhold no more; or send the oldest one alone."""
        self.silent = one
        count = 1 if one else len(self._held)
        held, self._held = self._held[:count], self._held[count:]
        for target, reply in held:
            await self._send(target, reply)

    async def close(self) -> None:
        """End the connection, as a server that is stopped does."""
        assert self._client is not None
        await self._client.aclose()

    def bodies(self, stream: str = "CDC") -> list[dict[str, Any]]:
        """The messages of a stream as the maps that they are."""
        return [body for message in self.streams[stream] for body in decode_body(message.data)]

    # -- the protocol

    async def _serve(self, client: trio.abc.Stream) -> None:
        self._client, self._sending = client, trio.Lock()
        self._subscriptions.clear()
        await client.send_all(b"INFO %b\r\n" % json.dumps(INFO).encode())
        buffer = b""
        while data := await client.receive_some(65536):
            buffer += bytes(data)
            while (end := buffer.find(b"\r\n")) >= 0:
                words = buffer[:end].decode().split(" ")
                rest = buffer[end + 2 :]
                if words[0] in ("PUB", "HPUB"):
                    size = int(words[-1])
                    if len(rest) < size + 2:
                        break
                    assert rest[size : size + 2] == b"\r\n", "a payload ends where its size says"
                    head = int(words[-2]) if words[0] == "HPUB" else 0
                    names = words[1:-2] if words[0] == "HPUB" else words[1:-1]
                    buffer = rest[size + 2 :]
                    await self._publish(Publish(names[0], (*names[1:], "")[0], _headers(rest[:head]), rest[head:size]))
                    continue
                buffer = rest
                if words[0] == "PING":
                    async with self._sending:
                        await client.send_all(b"PONG\r\n")
                elif words[0] == "SUB":
                    self._subscriptions[words[1].removesuffix(">")] = int(words[-1])
                else:
                    assert words[0] in ("CONNECT", "PONG", "UNSUB"), words

    async def _send(self, target: str, body: dict[str, object]) -> None:
        assert self._client is not None
        payload = json.dumps(body).encode()
        for prefix, sid in self._subscriptions.items():
            if target.startswith(prefix):
                async with self._sending:
                    await self._client.send_all(b"MSG %b %d %d\r\n%b\r\n" % (target.encode(), sid, len(payload), payload))

    async def _publish(self, message: Publish) -> None:
        if message.subject.startswith("$JS.API."):
            await self._send(message.reply, self._api(message.subject.removeprefix("$JS.API."), message.data))
            return
        stream = next((name for prefix, name in STREAMS.items() if message.subject.startswith(prefix)), None)
        if stream is None:
            return
        batch = message.headers.get("Nats-Batch-Id")
        if batch is not None:
            staged = self._staged.setdefault(batch, [])
            staged.append(message)
            assert message.headers["Nats-Batch-Sequence"] == str(len(staged))
            assert ("Nats-Expected-Last-Sequence" in message.headers) == (len(staged) == 1), "only the first one has it"
            if message.headers.get("Nats-Batch-Commit") == "1":
                await self._answer(stream, message.reply, self._commit(stream, self._staged.pop(batch)))
            else:
                assert not message.reply
            return
        known = self.remembered.get(message.headers.get("Nats-Msg-Id", ""))
        if known is not None:
            await self._send(message.reply, {"stream": stream, "seq": known, "duplicate": True})
            return
        error = self._store(stream, message)
        reply: dict[str, object] = {"error": error} if error else {"stream": stream, "seq": len(self.streams[stream])}
        if message.reply.endswith(".$FI") and not error:  # within a batch, which its last message (2) commits
            operation = message.reply.split(".")[-2]
            if operation != "2":
                if operation == "0":
                    await self._send(message.reply, {"type": "ack", "msgs": 500})
                return
        await self._answer(stream, message.reply, reply)

    async def _answer(self, stream: str, target: str, reply: dict[str, object]) -> None:
        if stream == "CDC" and self.silent:
            self._held.append((target, reply))
        elif target:
            await self._send(target, reply)

    def _commit(self, stream: str, staged: list[Publish]) -> dict[str, object]:
        """Store all messages of an atomic batch or none."""
        error: dict[str, object] | None = None
        if len(staged) > self.batch_messages_max:
            said = f"atomic publish batch is too large: {self.batch_messages_max}"
            error = {"code": 400, "err_code": 10199, "description": said}
        elif any(message.headers.get("Nats-Msg-Id", "") in self.remembered for message in staged):
            error = {"code": 400, "err_code": 10201, "description": "atomic publish batch contains duplicate message id"}
        for message in staged if error is None else ():
            error = error or self._store(stream, message)
        if error is not None:
            return {"error": error, "stream": stream, "seq": 0}
        self.batches.append(len(staged))
        return {"stream": stream, "seq": len(self.streams[stream]), "batch": "b", "count": len(staged)}

    def _store(self, name: str, message: Publish) -> dict[str, object] | None:
        """Store a message; returns JetStream's error if it must not be stored."""
        stream = self.streams[name]
        if name == "CDC" and self.refusal is not None:
            return self.refusal
        expected = message.headers.get("Nats-Expected-Last-Sequence")
        if expected is not None and int(expected) != len(stream):
            return WRONG_LAST_SEQUENCE
        of_subject = message.headers.get("Nats-Expected-Last-Subject-Sequence")
        if of_subject is not None and int(of_subject) != max(
            (m.seq for m in stream if m.subject == message.subject), default=0
        ):
            return WRONG_LAST_SEQUENCE
        stream.append(Stored(len(stream) + 1, message.subject, message.headers, message.data))
        return None

    def _api(self, action: str, body: bytes) -> dict[str, object]:
        query: dict[str, Any] = json.loads(body or b"{}")
        if action.startswith("STREAM.MSG.GET."):
            stream = self.streams[action.rpartition(".")[2]]
            of_subject = query.get("last_by_subj") or query.get("next_by_subj")
            found = [m for m in stream if m.seq >= query.get("seq", 0) and _matches(of_subject, m.subject)]
            if not found:
                return {"error": NOT_FOUND}
            message = found[-1] if "last_by_subj" in query else found[0]
            block = "NATS/1.0\r\n" + "".join(f"{name}: {value}\r\n" for name, value in message.headers.items()) + "\r\n"
            return {
                "message": {
                    "subject": message.subject, "seq": message.seq, "time": "2026-01-01T00:00:00Z",
                    "hdrs": base64.b64encode(block.encode()).decode(), "data": base64.b64encode(message.data).decode(),
                }
            }  # fmt: skip
        assert action.startswith("STREAM.INFO."), action
        stream = self.streams[action.rpartition(".")[2]]
        prefix = str(query.get("subjects_filter", "")).removesuffix(">")
        subjects = {m.subject: 1 for m in stream if m.subject.startswith(prefix)}
        return {
            "config": {"subjects": self.taken},
            "created": "2026-01-01T00:00:00Z",
            "state": {
                "messages": len(stream),
                "bytes": 0,
                "first_seq": 1,
                "last_seq": len(stream),
                "subjects": subjects,
            },
            "total": len(subjects),
        }


def _headers(block: bytes) -> dict[str, str]:
    lines = block.decode().split("\r\n")[1:]
    return dict(line.split(": ", 1) for line in lines if line)


def _matches(pattern: str | None, subject: str) -> bool:
    """Whether a subject is that of a query: None for any, and `>` at the end for anything below."""
    if pattern is None or not pattern.endswith(">"):
        return pattern in (None, subject)
    return subject.startswith(pattern.removesuffix(">"))
