"""A session: what one run of the pipeline works with, made in one place once both sides are connected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from actors.clients.nats.dictionaries import publish_dictionaries, read_dictionaries
from actors.clients.nats.jetstream import JetStream
from actors.clients.nats.record_store import RecordStore
from actors.clients.postgres.connection import PgConnection
from actors.contract.compression import Compressor
from actors.contract.event_encoder import EventEncoder, event_encoder
from actors.schema_publisher import SchemaPublisher
from actors.settings.config import Config
from actors.snapshots.transaction_log import TransactionLog
from actors.startup.checkpoint import Start
from actors.startup.start_plan import StartPlan, find_start
from actors.startup.streams import StreamSetup
from actors.suspensions import Suspensions
from actors.telemetry.telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class Session:
    """What one run of the pipeline works with. The bridge owns the connections; the objects that actors share are named here.

    `store` is written by `suspensions` and the acker, `transactions` by the decoder, `suspensions` by the batcher and the
    snapshotter. docs/design.md has the whole table.
    """

    js: JetStream
    setup: StreamSetup
    plan: StartPlan
    schemas: SchemaPublisher
    encoder: EventEncoder
    """The batcher encodes events with it; the schema_publisher only documents, which leave nothing behind in it."""
    compressors: Mapping[str, Compressor]
    """By table token: of the tables that have a dictionary."""
    suspensions: Suspensions
    transactions: TransactionLog

    @property
    def start(self) -> Start:
        return self.plan.start

    @property
    def store(self) -> RecordStore:
        return self.plan.store


async def open_session(
    config: Config, catalog: PgConnection, js: JetStream, setup: StreamSetup, transactions: TransactionLog, telemetry: Telemetry
) -> Session:
    """Decide where to go on and put what readers need into NATS: dictionaries and schemas.

    The caller owns the plan's connection. Raises what `find_start` raises, SourceUnavailable and SinkUnavailable.
    """
    compressors: Mapping[str, Compressor] = {}
    if config.snapshots.zstd or config.snapshots.zstd_events:
        compressors = await publish_dictionaries(js, read_dictionaries(config.snapshots.dictionaries), setup.stream)
    of_events = compressors if config.snapshots.zstd_events else None
    encoder = event_encoder(config.publish.encoding, setup.publish_prefix, of_events)
    schemas = SchemaPublisher(catalog, js, encoder, setup.stream)
    plan = await find_start(config, config.postgres, catalog, js, setup)
    try:
        current = await schemas.publish_current(plan.tables)
    except BaseException:
        plan.close()
        raise
    start, store = plan.start, plan.store
    if not store.record.schemas:
        store.record = replace(store.record, schemas=current, position=start.skip, last_seq=start.last_seq)
    return Session(js, setup, plan, schemas, encoder, compressors, Suspensions(store, telemetry), transactions)
