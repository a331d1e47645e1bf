"""The bridge's HTTP application: the page, health, status and metrics, with the routes that show rows and those that act."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import trio
from quart import Response, jsonify, request
from quart_trio import QuartTrio

from actors.errors import SinkUnavailable
from actors.pace import Pace
from actors.pause import Pause
from actors.settings.config import Config
from actors.telemetry.metrics import Metrics
from actors.telemetry.telemetry import Telemetry
from actors.web.act_routes import AcknowledgeGap, add_act_routes
from actors.web.feed import VIEWERS_MAX, Feed
from actors.web.guard import guard
from actors.web.page import SAFE, load_page
from actors.web.questions import Lookup
from actors.web.row_routes import PRIVATE, add_row_routes
from actors.web.snapshot_routes import HasTable, RequestSnapshot, add_snapshot_routes
from actors.web.status import status_document

FRESH_S = 2.0
FRESH_WITHIN_S = 0.5
STREAM_NAME_MAX = 255
"""Characters of a stream's name, as JetStream has it."""
StreamInfo = Callable[[str], Awaitable[dict[str, Any] | None]]
PATHS = (
    "/",
    "/page/app.js",
    "/events",
    "/health",
    "/ready",
    "/status",
    "/metrics",
    "/journal",
    "/messages",
    "/schema/users",
    "/streams/info?stream=CDC",
    "POST /pause",
    "POST /resume",
    "POST /snapshot/users",
    "POST /snapshot-cancel/snap-1764115200-ab12",
    "POST /snapshot-rate/10",
    "POST /gaps/1/acknowledge",
    "POST /shutdown",
)


def make_app(
    config: Config,
    telemetry: Telemetry,
    feed: Feed,
    *,
    stop: trio.Event,
    pause: Pause,
    pace: Pace,
    stream_info: StreamInfo,
    request_snapshot: RequestSnapshot,
    lookup: Lookup,
    acknowledge_gap: AcknowledgeGap,
    has_table: HasTable,
) -> QuartTrio:
    """Make the application, which answers every request from the current telemetry."""
    app = QuartTrio(__name__)
    app.config["MAX_CONTENT_LENGTH"] = 64 * 1024
    metrics, page = Metrics(telemetry, config), load_page()
    app.before_request(partial(guard, config.http, PRIVATE))

    @app.get("/")
    async def dashboard() -> Response:
        return Response(page.html, content_type="text/html; charset=utf-8", headers=page.headers)

    @app.get("/page/<name>")
    async def module(name: str) -> Response | tuple[Response, int]:
        found = page.modules.get(name)
        if found is None:
            return await not_found(None)
        return Response(found, content_type="text/javascript; charset=utf-8", headers=SAFE)

    @app.get("/events")
    async def events() -> Response | tuple[Response, int]:
        if feed.viewers >= VIEWERS_MAX:
            return jsonify({"error": f"{VIEWERS_MAX} pages are open already; close one"}), 503
        response = Response(_view(feed), content_type="text/event-stream", headers={"Cache-Control": "no-store"})
        response.timeout = None  # the answer lasts until the viewer or the bridge leaves
        return response

    @app.get("/health")
    async def health() -> Response:
        return jsonify({"status": "ok"})

    @app.get("/ready")
    async def ready() -> tuple[Response, int]:
        if telemetry.state == "streaming":
            return jsonify({"ready": True}), 200
        return jsonify({"ready": False, "state": telemetry.state, "reason": telemetry.not_ready_reason}), 503

    @app.get("/status")
    async def status() -> Response:
        await _look_up(telemetry)
        return jsonify(status_document(config, telemetry, feed.history))

    @app.get("/metrics")
    async def show_metrics() -> Response:
        telemetry.looking.watch()
        return Response(metrics.render(), content_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/streams/info")
    async def streams_info() -> tuple[Response, int]:
        name = request.args.get("stream", "")
        if not 0 < len(name) <= STREAM_NAME_MAX or not all(c.isalnum() or c in "-_" for c in name):
            return jsonify({"error": "give the stream's name: /streams/info?stream=CDC"}), 400
        try:
            info = await stream_info(name)
        except SinkUnavailable as exc:
            return jsonify({"error": str(exc)}), 503
        return (jsonify(info), 200) if info is not None else (jsonify({"error": f"no stream {name}"}), 404)

    @app.get("/journal")
    async def journal() -> tuple[Response, int]:
        since = request.args.get("since", "0")
        if not re.fullmatch(r"[0-9]{1,18}", since, re.ASCII):
            return jsonify({"error": "since is the number of an entry"}), 400
        entries = telemetry.journal.after(int(since))
        return jsonify({"last": telemetry.journal.last_number, "entries": [entry._asdict() for entry in entries]}), 200

    add_row_routes(app, lookup, lambda: telemetry.tables)

    add_act_routes(app, config, telemetry, stop=stop, pause=pause, acknowledge_gap=acknowledge_gap)
    add_snapshot_routes(app, config, telemetry, pause=pause, pace=pace, request_snapshot=request_snapshot, has_table=has_table)

    async def not_found(_: Exception | None) -> tuple[Response, int]:
        return jsonify({"error": "no such path", "paths": PATHS}), 404

    async def wrong_method(_: Exception) -> tuple[Response, int]:
        return jsonify({"error": "this path takes another method", "paths": PATHS}), 405

    app.register_error_handler(404, not_found)
    app.register_error_handler(405, wrong_method)
    return app


async def _look_up(telemetry: Telemetry) -> None:
    """Have the figures of the slot looked up, and give that half a second if they are old."""
    telemetry.looking.watch()
    if telemetry.state == "streaming" and telemetry.slot.looked_at:
        with trio.move_on_after(FRESH_WITHIN_S):
            while time.time() - telemetry.slot.looked_at > FRESH_S:  # noqa: ASYNC110  (several monitors, and a deadline)
                await trio.sleep(0.02)


async def _view(feed: Feed) -> AsyncIterator[bytes]:
    with feed.viewer() as admitted:
        if admitted:
            async for frame in feed.frames():
                yield frame
