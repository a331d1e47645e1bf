"""Serves health and metrics of a running mirror: `walbridge mirror --port N`."""

from __future__ import annotations

from functools import partial

import trio
from quart import Response, jsonify
from quart_trio import QuartTrio

from actors.mirror.metrics import MirrorMetrics
from actors.mirror.view import View
from actors.settings.config import HttpConfig
from actors.web.guard import guard
from actors.web.serving import serve_app

PATHS = ("/health", "/ready", "/metrics")


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
