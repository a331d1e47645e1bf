"""One session of a mirror: from an open connection to NATS and an open replica to the first error of either."""

from __future__ import annotations

import math

import trio

from actors.clients.nats.jetstream import JetStream
from actors.contract.bridge_record import BridgeRecord
from actors.contract.reader_note import ReaderNote
from actors.errors import ConfigError, SinkUnavailable
from actors.mirror.copying import Copier
from actors.mirror.following import Follower
from actors.mirror.holding import Holds
from actors.mirror.published_tables import PublishedTables
from actors.mirror.replica import Replica
from actors.mirror.snapshot_requests import watch_requests
from actors.mirror.source_stream import SourceStream, streams_of_bridges
from actors.mirror.state import LIVE, UNPUBLISHED, saved_choice
from actors.mirror.stores.store import Store
from actors.mirror.table_choice import KeptTables, leave_others, register_tables
from actors.mirror.track import NEEDED_NOTHING
from actors.mirror.view import View
from actors.mirror.write_ahead import watch_write_ahead
from actors.telemetry.log import get_logger

log = get_logger("mirror")

STREAM_EVERY_S = 2.0
WATCH_EVERY_S = 2.0
DESCRIBE_EVERY_S = 10.0
"""As often as the bridge lists consumers. In a cluster a new note passes through the leader of all of JetStream."""


async def wait_for_bridge(source: SourceStream, view: View, *, has_tables: bool) -> BridgeRecord:
    """Wait until a bridge has created the stream and recorded its tables; return the record.

    If the replica `has_tables`, the bridge need not have any: they may all be out of the publication.
    """
    began_at = trio.current_time()
    waited = False
    while True:
        has_stream = await source.look()
        record = await source.record() if has_stream else None
        if record is not None and (record.tables or has_tables):
            if waited:
                log.info("a bridge has appeared", stream=source.name, waited_s=round(trio.current_time() - began_at, 1))
            return record
        waited = True
        if has_stream:
            what, fix = "record which tables it publishes to stream", "and see that its publication has tables"
        else:
            others = [one for one in await streams_of_bridges(source.js) if one != source.name]
            there = f", perhaps one that is there: {', '.join(others)}" if others else ""
            what, fix = "create stream", f"or give the name of its stream with --stream{there}"
        view.reason = f"waiting for a bridge to {what} {source.name}"
        log.warning(view.reason, fix=f"start the bridge: walbridge run; {fix}")
        await trio.sleep(STREAM_EVERY_S)


async def open_session(store: Store, source: SourceStream, record: BridgeRecord, view: View) -> Replica:
    """Claim the replica and read its state. Raises ConfigError when it is a mirror of another stream or the source itself."""
    await store.claim(record)
    replica = Replica(store, source.name, view.counts)
    await replica.load()
    if replica.checkpoint is not None and replica.checkpoint.stream != source.name:
        raise ConfigError(
            "WB506", f"the replica is a mirror of stream {replica.checkpoint.stream}, not of {source.name}",
            fix="give the stream's name with --stream, or another replica with --to",
        )  # fmt: skip
    if replica.checkpoint is None and replica.shapes:  # somebody has emptied the mirror's own table
        log.warning("the replica does not say how far it is: its tables are copied again")
        await replica.forget("the replica's place in the stream is lost")
    return replica


async def recopy(replica: Replica, tokens: list[str]) -> None:
    """Mark tables to be copied again, and empty `tokens`, so that a later session does not copy them once more."""
    for token in tokens:
        if token in replica.shapes:
            await replica.save(replica.tables[token].as_stale("asked for with --again", NEEDED_NOTHING))
            del replica.shapes[token]
    tokens.clear()


async def run_session(
    replica: Replica, source: SourceStream, record: BridgeRecord, view: View, chosen: tuple[str, ...], again: list[str], *,
    is_watched: bool,
) -> None:  # fmt: skip
    """Mirror the tables `chosen`, or without any all that the bridge publishes, until an error.

    `again` are tables to copy again first. `is_watched`: metrics are served.
    """
    kept = KeptTables(replica, chosen)
    await replica.run([saved_choice(replica.dialect, everything=kept.everything)])
    await register_tables(replica, chosen or record.tables)
    await leave_others(replica, kept)
    await recopy(replica, again)
    view.begin(replica, kept)
    holds = Holds(replica)
    follower = Follower(replica, source, holds, everything=kept.covers(record.tables))
    copier = Copier(replica, source, follower)
    published = PublishedTables(replica, kept, copier.is_copying)
    await published.compare(record)
    replica.to_recopy, to_recopy = trio.open_memory_channel[str](math.inf)

    position = replica.checkpoint.cursor.stream_seq if replica.checkpoint is not None else 0
    live = sum(replica.tables[token].state == LIVE for token in kept.tokens)
    log.info("mirroring", stream=source.name, tables=len(kept.tokens), live=live, position=position)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follower.run)
        nursery.start_soon(holds.watch)
        nursery.start_soon(watch_requests, replica, source, kept)
        nursery.start_soon(watch_write_ahead, replica)
        nursery.start_soon(published.watch, source)
        nursery.start_soon(_describe, follower, replica, view, kept)
        if is_watched:
            nursery.start_soon(_watch_stream, source.js, replica)
            nursery.start_soon(_watch_verdicts, replica, kept)
        for token in kept.tokens:
            if replica.tables[token].state not in (LIVE, UNPUBLISHED):
                nursery.start_soon(copier.copy, token)
        async for token in to_recopy:
            if token in kept.tokens:
                nursery.start_soon(copier.copy, token)


async def _watch_stream(js: JetStream, replica: Replica) -> None:
    """Keep the metrics' range of the stream's messages current, also while the replica is stuck."""
    counts = replica.counts
    while True:
        info = await js.stream_info(replica.stream)
        if info is not None:
            counts.first_seq, counts.last_seq = int(info["state"]["first_seq"]), int(info["state"]["last_seq"])
        await trio.sleep(WATCH_EVERY_S)


async def _watch_verdicts(replica: Replica, kept: KeptTables) -> None:
    """Keep the metrics' results of `walbridge verify` current."""
    counts = replica.counts
    while True:
        counts.verified_at, counts.mismatched_keys = await _verdict(replica, kept)
        await trio.sleep(WATCH_EVERY_S)


async def _verdict(replica: Replica, kept: KeptTables) -> tuple[int, int]:
    """Since when `walbridge verify` knows every table to be equal (unix seconds, 0: never), and how many keys differ."""
    verdicts, wanted = await replica.verdicts(), kept.tokens
    mismatched = sum(count for token, (_, count) in verdicts.items() if token in wanted)
    return min((verdicts[t][0] if t in verdicts else 0 for t in wanted), default=0), mismatched


async def _describe(follower: Follower, replica: Replica, view: View, kept: KeptTables) -> None:
    """Have the mirror's consumer say how far the replica is, and what `walbridge verify` found, while that changes."""
    while True:
        verified_at, mismatched_keys = await _verdict(replica, kept)
        place = view.position_seq if view.has_checkpoint else None
        try:
            await follower.describe(ReaderNote("mirror", view.name, place, verified_at, mismatched_keys))
        except SinkUnavailable as exc:  # the follower meets what matters on its own
            log.debug("the consumer does not say how far the replica is", error=str(exc))
        await trio.sleep(WATCH_EVERY_S if place is None else DESCRIBE_EVERY_S)
