"""The running mirror: its tasks, and what is done after a fault."""

from __future__ import annotations

import gc
import math
import random
import signal
import time
from dataclasses import dataclass

import trio

from actors.clients.nats.connection import open_nats
from actors.clients.nats.jetstream import JetStream
from actors.contract.bridge_record import BridgeRecord
from actors.contract.subjects import INIT, init_error, init_start
from actors.contract.table_token import split_token, table_token
from actors.errors import ConfigError, Fatal, Transient, WalbridgeError
from actors.mirror.copying import Copier
from actors.mirror.following import Follower
from actors.mirror.gathering import start_in, why_useless
from actors.mirror.holding import Holds
from actors.mirror.http_server import serve_mirror
from actors.mirror.progress import MirrorCounts
from actors.mirror.replica import Replica
from actors.mirror.source_stream import SourceStream
from actors.mirror.state import LIVE, STALE, WAITING, TableRecord, load_verified
from actors.mirror.stores.open import check_replica, open_store
from actors.mirror.stores.store import Store
from actors.mirror.track import NEEDED_NOTHING
from actors.mirror.view import View
from actors.settings.config import HttpConfig, NatsConfig
from actors.telemetry.log import get_logger

log = get_logger("mirror")

STREAM_EVERY_S = 2.0
REPORT_EVERY_S = 15.0
UNANSWERED_AFTER_S = 10.0
WATCH_EVERY_S = 2.0


@dataclass(frozen=True, slots=True)
class MirrorConfig:
    """What one mirror needs to know."""

    nats: NatsConfig
    stream: str
    to: str
    """The replica's URL."""
    tables: tuple[str, ...]
    """Tokens or names; empty for all that the bridge publishes."""
    again: tuple[str, ...] = ()
    """Tables to copy anew first."""
    http: HttpConfig | None = None
    """Where health and metrics are served, if anywhere."""


def run(config: MirrorConfig) -> int:
    """Mirror until told to stop; returns the exit code. Raises Fatal with what to do."""
    # an event is a dozen objects, and none of them is in a cycle: a third of its time went to looking for some
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    try:
        return trio.run(_run, config)
    except BaseExceptionGroup as group:
        raise _most_telling(group) from group


async def _run(config: MirrorConfig) -> int:
    counts = MirrorCounts()
    view = View(config.stream, config.to.partition(":")[0], counts)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_on_signal, nursery.cancel_scope)
        if config.http is not None:
            await nursery.start(serve_mirror, config.http, view)
        nursery.start_soon(_report, counts)
        await _supervise(config, view)
    log.info("stopped", changes=counts.applied, snapshots=counts.snapshots, copied_again=sum(counts.resnapshots.values()))
    return 0


async def _stop_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()  # what is not committed is applied again at the next start
            return


async def _report(counts: MirrorCounts) -> None:
    before, since = counts.applied, trio.current_time()
    while True:
        await trio.sleep(REPORT_EVERY_S)
        now = trio.current_time()
        log.info(
            "mirroring", changes=counts.applied, changes_per_s=round((counts.applied - before) / (now - since)),
            lag_s=round(counts.lag_s(time.time()), 3), snapshots=counts.snapshots, unknown_values=counts.unknown_values,
        )  # fmt: skip
        before, since = counts.applied, now


async def _supervise(config: MirrorConfig, view: View) -> None:
    """Everything anew after a passing fault: the replica knows where to go on."""
    await check_replica(config.to)
    known: set[str] = set()
    again = list(config.again)
    while True:
        error: Transient | None = None
        try:
            async with open_nats(config.nats, known) as connection:
                source = SourceStream(JetStream(connection), config.stream)
                record = await _published(source, view)
                wanted = choose_tables(config.tables, record)
                again[:] = choose_tables(tuple(again), record, "--again") if again else ()
                store = await open_store(config.to)  # not before: a wrong name must not leave an empty file
                try:
                    await _session(config, store, source, record, view, wanted, again)
                finally:
                    await store.close()
        except Transient as exc:
            error = exc
        except BaseExceptionGroup as group:
            found = _most_telling(group)
            if not isinstance(found, Transient):
                raise found from group
            error = found
        finally:
            view.counts.connected, view.counts.is_behind = False, True
        assert error is not None, "a session ends by an error"
        view.reason = str(error)
        pause_s = error.retry_s * random.uniform(0.5, 1.0)
        mend = {"fix": error.fix} if error.fix else {}
        log.warning("going on in a moment", reason=str(error), next_try_s=round(pause_s, 1), **mend)
        await trio.sleep(pause_s)


