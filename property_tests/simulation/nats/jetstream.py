"""JetStream: its streams, its API, and the three ways to publish."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
import trio

from actors.wire.nats import decode_headers
from property_tests.simulation.nats.consumers import Consumer, Deliver
from property_tests.simulation.nats.store import Message, Refusal, Stream, matches
from property_tests.simulation.timers import Timers

FAST_FLOW_MAX = 500
BATCH_MAX = 1000


@dataclass
class Mood:
    """What the server does wrong for a while. Times are trio's."""

    refuse_until: float = 0.0
    refusal: tuple[int, int, str] = (429, 10167, "too many requests")
    refuse_share: float = 0.0
    leaderless_until: float = 0.0
    """Nothing answers; publishes are lost."""
    mute_until: float = 0.0
    """What is published is stored, and not acknowledged."""
    late_until: float = 0.0
    """Acknowledgements overtake each other."""


@dataclass
class Batch:
    """An open batch of either kind."""

    stream: Stream
    next_seq: int = 1
    count: int = 0
    last_stored: int = 0
    staged: list[tuple[str, bytes, bytes]] = field(default_factory=list)


class JetStream:
    """All streams of one account."""

    def __init__(self, deliver: Deliver, timers: Timers, dice: random.Random) -> None:
        """`deliver` sends to an inbox."""
        self.streams: dict[str, Stream] = {}
        self.consumers: dict[tuple[str, str], Consumer] = {}
        self.mood = Mood()
        self.stored: Callable[[Stream, Message], None] = lambda _stream, _message: None
        """Called for every message that is stored."""
        self.batch_max = BATCH_MAX
        self._deliver, self._timers, self._dice = deliver, timers, dice
        self._fast: dict[str, Batch] = {}
        self._atomic: dict[str, Batch] = {}

    def restart(self) -> None:
        """Forget what is kept in memory."""
        for consumer in self.consumers.values():
            consumer.gone = True
        self.consumers, self._fast, self._atomic = {}, {}, {}
        for stream in self.streams.values():
            stream.restarted()

    def power_cut(self, interval_s: float) -> dict[str, int]:
        """Return to what is on disk, each stream to another moment; return how many messages each has lost."""
        lost: dict[str, int] = {}
        for name, stream in self.streams.items():
            before = stream.last_seq
            stream.lose_after(trio.current_time() - self._dice.random() * interval_s)
            lost[name] = before - stream.last_seq
        self.restart()
        return lost

    # -- publishing

    def publish(self, subject: str, reply: str, headers: bytes, data: bytes) -> bool:
        """Take a message if a stream takes its subject; return whether one does."""
        stream = next((s for s in self.streams.values() if s.takes(subject)), None)
        if stream is None:
            return False
        now, mood = trio.current_time(), self.mood
        if mood.leaderless_until > now:
            return False
        fields = decode_headers(headers) if headers else {}
        changes = stream.name == "CDC"
        refused = changes and mood.refuse_until > now and self._dice.random() < mood.refuse_share
        subject = _transformed(stream, subject)
        if reply.endswith(".$FI"):
            self._take_fast(stream, subject, reply, fields, headers, data, refused=refused)
        elif "Nats-Batch-Id" in fields:
            self._take_atomic(stream, subject, reply, fields, headers, data, refused=refused)
        else:
            try:
                body = self._one(stream, subject, fields, headers, data, refused=refused)
            except Refusal as exc:
                body = {"error": exc.body, "stream": stream.name, "seq": 0}
            self._answer(reply, body, changes=changes)
        return True

    def _one(
        self, stream: Stream, subject: str, fields: Mapping[str, str], headers: bytes, data: bytes, *, refused: bool
    ) -> dict[str, Any]:
        wanted = fields.get("Nats-Expected-Stream")
        if wanted not in (None, stream.name):
            raise Refusal(400, 10060, "expected stream does not match")
        if refused:
            raise Refusal(*self.mood.refusal)
        stream.check(subject, fields, stream.last_seq)
        known = stream.remembered(fields.get("Nats-Msg-Id", ""))
        if known:
            return {"stream": stream.name, "seq": known, "duplicate": True}
        return {"stream": stream.name, "seq": self._store(stream, subject, headers, data).seq}

    def _store(self, stream: Stream, subject: str, headers: bytes, data: bytes) -> Message:
        message = stream.store(subject, headers, data)
        self.stored(stream, message)
        for (name, _), consumer in list(self.consumers.items()):
            if name == stream.name:
                consumer.wake()
        if stream.config.get("retention") == "interest":  # nobody has asked for it
            stream.remove([message.seq])
        return message

    def _answer(self, reply: str, body: Mapping[str, Any], *, changes: bool = False) -> None:
        now, mood = trio.current_time(), self.mood
        if not reply or (changes and mood.mute_until > now):
            return
        payload = orjson.dumps(body)
        if changes and mood.late_until > now:
            self._timers.after(self._dice.random() * 0.05, lambda: self._deliver(reply, reply, "", b"", payload))
        else:
            self._deliver(reply, reply, "", b"", payload)

    def _take_fast(
        self, stream: Stream, subject: str, reply: str, fields: Mapping[str, str], headers: bytes, data: bytes, *, refused: bool
    ) -> None:
        prefix, batch_id, flow, gap, number, operation, _ = reply.rsplit(".", 6)
        assert prefix
        assert gap == "fail"
        seq, changes = int(number), stream.name == "CDC"
        if seq == 1:
            self._fast[batch_id] = Batch(stream)
        batch = self._fast.get(batch_id)
        if batch is None:
            error = {"code": 400, "err_code": 10208, "description": "batch publish ID is unknown"}
            self._answer(reply, {"error": error, "stream": stream.name, "seq": 0}, changes=changes)
            return
        if seq != batch.next_seq:
            self._answer(reply, {"type": "gap", "last_seq": batch.next_seq - 1, "seq": seq}, changes=changes)
            self._end_fast(batch_id, reply)
            return
        batch.next_seq += 1
        try:
            if refused:
                raise Refusal(*self.mood.refusal)
            if not stream.remembered(fields.get("Nats-Msg-Id", "")):
                stream.check(subject, fields, stream.last_seq)
                batch.last_stored = self._store(stream, subject, headers, data).seq
            batch.count += 1
        except Refusal as exc:
            self._answer(reply, {"type": "err", "seq": seq, "error": exc.body}, changes=changes)
            self._end_fast(batch_id, reply)
            return
        flow_size = min(FAST_FLOW_MAX, int(flow))
        if operation == "2":
            self._end_fast(batch_id, reply)
        elif operation == "0":
            self._answer(reply, {"type": "ack", "seq": 0, "msgs": flow_size}, changes=changes)
        elif seq % flow_size == 0:
            self._answer(reply, {"type": "ack", "seq": seq, "msgs": flow_size}, changes=changes)

    def _end_fast(self, batch_id: str, reply: str) -> None:
        batch = self._fast.pop(batch_id)
        body = {"stream": batch.stream.name, "seq": batch.last_stored, "batch": batch_id, "count": batch.count}
        self._answer(reply, body, changes=batch.stream.name == "CDC")

    def _take_atomic(
        self, stream: Stream, subject: str, reply: str, fields: Mapping[str, str], headers: bytes, data: bytes, *, refused: bool
    ) -> None:
        batch_id, changes = fields["Nats-Batch-Id"], stream.name == "CDC"
        batch = self._atomic.setdefault(batch_id, Batch(stream))
        batch.staged.append((subject, headers, data))
        if int(fields["Nats-Batch-Sequence"]) != len(batch.staged):
            self._atomic.pop(batch_id)
            error = {"code": 400, "err_code": 10176, "description": "atomic publish batch is incomplete"}
            self._answer(reply, {"error": error}, changes=changes)
            return
        if fields.get("Nats-Batch-Commit") != "1":
            return
        del self._atomic[batch_id]
        try:
            if refused:
                raise Refusal(*self.mood.refusal)
            self._check_atomic(stream, batch)
        except Refusal as exc:
            self._answer(reply, {"error": exc.body, "stream": stream.name, "seq": 0}, changes=changes)
            return
        for one in batch.staged:
            self._store(stream, *one)
        count = len(batch.staged)
        self._answer(reply, {"stream": stream.name, "seq": stream.last_seq, "batch": batch_id, "count": count}, changes=changes)

    def _check_atomic(self, stream: Stream, batch: Batch) -> None:
        if len(batch.staged) > self.batch_max:
            raise Refusal(400, 10199, f"atomic publish batch is too large: {self.batch_max}")
        fields = [decode_headers(headers) for _, headers, _ in batch.staged]
        stream.check(batch.staged[0][0], fields[0], stream.last_seq)
        if any(stream.remembered(one.get("Nats-Msg-Id", "")) for one in fields):
            raise Refusal(400, 10201, "atomic publish batch contains duplicate message id")

    # -- the API

    def api(self, subject: str, reply: str, data: bytes) -> bool:
        """Answer a request; return whether anybody does."""
        if self.mood.leaderless_until > trio.current_time():
            return False
        action, _, rest = subject.removeprefix("$JS.API.").partition(".")
        words = [action, *rest.split(".")]
        if words[:3] == ["CONSUMER", "MSG", "NEXT"]:
            consumer = self.consumers.get((words[3], words[4]))
            if consumer is not None:
                consumer.pull(reply, orjson.loads(data))
            return consumer is not None
        try:
            body = self._answer_of(words, orjson.loads(data or b"{}"))
        except Refusal as exc:
            body = {"error": exc.body}
        self._answer(reply, body)
        return True

    def _answer_of(self, words: list[str], query: dict[str, Any]) -> dict[str, Any]:  # noqa: PLR0911
        match words:
            case ["INFO", *_]:
                return {"limits": {"max_storage": -1}, "storage": 0}
            case ["STREAM", "INFO", name]:
                stream = self._stream(name)
                stream.expire()
                return stream.info(query)
            case ["STREAM", "CREATE" | "UPDATE", name]:
                return self._configure(name, query, is_new=words[1] == "CREATE")
            case ["STREAM", "NAMES"]:
                return {"streams": [s.name for s in self.streams.values() if s.takes(query["subject"])]}
            case ["STREAM", "PURGE", name]:
                self._stream(name).remove([m.seq for m in self._stream(name).of(query.get("filter", ">"))])
                return {"success": True}
            case ["STREAM", "MSG", "GET", name]:
                message = self._stream(name).get(query)
                if message is None:
                    raise Refusal(404, 10037, "no message found")
                return {"message": _shown(message)}
            case ["CONSUMER", "CREATE", name, consumer] if query["action"] == "update":
                if (name, consumer) not in self.consumers:
                    raise Refusal(404, 10149, "consumer does not exist")
                self.consumers[name, consumer].metadata = dict(query["config"]["metadata"])
                return self.consumers[name, consumer].info()
            case ["CONSUMER", "CREATE", name, consumer]:
                made = Consumer(self._stream(name), query["config"], self._deliver, self._timers)
                self.consumers[name, consumer] = made
                return made.info()
            case ["CONSUMER", "DELETE", name, consumer]:
                gone = self.consumers.pop((name, consumer), None)
                if gone is None:
                    raise Refusal(404, 10014, "consumer not found")
                gone.gone = True
                return {"success": True}
            case ["CONSUMER", "LIST", name]:
                return {"consumers": [c.info() for (stream, _), c in self.consumers.items() if stream == name]}
        raise AssertionError(f"the model does not know {'.'.join(words)}")

    def _stream(self, name: str) -> Stream:
        if name not in self.streams:
            raise Refusal(404, 10059, "stream not found")
        return self.streams[name]

    def _configure(self, name: str, config: dict[str, Any], *, is_new: bool) -> dict[str, Any]:
        if is_new and name in self.streams and self.streams[name].config != config:
            raise Refusal(400, 10058, "stream name already in use with a different configuration")
        if name not in self.streams:
            self.streams[name] = Stream(config)
        self.streams[name].config = dict(config)
        return self.streams[name].info({})


def _shown(message: Message) -> dict[str, Any]:
    found = {"subject": message.subject, "seq": message.seq, "time": message.time}
    if message.headers:
        found["hdrs"] = base64.b64encode(message.headers).decode()
    return found | {"data": base64.b64encode(message.data).decode()}


def _transformed(stream: Stream, subject: str) -> str:
    transform = stream.config.get("subject_transform")
    if not transform or not matches(transform["src"], subject):
        return subject
    return str(transform["dest"]).removesuffix(">") + subject.removeprefix(transform["src"].removesuffix(">"))
