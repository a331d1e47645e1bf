"""A session: the shared objects of one run of the pipeline, made in one place once both sides are connected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from actors.clients.nats.dictionaries import publish_dictionaries, read_dictionaries
from actors.clients.nats.jetstream import JetStream
from actors.clients.nats.record_store import RecordStore
from actors.clients.postgres.connection import PgConnection
from actors.contract.bridge_record import UNFINISHED, BridgeRecord
from actors.contract.compression import Compressor
from actors.contract.event_encoder import EventEncoder, event_encoder
from actors.contract.publication import KnownTable
from actors.publication_model import PublicationModel
from actors.publication_monitor import read_entries
from actors.schema_publisher import SchemaPublisher
from actors.settings.config import Config
from actors.snapshots.transaction_log import TransactionLog
from actors.startup.batch_limit import USUAL_MAX
from actors.startup.checkpoint import Start
from actors.startup.start_plan import StartPlan, find_start
from actors.startup.streams import StreamSetup
from actors.suspensions import Suspensions
from actors.telemetry.log import get_logger
from actors.telemetry.telemetry import Telemetry

log = get_logger("startup")


@dataclass(frozen=True, slots=True)
class Session:
    """The objects that the actors of one run share. The bridge owns the connections.

    `suspensions` and the acker write `store`, the decoder writes `transactions`, the batcher and the snapshotter write
    `suspensions`. docs/design.md has the complete table.
    """

    js: JetStream
    setup: StreamSetup
    plan: StartPlan
    schemas: SchemaPublisher
    encoder: EventEncoder
    """Used by the batcher for events, and by the schema_publisher for documents, which do not change its state."""
    compressors: Mapping[str, Compressor]
    """By table token; only tables that have a dictionary."""
    suspensions: Suspensions
    transactions: TransactionLog
    publication: PublicationModel
    remembered: int = 0
    """Of so many messages, the first ones, JetStream may remember the ids although it holds them no more."""
    batch_messages_max: int = USUAL_MAX
    """How many messages an atomic batch may have."""

    @property
    def start(self) -> Start:
        return self.plan.start

    @property
    def store(self) -> RecordStore:
        return self.plan.store


async def open_session(
    config: Config,
    catalog: PgConnection,
    js: JetStream,
    setup: StreamSetup,
    transactions: TransactionLog,
    publication: PublicationModel,
    telemetry: Telemetry,
    *,
    history_diverged: bool,
) -> Session:
    """Decide where to resume, and put the dictionaries and schemas that readers need into NATS.

    `publication` has looked just now. `history_diverged` says that the run before ended with HistoryDiverged. The caller owns
    the plan's connection. Raises what
    `find_start` raises, SourceUnavailable and SinkUnavailable.
    """
    compressors: Mapping[str, Compressor] = {}
    if config.snapshots.zstd or config.snapshots.zstd_events:
        compressors = await publish_dictionaries(js, read_dictionaries(config.snapshots.dictionaries), setup.stream)
    of_events = compressors if config.snapshots.zstd_events else None
    if config.snapshots.zstd_events and not compressors:
        log.warning(
            "--zstd-events compresses nothing: there are no dictionaries", folder=str(config.snapshots.dictionaries.absolute()),
            fix="walbridge train --table TABLE   # makes one; --dictionaries says where they are",
        )  # fmt: skip
    encoder = event_encoder(config.publish.encoding, setup.publish_prefix, of_events)
    schemas = SchemaPublisher(catalog, js, encoder, setup.stream)
    tables = list(publication.tables.values())
    told: Mapping[str, KnownTable] = {}

    async def read_told(record: BridgeRecord | None) -> list[str]:
        """Read what readers were told; return the tables that they think to be published, or were told of in what is lost."""
        nonlocal told
        told = publication.told
        # the process begins, or somebody else has written meanwhile: an older version writes no hash, and leaves the entries
        if record is None or not record.published or record.published != publication.digest:
            told = await read_entries(js, setup.stream)
        return [token for token, known in told.items() if known.version or known.told_seq > setup.last_seq]

    plan = await find_start(
        config, catalog, js, setup, {table.token: table.relation_oid for table in tables}, read_told=read_told,
        history_diverged=history_diverged, stored_before=telemetry.stored_seq, show=telemetry.show_wait,
    )  # fmt: skip
    start, store = plan.start, plan.store
    try:
        is_first = store.record.published == UNFINISHED or not (told or store.record.published)
        publication.begin(told, start.last_seq, is_first=is_first, upgraded=plan.upgraded)
        await schemas.publish_current(tables, {token: known.schema_id for token, known in publication.told.items()})
    except BaseException:
        plan.close()
        raise
    if not store.record.schemas:
        current = {table.token: table.facts.schema_id for table in tables}
        store.record = replace(store.record, schemas=current, position=start.skip, last_seq=start.last_seq)
    return Session(js, setup, plan, schemas, encoder, compressors, Suspensions(store, telemetry), transactions, publication)
