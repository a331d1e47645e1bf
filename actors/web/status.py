"""GET /status: first the keys that earlier readers rely on, then further keys, among them a sentence on the bridge's state."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from typing import Any, Literal, NamedTuple

from actors import __version__
from actors.positions import format_lsn
from actors.settings.config import Config
from actors.telemetry.history import OPERATIONS, STUCK_AFTER_S, History
from actors.telemetry.metrics import lag_seconds
from actors.telemetry.quantities import age, changes_per_second, human_bytes, span
from actors.telemetry.telemetry import Telemetry

LAG_WARN_S = 30.0
LOSS_WARN_S = 4 * 3600.0
LOSS_BAD_S = 3600.0


class Verdict(NamedTuple):
    """The bridge's state for a person: text first, colour second."""

    level: Literal["ok", "warn", "bad"]
    text: str


def status_document(config: Config, telemetry: Telemetry, history: History) -> dict[str, Any]:
    """The complete state now; numbers are plain JSON, infinite ones None."""
    t = telemetry
    lag_bytes = t.slot.lag_bytes
    problems = [*([t.fault] if t.fault else []), *t.problems.values(), *t.suspended_tables.values()]
    return {
        "status": "connected" if t.connected else "disconnected",
        "uptime_seconds": t.uptime_s,
        "wal_messages_received": t.wal_messages_received,
        "cdc_events_published": t.events_published,
        "current_lsn": format_lsn(t.confirmed_lsn).lower(),
        "is_connected": t.connected,
        "reconnect_count": t.reconnects,
        "nats_reconnect_count": t.nats_reconnects,
        "last_processing_time_us": t.last_processing_time_us,
        "slot_active": t.slot.active,
        "wal_lag_bytes": lag_bytes,
        "wal_lag_mb": lag_bytes >> 20,
        "version": __version__,
        "state": t.state,
        "reason": t.not_ready_reason,
        "paused": {"since": t.paused_at, "recorded": t.pause_recorded} if t.paused_at else None,
        "verdict": verdict(telemetry, history)._asdict(),
        "slot": config.source.slot,
        "publication": config.source.publication,
        "stream": config.publish.stream,
        "publish": t.publish_mode,
        "confirm_hold_seconds": config.publish.confirm_hold_s,
        "lag_seconds": round(lag_seconds(t, time.time()), 3),
        "events_per_second": round(history.events_per_second, 1),
        "latency_ms": {"p50": history.latency_ms(0.5), "p99": history.latency_ms(0.99)},
        "positions": {
            stage: format_lsn(getattr(t, f"{stage}_lsn"))
            for stage in ("received", "decoded", "published", "durable", "confirmed")
        },
        "stages": [
            {
                "stage": stage.name,
                "lsn": format_lsn(getattr(t, f"{stage.name}_lsn")),
                "moved_at": stage.moved_at,
                "behind": stage.behind,
                "stuck": stage.stuck,
            }
            for stage in history.stages
        ],  # fmt: skip
        "transactions": t.transactions,
        "last_commit_at": t.last_commit_at,
        "stream_seq": t.stored_seq,
        "in_flight_messages": t.in_flight_messages,
        "channels": {
            name: {"items": c.items_waiting, "capacity": c.capacity, "blocked_seconds": round(c.blocked_s, 3)}
            for name, c in t.channels.items()
        },
        "wal": _wal(telemetry),
        "wal_status": t.slot.wal_status,
        "jetstream": asdict(t.stream),
        "consumers": [asdict(consumer) for consumer in t.consumers],
        "events": dict(zip(OPERATIONS, history.operation_totals(), strict=True)),
        "tables": max(len(history.tables), len(t.tables)),
        "gaps": t.gaps,
        "snapshots": [asdict(progress) for progress in t.snapshots.values()],
        "snapshot_requests_waiting": t.snapshot_requests_waiting,
        "suspended_tables": {token: asdict(problem) for token, problem in t.suspended_tables.items()},
        "problems": [asdict(problem) for problem in problems],
        "recent_faults": [asdict(problem) for problem in reversed(t.recent_faults)],
    }


