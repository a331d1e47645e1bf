"""The mirror's /metrics: how far the replica is behind, the changes applied, and whether verify found it equal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import product

import prometheus_client
from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from actors import __version__
from actors.mirror.state import STATES
from actors.mirror.view import View
from actors.telemetry.metrics import OPERATIONS, TABLES_MAX, counter, gauge


class MirrorMetrics:
    """Renders the text format at each scrape, from a registry of its own."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._shown: dict[str, None] = {}
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def render(self) -> bytes:
        """Render the text format, version 0.0.4."""
        return bytes(generate_latest(self._registry))

    def collect(self) -> Iterator[Metric]:
        """Yield every metric; the registry calls this."""
        view, counts = self._view, self._view.counts
        yield gauge("mirror_lag_seconds", "How far the replica is behind the stream at most.", counts.lag_s(time.time()))
        yield gauge("mirror_connected", "1 while the replica and NATS are both there.", counts.connected)
        labels = {"version": __version__, "stream_name": view.stream, "replica": view.kind}
        yield InfoMetricFamily("mirror", "What runs here.", labels)
        yield gauge("mirror_position_sequence", "Up to which everything is in the replica.", view.position_seq)
        yield gauge("mirror_history_used_ratio", "Share of the stream not applied yet.", self._history_used())
        states = GaugeMetricFamily("mirror_tables", "Tables, by state.", labels=["state"])
        for state in STATES:
            states.add_metric([state], sum(found == state for _, found in view.states))
        yield states
        yield self._rows()
        yield counter("mirror_snapshots", "Snapshots that became a table.", counts.snapshots)
        yield counter("mirror_snapshot_rows", "Rows of snapshots.", counts.snapshot_rows)
        again = CounterMetricFamily("mirror_resnapshots", "Tables that had to be copied again.", labels=["reason"])
        for cause, count in counts.resnapshots.items():
            again.add_metric([cause], count)
        yield again
        yield counter("mirror_unknown_values", "Values that events left out as too large: null here.", counts.unknown_values)
        yield gauge("mirror_wal_bytes", "Size of a SQLite replica's write-ahead log.", counts.wal_bytes)
        yield gauge("mirror_verify_mismatched_keys", "Keys that differed when verify ran last.", counts.mismatched_keys)
        yield gauge(
            "mirror_verify_last_success_timestamp_seconds", "Since then every table was found equal.", counts.verified_at
        )

    def _history_used(self) -> float:
        counts = self._view.counts
        held = counts.last_seq - counts.first_seq + 1
        if not self._view.has_checkpoint or held <= 0:
            return 0.0
        return min(1.0, max(0, counts.last_seq - self._view.position_seq) / held)

    def _rows(self) -> Metric:
        counts = self._view.counts
        for token in self._view.tokens:
            if len(self._shown) < TABLES_MAX:  # those that came first: a counter may not change its name and fall
                self._shown[token] = None
        series = dict.fromkeys(product(self._shown, OPERATIONS), 0)
        for (token, operation), rows in counts.rows.items():
            key = (token if token in self._shown else "_other", operation)
            series[key] = series.get(key, 0) + rows
        family = CounterMetricFamily("mirror_rows_applied", "Changes in the replica.", labels=["table", "operation"])
        for labels, rows in series.items():
            family.add_metric(labels, rows)
        return family
