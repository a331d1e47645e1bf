"""What people ask a running bridge to do: a pause and its end, a gap that is known, the stop."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import trio
from quart import Response, jsonify
from quart_trio import QuartTrio

from actors.errors import SinkUnavailable
from actors.pause import Pause
from actors.settings.config import Config
from actors.telemetry.telemetry import Telemetry

AcknowledgeGap = Callable[[int], Awaitable[bool]]
"""Takes the sequence of a gap event; False when there is none to acknowledge. Raises SinkUnavailable."""


def add_act_routes(
    app: QuartTrio,
    config: Config,
    telemetry: Telemetry,
    *,
    stop: trio.Event,
    pause: Pause,
    acknowledge_gap: AcknowledgeGap,
) -> None:
    """Add the paths that change something; who may use them is decided before a request comes here."""

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
