"""`walbridge snapshot TABLE`: request a snapshot of a table and follow it until it is complete."""

from __future__ import annotations

import difflib
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

import trio
from cyclopts import Parameter

from actors.clients.nats.connection import SinkRefused
from actors.clients.nats.jetstream import JetStream
from actors.clients.nats.snapshot_answers import newest_answer
from actors.commands.as_typed import carried
from actors.commands.over_jetstream import over_jetstream
from actors.commands.snapshot_list import last_chunk, lines_of, list_snapshots
from actors.commands.snapshot_progress import ProgressBar
from actors.commands.status import printable
from actors.contract.bridge_record import BridgeRecord
from actors.contract.event_encoder import read_any_document
from actors.contract.subjects import (
    BRIDGES,
    INIT,
    RANGES,
    bucket_stream,
    cancel_suffix,
    init_error,
    init_meta,
    init_start,
    request,
    snapshot_command,
    split_suffix,
)
from actors.contract.table_token import TOKEN_MAX, as_token, find_token, split_token, table_name
from actors.errors import ConfigError, Fatal
from actors.mirror.source_stream import no_such_stream, streams_of_bridges
from actors.settings.config import NatsConfig
from actors.settings.flags import EnvFile, Flags, option, takes_settings
from actors.settings.resolve import resolve_client
from actors.settings.setting import OTHER
from actors.snapshots.failures import SnapshotFailed, fix_of
from actors.startup.other_bridges import may_have_stream
from actors.telemetry.quantities import counted, listed
from actors.wire.nats import encode_pub
from actors.wire.sql_names import quoted

LOOK_EVERY_S = 0.2
WAITING_AFTER_S = 2.0
PROGRESS_EVERY_S = 2.0
BAR_EVERY_S = 0.5
SNAPSHOT_ID = re.compile("snap-[0-9]+-[0-9a-f]+")


@takes_settings("nats_context", stream="CDC stream of the bridge that is asked")
def snapshot(
    flags: Flags,
    table: Annotated[str, Parameter(help="users or sales.orders, or a token such as sales/orders")] = "",
    /,
    *,
    listed: Annotated[
        bool, option(OTHER, "show which snapshots run and wait, and how the last ones ended", name="--list")
    ] = False,
    rounds: Annotated[bool, option(OTHER, "in rounds of small transactions, for large tables")] = False,
    cancel: Annotated[str, option(OTHER, "end the snapshot with this id instead", "ID")] = "",
    wait: Annotated[bool, option(OTHER, "wait until the snapshot is complete [yes]", negative="--no-wait")] = True,
    json: Annotated[bool, option(OTHER, "the outcome as JSON")] = False,
    env_file: EnvFile = None,
) -> int:
    """Request a snapshot and follow it."""
    if listed == bool(table):
        raise ConfigError("WB002", "TABLE: missing; name one, or give --list", fix="walbridge snapshot users")
    if listed:
        client = resolve_client(flags, os.environ, env_file)
        return show_snapshots(client.nats, client.stream, as_json=json)
    if len(as_token(table)) > TOKEN_MAX:
        raise ConfigError("WB002", f"no table of PostgreSQL has so long a name: {table[:64]}...")
    if cancel and not SNAPSHOT_ID.fullmatch(cancel):
        raise ConfigError("WB002", f"--cancel: {cancel[:64]!r} is not a snapshot's id; give e.g. snap-1764115200-ab12")
    client = resolve_client(flags, os.environ, env_file)
    suffix = cancel_suffix(cancel) if cancel else RANGES if rounds else ""
    return ask_for_snapshot(client.nats, table, client.stream, suffix, wait=wait and not cancel, as_json=json)


def show_snapshots(config: NatsConfig, stream: str, *, as_json: bool) -> int:
    """List a bridge's snapshots. Raises ConfigError without NATS."""
    found = trio.run(over_jetstream, config, partial(list_snapshots, stream=stream))
    if as_json:
        print(json.dumps([asdict(one) for one in found]))
    else:
        print("\n".join(map(printable, lines_of(found, time.time()))))
    return 0


def ask_for_snapshot(
    config: NatsConfig, table: str, stream: str, suffix: str = "", *, wait: bool, as_json: bool
) -> int:  # fmt: skip
    """0 when the snapshot is complete (without `wait`: requested), 1 when it failed: without `as_json` a Fatal.

    `suffix` is that of the request. Raises ConfigError without NATS, without the right to ask, and for a table or a stream
    that, as far as the bridges' records can be read, no bridge has.
    """
    ask = partial(_ask, table=table, stream=stream, suffix=suffix, wait=wait)
    token, outcome, failure = trio.run(over_jetstream, config, ask)
    name = table_name(token)
    if as_json:
        print(json.dumps(outcome | ({"code": failure.code} if failure else {})))
    elif failure is not None:
        raise failure
    elif "row_count" in outcome:
        print(
            f"{name}: {counted(outcome['row_count'], 'row')} in {counted(outcome['batch_count'], 'chunk')},"
            f" {outcome['snapshot_id']}"
        )
    else:
        print(f"requested the end of a snapshot of {name}" if suffix not in ("", RANGES) else f"asked for {name}")
    return 1 if "error_type" in outcome else 0


async def _failure(js: JetStream, token: str, outcome: Mapping[str, Any], stream: str) -> Fatal:
    """Return the error for a bridge's answer that there is no snapshot."""
    kind, said = str(outcome["error_type"]), str(outcome["error_message"])
    why = await _why_not(js, token, stream, await _record(js, stream), said) if kind == "unknown_table" else None
    if why is not None:
        return Fatal(why.code, why.what, said=why.said, fix=why.fix)
    fix = fix_of(SnapshotFailed(kind, said), ".".join(map(quoted, split_token(token))), token, stream)
    return Fatal("WB529", f"the snapshot of {table_name(token)} failed: {kind}", said=said, fix=fix)


