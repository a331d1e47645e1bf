"""`walbridge snapshot --list`: which snapshots run and wait, and how the last of each table ended, as the streams say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from actors.clients.nats.jetstream import JetStream, StoredMessage
from actors.clients.nats.snapshot_answers import newest_answer
from actors.contract.decoding import decode_message
from actors.contract.event_encoder import read_any_document
from actors.contract.records import RangesChunk
from actors.contract.subjects import (
    INIT,
    INIT_ERRORS,
    INIT_STARTS,
    RANGES,
    REQUEST_ALL,
    REQUESTS,
    init_chunks,
    init_error,
    init_meta,
    init_start,
    parse,
    part_of,
    split_suffix,
)
from actors.contract.table_token import table_name
from actors.errors import MalformedMessage
from actors.telemetry.quantities import counted

State = Literal["running", "waiting", "done", "failed"]


@dataclass(frozen=True, slots=True)
class Listed:
    """The newest snapshot of a table, of its kind: complete, or in rounds."""

    table: str
    """The token of its subjects, for one in rounds with the suffix."""
    state: State
    snapshot_id: str = ""
    rows: int = 0
    rows_expected: int = 0
    """Of one in rounds that runs."""
    started_at: int = 0
    """Unix seconds; 0 if unknown."""
    ended_at: int = 0
    error: str = ""


async def list_snapshots(js: JetStream, stream: str) -> list[Listed]:
    """Return the snapshots of the bridge of `stream`: those that run, that wait, and that ended, the newest first.

    A snapshot counts as running from its start on, also while its bridge is away: the bridge takes it up again.
    """
    asked = [subject for subject in map(parse, await js.subjects_of(REQUESTS, REQUEST_ALL)) if subject is not None]
    waiting = {one.token + one.suffix for one in asked if one.stream in ("", stream) and _is_of_tables(one.suffix)}
    answered = [*await js.subjects_of(INIT, INIT_STARTS), *await js.subjects_of(INIT, INIT_ERRORS)]
    tokens = {subject.token for subject in map(parse, answered) if subject is not None}
    found = [one for token in tokens if _is_of_tables(split_suffix(token)[1]) and (one := await _newest(js, token, stream))]
    running = {one.table for one in found if one.state == "running"}
    found += [Listed(token, "waiting") for token in waiting - running]
    order = {"running": 0, "waiting": 1, "done": 2, "failed": 2}
    return sorted(found, key=lambda one: (order[one.state], -(one.ended_at or one.started_at), one.table))


def _is_of_tables(suffix: str) -> bool:
    part = part_of(suffix)
    return part is not None and part.kind in ("whole", "ranges")


async def _newest(js: JetStream, token: str, stream: str) -> Listed | None:
    start = await newest_answer(js, init_start(token), stream)
    meta = await newest_answer(js, init_meta(token), stream)
    error = await newest_answer(js, init_error(token), stream)
    begun, ended, failed = _body(start), _body(meta), _body(error)
    snapshot_id, started_at = str(begun.get("snapshot_id", "")), _number(begun, "timestamp")
    is_newest = error is None or (meta is not None and error.seq < meta.seq)
    if start is not None and ended.get("snapshot_id") == snapshot_id and is_newest:
        rows = _number(ended, "row_count")
        return Listed(token, "done", snapshot_id, rows, 0, started_at, _number(ended, "timestamp"))
    if error is not None and (start is None or error.seq > start.seq):
        words = f"{failed.get('error_type')}: {failed.get('error_message')}"
        own = str(failed.get("snapshot_id") or "")
        began_at = started_at if own and own == snapshot_id else 0
        return Listed(token, "failed", own, 0, 0, began_at, _number(failed, "timestamp"), words)
    if start is None:
        return None
    return Listed(
        token, "running", snapshot_id, await _rows_so_far(js, token, snapshot_id), _number(begun, "rows_expected"), started_at
    )


async def _rows_so_far(js: JetStream, token: str, snapshot_id: str) -> int:
    """Rows of a running snapshot, which only the chunks of one in rounds say; else 0."""
    chunk = await last_chunk(js, token, snapshot_id)
    return 0 if chunk is None else chunk.row_count


async def last_chunk(js: JetStream, token: str, snapshot_id: str) -> RangesChunk | None:
    """The last chunk of a snapshot in rounds; None if there is none, or if it cannot be read here."""
    if not token.endswith(RANGES) or not re.fullmatch("[A-Za-z0-9-]+", snapshot_id):  # it must not become a pattern
        return None
    message = await js.get_message(INIT, last_by_subj=init_chunks(token, snapshot_id))
    try:
        chunk = None if message is None else decode_message(message.subject, message.headers, message.data)[0]
    except MalformedMessage:  # compressed with a dictionary
        return None
    return chunk if isinstance(chunk, RangesChunk) else None


def _body(message: StoredMessage | None) -> dict[str, Any]:
    body = read_any_document(message.data) if message is not None else None
    return body if isinstance(body, dict) else {}


def _number(body: dict[str, Any], name: str) -> int:
    value = body.get(name, 0)
    return value if isinstance(value, int) else 0


def lines_of(found: Sequence[Listed], now_s: float) -> list[str]:
    """A line for each snapshot, as people read it."""
    if not found:
        return ["no snapshots: none was taken yet, or stream INIT does not hold them any more"]
    names = [_name(one.table) for one in found]
    width = max(map(len, names))
    return [f"{name:<{width}}  {one.state:<7}  {_words(one, now_s)}".rstrip() for name, one in zip(names, found, strict=True)]


def _name(part: str) -> str:
    token, suffix = split_suffix(part)
    return table_name(token) + (" (in rounds)" if suffix == RANGES else "")


def _words(one: Listed, now_s: float) -> str:
    if one.state == "waiting":
        return "the request is kept until a bridge takes it up"
    if one.state == "failed":
        return ", ".join(filter(None, (_when(one.ended_at), one.snapshot_id, one.error)))
    rows = counted(one.rows, "row") if one.rows or one.state == "done" else ""
    if one.rows_expected > one.rows:
        rows += f" of about {one.rows_expected:,} ({100 * one.rows // one.rows_expected} %)"
    if one.state == "done":
        return ", ".join((_when(one.ended_at), rows, f"{one.ended_at - one.started_at} s", one.snapshot_id))
    return ", ".join(filter(None, (rows, f"for {max(0, round(now_s - one.started_at))} s", one.snapshot_id)))


def _when(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if unix_s else ""
