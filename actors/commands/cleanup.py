"""`walbridge cleanup`: remove what a bridge leaves: its slot, its streams, its entries in the buckets.

The plan is shown first, with what it frees, and then confirmed. What other bridges use is kept. The slot goes first because
it holds PostgreSQL's disk; the bridge's record goes last, so that an interrupted cleanup can be run again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import orjson
import trio

from actors.clients.nats.connection import SinkRefused, open_nats
from actors.clients.nats.jetstream import JetStream, JetStreamError
from actors.clients.nats.snapshot_answers import snapshots_of
from actors.clients.postgres.connection import PgConnection
from actors.clients.postgres.slots import drop_slot, slot_health, slot_state
from actors.commands.status import printable
from actors.contract.bridge_record import BridgeRecord
from actors.contract.subjects import (
    BRIDGE_RECORDS,
    BRIDGES,
    DICTIONARIES,
    INIT,
    REQUESTS,
    SCHEMAS,
    bucket_key,
    bucket_stream,
    init_chunks,
    init_of_table,
    is_dictionary_of,
    published_keys,
    request,
    schema_key,
)
from actors.errors import ConfigError, Fatal, Transient, WalbridgeError
from actors.process import most_telling
from actors.settings.config import Config
from actors.settings.flags import EnvFile, Flags, option, takes_settings
from actors.settings.resolve import resolve
from actors.settings.setting import OTHER
from actors.telemetry.quantities import counted, human_bytes, listed
from actors.wire.sql_names import quoted

SHARED_STREAMS = (INIT, REQUESTS)
BUCKETS = (SCHEMAS, DICTIONARIES)


@takes_settings("nats_context", slot="of the bridge to remove", pub="its publication, which stays", stream="its CDC stream")
def cleanup(
    flags: Flags,
    *,
    slot_only: Annotated[bool, option(OTHER, "remove only the slot, leave NATS as it is")] = False,
    yes: Annotated[bool, option(OTHER, "do not ask")] = False,
    force: Annotated[bool, option(OTHER, "also streams that have consumers, or were written from elsewhere")] = False,
    json: Annotated[bool, option(OTHER, "the outcome as JSON; never asks")] = False,
    env_file: EnvFile = None,
) -> int:
    """Plan, show, ask and remove."""
    return run_cleanup(resolve(flags, os.environ, env_file), slot_only=slot_only, yes=yes, force=force, as_json=json)


class Removal(NamedTuple):
    """One thing to remove."""

    kind: str
    """`slot`, `stream`, `messages` or `bucket`."""
    name: str
    words: str
    subject: str = ""
    """Of `messages`: only these, of stream `name`."""


@dataclass(slots=True)
class Plan:
    """What would be removed, in order, and what is kept and why."""

    removals: list[Removal] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    objections: list[str] = field(default_factory=list)
    """Reasons against it that only --force overrules."""


def run_cleanup(config: Config, *, slot_only: bool, yes: bool, force: bool, as_json: bool) -> int:
    """Plan, show, ask, remove. 0 when everything is removed or nothing was there, 1 when the user declined.

    The JSON report comes once, at the end: what was there, and what of it is removed. With it nothing is asked.
    Raises ConfigError when the cleanup may not be done, Fatal when a server does not answer or refuses.
    """
    removed: list[Removal] = []
    try:
        plan = trio.run(_planned, config, slot_only)
        try:
            return _carry_out(config, plan, removed, yes=yes, force=force, as_json=as_json)
        finally:
            if as_json:
                print(orjson.dumps(outcome(config, plan, removed)).decode())
    except* WalbridgeError as group:
        error = most_telling(group)
        if isinstance(error, Transient):  # a command does not wait and try again
            raise Fatal(error.code, error.what, said=error.said, means=error.means, fix=error.fix) from None
        raise error from None
    raise AssertionError("the body returns or raises")


def _carry_out(config: Config, plan: Plan, removed: list[Removal], *, yes: bool, force: bool, as_json: bool) -> int:
    if not as_json:
        for line in describe(config, plan):
            print(line)
    if not plan.removals:
        return 0
    if plan.objections and not force:
        raise ConfigError("WB008", "; ".join(plan.objections), fix="add --force to remove them all the same")
    if not yes and not _confirmed(config.source.slot, as_json):
        print("nothing was removed", file=sys.stderr)
        return 1

    def report(removal: Removal) -> None:
        removed.append(removal)
        if not as_json:
            print(f"removed: {removal.kind} {removal.name}" + (f", {removal.words}" if removal.subject else ""), flush=True)

    trio.run(_remove, config, plan, report)
    return 0


def outcome(config: Config, plan: Plan, removed: Sequence[Removal]) -> dict[str, object]:
    """The plan for a script, and what was done of it."""
    return {
        "slot": config.source.slot,
        "stream": config.publish.stream,
        "publication": config.source.publication,
        "removals": [{**removal._asdict(), "removed": removal in removed} for removal in plan.removals],
        "left": plan.left,
        "objections": plan.objections,
    }


def describe(config: Config, plan: Plan) -> list[str]:
    """The plan for a terminal."""
    if not plan.removals:
        return ["nothing to remove", *(f"left:    {words}" for words in plan.left)]
    width = max(len(f"{r.kind} {r.name}") for r in plan.removals)
    lines = ["Removes permanently:"]
    lines += [f"  {f'{r.kind} {r.name}':<{width}}  {printable(r.words)}" for r in plan.removals]
    lines += [f"Left:  {printable(words)}" for words in plan.left]
    publication = quoted(config.source.publication)
    return [*lines, "Yours to decide, as its owner:", f"  DROP PUBLICATION {printable(publication)};"]


def _confirmed(slot: str, is_script: bool) -> bool:
    if is_script or not sys.stdin.isatty():
        raise ConfigError("WB008", "nobody is here to be asked", fix="give --yes to remove what is listed")
    print(f"Type the slot's name, {slot}, to remove everything listed: ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip() == slot


async def _planned(config: Config, slot_only: bool) -> Plan:
    plan = Plan()
    connection = await PgConnection.connect(config.postgres, application_name="walbridge cleanup")
    with closing(connection):
        ((system_id, database),) = await connection.query(
            "SELECT system_identifier, current_database() FROM pg_control_system()"
        )
        await _plan_slot(connection, config.source.slot, database or "", plan)
    if slot_only:
        if plan.removals:
            plan.left.append("everything in NATS; the next start of the bridge reports lost changes, see WB108")
            await _object_to_pause(config, plan)
        return plan
    async with open_nats(config.nats, set()) as nats:
        await _plan_nats(JetStream(nats), config, (system_id or "", database or ""), plan)
    return plan


async def _object_to_pause(config: Config, plan: Plan) -> None:
    """Ask NATS whether the slot waits for a paused bridge; without an answer it may."""
    slot = config.source.slot
    try:
        async with open_nats(config.nats, set()) as nats:
            _object_if_paused((await _records(JetStream(nats))).get(config.publish.stream), slot, plan)
    except* WalbridgeError as group:
        plan.objections.append(f"NATS does not say whether the bridge of slot {slot} is paused ({most_telling(group)})")


def _object_if_paused(own: BridgeRecord | None, slot: str, plan: Plan) -> None:
    if own is not None and own.slot == slot and own.paused_at:
        plan.objections.append(f"the bridge of slot {slot} is paused, and walbridge resume would go on from there")


async def _plan_slot(connection: PgConnection, slot: str, database: str, plan: Plan) -> None:
    state = await slot_state(connection, slot)
    if state is None:
        return
    if state.plugin != "pgoutput":
        raise ConfigError(
            "WB008", f"slot {slot} is not a bridge's: its plugin is {state.plugin or 'none'}", fix="give --slot NAME"
        )
    if state.database != database:  # PostgreSQL would let us drop it
        raise ConfigError(
            "WB008", f"slot {slot} belongs to database {state.database}, not to {database}",
            fix="give --slot NAME; or that database: DATABASE_URL or PG_DB, perhaps in another --env-file",
        )  # fmt: skip
    if state.active:
        raise ConfigError(
            "WB008",
            f"slot {slot} is being read by process {state.active_pid}",
            fix="stop the bridge first: POST /shutdown, or SIGTERM",
        )
    health = await slot_health(connection, slot)
    held = human_bytes(health.lag_bytes) if health else "nothing"
    plan.removals.append(Removal("slot", slot, f"frees {held} of WAL in PostgreSQL"))


async def _plan_nats(js: JetStream, config: Config, source: tuple[str, str], plan: Plan) -> None:
    """Plan what is in NATS. `source` is the system id and the database of PostgreSQL."""
    system_id, database = source
    stream, slot = config.publish.stream, config.source.slot
    records = await _records(js)
    own = records.pop(stream, None)
    if own is not None and own.slot != slot:
        raise ConfigError(
            "WB242", f"stream {stream} belongs to slot {own.slot}, not to {slot}",
            fix=f"give --slot {own.slot}, or --stream NAME for this slot's own stream",
        )  # fmt: skip
    if own is not None and own.system_id != system_id:
        plan.objections.append(f"stream {stream} was written from another PostgreSQL (system id {own.system_id})")
    elif own is not None and own.database not in ("", database):
        plan.objections.append(f"stream {stream} was written from database {own.database}, not from {database}")
    _object_if_paused(own, slot, plan)
    await _plan_stream(js, stream, plan)
    if not records:
        for name in SHARED_STREAMS:
            await _plan_stream(js, name, plan)
        for bucket in (*BUCKETS, BRIDGES):
            info = await js.stream_info(bucket_stream(bucket))
            if info is not None:
                entries = info["state"]["messages"]
                plan.removals.append(Removal("bucket", bucket, "1 entry" if entries == 1 else f"{entries:,} entries"))
        return
    plan.left.append(f"what is shared with the bridges of streams {', '.join(sorted(records))}")
    theirs = {token for record in records.values() for token in record.tables}
    for name, pattern in await _own_messages(js, stream, sorted(own.tables) if own else [], theirs):
        await _plan_messages(js, name, pattern, plan)
    if own is not None:
        plan.removals.append(
            Removal("messages", bucket_stream(BRIDGES), f"the record of stream {stream}", bucket_key(BRIDGES, stream))
        )
        await _plan_messages(js, bucket_stream(BRIDGES), bucket_key(BRIDGES, published_keys(stream)), plan)


async def _own_messages(js: JetStream, stream: str, tokens: Sequence[str], theirs: Collection[str]) -> list[tuple[str, str]]:
    """(stream, pattern) of what the bridge of `stream` alone has in the shared streams; `theirs` are other bridges' tables.

    Of a table that another bridge publishes too, the starts and ends of snapshots stay: they are few, and age out.
    """
    found: list[tuple[str, str]] = []
    for token in tokens:
        if token not in theirs:
            found += [(INIT, pattern) for pattern in init_of_table(token)]
        else:
            found += [(INIT, init_chunks(token, snapshot_id)) for snapshot_id in await snapshots_of(js, token, stream)]
    for token in tokens:
        found += [(REQUESTS, request(token, asked)) for asked in (stream, *(() if token in theirs else ("",)))]
    found += [(bucket_stream(SCHEMAS), bucket_key(SCHEMAS, schema_key(token, stream))) for token in tokens]
    keys = sorted(await js.keys_of(DICTIONARIES))
    own_keys = (key for token in tokens for key in keys if is_dictionary_of(key, token, stream))
    return [*found, *((bucket_stream(DICTIONARIES), bucket_key(DICTIONARIES, key)) for key in own_keys)]


async def _plan_stream(js: JetStream, name: str, plan: Plan) -> None:
    info = await js.stream_info(name)
    if info is None:
        return
    state = info["state"]
    readers = await _readers(js, name, int(state.get("consumer_count", 0)))
    words = f"{counted(state['messages'], 'message')}, {human_bytes(state['bytes'])}"
    if readers:
        consumers = (
            f"{counted(len(readers), 'consumer')} ({listed(sorted(readers))})"
            if all(readers)
            else counted(len(readers), "consumer")
        )
        words += f", {consumers}"
        plan.objections.append(f"stream {name} has {consumers}")
    plan.removals.append(Removal("stream", name, words))


async def _readers(js: JetStream, stream: str, count: int) -> list[str]:
    """The names of durable consumers and of those read at this moment; what `nats sub` left does not count.

    Empty names, one for each consumer, for a user who may not list them.
    """
    try:
        found = await js.consumers(stream) if count else []
    except SinkRefused:
        return [""] * count
    is_read = (bool(c["config"].get("durable_name") or c.get("push_bound") or c.get("num_waiting")) for c in found)
    return [str(c.get("name")) for c, counts in zip(found, is_read, strict=True) if counts]


async def _plan_messages(js: JetStream, name: str, subject: str, plan: Plan) -> None:
    if await js.subjects_of(name, subject):
        plan.removals.append(Removal("messages", name, f"on {subject}", subject))


async def _records(js: JetStream) -> dict[str, BridgeRecord]:
    found: dict[str, BridgeRecord] = {}
    for stream in await js.keys_of(BRIDGES, BRIDGE_RECORDS):
        entry: Any = await js.kv_get(BRIDGES, stream)
        if entry is not None:
            found[stream] = BridgeRecord.decode(entry.data, stream)
    return found


async def _remove(config: Config, plan: Plan, report: Callable[[Removal], None]) -> None:
    slots = [r for r in plan.removals if r.kind == "slot"]
    if slots:
        connection = await PgConnection.connect(config.postgres, application_name="walbridge cleanup")
        with closing(connection):
            for removal in slots:
                await drop_slot(connection, removal.name)
                report(removal)
    rest = [r for r in plan.removals if r.kind != "slot"]
    if not rest:
        return
    refused: list[tuple[Removal, str]] = []
    async with open_nats(config.nats, set()) as nats:
        js = JetStream(nats)
        for removal in rest:
            try:
                if removal.kind == "messages":
                    await js.purge(removal.name, removal.subject)
                else:
                    await js.delete_stream(bucket_stream(removal.name) if removal.kind == "bucket" else removal.name)
                report(removal)
            except (SinkRefused, JetStreamError) as exc:
                refused.append((removal, exc.said))
    if refused:  # a bridge's user needs no right to remove anything
        raise Fatal(
            "WB008", "this NATS user may not remove everything listed", said=refused[0][1],
            fix="as an administrator:\n" + "\n".join(_command(removal) for removal, _ in refused),
        )  # fmt: skip


def _command(removal: Removal) -> str:
    """The same removal with the nats command line."""
    if removal.kind == "messages":
        return f"nats stream purge {removal.name} --force --subject='{removal.subject}'"
    return f"nats {'kv del' if removal.kind == 'bucket' else 'stream rm'} {removal.name} --force"
