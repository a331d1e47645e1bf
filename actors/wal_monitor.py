"""wal_monitor: watches how much WAL PostgreSQL keeps for the slot, and how long until the slot is lost."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import replace
from typing import NamedTuple

import trio

from actors.clients.postgres.connection import PgConnection
from actors.clients.postgres.slots import slot_health
from actors.errors import WalbridgeError
from actors.positions import NO_LSN, Lsn
from actors.settings.config import PostgresConfig, SourceConfig
from actors.telemetry import figures
from actors.telemetry.journal import Level
from actors.telemetry.log import get_logger
from actors.telemetry.quantities import human_bytes
from actors.telemetry.telemetry import Problem, SlotHealth, Telemetry

log = get_logger("wal_monitor")

CHECK_EVERY_S = 30.0
CHECK_BEHIND_EVERY_S = 2.0
"""While changes wait, or the slot has no reader: at the start, in an outage and after it, when these figures matter."""
BEHIND_S = 1.0
WARN_BYTES = 512 * 1024 * 1024
CRITICAL_BYTES = 1024 * 1024 * 1024
RATE_OVER_S = 600.0
STANDS_S = 60.0
"""A restart_lsn that has not moved for so long is held. A healthy slot's moves a few times a minute: PostgreSQL logs every 15 s
what it may move to, and the bridge confirms it."""
TREND_FROM_S = 300.0


class _Sample(NamedTuple):
    at_s: float
    safe_bytes: int


class WalRate:
    """Measures how fast the WAL that may still be written before the slot is lost shrinks. No I/O.

    Beside other writers that WAL is a sawtooth: it shrinks until restart_lsn moves, and is as large as before. So the rate is
    taken since restart_lsn stands, if it stands for long, and else from tooth to tooth.
    """

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque()
        self._restart_lsn = NO_LSN
        self._moved = _Sample(0.0, 0)
        """The first sample with this restart_lsn."""

    def seconds_to_loss(self, now_s: float, safe_wal_bytes: int | None, restart_lsn: Lsn) -> float:
        """Return the seconds left at this rate; infinite without a limit, when nothing shrinks, and until it is known."""
        if safe_wal_bytes is None:
            self._samples.clear()
            return math.inf
        sample = _Sample(now_s, safe_wal_bytes)
        if restart_lsn != self._restart_lsn or not self._samples:
            self._restart_lsn, self._moved = restart_lsn, sample
        self._samples.append(sample)
        while self._samples[0].at_s < now_s - RATE_OVER_S:
            self._samples.popleft()
        rate = self._rate(sample)
        return safe_wal_bytes / rate if rate > 0 else math.inf

    def _rate(self, now: _Sample) -> float:
        """Bytes a second; 0 while it is not known."""
        stood_s = now.at_s - self._moved.at_s
        if stood_s >= STANDS_S:
            return (self._moved.safe_bytes - now.safe_bytes) / stood_s
        half_s = (now.at_s - self._samples[0].at_s) / 2
        if 2 * half_s < TREND_FROM_S:
            return 0.0
        middle_s = now.at_s - half_s
        before = max(sample.safe_bytes for sample in self._samples if sample.at_s <= middle_s)
        since = max(sample.safe_bytes for sample in self._samples if sample.at_s >= middle_s)
        return (before - since) / half_s


async def watch_slot(config: PostgresConfig, source: SourceConfig, telemetry: Telemetry) -> None:
    """Check the slot over a connection of its own, until cancelled: each second while somebody watches, every 2 s while changes
    wait, else every 30 s. Never ends the bridge.
    """
    rate, slot = WalRate(), source.slot
    while True:
        try:
            connection = await PgConnection.connect(config, application_name="walbridge wal_monitor")
            try:
                while True:
                    health = await slot_health(connection, slot)
                    if health is not None:
                        _note_status(telemetry, slot, health)
                        health.looked_at = time.time()
                        telemetry.backlog.wal_ends(health.current_lsn, telemetry.received_lsn, health.looked_at)
                        health.seconds_to_loss = rate.seconds_to_loss(
                            time.monotonic(), health.safe_wal_bytes, health.restart_lsn
                        )
                        telemetry.slot = health
                        _warn(telemetry, slot, health)
                        telemetry.problems.pop("slot", None)
                    else:
                        _note_absence(telemetry, source)
                    is_behind = figures.lag_s(telemetry, time.time()) > BEHIND_S or not telemetry.slot.active
                    await telemetry.looking.pause(CHECK_BEHIND_EVERY_S if is_behind else CHECK_EVERY_S)
            finally:
                connection.close()
        except WalbridgeError as exc:
            telemetry.slot.active = False
            log.debug("cannot check the slot", error=str(exc))
            await trio.sleep(CHECK_BEHIND_EVERY_S)


def _note_absence(telemetry: Telemetry, source: SourceConfig) -> None:
    """Say that the slot is gone, unless the bridge has yet to make it. A bridge can only be paused once it had one."""
    was_there = telemetry.slot.looked_at > 0 or telemetry.paused_at > 0
    if not was_there or source.temporary:
        telemetry.slot = SlotHealth()
        return
    if not telemetry.slot.is_gone:
        telemetry.journal.note("slot", f"slot {source.slot} is gone", "bad")
    telemetry.slot = SlotHealth(is_gone=True, looked_at=time.time())
    if "slot" not in telemetry.problems:
        telemetry.problems["slot"] = Problem(
            "WB108", f"slot {source.slot} is gone: somebody dropped it, or another server answers",
            means="nothing is kept for the bridge: what is changed until it has a slot again is lost",
            fix="walbridge resume   # if it is paused; it then says what is lost, and how to go on",
        )  # fmt: skip


def held_problem(slot: str, health: SlotHealth) -> Problem | None:
    """Return what to say of the WAL that is held for a slot; None while it is little."""
    held = health.lag_bytes
    if held < WARN_BYTES:
        return None
    level = "critical" if held >= CRITICAL_BYTES else "warning"
    room = human_bytes(max(0, health.safe_wal_bytes or 0))
    limit = f"{room} more, and the slot is lost" if health.wal_limited else "without limit"
    return Problem(
        "WB160",
        f"slot {slot} holds {human_bytes(held)} of WAL ({level}; {limit})",
        means="PostgreSQL's disk fills while the bridge, NATS or an open transaction holds the slot back",
        fix="walbridge status   # names the stage that waits\n"
        "SELECT pid, xact_start, query FROM pg_stat_activity WHERE backend_xmin IS NOT NULL ORDER BY xact_start;"
        "   -- transactions that are open for long",
    )


def _note_status(telemetry: Telemetry, slot: str, health: SlotHealth) -> None:
    before, status = telemetry.slot.wal_status, health.wal_status
    if status != before and (before or status in ("unreserved", "lost")):
        level: Level = "bad" if status in ("unreserved", "lost") else "warn" if status == "extended" else "ok"
        telemetry.journal.note("slot", f"the WAL of slot {slot} is {status}", level)


def _warn(telemetry: Telemetry, slot: str, health: SlotHealth) -> None:
    problem, known = held_problem(slot, health), telemetry.problems.get("wal")
    if problem is None:
        telemetry.problems.pop("wal", None)
        return
    if known is None or ("(critical" in problem.what) != ("(critical" in known.what):
        log.warning(problem.what, wal_status=health.wal_status, restart_lsn=health.restart_lsn, current_lsn=health.current_lsn)
    telemetry.problems["wal"] = problem if known is None else replace(problem, since_unix_s=known.since_unix_s)
