"""Whatever a stream holds: one question after another finds every message of a table once, in order, in both directions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import orjson
import trio
from hypothesis import given
from hypothesis import strategies as st

from actors.clients.nats.jetstream import JetStream, StoredMessage
from actors.contract.subjects import matches
from actors.tail import lookup
from actors.tail.lookup import StreamLookup
from actors.web.questions import Question

TABLES = ("a", "b", "c")


class HeldStream:
    """What JetStream answers of a stream that holds these messages."""

    def __init__(self, messages: dict[int, StoredMessage], last_seq: int) -> None:
        self._messages, self._last_seq = messages, last_seq

    async def stream_info(self, _: str, **__: object) -> dict[str, Any]:
        first = min(self._messages, default=self._last_seq + 1)
        deleted = [seq for seq in range(first, self._last_seq + 1) if seq not in self._messages]
        state = {"first_seq": first, "last_seq": self._last_seq, "num_deleted": len(deleted), "deleted": deleted}
        return {"created": "2026-01-01T00:00:00Z", "config": {}, "state": state}

    async def get_message(self, _: str, *, seq: int, next_by_subj: str) -> StoredMessage | None:
        assert seq > 0, "JetStream refuses that"
        found = [one for at, one in self._messages.items() if at >= seq and matches(next_by_subj, one.subject)]
        return min(found, key=lambda one: one.seq, default=None)

    async def get_messages(self, _: str, seqs: Iterable[int]) -> dict[int, StoredMessage]:
        return {seq: self._messages[seq] for seq in seqs if seq in self._messages}


def stored(seq: int, table: str) -> StoredMessage:
    msg_id, subject = f"{seq:x}-0-{table}-insert", f"cdc.{table}.insert"
    body = {
        "subject": subject, "table": table, "schema": "public", "operation": "INSERT", "relation_id": 1, "key": ["id"],
        "lsn": seq, "xid": 1, "commit_ts": 1, "msg_id": msg_id, "seq": 0, "data": {"id": seq % 3}, "last": True,
    }  # fmt: skip
    return StoredMessage(subject, seq, {"Nats-Msg-Id": msg_id}, orjson.dumps(body), "2026-01-01T00:00:00Z")


@given(
    tables=st.lists(st.sampled_from([*TABLES, ""]), max_size=70),  # "": nothing is there any more
    gap=st.integers(0, 300), wanted=st.sampled_from(["", *TABLES]), key=st.sampled_from(["", "1"]), limit=st.integers(1, 9),
    forwards=st.booleans(), bytes_max=st.sampled_from([1, 500, 1 << 20]), searched_max=st.sampled_from([1, 7, 4000]),
)  # fmt: skip
def test_questions_in_turn_find_each_message_once_and_in_order(
    tables: list[str], gap: int, wanted: str, key: str, limit: int, forwards: bool, bytes_max: int, searched_max: int
) -> None:
    half = len(tables) // 2
    places = [*range(1, half + 1), *range(half + 1 + gap, len(tables) + 1 + gap)]
    messages = {seq: stored(seq, table) for seq, table in zip(places, tables, strict=True) if table}
    last_seq = places[-1] if places else 0
    expected = [
        seq for seq, one in sorted(messages.items())
        if (not wanted or one.subject == f"cdc.{wanted}.insert") and (not key or seq % 3 == int(key))
    ]  # fmt: skip

    async def ask() -> list[int]:
        answers = StreamLookup(lambda: cast(JetStream, HeldStream(messages, last_seq)), "CDC")
        question = Question(wanted, (key,) if key else (), "first" if forwards else "", None, limit)
        found: list[int] = []
        for _ in range(2 * last_seq + 2):
            answer = await answers.messages(question)
            assert len(answer["messages"]) <= limit
            found += [message["seq"] for message in answer["messages"]]
            more = answer["more"]
            if more is None:
                return found
            question = question._replace(place=str(more["from"])) if forwards else question._replace(before=more["before"])
        raise AssertionError("the questions do not end")

    kept = lookup.ANSWER_BYTES_MAX, lookup.SEARCHED_MAX
    lookup.ANSWER_BYTES_MAX, lookup.SEARCHED_MAX = bytes_max, searched_max
    try:
        assert trio.run(ask) == (expected if forwards else expected[::-1])
    finally:
        lookup.ANSWER_BYTES_MAX, lookup.SEARCHED_MAX = kept
