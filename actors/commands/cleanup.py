"""`walbridge cleanup`: remove what a bridge leaves behind: its slot, its streams, its entries in the buckets.

Shows first what it would remove and what that frees, then asks. What other bridges use is left. The slot goes first, for it
holds PostgreSQL's disk; the bridge's record goes last, so that a cleanup that broke off can be run again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson
import trio

from actors.clients.nats.connection import SinkRefused, open_nats
from actors.clients.nats.jetstream import JetStream, JetStreamError
from actors.clients.postgres.connection import PgConnection
from actors.clients.postgres.slots import drop_slot, slot_health, slot_state
from actors.commands.status import printable
from actors.contract.bridge_record import BUCKET as RECORDS
from actors.contract.bridge_record import BridgeRecord
from actors.errors import ConfigError, Fatal, Transient, WalbridgeError
from actors.process import most_telling
from actors.settings.config import Config
from actors.telemetry.quantities import counted, human_bytes
from actors.wire.sql_names import quoted

SHARED_STREAMS = ("INIT", "REQUESTS")
BUCKETS = ("schemas", "dictionaries")


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
    """What would be removed, in order, and what is left and why."""

    removals: list[Removal] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    objections: list[str] = field(default_factory=list)
    """What only --force overrules."""


def run_cleanup(config: Config, *, slot_only: bool, yes: bool, force: bool, as_json: bool) -> int:
    """Plan, show, ask, remove. 0 when all is removed or nothing was there, 1 when the person said no.

    As JSON it says once, at the end, what there was and what of it is removed, and asks nobody.
    Raises ConfigError when it may not be done, Fatal when a server does not answer or refuses.
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
        if isinstance(error, Transient):  # nobody waits and tries again here
            raise Fatal(error.code, error.what, said=error.said, means=error.means, fix=error.fix) from None
        raise error from None
    raise AssertionError("it returns or raises")


def _carry_out(config: Config, plan: Plan, removed: list[Removal], *, yes: bool, force: bool, as_json: bool) -> int:
    if not as_json:
        for line in describe(config, plan):
            print(line)
    if not plan.removals:
        return 0
    if plan.objections and not force:
        raise ConfigError("WB008", "; ".join(plan.objections), fix="add --force if that is meant")
    if not yes and not _confirmed(config.source.slot, as_json):
        print("nothing was removed", file=sys.stderr)
        return 1

    def said(removal: Removal) -> None:
        removed.append(removal)
        if not as_json:
            print(f"removed: {removal.kind} {removal.name}" + (f", {removal.words}" if removal.subject else ""), flush=True)

    trio.run(_remove, config, plan, said)
    return 0


def outcome(config: Config, plan: Plan, removed: Sequence[Removal]) -> dict[str, object]:
    """The plan for a script, and what has become of it."""
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
    lines = ["Removes, for good:"]
    lines += [f"  {f'{r.kind} {r.name}':<{width}}  {printable(r.words)}" for r in plan.removals]
    lines += [f"Left:  {printable(words)}" for words in plan.left]
    publication = quoted(config.source.publication)
    return [*lines, "Yours to decide, as its owner:", f"  DROP PUBLICATION {printable(publication)};"]


