"""The running bridge's figures about itself, for the log line, /status, /metrics and the heartbeat.

An actor writes its own fields and reads no others; the pipeline decides nothing from these values.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from actors.contract.reader_note import ReaderNote
from actors.positions import NO_LSN, Lsn
from actors.telemetry.backlog import Backlog
from actors.telemetry.journal import Journal
from actors.telemetry.looking import Looking

if TYPE_CHECKING:
    from actors.channels import Channel

State = Literal["starting", "streaming", "waiting_postgres", "waiting_nats", "draining", "paused", "halted"]
Operation = Literal["insert", "update", "delete", "truncate", "schema"]


class Histogram:
    """Counts by upper bound, as Prometheus expects them, and by finer ones, for percentiles that people read.

    One writer; `observe` costs a bisection.
    """

    PARTS = 8
    """Finer buckets of each bucket."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        pairs = zip((0.0, *bounds), bounds, strict=False)
        self.fine_bounds = [low + (high - low) * part / self.PARTS for low, high in pairs for part in range(1, self.PARTS + 1)]
        self.fine_counts = [0] * (len(self.fine_bounds) + 1)
        self.sum = 0.0

    @property
    def counts(self) -> list[int]:
        """By `bounds`, and beyond the last one."""
        return [sum(self.fine_counts[at : at + self.PARTS]) for at in range(0, len(self.fine_counts), self.PARTS)]

    def observe(self, value: float, times: int = 1) -> None:
        self.fine_counts[bisect_left(self.fine_bounds, value)] += times
        self.sum += value * times


@dataclass(slots=True)
class SlotHealth:
    """The slot as PostgreSQL sees it. Written by the wal_monitor."""

    active: bool = False
    current_lsn: Lsn = NO_LSN
    restart_lsn: Lsn = NO_LSN
    confirmed_lsn: Lsn = NO_LSN
    wal_status: str = ""
    safe_wal_bytes: int | None = None
    """None without a limit, and when the slot is lost."""
    wal_limited: bool = False
    """False when max_slot_wal_keep_size is -1: a stopped bridge can then fill PostgreSQL's disk."""
    catalog_xmin_age: int = 0
    spill_bytes: int = 0
    seconds_to_loss: float = float("inf")
    looked_at: float = 0.0
    """0: not yet."""
    is_gone: bool = False
    """It was there, or must have been, and is not any more."""

    @property
    def lag_bytes(self) -> int:
        """WAL that PostgreSQL's disk holds for the slot: current minus restart_lsn."""
        return max(0, self.current_lsn - self.restart_lsn) if self.restart_lsn else 0


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that the user should know, in the four parts of an error."""

    code: str
    what: str
    said: str = ""
    means: str = ""
    fix: str = ""
    since_unix_s: float = field(default_factory=time.time)
    acknowledge: str = ""
    """Path of the HTTP server to which a POST says that the user knows; empty if it goes away by itself."""


@dataclass(slots=True)
class StreamHealth:
    """The CDC stream as JetStream sees it. Written by the stream_monitor."""

    messages: int = 0
    bytes: int = 0
    bytes_max: int = 0
    """0 for no limit."""
    first_seq: int = 0
    last_seq: int = 0
    oldest_unix_s: float = 0.0
    looked_at: float = 0.0
    """0: not yet, or the NATS user may not read the stream's info."""
    deleted: int = 0
    """Messages that somebody deleted between the first and the last one."""
    messages_max: int = 0
    """0 for no limit."""
    age_max_s: float = 0.0
    """0 for no limit."""
    discards_old: bool = True
    """At its limits the stream removes its oldest messages; False if it refuses new ones."""


@dataclass(frozen=True, slots=True)
class ConsumerHealth:
    """A consumer of the CDC stream. Written by the stream_monitor."""

    name: str
    pending: int
    """Messages not yet sent to it."""
    unacknowledged: int
    history_used: float
    """Share of the stream's messages not yet sent to it; at 1 the next message that the stream removes is one of them."""
    is_left: bool = False
    """It has no name, and nobody reads it: JetStream removes it soon."""
    looked_at: float = 0.0
    filters: tuple[str, ...] = ()
    """Subjects that it reads; empty for all."""
    acknowledges: bool = True
    delivered_seq: int = 0
    """The stream's sequence of the last message sent to it."""
    acknowledged_seq: int = 0
    """Up to which it has acknowledged everything; without acknowledgements the last one sent."""
    created_at: float = 0.0
    active_at: float = 0.0
    """When a message was last sent to it; 0 for never."""
    note: ReaderNote = field(default_factory=ReaderNote)
    """What it says about itself."""


class RunBegin(NamedTuple):
    """Where a run of the pipeline begins."""

    last_seq: int
    """Of the stream."""
    skip_lsn: Lsn
    """Of the last transaction of which the stream holds anything."""
    confirmed_lsn: Lsn
    """The slot's own."""
    wal_end: Lsn
    """Of PostgreSQL."""


