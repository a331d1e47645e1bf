"""The pause: an operator keeps the bridge from reading its slot, until somebody resumes."""

from __future__ import annotations

from datetime import UTC, datetime

from trio_util import AsyncValue

from actors.telemetry.telemetry import Telemetry


class Pause:
    """Whether the bridge is paused, as operators have said and as the bridge's record says. No I/O.

    The HTTP server writes through `begin` and `end`, the supervisor through `adopt` and `written`. A word of an operator counts
    more than the record until the record has it.
    """

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self.since = AsyncValue(0.0)
        """Unix seconds; 0 while the bridge is to stream."""
        self.is_recorded = True
        """Whether the record says the same, so that a restart would follow it."""

    @property
    def is_on(self) -> bool:
        return bool(self.since.value)

    def begin(self, now_unix_s: float) -> bool:
        """Pause, unless the bridge is paused already; return whether that is new."""
        is_new = not self.is_on
        if is_new:
            self._set(now_unix_s, is_recorded=False)
        return is_new

    def end(self) -> bool:
        """Resume, if the bridge is paused; return whether it was."""
        was_on = self.is_on
        if was_on:
            self._set(0.0, is_recorded=False)
        return was_on

    def adopt(self, paused_at: float) -> None:
        """Take over what the record says, unless an operator has said something since."""
        if self.is_recorded:
            self._set(paused_at, is_recorded=True)

    def written(self, paused_at: float) -> None:
        """Note that the record says this; it may be an earlier word."""
        self._set(self.since.value, is_recorded=self.since.value == paused_at)

    def words(self) -> str:
        """Say since when the bridge is paused, and what ends that."""
        if not self.is_on:
            return ""
        kept = "" if self.is_recorded else "; not recorded in NATS yet, so a restart would stream again"
        return f"{paused_words(self.since.value)}: walbridge resume ends that{kept}"

    def _set(self, since: float, *, is_recorded: bool) -> None:
        self.is_recorded = is_recorded
        self._telemetry.paused_at, self._telemetry.pause_recorded = since, is_recorded
        if self._telemetry.state == "paused":
            self._telemetry.not_ready_reason = self.words()
        self.since.value = since


def paused_words(since_unix_s: float) -> str:
    """Say since when a bridge is paused."""
    return f"paused since {datetime.fromtimestamp(since_unix_s, UTC):%Y-%m-%d %H:%M:%S} UTC"