async def _why_not(
    js: JetStream, token: str, stream: str, own: BridgeRecord | None, what: str = ""
) -> ConfigError | None:  # fmt: skip
    """Return the error for a table that, by the bridges' records, the bridge of `stream` does not publish; None if it may.

    `own` is that bridge's record, if it can be read, and `what` is what the bridge itself has said of the table.
    """
    if own is not None and token in own.tables:
        return None
    others = [(other, await _record(js, other)) for other in await streams_of_bridges(js) if other != stream]
    elsewhere = [other for other, record in others if record is not None and token in record.tables]
    name = table_name(token)
    if elsewhere:
        return ConfigError(
            "WB520", f"{name} is published into stream {listed(elsewhere)}, not into {stream}",
            fix=f"walbridge snapshot {shlex.quote(name)} --stream {elsewhere[0]}",
        )  # fmt: skip
    if own is None:
        return None if await may_have_stream(js, stream) else await no_such_stream(js, stream)
    there = [table_name(one) for one in own.tables]
    close = difflib.get_close_matches(name, there, n=1)
    schema, dot, rest = name.partition(".")  # of an unknown table: a dot in its name is less likely than a schema
    table = f"{quoted(schema if dot else 'public')}.{quoted(rest or schema)}"
    add = f"ALTER PUBLICATION {quoted(own.publication)} ADD TABLE {table};   -- if it is to be published"
    return ConfigError(
        "WB520", what or f"the bridge of stream {stream} does not publish {name}, and has not answered",
        said=f"published are {listed(there)}" if there else "",
        fix="\n".join((*(f"{snapshot_command(one, stream)}   # if that was meant" for one in close), add)),
    )  # fmt: skip


async def _ask(
    js: JetStream, table: str, stream: str, suffix: str, wait: bool
) -> tuple[str, dict[str, Any], Fatal | None]:  # fmt: skip
    record = await _record(js, stream)  # who may only ask gives the token, or a name of schema public
    token = find_token(table, record.tables if record is not None else ()) or as_token(table)
    if record is None and (why_not := await _why_not(js, token, stream, record)) is not None:
        raise why_not
    info = await js.stream_info(INIT)
    since_seq = int(info["state"]["last_seq"]) if info is not None else 0
    await js.connection.send(encode_pub(request(token + suffix, stream).encode(), b"", b""))
    if not wait:
        await js.stream_info(INIT)  # NATS has read the request then, or refused it
        return token, {"table": token}, None
    outcome = await _follow(js, token + suffix, stream, since_seq)
    return token, outcome, await _failure(js, token, outcome, stream) if "error_type" in outcome else None


async def _record(js: JetStream, stream: str) -> BridgeRecord | None:
    """The record of the stream's bridge; None if there is none, and for a user who may not read it."""
    try:
        entry = await js.kv_get(BRIDGES, stream) if await js.stream_info(bucket_stream(BRIDGES)) is not None else None
    except SinkRefused:
        return None
    return BridgeRecord.decode(entry.data, stream) if entry is not None else None


async def _follow(js: JetStream, token: str, stream: str, since_seq: int) -> dict[str, Any]:
    started = progress_at = trio.current_time()
    reported, bar = False, ProgressBar(sys.stderr)
    while True:
        await trio.sleep(LOOK_EVERY_S)
        for of in (init_meta, init_error):
            found = await _last(js, of(token), stream, since_seq)
            if found and found.get("error_type") == "table_changed" and split_suffix(token)[1] == RANGES:
                since_seq = found["_seq"]  # in rounds another one begins by itself
                bar.end()
                print(f"{table_name(token)}: {found['error_message']}", file=sys.stderr)
            elif found:
                bar.end()
                return found
        if not reported and trio.current_time() - started > WAITING_AFTER_S:
            reported = True
            has_begun = await _last(js, init_start(token), stream, since_seq)
            why_not = None if has_begun else await _why_not(js, split_suffix(token)[0], stream, await _record(js, stream))
            if why_not is not None:
                raise why_not
            words = "the snapshot has begun" if has_begun else carried(await _why_no_answer(js, stream))
            print(f"{table_name(token)}: {words}; Ctrl-C ends only the wait", file=sys.stderr)
        every_s = BAR_EVERY_S if bar.is_drawn_over else PROGRESS_EVERY_S
        if split_suffix(token)[1] and trio.current_time() - progress_at > every_s:
            progress_at = trio.current_time()
            start = await _last(js, init_start(token), stream, since_seq)
            chunk = await last_chunk(js, token, str(start.get("snapshot_id", ""))) if start else None
            if chunk is not None:
                bar.show(table_name(split_suffix(token)[0]), chunk, int(start.get("rows_expected", 0)), progress_at)


async def _why_no_answer(js: JetStream, stream: str) -> str:
    record = await _record(js, stream)
    if record is not None and record.paused_at:
        return "the bridge is paused: the request is kept until somebody resumes it: walbridge resume"
    if not await may_have_stream(js, stream):
        return f"the request is kept until a bridge of stream {stream} runs; none has run yet (another stream: --stream NAME)"
    return f"no answer yet: other snapshots may run first, or no bridge of stream {stream} runs; the request is kept"


async def _last(js: JetStream, subject: str, stream: str, since_seq: int) -> dict[str, Any]:
    if await js.stream_info(INIT) is None:
        return {}
    message = await newest_answer(js, subject, stream, since_seq)
    body = read_any_document(message.data) if message is not None else None
    return {**body, "_seq": message.seq} if isinstance(body, dict) and message is not None else {}
