"""`walbridge snapshot TABLE`: ask for a table and follow it until it is whole."""

from __future__ import annotations

import json
import sys
from typing import Any

import trio

from actors.clients.nats.connection import open_nats
from actors.clients.nats.jetstream import JetStream
from actors.contract.event_encoder import read_any_document
from actors.contract.table_token import as_token
from actors.errors import ConfigError, SinkUnavailable
from actors.process import most_telling
from actors.settings.config import NatsConfig
from actors.snapshots.requests import PREFIX
from actors.telemetry.quantities import counted
from actors.wire.nats import encode_pub

LOOK_EVERY_S = 0.2
NOBODY_AFTER_S = 15.0


def ask_for_snapshot(config: NatsConfig, table: str, *, wait: bool, as_json: bool) -> int:
    """0 once it is whole (without `wait`: once it is asked for), 1 when it failed. Raises ConfigError without NATS."""
    outcome: dict[str, Any] = trio.run(_ask, config, as_token(table), wait)
    if as_json:
        print(json.dumps(outcome))
    elif "error_type" in outcome:
        print(f"walbridge: {outcome['error_type']}: {outcome['error_message']}", file=sys.stderr)
        if outcome.get("available_tables"):
            print(f"  tables: {', '.join(outcome['available_tables'])}", file=sys.stderr)
    elif "row_count" in outcome:
        print(
            f"{outcome['table']}: {counted(outcome['row_count'], 'row')} in {counted(outcome['batch_count'], 'chunk')},"
            f" {outcome['snapshot_id']}"
        )
    else:
        print(f"asked for {outcome['table']}")
    return 1 if "error_type" in outcome else 0


async def _ask(config: NatsConfig, token: str, wait: bool) -> dict[str, Any]:
    try:
        async with open_nats(config, set()) as nats:
            js = JetStream(nats)
            before = [await _last(js, f"init.{kind}.{token}") for kind in ("meta", "error")]
            await nats.send(encode_pub(f"{PREFIX}{token}".encode(), b"", b""))
            if not wait:
                return {"table": token}
            return await _follow(js, token, before)
    except* SinkUnavailable as group:
        cause = most_telling(group)
        assert isinstance(cause, SinkUnavailable)
        raise ConfigError(cause.code, cause.what, said=cause.said, means=cause.means, fix=cause.fix) from None
    raise AssertionError("one of both has returned")


async def _follow(js: JetStream, token: str, before: list[dict[str, Any]]) -> dict[str, Any]:
    started = trio.current_time()
    told = False
    while True:
        await trio.sleep(LOOK_EVERY_S)
        for kind, old in zip(("meta", "error"), before, strict=True):
            found = await _last(js, f"init.{kind}.{token}")
            if found and found != old:
                return found
        if not told and trio.current_time() - started > NOBODY_AFTER_S:
            told = True
            print("waiting: other snapshots may run first, or no bridge runs; the request is kept (Ctrl-C ends the waiting "
                  "alone)", file=sys.stderr)  # fmt: skip


async def _last(js: JetStream, subject: str) -> dict[str, Any]:
    if await js.stream_info("INIT") is None:
        return {}
    message = await js.get_message("INIT", last_by_subj=subject)
    body = read_any_document(message.data) if message is not None else None
    return {**body, "_seq": message.seq} if isinstance(body, dict) and message is not None else {}
