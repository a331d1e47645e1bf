"""GET /status: first the keys that earlier readers rely on, then further keys, among them a sentence on the bridge's state."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from typing import Any

from actors import __version__
from actors.positions import format_lsn
from actors.settings.config import Config
from actors.telemetry import figures
from actors.telemetry.history import OPERATIONS, History
from actors.telemetry.problems import shown_problems
from actors.telemetry.telemetry import Telemetry
from actors.telemetry.verdict import verdict


def status_document(config: Config, telemetry: Telemetry, history: History) -> dict[str, Any]:
    """The complete state now; numbers are plain JSON, infinite ones None. Whoever asks watches: see `Looking`."""
    t, now = telemetry, time.time()
    history.look(now)
    lag_bytes = figures.held_bytes(t)
    return {
        "status": "connected" if t.connected else "disconnected",
        "uptime_seconds": t.uptime_s,
        "wal_messages_received": t.wal_messages_received,
        "cdc_events_published": t.events_published,
        "current_lsn": format_lsn(figures.confirmed_lsn(t)).lower(),
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
        "verdict": verdict(telemetry, history, now)._asdict(),
        "slot": config.source.slot,
        "publication": config.source.publication,
        "source": t.postgres_address,
        "nats": t.nats_address,
        "stream": config.publish.stream,
        "publish": t.publish_mode,
        "confirm_hold_seconds": config.publish.confirm_hold_s,
        "lag_seconds": round(figures.lag_s(t, now), 3),
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
        "consumers": [{**asdict(consumer), "at_risk": figures.is_at_risk(consumer, t.stream, now)} for consumer in t.consumers],
        "events": dict(zip(OPERATIONS, history.operation_totals(), strict=True)),
        "tables": max(len(history.tables), len(t.tables)),
        "gaps": t.gaps,
        "snapshots": [asdict(progress) for progress in t.snapshots.values()],
        "snapshot_rate_mb_s": t.snapshot_rate_mb_s,
        "snapshot_requests_waiting": t.snapshot_requests_waiting,
        "suspended_tables": {token: asdict(problem) for token, problem in t.suspended_tables.items()},
        "problems": [asdict(problem) for problem in shown_problems(t)],
        "recent_faults": [asdict(problem) for problem in reversed(t.recent_faults)],
    }


def _wal(t: Telemetry) -> dict[str, Any]:
    slot = t.slot
    budget, room_s = figures.budget_bytes(slot), figures.room_s(slot)
    return {
        "held_bytes": figures.held_bytes(t),
        "unconfirmed_bytes": figures.unconfirmed_bytes(t),
        "unread_bytes": figures.unread_bytes(t),
        "safe_bytes": None if budget is None else slot.safe_wal_bytes,
        "budget_bytes": budget,
        "limited": slot.wal_limited,
        "seconds_to_loss": round(room_s) if math.isfinite(room_s) else None,
        "current_lsn": format_lsn(figures.wal_end(t)),
        "restart_lsn": format_lsn(slot.restart_lsn),
        "looked_at": slot.looked_at,
    }
