"""`walbridge mirror --port N`: health and metrics of a running mirror."""

from __future__ import annotations

from functools import partial

import trio
from quart import Response, jsonify
from quart_trio import QuartTrio

from actors.config import HttpConfig
from actors.mirror.metrics import MirrorMetrics
from actors.mirror.progress import Counts
from actors.mirror.replica import Replica
from actors.mirror.state import REFUSED, STALE, WAITING
from actors.web.guard import guard
from actors.web.serving import serve_app

PATHS = ("/health", "/ready", "/metrics")


class View:
    """What is shown of a mirror: its counts, and the replica of the session that runs, or ran last."""

    def __init__(self, stream: str, kind: str, counts: Counts) -> None:
        self.stream, self.kind, self.counts = stream, kind, counts
        self.replica: Replica | None = None
        self.wanted: tuple[str, ...] = ()
        self.reason = "starting"

    def begin(self, replica: Replica, wanted: tuple[str, ...]) -> None:
        """A session has begun."""
        self.replica, self.wanted, self.counts.connected, self.reason = replica, wanted, True, ""

    @property
    def states(self) -> list[tuple[str, str]]:
        """(token, state) of each table that is mirrored."""
        return [(t, self.replica.tables[t].state) for t in self.wanted] if self.replica is not None else []

    @property
    def has_place(self) -> bool:
        """Some table is live."""
        return self.replica is not None and self.replica.place is not None

    @property
    def position_seq(self) -> int:
        """The stream's sequence up to which everything is in the replica; 0 when no table is live."""
        place = self.replica.place if self.replica is not None else None
        return place.cursor.stream_seq if place is not None else 0

    @property
    def not_ready_reason(self) -> str:
        """Empty when all tables are live and followed."""
        if not self.counts.connected:
            return self.reason
        refused = [token for token, state in self.states if state == REFUSED]
        copied = [token for token, state in self.states if state in (WAITING, STALE)]
        words, tokens = ("cannot be mirrored, see the log", refused) if refused else ("being copied", copied)
        return f"{words}: {', '.join(tokens[:5])}{' ...' if len(tokens) > 5 else ''}" if tokens else ""


async def serve_mirror(
    http: HttpConfig, view: View, task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve until cancelled. Raises ConfigError when the port is taken."""
    app, metrics = QuartTrio(__name__), MirrorMetrics(view)
    app.before_request(partial(guard, http))

    @app.get("/health")
    async def health() -> Response:
        return jsonify({"status": "ok"})

    @app.get("/ready")
    async def ready() -> tuple[Response, int]:
        reason = view.not_ready_reason
        return (jsonify({"ready": False, "reason": reason}), 503) if reason else (jsonify({"ready": True}), 200)

    @app.get("/metrics")
    async def show_metrics() -> Response:
        return Response(metrics.render(), content_type="text/plain; version=0.0.4; charset=utf-8")

    async def not_found(_: Exception) -> tuple[Response, int]:
        return jsonify({"error": "no such path", "paths": PATHS}), 404

    async def wrong_method(_: Exception) -> tuple[Response, int]:
        return jsonify({"error": "this path takes another method", "paths": PATHS}), 405

    app.register_error_handler(404, not_found)
    app.register_error_handler(405, wrong_method)
    await serve_app(app, http, task_status=task_status)
