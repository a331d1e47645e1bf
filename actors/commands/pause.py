"""`walbridge pause`: have a running bridge store what it has read, and release its slot until it is resumed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from actors.commands.as_typed import carried
from actors.commands.running_bridge import NoAnswer, RunningBridge, Url, find_bridge
from actors.commands.status import printable, wal_words
from actors.settings.flags import EnvFile, Flags, takes_settings

WAIT_S = 45.0
"""A drain takes 30 s at most."""
LOOK_EVERY_S = 0.2


@takes_settings(port="of the running bridge")
def pause(flags: Flags, *, url: Url = "", env_file: EnvFile = None) -> int:
    """Pause a bridge."""
    bridge = find_bridge(flags, url, env_file, with_token=True)
    return tell(bridge, "pause", is_paused, lambda _, status: paused_words(status, bridge.url))


def tell(
    bridge: RunningBridge, path: str, is_done: Callable[[Mapping[str, Any]], bool],
    words: Callable[[Mapping[str, Any], Mapping[str, Any]], str], *, meanwhile: str = "",
) -> int:  # fmt: skip
    """POST to a bridge and wait until its status says that it is done; print words of the answer and the status.

    `meanwhile`: what holds even if that takes long.

    0, or 1 with the reason.
    """
    try:
        answer = bridge.post(path)
        deadline = time.monotonic() + WAIT_S
        while not is_done(status := bridge.status()):
            if time.monotonic() > deadline:
                text = carried(printable(status["verdict"]["text"]))
                print(
                    f"walbridge: not yet after {WAIT_S:g} s: {text}" + (f" ({meanwhile})" if meanwhile else ""), file=sys.stderr
                )
                return 1
            time.sleep(LOOK_EVERY_S)
    except NoAnswer as exc:
        print(f"walbridge: {exc}", file=sys.stderr)
        return 1
    print(carried(printable(words(answer, status))))
    return 0


def is_paused(status: Mapping[str, Any]) -> bool:
    """Whether the slot is released; whoever has resumed the bridge meanwhile has the last word."""
    return status["state"] == "paused" or not status["paused"]


def paused_words(status: Mapping[str, Any], url: str) -> str:
    """Say what the pause means now, and what ends it: the command for the bridge at this address."""
    if not status["paused"]:
        return "resumed meanwhile by somebody else"
    lines = [
        f"paused: slot {status['slot']} is released at {status['positions']['confirmed']}, and PostgreSQL keeps the WAL for it",
        f"  WAL held: {wal_words(status, time.time())}",
    ]
    again = [one["table"] for one in status["snapshots"] if one["state"] == "waiting"]
    if again:
        lines.append(f"  after the pause: snapshots of {', '.join(again)}")
    if not status["paused"]["recorded"]:
        lines.append("  NATS does not have the pause yet: until it has, a restart would stream")
    return "\n".join([*lines, f"  to continue: walbridge resume --url {url}"])
