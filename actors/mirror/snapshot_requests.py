"""Snapshots in stream INIT: which one can be used, and requests for a new one."""

from __future__ import annotations

import trio

from actors.clients.nats.jetstream import StoredMessage
from actors.clients.nats.snapshot_answers import newest_answer
from actors.contract.decoding import decode_message
from actors.contract.records import SnapshotStart
from actors.contract.subjects import INIT, init_error, init_start, request
from actors.errors import MalformedMessage
from actors.mirror.replica import Replica
from actors.mirror.rounds import load_place
from actors.mirror.source_stream import SourceStream
from actors.mirror.state import STALE, WAITING
from actors.mirror.table_choice import KeptTables
from actors.telemetry.log import get_logger
from actors.wire.nats import encode_pub

log = get_logger("mirror")

UNANSWERED_AFTER_S = 10.0


async def ask_for_snapshot(source: SourceStream, token: str) -> None:
    """Ask the stream's bridge for a snapshot of a table. Repeated requests have the effect of one."""
    await source.js.connection.send(encode_pub(request(token, source.name).encode(), b"", b"", None))


async def find_usable_start(replica: Replica, source: SourceStream, token: str) -> tuple[StoredMessage | None, str]:
    """The start of the table's newest snapshot, or None and why the replica cannot use that snapshot."""
    used_seq = replica.tables[token].init_seq
    message = await newest_answer(source.js, init_start(token), source.name, used_seq)
    start = None if message is None else _start_in(message)
    if message is None or start is None:
        return None, "there is none since the last copy" if used_seq else "there is none"
    if await newest_answer(source.js, init_error(token), source.name, message.seq) is not None:
        return None, "the newest snapshot failed"
    if not await source.look() or message.time < source.created:
        return None, "the stream was created after the newest snapshot"
    reason = why_unusable(replica, source, start)
    if not reason and not await source.has_kept(start.stream_seq, message.time):
        reason = "the stream was cut short and has grown again since the newest snapshot"
    return (None, reason) if reason else (message, "")


def why_unusable(replica: Replica, source: SourceStream, start: SnapshotStart) -> str:
    """Why the events after a snapshot do not lead to the present; empty when they do. `source` must have looked."""
    if start.stream_seq < replica.tables[start.token].needed_seq:
        return "the snapshot is from before the table had to be copied again"
    if not replica.tables[start.token].takes(start.version, start.stream_seq):
        return "the snapshot is from before the table was published as it is now"
    return source.why_out_of_date(start.stream_seq)


async def is_answered(replica: Replica, source: SourceStream, token: str, since_seq: int) -> bool:
    """Whether the bridge began or refused a snapshot after INIT's `since_seq`, or an older snapshot can be used."""
    if token not in replica.tables:
        return True  # forgotten meanwhile: nobody waits for it
    newest = max(since_seq, replica.tables[token].init_seq)
    for subject in (init_start(token), init_error(token)):
        if await newest_answer(source.js, subject, source.name, newest) is not None:
            return True
    return (await find_usable_start(replica, source, token))[0] is not None


async def watch_requests(replica: Replica, source: SourceStream, kept: KeptTables) -> None:
    """Warn while nobody answers the requests for snapshots: without a bridge a copy waits forever. Runs until cancelled."""
    first_seq = seen_seq = -1
    while True:
        info = await source.js.stream_info(INIT)
        last_seq = int(info["state"]["last_seq"]) if info is not None else 0
        first_seq = last_seq if first_seq < 0 else first_seq
        if last_seq == seen_seq:  # if INIT grows, a bridge takes a snapshot, and the others come after it
            waiting = [token for token in kept.tokens if replica.tables[token].state in (WAITING, STALE)]
            # a copy in rounds has its answer, and a round may store nothing for a while
            waiting = [token for token in waiting if await load_place(replica, token) is None]
            unanswered = [token for token in waiting if not await is_answered(replica, source, token, first_seq)]
            if unanswered:
                log.warning(
                    "no bridge has answered the request for a snapshot; waiting", tables=",".join(unanswered),
                    fix="start the bridge: walbridge run; if it runs, walbridge status shows what it does",
                )  # fmt: skip
        seen_seq = last_seq
        await trio.sleep(UNANSWERED_AFTER_S)


def _start_in(message: StoredMessage) -> SnapshotStart | None:
    """The record in a message on `init.start.{token}`; None when no bridge wrote it."""
    try:
        start = decode_message(message.subject, {}, message.data)[0]
    except MalformedMessage:
        return None
    return start if isinstance(start, SnapshotStart) else None