async def _session(
    config: MirrorConfig, store: Store, source: SourceStream, record: BridgeRecord, view: View, wanted: tuple[str, ...],
    again: list[str],
) -> None:  # fmt: skip
    """Until a fault. Empties `again` when its tables are marked: they are copied anew once."""
    await store.claim(record)
    replica = Replica(store, config.stream, view.counts)
    await replica.load()
    if replica.place is not None and replica.place.stream != config.stream:
        raise ConfigError(
            "WB506", f"the replica is a mirror of stream {replica.place.stream}, not of {config.stream}",
            fix="give the stream's name with --stream, or another replica with --to",
        )  # fmt: skip
    await _take_up(replica, wanted)
    for token in again:
        if token in replica.shapes:
            await replica.save(replica.tables[token].as_stale("to be copied again, as asked for", NEEDED_NOTHING))
            del replica.shapes[token]
    again.clear()
    view.begin(replica, wanted)
    holds = Holds(replica)
    follower = Follower(replica, source, holds, everything=set(wanted) >= set(record.tables))
    copier = Copier(replica, source, follower)
    send, receive = trio.open_memory_channel[str](math.inf)
    replica.left = send

    position = replica.place.cursor.stream_seq if replica.place is not None else 0
    live = sum(replica.tables[token].state == LIVE for token in wanted)
    log.info("mirroring", stream=config.stream, tables=len(wanted), live=live, position=position)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follower.run)
        nursery.start_soon(holds.watch)
        nursery.start_soon(_watch_requests, replica, source, wanted)
        if config.http is not None:
            nursery.start_soon(_watch_stream, source.js, replica)
            nursery.start_soon(_watch_verified, replica, wanted)
        for token in wanted:
            if replica.tables[token].state != LIVE:
                nursery.start_soon(copier.copy, token)
        async for token in receive:
            nursery.start_soon(copier.copy, token)


async def _watch_stream(js: JetStream, replica: Replica) -> None:
    """For the metrics: how much the stream holds, also while the replica is stuck."""
    counts = replica.counts
    while True:
        info = await js.stream_info(replica.stream)
        if info is not None:
            counts.first_seq, counts.last_seq = int(info["state"]["first_seq"]), int(info["state"]["last_seq"])
        await trio.sleep(WATCH_EVERY_S)


async def _watch_verified(replica: Replica, wanted: tuple[str, ...]) -> None:
    """For the metrics: what `walbridge verify` has found."""
    counts = replica.counts
    while True:
        verified = await load_verified(replica)
        counts.mismatched_keys = sum(mismatched for token, (_, mismatched) in verified.items() if token in wanted)
        counts.verified_at = min((float(verified[t][0]) if t in verified else 0.0 for t in wanted), default=0.0)
        await trio.sleep(WATCH_EVERY_S)


async def _watch_requests(replica: Replica, source: SourceStream, wanted: tuple[str, ...]) -> None:
    """Say so when nobody answers the requests for snapshots: the bridge may be away, and a copy waits for ever."""
    first_seq = seen_seq = -1
    while True:
        info = await source.js.stream_info(INIT)
        last_seq = int(info["state"]["last_seq"]) if info is not None else 0
        first_seq = last_seq if first_seq < 0 else first_seq
        if last_seq == seen_seq:  # else one snapshot at least goes on, and the others have their turn after it
            waiting = [token for token in wanted if replica.tables[token].state in (WAITING, STALE)]
            unanswered = [token for token in waiting if not await _is_answered(replica, source, token, first_seq)]
            if unanswered:
                log.warning(
                    "no bridge has answered the request for a snapshot; waiting", tables=",".join(unanswered),
                    fix="start the bridge: walbridge run; if it runs, walbridge status says what it does",
                )  # fmt: skip
        seen_seq = last_seq
        await trio.sleep(UNANSWERED_AFTER_S)


