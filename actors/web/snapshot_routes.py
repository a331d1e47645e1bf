"""What people ask a running bridge to do about snapshots: take one, end one, and go slower or faster."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from quart import Response, jsonify, request
from quart_trio import QuartTrio

from actors.contract.subjects import RANGES, cancel_suffix, split_suffix
from actors.contract.table_token import TOKEN_MAX, as_token, find_token, split_token
from actors.errors import SinkUnavailable
from actors.pace import Pace
from actors.pause import Pause
from actors.settings.config import RATE_MAX_MB_S, Config
from actors.telemetry.quantities import listed
from actors.telemetry.telemetry import Telemetry

RequestSnapshot = Callable[[str], Awaitable[None]]
"""Takes a table's token, perhaps with a suffix: `users+ranges`."""
HasTable = Callable[[str], Awaitable[bool]]
"""Takes a table's token; False when the publication does not have it."""


def add_snapshot_routes(
    app: QuartTrio, config: Config, telemetry: Telemetry, *,
    pause: Pause, pace: Pace, request_snapshot: RequestSnapshot, has_table: HasTable,
) -> None:  # fmt: skip
    """Add the paths; who may use them is decided before a request comes here."""

    @app.post("/snapshot/<path:table>")
    async def snapshot(table: str) -> tuple[Response, int]:
        token = find_token(table, telemetry.tables) or as_token(table)
        if len(token) > TOKEN_MAX:
            return jsonify({"error": "no table of PostgreSQL has so long a name"}), 404
        if not await has_table(token):
            names = [".".join(split_token(known)).removeprefix("public.") for known in telemetry.tables]
            words = f"publication {config.source.publication} has no table {table}; it has {listed(names) or 'none'}"
            return jsonify({"error": words, "available_tables": names}), 404
        part = token + (RANGES if request.args.get("rounds") == "yes" else "")
        try:
            await request_snapshot(part)
        except SinkUnavailable as exc:
            return jsonify({"error": str(exc)}), 503
        waits = {"waits": pause.words()} if pause.is_on else {}
        return jsonify({"status": "requested", "table": part, **waits}), 202

    @app.post("/snapshot-cancel/<snapshot_id>")
    async def cancel(snapshot_id: str) -> tuple[Response, int]:
        running = (p for p in telemetry.snapshots.values() if p.state == "running" and p.snapshot_id == snapshot_id)
        found = next(running, None)
        if found is None:
            return jsonify({"error": f"no snapshot {snapshot_id} is running"}), 404
        try:
            await request_snapshot(split_suffix(found.table)[0] + cancel_suffix(snapshot_id))
        except SinkUnavailable as exc:
            return jsonify({"error": str(exc)}), 503
        return jsonify({"status": "cancelling", "table": found.table}), 202

    @app.post("/snapshot-rate/<int:mb_s>")
    async def limit_rate(mb_s: int) -> tuple[Response, int]:
        if mb_s > RATE_MAX_MB_S:
            return jsonify({"error": f"at most {RATE_MAX_MB_S} MB/s; 0 is without limit"}), 400
        pace.limit(mb_s)
        words = f"snapshots may send {mb_s} MB/s from now on" if mb_s else "the rate of snapshots has no limit from now on"
        telemetry.journal.note("snapshot", words)
        return jsonify({"status": "limited" if mb_s else "without limit", "snapshot_rate_mb_s": mb_s}), 200
