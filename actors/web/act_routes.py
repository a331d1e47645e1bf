"""What people ask a running bridge to do: a snapshot, a pause and its end, a gap that is known, the stop."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import trio
from quart import Response, jsonify
from quart_trio import QuartTrio

from actors.contract.table_token import TOKEN_MAX, as_token, find_token, split_token
from actors.errors import SinkUnavailable
from actors.pause import Pause
from actors.settings.config import Config
from actors.telemetry.quantities import listed
from actors.telemetry.telemetry import Telemetry

RequestSnapshot = Callable[[str], Awaitable[None]]
"""Takes a table's token."""
AcknowledgeGap = Callable[[int], Awaitable[bool]]
"""Takes the sequence of a gap event; False when there is none to acknowledge. Raises SinkUnavailable."""
HasTable = Callable[[str], Awaitable[bool]]
"""Takes a table's token; False when the publication does not have it."""


def add_act_routes(
    app: QuartTrio,
    config: Config,
    telemetry: Telemetry,
    *,
    stop: trio.Event,
    pause: Pause,
    request_snapshot: RequestSnapshot,
    acknowledge_gap: AcknowledgeGap,
    has_table: HasTable,
) -> None:
    """Add the paths that change something; who may use them is decided before a request comes here."""

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
