"""Prometheus metrics: ten lines that shell scripts parse, written by hand as plain integers, then all others."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

import prometheus_client
from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    StateSetMetricFamily,
)
from psycopg.conninfo import conninfo_to_dict

from actors import __version__
from actors.contract.table_token import split_token
from actors.errors import TRANSIENT_CODES
from actors.settings.config import Config
from actors.telemetry import figures
from actors.telemetry.telemetry import Histogram, Telemetry
from actors.wire.jetstream import UNAVAILABLE, ErrCode

STATES = ("starting", "streaming", "waiting_postgres", "waiting_nats", "draining", "paused", "halted")
OPERATIONS = ("insert", "update", "delete", "truncate")
WAL_STATUSES = ("reserved", "extended", "unreserved", "lost")
FAULTS = TRANSIENT_CODES
"""Codes of `bridge_errors_total`, present from the start, so that an increase from 0 is seen."""
REJECTIONS = (
    UNAVAILABLE,
    ErrCode.CLUSTER_NOT_AVAILABLE,
    ErrCode.INSUFFICIENT_RESOURCES,
    ErrCode.STORAGE_RESOURCES_EXCEEDED,
    ErrCode.MESSAGE_EXCEEDS_MAXIMUM,
    ErrCode.WRONG_LAST_MSG_ID,
    ErrCode.WRONG_LAST_SEQUENCE,
    ErrCode.STORE_FAILED,
    ErrCode.DUPLICATE_IN_PROCESS,
    ErrCode.WRONG_LAST_SEQUENCE_CONSTANT,
    ErrCode.TOO_MANY_REQUESTS,
)
"""JetStream's codes for a publish that have series of their own, from the start."""
TABLES_MAX = 200
"""Tables with their own series; the rest are counted together as `_other`."""

# name, type, help, value; scripts rely on this order, one line each, no labels, plain integers
_SEED = (
    ("bridge_uptime_seconds", "gauge", "Seconds since the process started.", lambda t: t.uptime_s),
    ("bridge_wal_messages_received_total", "counter", "Messages from PostgreSQL.", lambda t: t.wal_messages_received),
    ("bridge_cdc_events_published_total", "counter", "Events that JetStream has stored.", lambda t: t.events_published),
    ("bridge_last_ack_lsn", "gauge", "LSN confirmed to PostgreSQL.", figures.confirmed_lsn),
    ("bridge_connected", "gauge", "1 while streaming on both sides.", lambda t: int(t.connected)),
    ("bridge_reconnects_total", "counter", "Outages of PostgreSQL.", lambda t: t.reconnects),
    ("bridge_nats_reconnects_total", "counter", "Outages of NATS.", lambda t: t.nats_reconnects),
    ("bridge_last_processing_time_us", "gauge", "Microseconds to decode a message.", lambda t: t.last_processing_time_us),
    ("bridge_slot_active", "gauge", "1 while the slot is read.", lambda t: int(t.slot.active)),
    ("bridge_wal_lag_bytes", "gauge", "WAL that PostgreSQL keeps: current minus restart_lsn.", figures.held_bytes),
)


