"""One stream: its messages, its limits, and what a power cut takes from it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

import trio

from actors.wire.nats import decode_headers
from property_tests.simulation.determinism import BEGINNING_UNIX_S

NS = 1e9


class Message(NamedTuple):
    """A stored message."""

    seq: int
    subject: str
    headers: bytes
    data: bytes
    at: float
    """On trio's clock."""

    @property
    def time(self) -> str:
        """As JetStream writes it."""
        return rfc3339(self.at)

    @property
    def size(self) -> int:
        return len(self.subject) + len(self.headers) + len(self.data)


def rfc3339(at: float) -> str:
    """A time of trio's clock as JetStream writes it."""
    return datetime.fromtimestamp(BEGINNING_UNIX_S + at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")


@lru_cache(maxsize=100_000)
def matches(pattern: str, subject: str) -> bool:
    """Whether a subject matches a pattern with wildcards."""
    wanted, found = pattern.split("."), subject.split(".")
    for i, token in enumerate(wanted):
        if token == ">":
            return len(found) > i
        if i >= len(found) or token not in ("*", found[i]):
            return False
    return len(wanted) == len(found)


class Refusal(Exception):
    """JetStream's error: status, code and words."""

    def __init__(self, code: int, err_code: int, description: str) -> None:
        super().__init__(description)
        self.body = {"code": code, "err_code": err_code, "description": description}


class Stream:
    """One stream. Every change can be undone, until it is on disk."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config: dict[str, Any] = dict(config)
        self.created = rfc3339(trio.current_time())
        self.messages: dict[int, Message] = {}
        self.last_seq = 0
        self.first_seq = 0
        self.ids: dict[str, tuple[int, float]] = {}
        """Message id -> sequence and time, within the duplicate window."""
        self.synced_at = trio.current_time()
        self.on_limit: Callable[[list[Message]], None] = lambda _: None
        """Called with what a limit is about to remove."""
        self._undo: deque[tuple[float, Callable[[], None]]] = deque()

    @property
    def name(self) -> str:
        return str(self.config["name"])

    def takes(self, subject: str) -> bool:
        return any(matches(pattern, subject) for pattern in self.config.get("subjects") or ())

    def limit(self, field: str) -> int:
        """A limit; 0 for none."""
        return max(0, int(self.config.get(field) or 0))

    # -- reading

    def of(self, *patterns: str) -> Iterator[Message]:
        """The messages on subjects, in order."""
        return (m for m in self.messages.values() if any(matches(pattern, m.subject) for pattern in patterns))

    def last_on(self, pattern: str) -> Message | None:
        return next((m for m in reversed(self.messages.values()) if matches(pattern, m.subject)), None)

    def get(self, query: Mapping[str, Any]) -> Message | None:
        """As STREAM.MSG.GET."""
        if "last_by_subj" in query:
            return self.last_on(query["last_by_subj"])
        seq = int(query.get("seq", 0))
        if "next_by_subj" in query:
            return next((m for m in self.of(query["next_by_subj"]) if m.seq >= seq), None)
        return self.messages.get(seq)

    @property
    def deleted(self) -> list[int]:
        """Sequences without a message between the first and the last."""
        return [seq for seq in range(self.first_seq, self.last_seq + 1) if seq not in self.messages] if self.messages else []

    def info(self, query: Mapping[str, Any]) -> dict[str, Any]:
        """As STREAM.INFO."""
        deleted, kept = self.deleted, list(self.messages.values())
        state: dict[str, Any] = {
            "messages": len(kept), "bytes": sum(m.size for m in kept), "first_seq": self.first_seq, "last_seq": self.last_seq,
            "first_ts": kept[0].time if kept else "0001-01-01T00:00:00Z",
            "last_ts": kept[-1].time if kept else "0001-01-01T00:00:00Z", "num_deleted": len(deleted), "consumer_count": 0,
        }  # fmt: skip
        if query.get("deleted_details") and deleted:
            state["deleted"] = deleted
        found: dict[str, Any] = {"config": self.config, "created": self.created, "state": state}
        if query.get("subjects_filter"):
            subjects: dict[str, int] = {}
            for message in self.of(query["subjects_filter"]):
                subjects[message.subject] = subjects.get(message.subject, 0) + 1
            page = list(subjects.items())[int(query.get("offset", 0)) :]
            state["subjects"], found["total"] = dict(page), len(subjects)
        return found

    # -- writing

    def remembered(self, message_id: str) -> int:
        """The sequence of a message with this id within the duplicate window; 0 if there is none."""
        found = self.ids.get(message_id)
        window = self.limit("duplicate_window") / NS or 120.0
        return found[0] if found is not None and trio.current_time() - found[1] < window else 0

    def check(self, subject: str, headers: Mapping[str, str], last_seq: int) -> None:
        """Raise Refusal if a message that would come after `last_seq` must not be stored."""
        expected = headers.get("Nats-Expected-Last-Sequence")
        if expected is not None and int(expected) != last_seq:
            raise Refusal(400, 10071, f"wrong last sequence: {last_seq}")
        of_subject = headers.get("Nats-Expected-Last-Subject-Sequence")
        last = self.last_on(subject)
        if of_subject is not None and int(of_subject) != (last.seq if last else 0):
            raise Refusal(400, 10071, f"wrong last sequence: {last.seq if last else 0}")
        if self.config.get("discard_new_per_subject") and last is not None:
            raise Refusal(503, 10077, "maximum messages per subject exceeded")
        most = self.limit("max_msgs")
        if most and self.config.get("discard") == "new" and len(self.messages) >= most:
            raise Refusal(503, 10077, "maximum messages exceeded")

    def store(self, subject: str, headers: bytes, data: bytes) -> Message:
        """Store a message and apply the limits."""
        first_before = self.first_seq
        message = Message(self.last_seq + 1, subject, headers, data, trio.current_time())
        self.messages[message.seq] = message
        self.last_seq = message.seq
        message_id = decode_headers(headers).get("Nats-Msg-Id") if headers else None
        if message_id:
            self.ids[message_id] = (message.seq, message.at)
        if len(self.messages) == 1:
            self.first_seq = message.seq

        def undo() -> None:
            self.messages.pop(message.seq, None)
            self.last_seq = message.seq - 1
            self.first_seq = first_before
            if message_id:
                self.ids.pop(message_id, None)

        self._changed(undo)
        per_subject = self.limit("max_msgs_per_subject")
        if per_subject and not self.config.get("discard_new_per_subject"):
            held = [m.seq for m in self.of(subject)]
            self.remove(held[: max(0, len(held) - per_subject)])
        self.expire()
        return message

    def expire(self) -> None:
        """Remove what the limits of age and number no longer allow."""
        age_s, most = self.limit("max_age") / NS, self.limit("max_msgs")
        kept = list(self.messages.values())
        gone = [m.seq for m in kept if age_s and trio.current_time() - m.at >= age_s]
        if most and self.config.get("discard") != "new":
            gone += [m.seq for m in kept[len(gone) : max(len(gone), len(kept) - most)]]
        if gone:
            self.on_limit([self.messages[seq] for seq in gone])
            self.remove(gone)

    def remove(self, sequences: list[int]) -> None:
        """Remove messages."""
        gone = [self.messages[seq] for seq in sequences if seq in self.messages]
        if not gone:
            return
        first_before = self.first_seq
        for message in gone:
            del self.messages[message.seq]
        self.first_seq = next(iter(self.messages), self.last_seq + 1)

        def undo() -> None:
            self.messages = {m.seq: m for m in sorted([*gone, *self.messages.values()])}
            self.first_seq = first_before

        self._changed(undo)

    # -- what is on disk

    def _changed(self, undo: Callable[[], None]) -> None:
        self._undo.append((trio.current_time(), undo))

    def synced(self) -> None:
        """Everything is on disk now."""
        self.synced_at = trio.current_time()
        self._undo.clear()

    def lose_after(self, when: float) -> None:
        """Go back to how the stream was at a time after the last sync."""
        while self._undo and self._undo[-1][0] > when:
            self._undo.pop()[1]()
        self.restarted()
        self.synced()

    def restarted(self) -> None:
        """The server was restarted: ids are known from the messages that are still there."""
        self.ids = {}
        for message in self.messages.values():
            message_id = decode_headers(message.headers).get("Nats-Msg-Id") if message.headers else None
            if message_id:
                self.ids[message_id] = (message.seq, message.at)
