"""Finds single messages of the stream for the page and for `GET /messages`: by table, by row, by place, the newest first.

Only rights that the bridge has anyway are used: messages are read by their sequence, without a consumer.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import trio

from actors.clients.nats.jetstream import JetStream, StoredMessage, where_it_exists
from actors.contract.compression import ENCODING_HEADER
from actors.contract.decoding import decode_body
from actors.contract.subjects import CDC_ALL, SCHEMAS, cdc_of_table, key_prefix, matches
from actors.mirror.source_stream import SourceStream
from actors.mirror.stream_places import first_seq_from, parse_beginning
from actors.tail.events import events_of
from actors.tail.lines import KeyChoice, plain
from actors.web.questions import Question
from actors.wire.jetstream import unix_time

BLOCK = 16
"""Sequences asked for at once: messages can be as large as the server allows."""
ANSWER_BYTES_MAX = 1024 * 1024
"""Of the bodies of an answer; one message is always returned complete."""
SEARCHED_MAX = 4_000
"""Messages that are decoded for one question; the next one goes on from there."""
SEARCH_S = 4.0
"""How long one question may take; the bridge has other things to do."""


class StreamLookup:
    """Answers questions about one bridge's stream, one at a time."""

    def __init__(self, jetstream: Callable[[], JetStream], stream: str) -> None:
        """`jetstream` returns the connection to ask over, or raises SinkUnavailable."""
        self._jetstream, self._stream = jetstream, stream
        self._turn = trio.Lock()

    async def messages(self, question: Question) -> dict[str, Any]:
        """Find messages; see `Lookup`.

        `more` says how the same question goes on: with `before` or with `from`; None at the end of the stream.
        """
        beginning = parse_beginning(question.place, datetime.now(UTC)) if question.place else None
        async with self._turn:
            source = SourceStream(self._jetstream(), self._stream)
            if not await source.look():
                return {"stream": self._stream, "first_seq": 0, "last_seq": 0, "messages": [], "more": None}
            pattern = cdc_of_table(question.token) if question.token else CDC_ALL
            oldest, end = max(1, source.first_seq), source.last_seq + 1  # JetStream refuses to look for sequence 0
            if beginning is None:
                end = min(end, question.before or end)
                found, seq = await _collect(source, question, _backwards(source, pattern, oldest, end), end)
                more = {"before": seq} if seq > oldest else None
            else:
                first = max(oldest, await first_seq_from(source, beginning))
                found, seq = await _collect(source, question, _forwards(source, pattern, first, end), first)
                more = {"from": seq} if seq < end else None
        return {
            "stream": self._stream, "first_seq": source.first_seq, "last_seq": source.last_seq, "messages": found, "more": more,
        }  # fmt: skip

    async def schema(self, token: str) -> dict[str, Any] | None:
        """Return a table's schema; see `Lookup`."""
        entry = await where_it_exists(self._jetstream().kv_get(SCHEMAS, key_prefix(self._stream) + token))
        body = None if entry is None else plain(decode_body(entry.data))
        return body if isinstance(body, dict) else None


Walk = AsyncGenerator[tuple[list[StoredMessage], int]]
"""Yields messages in the order of the walk, and the sequence at which the walk would go on after them."""


async def _collect(source: SourceStream, question: Question, walk: Walk, seq: int) -> tuple[list[dict[str, Any]], int]:
    """Return what is asked for of a walk, and the sequence at which the next question goes on."""
    found: list[dict[str, Any]] = []
    size = searched = 0
    is_back = question.place == ""
    with trio.move_on_after(SEARCH_S):
        async with aclosing(walk) as steps:
            async for messages, seq_after in steps:
                for message in messages:
                    document = await _document(source, message, question)
                    searched += 1
                    if document is not None:
                        if found and size + len(message.data) > ANSWER_BYTES_MAX:
                            return found, message.seq + 1 if is_back else message.seq
                        size += len(message.data)
                        found.append(document)
                    seq = message.seq if is_back else message.seq + 1
                    if len(found) == question.limit or searched == SEARCHED_MAX:
                        return found, seq
                seq = seq_after
    return found, seq


async def _document(source: SourceStream, message: StoredMessage, question: Question) -> dict[str, Any] | None:
    """What is said of a message; None if no event of it is of the chosen row."""
    choice = KeyChoice(question.keys)
    events, problem = await events_of(source, message.headers, message.data)
    taken = [plain(body) for body, event in events if choice.takes(event)]
    if not taken and (events or question.keys):
        return None
    return {
        "seq": message.seq,
        "subject": plain(message.subject),
        "stored_at": unix_time(message.time),
        "bytes": len(message.data),
        "is_compressed": ENCODING_HEADER in message.headers,
        "headers": plain(message.headers),
        "events": taken,
        "problem": plain(problem),
    }


async def _backwards(source: SourceStream, pattern: str, first: int, end: int) -> Walk:
    """Walk from `end` back to `first`, by halves: JetStream finds the next message on a subject, but not the one before."""
    ranges = [(first, end)]
    while ranges:
        first, end = ranges.pop()
        if end - first <= BLOCK:
            yield (await _block(source, pattern, first, end))[::-1], first
            continue
        next_one = await source.js.get_message(source.name, seq=first, next_by_subj=pattern)
        if next_one is None or next_one.seq >= end:
            yield [], first
            continue
        middle = max((next_one.seq + end) // 2, end - 8 * BLOCK)  # the newest are most often wanted
        ranges += [(next_one.seq, middle), (middle, end)] if middle > next_one.seq else [(next_one.seq, end)]


async def _forwards(source: SourceStream, pattern: str, first: int, end: int) -> Walk:
    """Walk from `first` to the message before `end`."""
    while first < end:
        next_one = await source.js.get_message(source.name, seq=first, next_by_subj=pattern)
        if next_one is None or next_one.seq >= end:
            yield [], end
            return
        first = min(next_one.seq + BLOCK, end)
        yield await _block(source, pattern, next_one.seq, first), first


async def _block(source: SourceStream, pattern: str, first: int, end: int) -> list[StoredMessage]:
    found = await source.js.get_messages(source.name, range(first, end))
    return [message for _, message in sorted(found.items()) if matches(pattern, message.subject)]