class StoredBatch(NamedTuple):
    """A batch on its way from commit to stored. Times are time.time()."""

    committed_at: float
    """Commit time of its oldest change; 0 when it has none."""
    sent_at: float
    stored_at: float
    messages: int
    events: int
    bytes: int
    last_seq: int
    end_lsn: Lsn


SnapshotState = Literal["waiting", "running", "done", "failed"]


@dataclass(slots=True)
class SnapshotProgress:
    """The last snapshot of one table. Written by `SnapshotBoard`."""

    table: str
    """Its token."""
    state: SnapshotState = "waiting"
    snapshot_id: str = ""
    rows: int = 0
    rows_expected: int = 0
    """From PostgreSQL's statistics; 0 without statistics."""
    chunks: int = 0
    bytes: int = 0
    """As sent."""
    started_at: float = 0.0
    seconds: float = 0.0
    error: str = ""
    fix: str = ""
    """What to do after a failure."""
    rounds: int = 0
    """Transactions in which rows were read."""
    transaction_since: float = 0.0
    """Since when an open transaction of the snapshot holds back VACUUM; 0 while there is none."""


@dataclass(slots=True)
class Telemetry:
    """All counters and gauges. Times ending in `_at` are time.time(), 0 for never.

    | fields | written by |
    |---|---|
    | state, faults, connections, tables, `publish_mode` | the supervisor |
    | `problems` | the supervisor (what preflight found, by its words), the wal_monitor (`wal`, `slot`) and the stream_monitor |
    | `channels`, `run_began_at`; the start of `sent_*`, `stored_*`, `backlog`, positions | the pipeline, per run: `begin_run` |
    | `received_*`, `wal_*`, `last_received_at` | the replication_reader |
    | `decoded_lsn`, `transactions`, `last_commit_at` and the like | the decoder |
    | `events_omitting_columns` | the batcher |
    | `paused_at`, `pause_recorded` | `Pause`, for the HTTP server and the supervisor |
    | `suspended_tables` | `Suspensions`, for the batcher and the snapshotter |
    | `sent_*`, `published_*` | the publisher |
    | `publish_rejected` | `Acknowledgements`, in the NATS connection's reader |
    | `stored_*`, `durable_lsn`, `confirmed_lsn`, events, latencies | the acker |
    | `stored_batches` | the acker, once the otlp_exporter has set it up; that takes them out |
    | `backlog` | the decoder, the acker and the wal_monitor |
    | `snapshot_rate_mb_s` | `Pace`, for the HTTP server |
    | other `snapshot*` | `SnapshotBoard`, for the snapshotter |
    | `stream`, `consumers` | the stream_monitor |
    | `journal` | the supervisor, `SnapshotBoard`, `Suspensions`, and the monitors of publication, stream and WAL |
    | `slot` | the wal_monitor |
    | `looking` | the HTTP server |

    Read by the log line, the HTTP server and the history behind its page, and the heartbeat.
    """

    started_at: float = field(default_factory=time.time)
    journal: Journal = field(default_factory=Journal)
    # the bridge (supervisor)
    postgres_address: str = ""
    """host:port/database."""
    nats_address: str = ""
    """host:port of the server that the pipeline was last connected to."""
    state: State = "starting"
    not_ready_reason: str = "starting"
    postgres_connected: bool = False
    nats_connected: bool = False
    reconnects: int = 0
    nats_reconnects: int = 0
    fenced: int = 0
    gaps: int = 0
    """Gap events stored by this process."""
    gap_problems: tuple[Problem, ...] = ()
    """Gap events that nobody has acknowledged, also those of earlier processes."""
    problems: dict[str, Problem] = field(default_factory=dict)
    """By their `what`, or `wal` and `slot`."""
    fault: Problem | None = None
    """Why the pipeline is not running now."""
    outage: set[str] = field(default_factory=set)
    """Who is away since the bridge last streamed, and the codes that were noted since."""
    recent_faults: deque[Problem] = field(default_factory=lambda: deque(maxlen=20))
    """Faults that ended earlier runs of the pipeline, the newest last."""
    tables: tuple[str, ...] = ()
    """Tokens of the published tables when the pipeline last started."""
    errors_by_code: dict[str, int] = field(default_factory=dict)
    publish_mode: str = ""
    confirm_hold_s: float = 0.0
    """From the acknowledgement to the confirmation; up to a quarter more."""
    # Pause
    paused_at: float = 0.0
    """Since when the bridge is to be paused; 0 while it is to stream."""
    pause_recorded: bool = True
    """Whether the bridge's record says the same: a restart follows it."""
    # the pipeline
    channels: dict[str, Channel[Any]] = field(default_factory=dict)
    backlog: Backlog = field(default_factory=Backlog)
    # replication_reader
    wal_messages_received: int = 0
    wal_bytes_received: int = 0
    received_lsn: Lsn = NO_LSN
    last_received_at: float = 0.0
    run_began_at: float = 0.0
    # decoder
    decoded_lsn: Lsn = NO_LSN
    transactions: int = 0
    largest_transaction_events: int = 0
    last_commit_at: float = 0.0
    last_processing_time_us: int = 0
    # Suspensions
    suspended_tables: dict[str, Problem] = field(default_factory=dict)
    # batcher
    events_omitting_columns: int = 0
    # publisher
    published_lsn: Lsn = NO_LSN
    published_bytes: int = 0
    sent_seq: int = 0
    """The stream's sequence of the last message sent."""
    sent_bytes: int = 0
    """Of batches handed to NATS since this run of the pipeline began."""
    # Acknowledgements
    publish_rejected: Counter[int] = field(default_factory=Counter)
    """Refused messages by JetStream's code."""
    # acker: what JetStream has acknowledged
    events_published: int = 0
    table_events: dict[tuple[str, str, str], int] = field(default_factory=dict)
    """(schema, table, operation) -> events acknowledged by JetStream."""
    stored_seq: int = 0
    """The stream's sequence of the last message acknowledged."""
    stored_bytes: int = 0
    durable_lsn: Lsn = NO_LSN
    confirmed_lsn: Lsn = NO_LSN
    last_ack_at: float = 0.0
    event_latency_s: Histogram = field(
        default_factory=lambda: Histogram((0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300))
    )
    ack_s: Histogram = field(
        default_factory=lambda: Histogram((0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5, 10, 30))
    )
    stored_batches: deque[StoredBatch] | None = None
    """The last batches, for whoever takes them out; None while nobody does."""
    # snapshots (SnapshotBoard)
    snapshot_rate_mb_s: int = 0
    """What all snapshots together may send; 0 without limit."""
    snapshots: dict[str, SnapshotProgress] = field(default_factory=dict)
    """By table token: waiting and running snapshots, and the last that ended."""
    snapshot_requests_waiting: int = 0
    snapshots_done: int = 0
    snapshots_failed: int = 0
    snapshot_rounds: int = 0
    """Transactions in which rows were read."""
    snapshot_rows: int = 0
    snapshot_bytes: int = 0
    looking: Looking = field(default_factory=Looking)
    # stream_monitor
    stream: StreamHealth = field(default_factory=StreamHealth)
    consumers: tuple[ConsumerHealth, ...] = ()
    """The consumers furthest behind; none when the NATS user may not list them."""
    # wal_monitor
    slot: SlotHealth = field(default_factory=SlotHealth)

    def begin_run(self, channels: dict[str, Channel[Any]], begin: RunBegin) -> None:
        """Reset the figures of a run; unstored batches of the previous run come again."""
        self.channels, self.run_began_at = channels, time.time()
        self.backlog.begin(begin.skip_lsn, begin.wal_end, self.run_began_at)
        self.sent_seq = self.stored_seq = begin.last_seq
        self.sent_bytes = self.stored_bytes = 0
        self.received_lsn = self.decoded_lsn = self.published_lsn = self.durable_lsn = self.confirmed_lsn = begin.confirmed_lsn

    def note_fault(self, fault: Problem, *, from_source: bool = False) -> None:
        """Note that the pipeline has ended and will restart. An outage counts once for each side, however many attempts it
        takes; of its faults, each kind is kept once, with its first time.
        """
        self.state = "waiting_postgres" if from_source else "waiting_nats"
        self.errors_by_code[fault.code] = self.errors_by_code.get(fault.code, 0) + 1
        if self.state not in self.outage:
            self.reconnects += from_source
            self.nats_reconnects += not from_source
        if self.fault is None or self.fault.what != fault.what:
            self.fault = fault
        if fault.code not in self.outage:
            self.recent_faults.append(fault)
        self.outage |= {self.state, fault.code}

    def note_streaming(self, tables: tuple[str, ...]) -> None:
        """Note that the pipeline runs: an outage, if there was one, is over."""
        self.state, self.not_ready_reason, self.fault = "streaming", "", None
        self.tables = tables
        self.outage.clear()

    def show_nats(self, is_connected: bool) -> None:
        """Note whether NATS is connected while no pipeline runs."""
        self.nats_connected = is_connected

    def note_pause(self) -> None:
        """Note that nobody reads the slot, as an operator wants it: an outage, if there was one, is over."""
        self.state, self.fault, self.slot.active = "paused", None, False
        self.outage.clear()

    def show_wait(self, problem: Problem) -> None:
        """Note what a start waits for. Not a fault: nothing ends or restarts."""
        self.not_ready_reason, self.fault = problem.what, problem

    @property
    def connected(self) -> bool:
        """Connected on both sides."""
        return self.postgres_connected and self.nats_connected

    @property
    def in_flight_messages(self) -> int:
        """Messages sent and not yet acknowledged."""
        return self.sent_seq - self.stored_seq

    @property
    def has_events_on_their_way(self) -> bool:
        """Whether events are between PostgreSQL and JetStream's acknowledgement."""
        return self.in_flight_messages > 0 or any(channel.items_waiting for channel in self.channels.values())

    @property
    def in_flight_bytes(self) -> int:
        """Bytes sent and not yet acknowledged."""
        return self.sent_bytes - self.stored_bytes

    @property
    def uptime_s(self) -> int:
        return int(time.time() - self.started_at)