async def _is_answered(replica: Replica, source: SourceStream, token: str, first_seq: int) -> bool:
    """A snapshot of the table has begun, or failed, or one that was there already will do."""
    record = replica.tables[token]
    start = await source.js.get_message(INIT, last_by_subj=init_start(token))
    error = await source.js.get_message(INIT, last_by_subj=init_error(token))
    if any(found is not None and found.seq > max(first_seq, record.init_seq) for found in (start, error)):
        return True
    if start is None or start.seq <= record.init_seq:
        return False
    begun = start_in(start)
    return begun is not None and not why_useless(replica, source, begun)


async def _published(source: SourceStream, view: View) -> BridgeRecord:
    """What the bridge publishes; waits until one has run."""
    began_at = trio.current_time()
    waited = False
    while True:
        record = await source.record() if await source.look() else None
        if record is not None and record.tables:
            if waited:
                log.info("the bridge is there", stream=source.name, waited_s=round(trio.current_time() - began_at, 1))
            return record
        waited = True
        if source.created:
            what, fix = "say which tables it publishes to stream", "and see that its publication has tables"
        else:
            what, fix = "make stream", "or give the name of its stream with --stream"
        view.reason = f"waiting for a bridge to {what} {source.name}"
        log.warning(view.reason, fix=f"start the bridge: walbridge run; {fix}")
        await trio.sleep(STREAM_EVERY_S)


def choose_tables(wanted: tuple[str, ...], record: BridgeRecord, flag: str = "--tables") -> tuple[str, ...]:
    """The tokens of tables given by token, `table` or `schema.table`; all when none is given. Raises ConfigError.

    `flag` is where they were given.
    """
    found: list[str] = []
    for name in wanted:
        schema, dot, table = name.partition(".")
        candidates = [name, table_token("public", name), *([table_token(schema, table)] if dot else [])]
        token = next((candidate for candidate in candidates if candidate in record.tables), None)
        if token is None:
            raise ConfigError(
                "WB507", f"{flag}: {name!r} is no table that the bridge publishes",
                fix=f"give some of {', '.join(sorted(record.tables))}",
            )  # fmt: skip
        found.append(token)
    return tuple(dict.fromkeys(found or record.tables))


async def _take_up(replica: Replica, wanted: tuple[str, ...]) -> None:
    """Records for tables that are new here; those that are not asked for any more cannot be followed from a later place."""
    taken = {(record.local_schema, record.local_name.lower()) for record in replica.tables.values()}
    for token in wanted:
        if token not in replica.tables:
            local = replica.dialect.local_name(*split_token(token))
            name, number = local[1], 1
            while (local[0], name.lower()) in taken and replica.dialect.scheme == "sqlite":
                number += 1
                name = f"{local[1]}_{number}"
            taken.add((local[0], name.lower()))
            await replica.save(TableRecord(token, local[0], name, WAITING))
    for token, record in list(replica.tables.items()):
        if token not in wanted and record.state == LIVE:
            await replica.save(record.as_stale("it was not mirrored for a while", NEEDED_NOTHING))
            replica.shapes.pop(token)
            log.info("a table is not mirrored any more; it stays as it is", table=token)


def _most_telling(group: BaseExceptionGroup[BaseException]) -> BaseException:
    leaves: list[BaseException] = []
    rest: list[BaseException] = [group]
    while rest:
        one = rest.pop()
        if isinstance(one, BaseExceptionGroup):
            rest += one.exceptions
        else:
            leaves.append(one)
    bugs = [leaf for leaf in leaves if not isinstance(leaf, WalbridgeError)]
    fatal = [leaf for leaf in leaves if isinstance(leaf, Fatal)]
    return (bugs or fatal or leaves)[0]
