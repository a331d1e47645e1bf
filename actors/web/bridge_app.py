"""The bridge's HTTP application: the page, health, status, metrics, snapshot requests and the graceful stop."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import trio
from quart import Response, jsonify, request
from quart_trio import QuartTrio

from actors.contract.table_token import TOKEN_MAX, as_token, find_token, split_token
from actors.errors import SinkUnavailable
from actors.pause import Pause
from actors.settings.config import Config
from actors.telemetry.metrics import Metrics
from actors.telemetry.quantities import listed
from actors.telemetry.telemetry import Telemetry
from actors.web.feed import VIEWERS_MAX, Feed
from actors.web.guard import guard
from actors.web.page import SAFE, load_page
from actors.web.status import status_document

RequestSnapshot = Callable[[str], Awaitable[None]]
"""Takes a table's token."""
AcknowledgeGap = Callable[[int], Awaitable[bool]]
"""Takes the sequence of a gap event; False when there is none to acknowledge. Raises SinkUnavailable."""
HasTable = Callable[[str], Awaitable[bool]]
"""Takes a table's token; False when the publication does not have it."""
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
    "/streams/info?stream=CDC",
    "POST /pause",
    "POST /resume",
    "POST /snapshot/users",
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
    stream_info: StreamInfo,
    request_snapshot: RequestSnapshot,
    acknowledge_gap: AcknowledgeGap,
    has_table: HasTable,
) -> QuartTrio:
    """Make the application, which answers every request from the current telemetry."""
    app = QuartTrio(__name__)
    app.config["MAX_CONTENT_LENGTH"] = 64 * 1024
    metrics, page = Metrics(telemetry, config), load_page()
    app.before_request(partial(guard, config.http))

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

    @app.post("/snapshot/<path:table>")
    async def snapshot(table: str) -> tuple[Response, int]:
        token = find_token(table, telemetry.tables) or as_token(table)
        if len(token) > TOKEN_MAX:
            return jsonify({"error": "no table of PostgreSQL has so long a name"}), 404
        if not await has_table(token):
            names = [".".join(split_token(known)).removeprefix("public.") for known in telemetry.tables]
            words = f"publication {config.source.publication} has no table {table}; it has {listed(names) or 'none'}"
            return jsonify({"error": words, "available_tables": names}), 404
        try:
            await request_snapshot(token)
        except SinkUnavailable as exc:
            return jsonify({"error": str(exc)}), 503
        waits = {"waits": pause.words()} if pause.is_on else {}
        return jsonify({"status": "requested", "table": token, **waits}), 202

    _add_pause(app, config, telemetry, stop, pause)

    @app.post("/gaps/<int:seq>/acknowledge")
    async def acknowledge(seq: int) -> tuple[Response, int]:
        try:
            found = await acknowledge_gap(seq)
        except SinkUnavailable as exc:
            return jsonify({"error": str(exc)}), 503
        return (jsonify({"status": "acknowledged"}), 200) if found else (jsonify({"error": f"no gap at {seq}"}), 404)

    @app.post("/shutdown")
    async def shutdown() -> tuple[Response, int]:
        stop.set()
        return jsonify({"status": "stopping"}), 202

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


def _add_pause(app: QuartTrio, config: Config, telemetry: Telemetry, stop: trio.Event, pause: Pause) -> None:
    @app.post("/pause")
    async def begin_pause() -> tuple[Response, int]:
        if stop.is_set():
            return jsonify({"error": "the bridge is stopping"}), 409
        if config.source.temporary:
            return jsonify({"error": "a temporary slot ends with its connection: a pause would lose changes"}), 409
        is_new = pause.begin(time.time())
        return jsonify({"status": "paused" if telemetry.state == "paused" else "pausing"}), 202 if is_new else 200

    @app.post("/resume")
    async def end_pause() -> tuple[Response, int]:
        return (jsonify({"status": "resuming"}), 202) if pause.end() else (jsonify({"status": telemetry.state}), 200)


async def _view(feed: Feed) -> AsyncIterator[bytes]:
    with feed.viewer() as admitted:
        if admitted:
            async for frame in feed.frames():
                yield frame