def _confirmed(slot: str, is_script: bool) -> bool:
    if is_script or not sys.stdin.isatty():
        raise ConfigError("WB008", "nobody is here to be asked", fix="give --yes to remove what is listed")
    print(f"Type the slot's name, {slot}, to remove all of it: ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip() == slot


async def _planned(config: Config, slot_only: bool) -> Plan:
    plan = Plan()
    connection = await PgConnection.connect(config.postgres, application_name="walbridge cleanup")
    with closing(connection):
        await _plan_slot(connection, config.source.slot, plan)
        ((system_id,),) = await connection.query("SELECT system_identifier FROM pg_control_system()")
    if slot_only:
        if plan.removals:
            plan.left.append("all that is in NATS; the next start of the bridge says that changes are lost, see WB108")
        return plan
    async with open_nats(config.nats, set()) as nats:
        await _plan_nats(JetStream(nats), config, system_id or "", plan)
    return plan


async def _plan_slot(connection: PgConnection, slot: str, plan: Plan) -> None:
    state = await slot_state(connection, slot)
    if state is None:
        return
    if state.plugin != "pgoutput":
        raise ConfigError(
            "WB008", f"slot {slot} is not a bridge's: its plugin is {state.plugin or 'none'}", fix="give --slot NAME"
        )
    if state.active:
        raise ConfigError(
            "WB008",
            f"slot {slot} is being read by process {state.active_pid}",
            fix="stop the bridge first: POST /shutdown, or SIGTERM",
        )
    health = await slot_health(connection, slot)
    held = human_bytes(health.lag_bytes) if health else "nothing"
    plan.removals.append(Removal("slot", slot, f"frees {held} of WAL in PostgreSQL"))


async def _plan_nats(js: JetStream, config: Config, system_id: str, plan: Plan) -> None:
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
    await _plan_stream(js, stream, plan)
    theirs = {token for record in records.values() for token in record.tables}
    tokens = sorted(set(own.tables if own else ()) - theirs)
    if not records:
        for name in SHARED_STREAMS:
            await _plan_stream(js, name, plan)
        for bucket in (*BUCKETS, RECORDS):
            info = await js.stream_info(f"KV_{bucket}")
            if info is not None:
                entries = info["state"]["messages"]
                plan.removals.append(Removal("bucket", bucket, "1 entry" if entries == 1 else f"{entries:,} entries"))
        return
    plan.left.append(f"what is shared with the bridges of streams {', '.join(sorted(records))}")
    for name, subjects in (
        ("INIT", ("init.*.{}", "init.snap.{}.>", "snapshot.*.{}")),
        ("REQUESTS", ("snapshot.request.{}",)),
        ("KV_schemas", ("$KV.schemas.{}",)),
        ("KV_dictionaries", ("$KV.dictionaries.{}_dict", "$KV.dictionaries.{}_dict.>")),
    ):
        if tokens and await js.stream_info(name) is not None:
            for token in tokens:
                for pattern in subjects:
                    await _plan_messages(js, name, pattern.format(token), plan)
    if own is not None:
        plan.removals.append(Removal("messages", f"KV_{RECORDS}", f"the record of stream {stream}", f"$KV.{RECORDS}.{stream}"))


async def _plan_stream(js: JetStream, name: str, plan: Plan) -> None:
    info = await js.stream_info(name)
    if info is None:
        return
    state = info["state"]
    consumers = await _readers(js, name, int(state.get("consumer_count", 0)))
    words = f"{counted(state['messages'], 'message')}, {human_bytes(state['bytes'])}"
    if consumers:
        words += f", {counted(consumers, 'consumer')}"
        plan.objections.append(f"stream {name} has {counted(consumers, 'consumer')}")
    plan.removals.append(Removal("stream", name, words))


async def _readers(js: JetStream, stream: str, counted: int) -> int:
    """Consumers that somebody means to come back to, or reads at this moment; what `nats sub` left behind does not count."""
    try:
        listed = await js.consumers(stream) if counted else []
    except SinkRefused:  # who may not list them counts all
        return counted
    return sum(bool(c["config"].get("durable_name") or c.get("push_bound") or c.get("num_waiting")) for c in listed)


async def _plan_messages(js: JetStream, name: str, subject: str, plan: Plan) -> None:
    if await js.subjects_of(name, subject):
        plan.removals.append(Removal("messages", name, f"on {subject}", subject))


async def _records(js: JetStream) -> dict[str, BridgeRecord]:
    found: dict[str, BridgeRecord] = {}
    prefix = f"$KV.{RECORDS}."
    for subject in await js.subjects_of(f"KV_{RECORDS}", f"{prefix}>"):
        stream = subject.removeprefix(prefix)
        entry: Any = await js.kv_get(RECORDS, stream)
        if entry is not None:
            found[stream] = BridgeRecord.decode(entry.data, stream)
    return found


async def _remove(config: Config, plan: Plan, said: Callable[[Removal], None]) -> None:
    slots = [r for r in plan.removals if r.kind == "slot"]
    if slots:
        connection = await PgConnection.connect(config.postgres, application_name="walbridge cleanup")
        with closing(connection):
            for removal in slots:
                await drop_slot(connection, removal.name)
                said(removal)
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
                    await js.delete_stream(f"KV_{removal.name}" if removal.kind == "bucket" else removal.name)
                said(removal)
            except (SinkRefused, JetStreamError) as exc:
                refused.append((removal, exc.said))
    if refused:  # a bridge's user need not have the right to remove anything
        raise Fatal(
            "WB008", "this NATS user may not remove all of it", said=refused[0][1],
            fix="as an administrator:\n" + "\n".join(_command(removal) for removal, _ in refused),
        )  # fmt: skip


def _command(removal: Removal) -> str:
    """What does the same with the nats command line."""
    if removal.kind == "messages":
        return f"nats stream purge {removal.name} --force --subject='{removal.subject}'"
    return f"nats {'kv del' if removal.kind == 'bucket' else 'stream rm'} {removal.name} --force"
