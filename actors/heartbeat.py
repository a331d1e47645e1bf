"""heartbeat: reports to a watchdog elsewhere that the bridge makes progress.

A missing heartbeat is the alarm, which works even when Prometheus has failed together with the bridge.
"""

from __future__ import annotations

import urllib.error
import urllib.request

import trio

from actors.telemetry.log import get_logger
from actors.telemetry.telemetry import Telemetry

log = get_logger("heartbeat")

EVERY_S = 60.0
LOOK_EVERY_S = 1.0
TIMEOUT_S = 10.0
PAUSED_LOSS_S = 3600.0
"""With less time left until the slot is lost, a paused bridge is silent."""


class Progress:
    """Decides whether the bridge has made progress since the last heartbeat. No I/O.

    An observer like /ready: telemetry decides about the heartbeat alone. A paused bridge makes the progress that its operator
    wants, until the WAL that waits for it is about to run out.
    """

    def __init__(self) -> None:
        self._received_at = 0.0
        self._stored_seq = -1

    def is_made(self, telemetry: Telemetry) -> bool:
        """Return whether PostgreSQL has sent data or a keepalive, and waiting events have advanced or there are none."""
        if telemetry.state == "paused":
            return telemetry.slot.wal_status not in ("unreserved", "lost") and telemetry.slot.seconds_to_loss > PAUSED_LOSS_S
        received = telemetry.last_received_at > self._received_at
        moves = telemetry.stored_seq != self._stored_seq or not telemetry.has_events_on_their_way
        return telemetry.state == "streaming" and received and moves

    def said(self, telemetry: Telemetry) -> None:
        """Note a heartbeat: only progress after it counts for the next."""
        self._received_at, self._stored_seq = telemetry.last_received_at, telemetry.stored_seq


async def beat(url: str, telemetry: Telemetry, *, every_s: float = EVERY_S) -> None:
    """GET `url` after progress, at most once per `every_s`, until cancelled. A failure is only logged."""
    progress, failing = Progress(), False
    while True:
        if not progress.is_made(telemetry):
            await trio.sleep(min(LOOK_EVERY_S, every_s))
            continue
        progress.said(telemetry)
        try:
            # a thread that hangs in a name lookup is abandoned, so that the bridge can still end
            await trio.to_thread.run_sync(_get, url, abandon_on_cancel=True)
        except Exception as exc:  # nothing that goes wrong here may harm the bridge
            failing = True
            log.warning("cannot send heartbeats", reason=_reason(exc))
        else:
            if failing:
                log.info("heartbeats are sent again")
            failing = False
        await trio.sleep(every_s)


def _get(url: str) -> None:
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
        answer.read(1024)


def _reason(exc: Exception) -> str:
    """Describe an error without the URL, which is a secret."""
    if isinstance(exc, urllib.error.HTTPError):
        return f"answer {exc.code}"
    return str(exc.reason) if isinstance(exc, urllib.error.URLError) else type(exc).__name__
