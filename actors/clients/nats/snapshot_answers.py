"""What a bridge has answered to requests for snapshots: its newest start, meta or error of a table in stream INIT.

All bridges of an account answer on the same subjects, so the last message of a subject may be another bridge's.
"""

from __future__ import annotations

import re

from actors.clients.nats.jetstream import JetStream, StoredMessage
from actors.contract.decoding import answers
from actors.contract.event_encoder import read_any_document
from actors.contract.subjects import INIT, init_start


async def newest_answer(js: JetStream, subject: str, stream: str, after: int = 0) -> StoredMessage | None:
    """The last message on a subject of INIT that the bridge of `stream` wrote, if its sequence is greater than `after`.

    Usually the subject's last message; else ever larger ranges before it are read.
    """
    message = await js.get_message(INIT, last_by_subj=subject)
    if message is None or message.seq <= after:
        return None
    if is_answer_of(message, stream):
        return message
    end, size = message.seq, 1
    while end > after + 1:
        begin = max(after + 1, end - size)
        found = await _last_between(js, subject, stream, begin, end)
        if found is not None:
            return found
        end, size = begin, 2 * size
    return None


async def snapshots_of(js: JetStream, token: str, stream: str) -> list[str]:
    """The ids of a table's snapshots in INIT that the bridge of `stream` took, oldest first."""
    found: list[str] = []
    seq = 1 if await js.stream_info(INIT) is not None else 0
    while seq and (message := await js.get_message(INIT, seq=seq, next_by_subj=init_start(token))) is not None:
        body = read_any_document(message.data)
        snapshot_id = str(body.get("snapshot_id", "")) if isinstance(body, dict) and answers(body, stream) else ""
        if re.fullmatch("[A-Za-z0-9-]+", snapshot_id):  # else no bridge's: it must not become a pattern
            found.append(snapshot_id)
        seq = message.seq + 1
    return found


async def _last_between(js: JetStream, subject: str, stream: str, begin: int, end: int) -> StoredMessage | None:
    """The last one with a sequence from `begin` on and below `end`."""
    found: StoredMessage | None = None
    seq = begin
    while seq < end:
        message = await js.get_message(INIT, seq=seq, next_by_subj=subject)
        if message is None or message.seq >= end:
            break
        if is_answer_of(message, stream):
            found = message
        seq = message.seq + 1
    return found


def is_answer_of(message: StoredMessage, stream: str) -> bool:
    """Whether the bridge of `stream` wrote a start, meta or error, and for those who named that bridge."""
    body = read_any_document(message.data)
    return isinstance(body, dict) and answers(body, stream)