def _wal(t: Telemetry) -> dict[str, Any]:
    slot = t.slot
    limited = slot.wal_limited and slot.safe_wal_bytes is not None
    confirmed, current = max(t.confirmed_lsn, slot.confirmed_lsn), max(slot.current_lsn, t.received_lsn)  # the newer reading
    return {
        "held_bytes": slot.lag_bytes,
        "unconfirmed_bytes": max(0, current - confirmed) if current and confirmed else 0,
        "safe_bytes": slot.safe_wal_bytes if limited else None,
        "budget_bytes": slot.lag_bytes + (slot.safe_wal_bytes or 0) if limited else None,
        "limited": slot.wal_limited,
        "seconds_to_loss": round(slot.seconds_to_loss) if math.isfinite(slot.seconds_to_loss) else None,
        "current_lsn": format_lsn(current),
        "restart_lsn": format_lsn(slot.restart_lsn),
    }


def verdict(t: Telemetry, history: History) -> Verdict:
    """A few sentences: what the bridge does, how fast, and what PostgreSQL holds for it. The worst finding sets the level."""
    level: Literal["ok", "warn", "bad"] = "ok"
    now = time.time()
    lag_s, stuck = lag_seconds(t, now), [s for s in history.stages if s.stuck]
    said: list[str] = []
    if t.state == "streaming":
        rate, p50 = history.events_per_second, history.latency_ms(0.5)
        if rate and p50:
            said.append(f"Streaming. {changes_per_second(rate)}, stored {age(p50 / 1000)} after commit (median)")
        else:
            said.append(_idle(t, now))
    elif t.paused_at:
        said.append(_paused(t, now))
        level = "warn"
    else:
        doing = {
            "starting": "Starting", "waiting_postgres": "Waiting for PostgreSQL", "waiting_nats": "Waiting for NATS",
            "draining": "Stopping: storing what was read", "paused": "Resuming", "halted": "Stopped",
        }  # fmt: skip
        said.append(doing[t.state])
        level = "bad" if t.state in ("waiting_postgres", "waiting_nats", "halted") else "warn"
    if stuck and t.state == "streaming":
        at = stuck[0].stands_since or t.started_at
        said.append(
            f"Stage {stuck[0].name} has not moved for {age(now - at)} although work is waiting"
            if stuck[0].behind
            else f"PostgreSQL has sent nothing for {age(now - stuck[0].moved_at)} although the bridge asked"
        )
        level = "bad"
    if lag_s > STUCK_AFTER_S and not t.paused_at:
        said.append(f"The oldest unstored change is {age(lag_s)} old")
        level = level if level == "bad" or lag_s <= LAG_WARN_S else "warn"
    said.append(_held(t))
    loss_s = t.slot.seconds_to_loss
    if t.slot.wal_status in ("unreserved", "lost") or loss_s < LOSS_BAD_S:
        level = "bad"
    elif level == "ok" and (loss_s < LOSS_WARN_S or t.gaps or t.suspended_tables or t.problems):
        level = "warn"
    if t.suspended_tables:
        said.append(f"{len(t.suspended_tables)} table{'s are' if len(t.suspended_tables) > 1 else ' is'} suspended")
    if t.gaps:
        said.append(f"{t.gaps} gap event{'s' if t.gaps > 1 else ''}: changes were lost permanently")
    return Verdict(level, ". ".join(part for part in said if part) + ".")


def _idle(t: Telemetry, now: float) -> str:
    if not t.last_commit_at:
        return "Streaming. No change has arrived yet"
    return f"Streaming. No changes now; the last was committed {age(now - t.last_commit_at)} ago"


def _paused(t: Telemetry, now: float) -> str:
    if t.state != "paused":
        return "Pausing: storing what was read"
    kept = "" if t.pause_recorded else ". NATS does not have the pause yet: a restart would stream"
    return f"Paused for {age(now - t.paused_at)}: changes wait in PostgreSQL until walbridge resume{kept}"


def _held(t: Telemetry) -> str:
    slot = t.slot
    if not slot.restart_lsn:
        return ""
    held = f"PostgreSQL holds {human_bytes(slot.lag_bytes)} of WAL for this slot"
    if slot.wal_status == "lost":
        return f"{held}, but has removed WAL that the slot needed: the slot is lost"
    if not slot.wal_limited:
        return f"{held}, without a limit"
    budget = human_bytes(slot.lag_bytes + (slot.safe_wal_bytes or 0))
    held = f"{held} of a limit of {budget}"
    if not math.isfinite(slot.seconds_to_loss):
        return held
    return f"{held}: room for {span(slot.seconds_to_loss)} at the present rate"
