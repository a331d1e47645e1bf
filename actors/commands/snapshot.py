"""`walbridge snapshot TABLE`: request a snapshot of a table and follow it until it is complete."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated, Any

import trio
from cyclopts import Parameter

from actors.clients.nats.connection import open_nats
from actors.clients.nats.jetstream import JetStream
from actors.clients.nats.snapshot_answers import newest_answer
from actors.contract.event_encoder import read_any_document
from actors.contract.subjects import INIT, init_error, init_meta, request
from actors.contract.table_token import TOKEN_MAX, as_token
from actors.errors import ConfigError, SinkUnavailable
from actors.process import most_telling
from actors.settings.config import NatsConfig
from actors.settings.flags import EnvFile, Flags, option, takes_settings
from actors.settings.resolve import resolve_client
from actors.settings.setting import OTHER
from actors.telemetry.quantities import counted
from actors.wire.nats import encode_pub

LOOK_EVERY_S = 0.2
WAITING_AFTER_S = 15.0


@takes_settings("nats_context", stream="CDC stream of the bridge that is asked")
def snapshot(
    flags: Flags,
    table: Annotated[str, Parameter(help="a table of schema public, or a token such as sales/orders")],
    /,
    *,
    wait: Annotated[bool, option(OTHER, "until the snapshot is complete [yes]", negative="--no-wait")] = True,
    json: Annotated[bool, option(OTHER, "the outcome as JSON")] = False,
    env_file: EnvFile = None,
) -> int:
    """Request a snapshot and follow it."""
    if len(as_token(table)) > TOKEN_MAX:
        raise ConfigError("WB002", f"no table of PostgreSQL has so long a name: {table[:64]}...")
    client = resolve_client(flags, os.environ, env_file)
    return ask_for_snapshot(client.nats, table, client.stream, wait=wait, as_json=json)


def ask_for_snapshot(config: NatsConfig, table: str, stream: str, *, wait: bool, as_json: bool) -> int:
    """0 when the snapshot is complete (without `wait`: requested), 1 when it failed. Raises ConfigError without NATS."""
    outcome: dict[str, Any] = trio.run(_ask, config, as_token(table), stream, wait)
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


async def _ask(config: NatsConfig, token: str, stream: str, wait: bool) -> dict[str, Any]:
    try:
        async with open_nats(config, set()) as nats:
            js = JetStream(nats)
            info = await js.stream_info(INIT)
            since_seq = int(info["state"]["last_seq"]) if info is not None else 0
            await nats.send(encode_pub(request(token, stream).encode(), b"", b""))
            if not wait:
                return {"table": token}
            return await _follow(js, token, stream, since_seq)
    except* SinkUnavailable as group:
        cause = most_telling(group)
        assert isinstance(cause, SinkUnavailable)
        raise ConfigError(cause.code, cause.what, said=cause.said, means=cause.means, fix=cause.fix) from None
    raise AssertionError("the body returns or raises")


async def _follow(js: JetStream, token: str, stream: str, since_seq: int) -> dict[str, Any]:
    started = trio.current_time()
    reported = False
    while True:
        await trio.sleep(LOOK_EVERY_S)
        for of in (init_meta, init_error):
            found = await _last(js, of(token), stream, since_seq)
            if found:
                return found
        if not reported and trio.current_time() - started > WAITING_AFTER_S:
            reported = True
            print(f"waiting: other snapshots may run first, or no bridge of stream {stream} runs (another one: --stream NAME); "
                  "the request is kept (Ctrl-C ends only the wait)",
                  file=sys.stderr)  # fmt: skip


async def _last(js: JetStream, subject: str, stream: str, since_seq: int) -> dict[str, Any]:
    if await js.stream_info(INIT) is None:
        return {}
    message = await newest_answer(js, subject, stream, since_seq)
    body = read_any_document(message.data) if message is not None else None
    return {**body, "_seq": message.seq} if isinstance(body, dict) and message is not None else {}