class Metrics:
    """Renders /metrics from the telemetry at each scrape. Owns its registry."""

    def __init__(self, telemetry: Telemetry, config: Config) -> None:
        self._telemetry, self._config = telemetry, config
        self._shown: dict[tuple[str, str], None] = {}
        self._database = str(conninfo_to_dict(config.postgres.conninfo).get("dbname") or "")
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def render(self) -> bytes:
        """Render the text format, version 0.0.4."""
        t = self._telemetry
        seed = "".join(f"# HELP {name} {text}\n# TYPE {name} {kind}\n{name} {value(t)}\n" for name, kind, text, value in _SEED)
        return seed.encode() + generate_latest(self._registry)

    def families(self) -> Iterator[Metric]:
        """Yield everything that `render` shows, for other formats."""
        for name, kind, text, value in _SEED:
            yield (
                counter(name.removesuffix("_total"), text, value(self._telemetry))
                if kind == "counter"
                else gauge(name, text, value(self._telemetry))
            )
        yield from self._registry.collect()

    def collect(self) -> Iterator[Metric]:
        """Yield every family; the registry calls this at each scrape."""
        t = self._telemetry
        yield gauge("bridge_lag_seconds", "Age of the oldest committed change not yet stored.", figures.lag_s(t, time.time()))
        yield from self._identity()
        yield from self._times(t)
        yield from self._slot(t)
        yield from self._stream(t)
        yield from self._pipeline(t)
        yield from self._snapshots(t)
        yield from self._events(t)

    def _identity(self) -> Iterator[Metric]:
        t, config = self._telemetry, self._config
        yield InfoMetricFamily(
            "bridge", "Version and settings of this bridge.",
            {
                "version": __version__, "slot_name": config.source.slot, "publication": config.source.publication,
                "stream_name": config.publish.stream, "publish": t.publish_mode, "database": self._database,
            },
        )  # fmt: skip
        state = StateSetMetricFamily("bridge_state", "What the bridge is doing.", {s: s == t.state for s in STATES})
        # the text format 0.0.4 has no state sets
        state.type = "gauge"
        yield state
        yield gauge(
            "bridge_paused_timestamp_seconds", "Since when an operator pauses the bridge; 0 while none does.", t.paused_at
        )
        yield gauge("bridge_postgres_connected", "1 while the replication stream is open.", t.postgres_connected)
        yield gauge("bridge_nats_connected", "1 while connected to NATS.", t.nats_connected)

    def _times(self, t: Telemetry) -> Iterator[Metric]:
        yield _histogram("bridge_event_latency_seconds", "Latency from commit to stored.", t.event_latency_s)
        yield _histogram("bridge_ack_seconds", "Time from sending a batch to its acknowledgement.", t.ack_s)
        yield gauge("bridge_last_received_timestamp_seconds", "When PostgreSQL last sent anything.", t.last_received_at)
        yield gauge("bridge_last_ack_timestamp_seconds", "When JetStream last acknowledged.", t.last_ack_at)
        yield gauge("bridge_last_commit_timestamp_seconds", "Commit time of the last transaction.", t.last_commit_at)
        position = GaugeMetricFamily("bridge_position_lsn", "LSN that each stage has reached.", labels=["stage"])
        for stage in ("received", "decoded", "published", "durable", "confirmed"):
            position.add_metric([stage], getattr(t, f"{stage}_lsn"))
        yield position

    def _slot(self, t: Telemetry) -> Iterator[Metric]:
        slot = t.slot
        yield gauge("bridge_wal_confirmed_lag_bytes", "WAL after the confirmed LSN.", figures.unconfirmed_bytes(t))
        yield gauge("bridge_wal_unread_bytes", "WAL that PostgreSQL has written and not sent.", figures.unread_bytes(t))
        yield gauge("bridge_slot_looked_at_timestamp_seconds", "When the slot's figures were looked up.", slot.looked_at)
        status = GaugeMetricFamily("bridge_slot_wal_status", "wal_status of the slot.", labels=["wal_status"])
        for name in WAL_STATUSES:
            status.add_metric([name], slot.wal_status == name)
        yield status
        yield gauge(
            "bridge_slot_safe_wal_bytes", "WAL until the slot is lost; 0 when unlimited or lost.", slot.safe_wal_bytes or 0
        )
        yield gauge("bridge_slot_wal_limited", "0 when max_slot_wal_keep_size is -1.", slot.wal_limited)
        yield gauge(
            "bridge_slot_seconds_to_loss",
            "Seconds until the slot is lost; +Inf while far off.",
            figures.room_s(slot),
        )
        yield gauge("bridge_slot_catalog_xmin_age", "Age of the slot's catalog_xmin in transactions.", slot.catalog_xmin_age)
        yield counter("bridge_slot_spill_bytes", "Decoded changes that PostgreSQL spilled to disk.", slot.spill_bytes)

    def _stream(self, t: Telemetry) -> Iterator[Metric]:
        stream = t.stream
        for name, text, value in (
            ("bytes", "Bytes that the stream holds.", stream.bytes),
            ("limit_bytes", "Bytes that the stream may hold; 0 for no limit.", stream.bytes_max),
            ("first_sequence", "Sequence of the oldest message.", stream.first_seq),
            ("last_sequence", "Sequence of the newest message.", stream.last_seq),
            ("oldest_timestamp_seconds", "When the oldest message was stored.", stream.oldest_unix_s),
        ):
            family = GaugeMetricFamily(f"bridge_stream_{name}", text, labels=["stream_name"])
            family.add_metric([self._config.publish.stream], value)
            yield family
        now = time.time()
        at_risk = GaugeMetricFamily(
            "bridge_consumer_at_risk", "1 while a consumer may lose messages that it has not read.",
            labels=["stream_name", "consumer_name"],
        )  # fmt: skip
        for consumer in t.consumers:
            at_risk.add_metric([self._config.publish.stream, consumer.name], figures.is_at_risk(consumer, stream, now))
        yield at_risk

    def _pipeline(self, t: Telemetry) -> Iterator[Metric]:
        items = GaugeMetricFamily("bridge_channel_items", "Items waiting in a channel.", labels=["channel"])
        capacity = GaugeMetricFamily("bridge_channel_capacity", "Items that fit into a channel.", labels=["channel"])
        blocked = CounterMetricFamily(
            "bridge_channel_blocked_seconds", "Seconds its sender waited for room.", labels=["channel"]
        )
        for name, channel in t.channels.items():
            items.add_metric([name], channel.items_waiting)
            capacity.add_metric([name], channel.capacity)
            blocked.add_metric([name], channel.blocked_s)
        yield from (items, capacity, blocked)
        yield gauge("bridge_inflight_messages", "Messages sent and not yet acknowledged.", t.in_flight_messages)
        yield gauge("bridge_inflight_bytes", "Bytes sent and not yet acknowledged.", t.in_flight_bytes)
        yield counter("bridge_transactions", "Transactions decoded.", t.transactions)
        yield counter("bridge_wal_bytes_received", "Bytes from PostgreSQL.", t.wal_bytes_received)
        yield counter("bridge_published_bytes", "Bytes sent to NATS.", t.published_bytes)
        yield gauge("bridge_largest_transaction_events", "Changes in the largest transaction.", t.largest_transaction_events)
        yield counter("bridge_gaps", "Gap events stored.", t.gaps)
        yield gauge("bridge_gaps_open", "Gap events that nobody has acknowledged.", len(t.gap_problems))
        yield counter("bridge_fenced", "Times another writer was found in the stream.", t.fenced)
        yield counter("bridge_events_omitting_columns", "Events too large to carry all columns.", t.events_omitting_columns)
        yield gauge("bridge_tables_suspended", "Suspended tables, whose events are not stored.", len(t.suspended_tables))
        problems = GaugeMetricFamily("bridge_problems", "Current problems by code.", labels=["code"])
        for code, count in sorted(
            Counter(p.code for p in (*t.problems.values(), *t.gap_problems, *t.suspended_tables.values())).items()
        ):
            problems.add_metric([code], count)
        yield problems
        errors = CounterMetricFamily("bridge_errors", "Faults so far, by code.", labels=["code"])
        for code, count in sorted({**dict.fromkeys(FAULTS, 0), **t.errors_by_code}.items()):
            errors.add_metric([code], count)
        yield errors
        rejected = CounterMetricFamily("bridge_publish_rejected", "Messages that JetStream refused.", labels=["code"])
        by_code = {**dict.fromkeys(map(str, REJECTIONS), 0), "other": 0}
        for number, count in t.publish_rejected.items():
            by_code[str(number) if number in REJECTIONS else "other"] += count
        for name, count in by_code.items():
            rejected.add_metric([name], count)
        yield rejected

    def _snapshots(self, t: Telemetry) -> Iterator[Metric]:
        ended = CounterMetricFamily("bridge_snapshots", "Snapshots that ended, by result.", labels=["result"])
        ended.add_metric(["ok"], t.snapshots_done)
        ended.add_metric(["error"], t.snapshots_failed)
        yield ended
        yield counter("bridge_snapshot_rows", "Rows of snapshots sent.", t.snapshot_rows)
        yield counter("bridge_snapshot_bytes", "Bytes of snapshots sent.", t.snapshot_bytes)
        yield counter("bridge_snapshot_rounds", "Transactions in which snapshots read rows.", t.snapshot_rounds)
        rate_bytes = t.snapshot_rate_mb_s * 1_000_000
        yield gauge("bridge_snapshot_rate_limit_bytes", "Bytes per second that snapshots may send; 0: no limit.", rate_bytes)
        yield gauge("bridge_snapshot_requests_waiting", "Tables with a waiting snapshot request.", t.snapshot_requests_waiting)
        rows = GaugeMetricFamily("bridge_snapshot_rows_done", "Rows of the running snapshot.", labels=["table"])
        expected = GaugeMetricFamily(
            "bridge_snapshot_rows_expected", "Rows it should have by PostgreSQL's statistics.", labels=["table"]
        )
        held = GaugeMetricFamily(
            "bridge_snapshot_transaction_seconds", "Age of its open transaction, which holds back VACUUM.", labels=["table"]
        )
        for progress in t.snapshots.values():
            if progress.state == "running":
                since = progress.transaction_since
                held.add_metric([progress.table], round(time.time() - since, 3) if since else 0)
                rows.add_metric([progress.table], progress.rows)
                expected.add_metric([progress.table], progress.rows_expected)
        yield from (rows, expected, held)

    def _events(self, t: Telemetry) -> Iterator[Metric]:
        by_operation = dict.fromkeys(OPERATIONS, 0)
        for (_, _, operation), count in t.table_events.items():
            by_operation[operation] = by_operation.get(operation, 0) + count
        events = CounterMetricFamily("bridge_events", "Events stored, by operation.", labels=["operation"])
        for operation, count in by_operation.items():
            events.add_metric([operation], count)
        yield events
        for schema, table in (*((s, n) for s, n, _ in t.table_events), *map(split_token, t.tables)):
            if len(self._shown) < TABLES_MAX:  # the first tables stay: a counter may not move to another name and fall
                self._shown[schema, table] = None
        shown = self._shown
        # published tables have series from the start: Prometheus sees no increase from a missing series
        series = {(*names, operation): 0 for names in shown for operation in OPERATIONS}
        for (schema, table, operation), count in t.table_events.items():
            key = (schema, table, operation) if (schema, table) in shown else ("", "_other", operation)
            series[key] = series.get(key, 0) + count
        tables = CounterMetricFamily("bridge_table_events", "Events stored, by table.", labels=["schema", "table", "operation"])
        for key, count in series.items():
            tables.add_metric(key, count)
        yield tables


def gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    """Make a gauge of one number, without labels."""
    return GaugeMetricFamily(name, text, value=value)


def counter(name: str, text: str, value: float) -> CounterMetricFamily:
    """Make a counter of one number, without labels. The text format adds `_total`."""
    return CounterMetricFamily(name, text, value=value)


def _histogram(name: str, text: str, histogram: Histogram) -> HistogramMetricFamily:
    total, buckets = 0, []
    for bound, count in zip((*map(str, histogram.bounds), "+Inf"), histogram.counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=histogram.sum)
