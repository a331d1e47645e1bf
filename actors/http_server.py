"""http: the page, health, status, metrics and the graceful stop (contract, section 7), on quart-trio and hypercorn."""

from __future__ import annotations

from functools import partial

import trio

from actors.pace import Pace
from actors.pause import Pause
from actors.settings.config import Config
from actors.telemetry.history import History
from actors.telemetry.telemetry import Telemetry
from actors.web.act_routes import AcknowledgeGap
from actors.web.bridge_app import StreamInfo, make_app
from actors.web.feed import Feed
from actors.web.questions import Lookup
from actors.web.serving import serve_app
from actors.web.snapshot_routes import HasTable, RequestSnapshot


async def serve_http(
    config: Config,
    telemetry: Telemetry,
    *,
    stop: trio.Event,
    pause: Pause,
    pace: Pace,
    stream_info: StreamInfo,
    request_snapshot: RequestSnapshot,
    lookup: Lookup,
    acknowledge_gap: AcknowledgeGap,
    has_table: HasTable,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; `POST /shutdown` sets `stop`, `POST /pause` and `/resume` write `pause`, `/snapshot-rate`
    writes `pace`.

    Calls `started` once the port is bound.

    Raises ConfigError when the port is taken.
    """
    feed = Feed(config, telemetry, History(telemetry))
    app = make_app(
        config, telemetry, feed,
        stop=stop, pause=pause, pace=pace, stream_info=stream_info, request_snapshot=request_snapshot, lookup=lookup,
        acknowledge_gap=acknowledge_gap, has_table=has_table,
    )  # fmt: skip
    await serve_app(app, config.http, beside=partial(feed.run, stop), task_status=task_status)
