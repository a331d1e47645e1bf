"""One run of the pipeline: every channel and every actor between PostgreSQL and JetStream, on one screen."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import trio

from actors.acker import AckLedger, confirm_stored
from actors.batcher import Batcher, Limits, batch_items
from actors.batches.joining import BatchSize
from actors.channels import Channel
from actors.clients.nats.acknowledgements import Acknowledgements
from actors.contract.event_encoder import event_encoder
from actors.decoder import Decoder, decode_blocks
from actors.errors import Fatal
from actors.messages import Batch, Block, Item, SchemaChange, SentBatch
from actors.pace import Pace
from actors.publication_monitor import PublicationMonitor, ShowProblems
from actors.publisher import Publisher, Window, durable_window, publish_batches
from actors.replication_reader import read_blocks
from actors.session import Session
from actors.settings.config import Config
from actors.snapshots.setup import SnapshotSetup
from actors.snapshotter import Snapshotter
from actors.startup.streams import check_changes
from actors.status_reporter import LiveStream, send_status
from actors.telemetry.telemetry import RunBegin, Telemetry

DRAIN_S = 30.0
ACK_DEADLINE_S = 10.0
CHANNEL_BYTES_MAX = 2 * 1024 * 1024


class DrainTimeout(Fatal):
    """The drain took too long; the slot sends unacknowledged changes again."""

    def __init__(self) -> None:
        super().__init__(
            "WB310",
            f"not drained within {DRAIN_S:g} s of the stop",
            means="nothing is lost: the slot sends unacknowledged changes again at the next start",
            fix="check NATS: it has not acknowledged what was sent",
        )


async def run_pipeline(
    config: Config, session: Session, live: LiveStream, telemetry: Telemetry, stop: trio.Event,
    show_problems: ShowProblems, pace: Pace,
) -> None:  # fmt: skip
    """Run until `stop`, then drain: publish, acknowledge and confirm everything that was read.

    `show_problems` takes what is wrong with the publication and the server, after each look at them;
    `pace` is that of snapshots.

    Raises Transient errors for the supervisor, Fatal errors for the user, DrainTimeout when the drain takes 30 s.
    """
    start, store, setup, nats, publish = session.start, session.store, session.setup, session.js.connection, config.publish
    acks = Acknowledgements(start.last_seq, telemetry.publish_rejected)
    acks.reply_prefix = await nats.inbox(acks.on_reply)
    decoder = Decoder(
        start.skip, dict(store.record.schemas), encoding=publish.encoding, arrays=publish.arrays,
        payload_max=setup.max_payload, log=session.transactions, expected=start.expected,
    )  # fmt: skip
    limits, window = Limits(pack=publish.pack, payload_max=setup.max_payload), Window()
    if setup.mode == "durable":
        size = BatchSize(messages_max=session.batch_messages_max)
        limits = limits._replace(messages_max=size.messages_max, bytes_max=size.bytes_max, at_ends=True)
        window = durable_window(size)
    batcher = Batcher(session.encoder, limits, config.source.slot, session.suspensions)
    publisher = Publisher(setup.mode, acks.reply_prefix, start.last_seq, session.remembered)
    ledger = AckLedger(start.last_seq, start.skip, store.record.commit_us)
    check_stream = partial(check_changes, session.js, setup.stream)
    blocks = Channel[Block]("blocks", 4, CHANNEL_BYTES_MAX)
    items = Channel[list[Item]]("items", 4, CHANNEL_BYTES_MAX)
    # what waits here is joined, and nothing must wait before it: then latency is that of one batch, not of every channel
    batches = Channel[Batch]("batches", 4 if window.join is None else window.join.messages_max, CHANNEL_BYTES_MAX)
    published = Channel[SentBatch]("published", 10_000, CHANNEL_BYTES_MAX)
    channels = (blocks, items, batches, published)
    begin = RunBegin(start.last_seq, start.skip.lsn, session.plan.confirmed_lsn, session.plan.wal_end)
    telemetry.begin_run({channel.name: channel for channel in channels}, begin)
    snapshots = SnapshotSetup(
        config, setup, event_encoder(publish.encoding), session.transactions, session.compressors,
        partial(are_events_underway, channels, publisher, acks), session.publication.version_of,
        lambda: ledger.durable.lsn, pace,
    )  # fmt: skip
    snapshotter = Snapshotter(snapshots, session.js, session.publication, session.suspensions, telemetry)
    monitor = PublicationMonitor(
        config, session.publication, session.js, store, session.schemas.stored, show_problems, telemetry
    )  # fmt: skip

    def relation_defined(change: SchemaChange) -> None:
        session.schemas.refresh(change)
        session.publication.relation_seen(change.table.relation.oid, change.table.token, change.table.schema_id)

    intake, drained = trio.CancelScope(), False
    async with trio.open_nursery() as pipeline:
        pipeline.start_soon(_close_intake, stop, intake, pipeline.cancel_scope)
        pipeline.start_soon(live.watch)
        pipeline.start_soon(session.schemas.publish_changes)
        pipeline.start_soon(snapshotter.run)
        pipeline.start_soon(monitor.run)
        async with trio.open_nursery() as stages:
            stages.start_soon(read_blocks, live.stream, blocks.sender(), live.feedback, intake, telemetry)
            stages.start_soon(
                decode_blocks, blocks.receiver(), items.sender(), decoder, session.schemas.describe, relation_defined,
                monitor.news, telemetry,
            )  # fmt: skip
            stages.start_soon(batch_items, items.receiver(), batches.sender(), batcher, session.suspensions, telemetry)
            stages.start_soon(publish_batches, batches.receiver(), published.sender(), nats, publisher, acks, window, telemetry)
            stages.start_soon(
                partial(
                    confirm_stored, ack_deadline_s=ACK_DEADLINE_S, check_stream=check_stream, hold_s=publish.confirm_hold_s
                ),
                published.receiver(), acks, ledger, store, live.feedback, session.schemas.stored, session.publication.stored,
                telemetry,
            )  # fmt: skip
        await session.schemas.finish()
        await monitor.write()
        await send_status(live.stream, live.feedback)
        drained = True
        pipeline.cancel_scope.cancel()
    if not drained:
        raise DrainTimeout


def are_events_underway(channels: Sequence[Channel[Any]], publisher: Publisher, acks: Acknowledgements) -> bool:
    """Return whether events are between PostgreSQL and JetStream's acknowledgement. While they are, the snapshotter yields."""
    return publisher.last_seq > acks.stored_seq.value or any(channel.items_waiting for channel in channels)


async def _close_intake(stop: trio.Event, intake: trio.CancelScope, whole: trio.CancelScope) -> None:
    await stop.wait()
    intake.cancel()  # the reader ends, its channel closes, the next stage ends ...
    whole.deadline = trio.current_time() + DRAIN_S
