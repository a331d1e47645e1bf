"""stream_monitor: watches how full the CDC stream is, which of its consumers risk missing messages, and whether somebody
deletes messages from it.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import trio

from actors.clients.nats.connection import SinkRefused
from actors.contract.stream_view import StreamView
from actors.errors import SinkUnavailable
from actors.telemetry.log import get_logger
from actors.telemetry.telemetry import ConsumerHealth, Problem, StreamHealth, Telemetry

log = get_logger("stream_monitor")

LOOK_EVERY_S = 10.0
LOOK_AGAIN_S = 1.0
"""While NATS is away or not up yet."""
SHOWN_MAX = 20
DELETED = "deleted messages"
"""Key of the problem."""

StreamInfo = Callable[[str], Awaitable[dict[str, Any] | None]]
Consumers = Callable[[str], Awaitable[Sequence[Mapping[str, Any]]]]


def stream_health(info: Mapping[str, Any], now_unix_s: float) -> StreamHealth:
    """Read a reply of STREAM.INFO."""
    state, limit = info["state"], int(info["config"].get("max_bytes", -1))
    oldest = str(state.get("first_ts", ""))
    return StreamHealth(
        messages=int(state["messages"]),
        bytes=int(state["bytes"]),
        bytes_max=max(0, limit),
        first_seq=int(state["first_seq"]),
        last_seq=int(state["last_seq"]),
        oldest_unix_s=_unix_s(oldest) if state["messages"] else 0.0,
        looked_at=now_unix_s,
        deleted=StreamView.of(info).deleted_count,
    )


def consumer_health(info: Mapping[str, Any], messages: int) -> ConsumerHealth:
    """Read an entry of CONSUMER.LIST; `messages` is how many the stream has."""
    pending = int(info.get("num_pending", 0))
    return ConsumerHealth(
        str(info["name"]), pending, int(info.get("num_ack_pending", 0)), round(min(1.0, pending / max(1, messages)), 3)
    )


def furthest_behind(listed: Sequence[Mapping[str, Any]], messages: int) -> tuple[ConsumerHealth, ...]:
    """Return the consumers with the most left to read, at most 20; `messages` is how many the stream has."""
    health = [consumer_health(entry, messages) for entry in listed]
    return tuple(sorted(health, key=lambda one: -one.history_used)[:SHOWN_MAX])


def note_deleted(telemetry: Telemetry, stream: str, count_before: int) -> None:
    """Show how many messages were deleted in the middle of the stream, and log it when there are more than before."""
    known, count = telemetry.problems.get(DELETED), telemetry.stream.deleted
    if not count:
        telemetry.problems.pop(DELETED, None)
        return
    what = f"{count:,} {'message was' if count == 1 else 'messages were'} deleted in the middle of stream {stream}"
    problem = Problem(
        "WB224", what,
        means="consumers that had not read them have lost changes: mirrors copy their tables again by themselves",
        fix="other consumers whose place was before them take a snapshot; nobody may delete or purge messages of the stream, "
        "and it may have no limit per subject: walbridge export nats-permissions",
    )  # fmt: skip
    if count > count_before:  # it shrinks when the stream's first sequence moves beyond deleted messages
        log.warning(what, code=problem.code, fix=problem.fix)
    telemetry.problems[DELETED] = problem if known is None else replace(problem, since_unix_s=known.since_unix_s)


def _unix_s(text: str) -> float:
    """Convert RFC 3339 with nanoseconds, as NATS writes it."""
    seconds, _, _ = text.partition(".")
    return datetime.fromisoformat(seconds.rstrip("Z") + "+00:00").timestamp()


async def watch_stream(info: StreamInfo, consumers: Consumers, stream: str, telemetry: Telemetry) -> None:
    """Check the stream every 10 s, until cancelled. Never ends the bridge."""
    may_list = True
    while True:
        try:
            found = await info(stream)
            if found is not None:
                deleted_before = telemetry.stream.deleted
                telemetry.stream = stream_health(found, time.time())
                note_deleted(telemetry, stream, deleted_before)
                if may_list:
                    try:
                        listed = await consumers(stream)
                        telemetry.consumers = furthest_behind(listed, telemetry.stream.messages)
                    except SinkRefused as exc:
                        may_list = False  # the bridge can do without this permission: further requests would fill NATS's log
                        log.info("the page shows no consumers: the NATS user may not list them", said=exc.said)
            await trio.sleep(LOOK_EVERY_S)
        except SinkUnavailable as exc:
            log.debug("cannot check the stream", error=str(exc))
            await trio.sleep(LOOK_AGAIN_S)
