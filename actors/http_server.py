"""http: health, status, metrics and the graceful stop (contract, section 7), on quart-trio and hypercorn."""

from __future__ import annotations

import errno
import hmac
import ipaddress
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import hypercorn
import hypercorn.trio
import trio
from hypercorn.config import Sockets
from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
from quart import Response, jsonify, request
from quart_trio import QuartTrio

from actors import __version__
from actors.config import Config
from actors.errors import ConfigError, SinkUnavailable
from actors.lsn import format_lsn
from actors.metrics import Metrics, lag_seconds
from actors.telemetry import Telemetry
from actors.wire.table_token import as_token

UNREAD_S = 5.0
"""A client that takes nothing of its answer for so long is dropped."""

RequestSnapshot = Callable[[str], Awaitable[None]]
"""Takes a table's token."""
StreamInfo = Callable[[str], Awaitable[dict[str, Any] | None]]
PATHS = ("/health", "/ready", "/status", "/metrics", "/streams/info?stream=CDC", "POST /shutdown", "POST /snapshot/users")


async def serve_http(
    config: Config,
    telemetry: Telemetry,
    *,
    stop: trio.Event,
    stream_info: StreamInfo,
    request_snapshot: RequestSnapshot,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; `POST /shutdown` sets `stop`. Reports started once the port is bound.

    Raises ConfigError when the port is taken.
    """
    http = config.http
    settings = _Settings()
    host = f"[{http.bind}]" if ":" in http.bind else http.bind
    settings.bind = [f"{host}:{http.port}"]
    settings.accesslog = None
    settings.errorlog = logging.getLogger("hypercorn")  # its level is WARNING: how it starts is said elsewhere
    settings.graceful_timeout = 1.0
    settings.keep_alive_timeout = 15.0
    settings.h11_max_incomplete_size = 16 * 1024
    app = make_app(config, telemetry, stop=stop, stream_info=stream_info, request_snapshot=request_snapshot)
    try:
        await hypercorn.trio.serve(_finishing(app), settings, shutdown_trigger=trio.sleep_forever, task_status=task_status)
    except* OSError as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise ConfigError(
                "WB005", f"--port {http.port} is taken",
                means="Prometheus uses 9090 by default" if http.port == 9090 else "",
                fix=f"give another one, e.g. --port {http.port + 1 if http.port < 65535 else 9091}",
            ) from None  # fmt: skip
        raise ConfigError(
            "WB005", f"cannot listen on {settings.bind[0]}", said=str(error), fix="give --bind and --port"
        ) from None


class _Settings(hypercorn.Config):
    """Hypercorn's settings, and an end for clients that ask and do not read: no stop could cut such a send short."""

    def create_sockets(self) -> Sockets:
        sockets = super().create_sockets()
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; accepted connections inherit it
            for listener in sockets.insecure_sockets:
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNREAD_S * 1000))
        return sockets


def _finishing(app: QuartTrio) -> ASGIFramework:
    """The application, with sends that are not cut off.

    quart-trio cancels a request as soon as hypercorn tells it that the answer is complete, which hypercorn does from
    within the last send: before it has closed the connection or started its idle timer. Both would stay undone.
    """

    async def finishing(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        async def send_whole(event: ASGISendEvent) -> None:
            with trio.CancelScope(shield=True):
                await send(event)

        await app(scope, receive, send_whole)

    return finishing


def make_app(
    config: Config, telemetry: Telemetry, *, stop: trio.Event, stream_info: StreamInfo, request_snapshot: RequestSnapshot
) -> QuartTrio:
    """The application; every answer is made from the telemetry at that moment."""
    app = QuartTrio(__name__)
    app.config["MAX_CONTENT_LENGTH"] = 64 * 1024
    metrics = Metrics(telemetry, config)
    app.before_request(partial(_guard, config))

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
        return jsonify(status_document(config, telemetry))

    @app.get("/metrics")
    async def show_metrics() -> Response:
        return Response(metrics.render(), content_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/streams/info")
    async def streams_info() -> tuple[Response, int]:
        name = request.args.get("stream", "")
        if not name or not all(c.isalnum() or c in "-_" for c in name):
            return jsonify({"error": "give the stream's name: /streams/info?stream=CDC"}), 400
        try:
            info = await stream_info(name)
        except SinkUnavailable as exc:
            return jsonify({"error": str(exc)}), 503
        return (jsonify(info), 200) if info is not None else (jsonify({"error": f"no stream {name}"}), 404)

    @app.post("/snapshot/<path:table>")
    async def snapshot(table: str) -> tuple[Response, int]:
        token = as_token(table)
        try:
            await request_snapshot(token)
        except SinkUnavailable as exc:
            return jsonify({"error": str(exc)}), 503
        return jsonify({"status": "requested", "table": token}), 202

    @app.post("/shutdown")
    async def shutdown() -> tuple[Response, int]:
        stop.set()
        return jsonify({"status": "stopping"}), 202

    async def not_found(_: Exception) -> tuple[Response, int]:
        return jsonify({"error": "no such path", "paths": PATHS}), 404

    async def wrong_method(_: Exception) -> tuple[Response, int]:
        return jsonify({"error": "this path takes another method", "paths": PATHS}), 405

    app.register_error_handler(404, not_found)
    app.register_error_handler(405, wrong_method)
    return app


async def _guard(config: Config) -> tuple[Response, int] | None:
    """Refuse what a browser was tricked into sending, and POSTs without the token."""
    http = config.http
    allowed = {"localhost", "127.0.0.1", "::1", http.bind}
    loopback = _is_loopback(http.bind)
    origin = request.headers.get("Origin")
    foreign = _host_of(request.host) not in allowed and loopback
    if foreign or (origin is not None and _host_of(origin.partition("://")[2]) not in allowed):
        return jsonify({"error": "foreign Host or Origin"}), 403
    if request.method in ("GET", "HEAD", "OPTIONS"):
        return None
    if http.token:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), http.token.encode()):
            answer = jsonify({"error": "give the token: Authorization: Bearer ..."})
            answer.headers["WWW-Authenticate"] = "Bearer"
            return answer, 401
    elif not loopback:
        return jsonify({"error": "set BRIDGE_HTTP_TOKEN to allow this beyond loopback"}), 403
    return None


def _host_of(address: str) -> str:
    """The host of `host:port`, `[v6]:port` or either alone."""
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.partition(":")[0].lower()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def status_document(config: Config, telemetry: Telemetry) -> dict[str, Any]:
    """GET /status: the keys that its first users read, then ours."""
    t = telemetry
    lag_bytes = t.slot.lag_bytes
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
        "slot": config.source.slot,
        "publication": config.source.publication,
        "stream": config.publish.stream,
        "publish": t.publish_mode,
        "lag_seconds": round(lag_seconds(t, time.time()), 3),
        "positions": {
            stage: format_lsn(getattr(t, f"{stage}_lsn"))
            for stage in ("received", "decoded", "published", "durable", "confirmed")
        },
        "in_flight_messages": t.in_flight_messages,
        "channels": {
            name: {"items": c.items_waiting, "capacity": c.capacity, "blocked_seconds": round(c.blocked_s, 3)}
            for name, c in t.channels.items()
        },
        "wal_status": t.slot.wal_status,
        "gaps": t.gaps,
        "snapshots": [asdict(progress) for progress in t.snapshots.values()],
        "suspended_tables": {token: asdict(problem) for token, problem in t.suspended_tables.items()},
        "problems": [asdict(problem) for problem in (*t.problems.values(), *t.suspended_tables.values())],
    }
