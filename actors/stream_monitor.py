"""stream_monitor: watches how full the CDC stream is, and which of its consumers risk missing messages."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import trio

from actors.clients.nats.connection import SinkRefused
from actors.errors import SinkUnavailable
from actors.telemetry.log import get_logger
from actors.telemetry.telemetry import ConsumerHealth, StreamHealth, Telemetry

log = get_logger("stream_monitor")

LOOK_EVERY_S = 10.0
LOOK_AGAIN_S = 1.0
"""While NATS is away or not up yet."""
SHOWN_MAX = 20

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
                telemetry.stream = stream_health(found, time.time())
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
