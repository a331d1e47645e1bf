"""One run of the pipeline: every channel and every actor between PostgreSQL and JetStream, on one screen."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import trio

from actors.acker import AckLedger, confirm_stored
from actors.batcher import Batcher, Limits, Suspension, batch_items
from actors.channels import Channel
from actors.clients.nats.acknowledgements import Acknowledgements
from actors.clients.nats.connection import NatsConnection
from actors.clients.nats.jetstream import JetStream
from actors.contract.bridge_record import Suspended
from actors.contract.compression import Compressor
from actors.contract.event_encoder import EventEncoder, event_encoder
from actors.decoder import Decoder, decode_blocks
from actors.errors import Fatal
from actors.messages import Batch, Block, Item, SentBatch
from actors.positions import Lsn
from actors.publisher import Publisher, Window, publish_batches
from actors.replication_reader import read_blocks
from actors.schema_publisher import SchemaPublisher
from actors.settings.config import Config
from actors.snapshots.transaction_log import TransactionLog
from actors.snapshotter import SnapshotSetup, Snapshotter
from actors.startup.start_plan import StartPlan
from actors.startup.streams import StreamSetup
from actors.status_reporter import LiveStream, send_status
from actors.telemetry.telemetry import Telemetry

DRAIN_S = 30.0
ACK_DEADLINE_S = 10.0
CHANNEL_BYTES_MAX = 2 * 1024 * 1024


class DrainTimeout(Fatal):
    """The stop took too long; what is missing comes again from the slot."""

    def __init__(self) -> None:
        super().__init__(
            "WB310",
            f"not drained within {DRAIN_S:g} s of the stop",
            means="nothing is lost: what was not acknowledged comes again from the slot at the next start",
            fix="look at NATS: it has not acknowledged what was sent",
        )


async def run_pipeline(
    config: Config,
    setup: StreamSetup,
    opening: StartPlan,
    live: LiveStream,
    nats: NatsConnection,
    schemas: SchemaPublisher,
    encoder: EventEncoder,
    compressors: Mapping[str, Compressor],
    transactions: TransactionLog,
    telemetry: Telemetry,
    *,
    stop: trio.Event,
) -> None:
    """Run until `stop`, then drain: what was read is published, acknowledged and confirmed.

    Raises Transient errors for the supervisor, Fatal ones for the person, DrainTimeout when the drain takes 30 s.
    """
    start, store = opening.start, opening.store
    acks = Acknowledgements(start.last_seq, telemetry.publish_rejected)
    acks.reply_prefix = await nats.inbox(acks.on_reply)
    suspended = dict(store.record.suspended)
    publish = config.publish
    decoder = Decoder(
        start.skip, dict(store.record.schemas), encoding=publish.encoding, arrays=publish.arrays, log=transactions
    )  # fmt: skip
    limits = Limits(pack=publish.pack, payload_max=setup.max_payload)
    batcher = Batcher(encoder, limits, config.source.slot, suspended)
    publisher = Publisher(setup.mode, acks.reply_prefix, start.last_seq)

    async def record_suspension(made: Suspension) -> None:
        await store.update(suspended={**store.record.suspended, made.token: Suspended(made.position)})

    async def resume(token: str, wal_end: Callable[[], Awaitable[Lsn]]) -> None:
        suspended = store.record.suspended.get(token)
        if suspended is None or suspended.until:
            return
        batcher.resume(token)
        # asked for after that: what was left out stands below, and the snapshot to come has it
        until = await wal_end()
        if token in batcher.suspended:  # the next row did not fit either
            return
        await store.update(suspended={**store.record.suspended, token: suspended._replace(until=until)})
        telemetry.suspended_tables.pop(token, None)

    snapshots = SnapshotSetup(config, setup, event_encoder(publish.encoding), transactions, compressors, resume)
    snapshotter = Snapshotter(snapshots, JetStream(nats), store.record.tables, telemetry)
    blocks = Channel[Block]("blocks", 4, CHANNEL_BYTES_MAX)
    items = Channel[list[Item]]("items", 4, CHANNEL_BYTES_MAX)
    batches = Channel[Batch]("batches", 4, CHANNEL_BYTES_MAX)
    published = Channel[SentBatch]("published", 10_000, CHANNEL_BYTES_MAX)
    telemetry.channels = {c.name: c for c in (blocks, items, batches, published)}
    telemetry.waiting_commit_times.clear()  # of the run that broke off: they come again
    telemetry.sent_seq = telemetry.stored_seq = start.last_seq
    telemetry.sent_bytes = telemetry.stored_bytes = 0

    intake, drained = trio.CancelScope(), False
    async with trio.open_nursery() as pipeline:
        pipeline.start_soon(_close_intake, stop, intake, pipeline.cancel_scope, telemetry)
        pipeline.start_soon(live.watch)
        pipeline.start_soon(schemas.publish_changes)
        pipeline.start_soon(snapshotter.run)
        async with trio.open_nursery() as stages:
            stages.start_soon(read_blocks, live.stream, blocks.sender(), live.feedback, intake, telemetry)
            stages.start_soon(
                lambda: decode_blocks(
                    blocks.receiver(), items.sender(), decoder, schemas.describe, schemas.refresh, telemetry, gap=start.gap
                )
            )
            stages.start_soon(batch_items, items.receiver(), batches.sender(), batcher, record_suspension, telemetry)
            stages.start_soon(
                publish_batches, batches.receiver(), published.sender(), nats, publisher, acks, Window(), telemetry
            )
            stages.start_soon(
                lambda: confirm_stored(
                    published.receiver(),
                    acks,
                    AckLedger(start.last_seq, start.skip),
                    store,
                    live.feedback,
                    schemas.stored,
                    telemetry,
                    ack_deadline_s=ACK_DEADLINE_S,
                )  # fmt: skip
            )
        await schemas.finish()
        await send_status(live.stream, live.feedback)
        drained = True
        pipeline.cancel_scope.cancel()
    if not drained:
        raise DrainTimeout


async def _close_intake(stop: trio.Event, intake: trio.CancelScope, whole: trio.CancelScope, telemetry: Telemetry) -> None:
    await stop.wait()
    telemetry.state, telemetry.not_ready_reason = "draining", "stopping"
    intake.cancel()  # the reader ends, its channel closes, the next stage ends ...
    whole.deadline = trio.current_time() + DRAIN_S
