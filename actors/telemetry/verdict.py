"""A few sentences on what the bridge does, how fast, and what PostgreSQL holds for it; and their colour. No I/O."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from actors.telemetry import figures
from actors.telemetry.history import STUCK_AFTER_S, History
from actors.telemetry.quantities import age, changes_per_second, counted, human_bytes, span
from actors.telemetry.telemetry import Telemetry

UNREAD_WARN_BYTES = 64 * 1024 * 1024
LAG_BAD_S = 300.0
LOSS_WARN_S = 4 * 3600.0
LOSS_BAD_S = 3600.0
OLD_S = 5.0
"""A figure that was looked up longer ago than this is said with its age."""
Level = Literal["ok", "warn", "bad"]
_LEVELS: tuple[Level, ...] = ("ok", "warn", "bad")
_DOING = {
    "starting": "Starting", "waiting_postgres": "Waiting for PostgreSQL", "waiting_nats": "Waiting for NATS",
    "draining": "Stopping: storing what was read", "paused": "Resuming", "halted": "Stopped",
}  # fmt: skip


class Verdict(NamedTuple):
    """The bridge's state for a person: text first, colour second."""

    level: Level
    text: str


class Finding(NamedTuple):
    """One sentence, without its full stop, and the colour that it deserves."""

    level: Level
    text: str


def verdict(t: Telemetry, history: History, now_unix_s: float) -> Verdict:
    """Join what there is to say; `history` has looked at the stages just now. The worst finding sets the colour."""
    found = [*_doing(t, history, now_unix_s), *_backlog(t, now_unix_s), *_held(t, now_unix_s), *_incomplete(t)]
    if t.problems:
        found.append(Finding("warn", ""))
    level = max((finding.level for finding in found), key=_LEVELS.index)
    return Verdict(level, ". ".join(finding.text for finding in found if finding.text) + ".")


def _doing(t: Telemetry, history: History, now: float) -> list[Finding]:
    if t.paused_at:
        return [Finding("bad" if t.slot.is_gone else "warn", _paused(t, now))]
    if t.state != "streaming":
        return [Finding("bad" if t.state in ("waiting_postgres", "waiting_nats", "halted") else "warn", _DOING[t.state])]
    rate, p50 = history.events_per_second, history.latency_ms(0.5)
    behind = figures.lag_s(t, now) > STUCK_AFTER_S
    doing = "Catching up" if behind and rate else "Streaming"
    if rate and p50:
        found = [Finding("ok", f"{doing}. {changes_per_second(rate)}, stored {age(p50 / 1000)} after commit (median)")]
    elif t.backlog.is_waiting or figures.lag_s(t, now):
        found = [Finding("ok", doing)]
    elif not t.last_commit_at:
        found = [Finding("ok", "Streaming. No change has arrived yet")]
    else:
        found = [Finding("ok", f"Streaming. No changes now; the last was committed {age(now - t.last_commit_at)} ago")]
    stuck = next((stage for stage in history.stages if stage.stuck), None)
    if stuck is not None and stuck.behind:
        stands_s = now - (stuck.stands_since or t.started_at)
        found.append(Finding("bad", f"Stage {stuck.name} has not moved for {age(stands_s)} although work is waiting"))
    elif stuck is not None:
        silent_s = now - stuck.moved_at
        found.append(Finding("bad", f"PostgreSQL has sent nothing for {age(silent_s)} although the bridge asked"))
    return found


def _paused(t: Telemetry, now: float) -> str:
    if t.state != "paused":
        return "Pausing: storing what was read"
    if t.slot.is_gone:
        return f"Paused for {age(now - t.paused_at)}, and the slot is gone: changes do not wait, they are lost"
    kept = "" if t.pause_recorded else ". NATS does not have the pause yet: a restart would stream"
    return f"Paused for {age(now - t.paused_at)}: changes wait in PostgreSQL until walbridge resume{kept}"


def _backlog(t: Telemetry, now: float) -> list[Finding]:
    """What waits. Never green over it, and not red if an operator wants it to wait."""
    found: list[Finding] = []
    unstored_s = figures.unstored_s(t, now)
    if unstored_s > STUCK_AFTER_S:
        found.append(Finding(_late(t, unstored_s), f"The oldest unstored change is {age(unstored_s)} old"))
    unread_s, unread = figures.unread_s(t, now), figures.unread_bytes(t)
    if unread_s > STUCK_AFTER_S or unread >= UNREAD_WARN_BYTES:
        words = f"PostgreSQL has {human_bytes(unread)} of WAL that the bridge has not read"
        found.append(Finding(_late(t, unread_s), f"{words}, some of it for {age(unread_s)}"))
    return found


def _late(t: Telemetry, seconds: float) -> Level:
    return "bad" if seconds > LAG_BAD_S and not t.paused_at else "warn"


def _held(t: Telemetry, now: float) -> list[Finding]:
    slot = t.slot
    if not slot.restart_lsn:
        return []
    looked_s = now - slot.looked_at if slot.looked_at else 0.0
    is_away = t.state == "waiting_postgres"
    held = f"PostgreSQL {'held' if is_away else 'holds'} {human_bytes(figures.held_bytes(t))} of WAL for this slot"
    when = f" {age(looked_s)} ago" if looked_s > OLD_S else ""
    if slot.wal_status == "lost":
        return [Finding("bad", f"{held}{when}, but has removed WAL that the slot needed: the slot is lost")]
    level: Level = "bad" if slot.wal_status == "unreserved" else "ok"
    budget = figures.budget_bytes(slot)
    if budget is None:
        return [Finding(level, f"{held}{when}, without a limit")]
    held = f"{held} of a limit of {human_bytes(budget)}{when}"
    room_s = figures.room_s(slot)
    if math.isinf(room_s) or is_away:  # while PostgreSQL is away it writes no WAL
        return [Finding(level, held)]
    if room_s < LOSS_WARN_S:
        level = "bad" if room_s < LOSS_BAD_S or level == "bad" else "warn"
    return [Finding(level, f"{held}: room for {span(room_s)} at the present rate")]


def _incomplete(t: Telemetry) -> list[Finding]:
    found: list[Finding] = []
    if t.suspended_tables:
        many = len(t.suspended_tables)
        found.append(Finding("warn", f"{counted(many, 'table')} {'is' if many == 1 else 'are'} suspended"))
    if t.gap_problems:
        found.append(Finding("bad", f"Changes were lost permanently: {counted(len(t.gap_problems), 'gap')} to acknowledge"))
    return found
