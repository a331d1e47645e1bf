"""What OpenTelemetry is sent is what /metrics shows: every series, with its labels and its value."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.parser import text_string_to_metric_families

from actors.positions import Lsn
from actors.settings.resolve import resolve
from actors.telemetry.metrics import Metrics
from actors.telemetry.otlp_metrics import metrics_data
from actors.telemetry.telemetry import Telemetry

CONFIG = resolve({}, {"DATABASE_URL": "postgresql://someone@localhost/app"})
MOVING = ("process_", "python_gc_", "bridge_uptime", "bridge_lag")
"""What differs between two looks."""

names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n"), min_size=1, max_size=20)
counts = st.integers(0, 2**53)


@st.composite
def telemetries(draw: st.DrawFn) -> Telemetry:
    telemetry = Telemetry(
        events_published=draw(counts),
        confirmed_lsn=Lsn(draw(st.integers(0, 2**53))),
        wal_messages_received=draw(counts),
        table_events={(draw(names), draw(names), "insert"): draw(counts) for _ in range(draw(st.integers(0, 4)))},
        errors_by_code={f"WB{draw(st.integers(100, 999))}": draw(counts)},
    )
    for seconds in draw(st.lists(st.floats(0, 1000), max_size=20)):
        telemetry.event_latency_s.observe(seconds, draw(st.integers(1, 5)))
    return telemetry


def shown(metrics: Metrics) -> dict[tuple[Any, ...], float]:
    """(name, labels) -> value, as a scrape reads the text."""
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.startswith(MOVING) and math.isfinite(sample.value)
    }


def sent(metrics: Metrics) -> dict[tuple[Any, ...], float]:
    """The same of what goes over the wire, with histograms spread as the text spreads them."""
    data = metrics_data(list(metrics.families()), Resource({}), InstrumentationScope("x"), started_ns=1, now_ns=2)
    found: dict[tuple[Any, ...], float] = {}
    for metric in encode_metrics(data).resource_metrics[0].scope_metrics[0].metrics:
        if metric.name.startswith(MOVING):
            continue
        if metric.WhichOneof("data") == "histogram":
            (point,) = metric.histogram.data_points
            bounds = [*map(str, point.explicit_bounds), "+Inf"]
            total = 0
            for bound, count in zip(bounds, point.bucket_counts, strict=True):
                total += count
                found[f"{metric.name}_bucket", ("le", bound)] = total
            found[(f"{metric.name}_sum",)] = point.sum
            found[(f"{metric.name}_count",)] = point.count
            continue
        is_counter = metric.WhichOneof("data") == "sum"
        assert not is_counter or metric.sum.is_monotonic
        for one in metric.sum.data_points if is_counter else metric.gauge.data_points:
            labels = sorted((label.key, label.value.string_value) for label in one.attributes)
            value = float(one.as_int if one.WhichOneof("value") == "as_int" else one.as_double)  # as the text is read
            found[f"{metric.name}_total" if is_counter else metric.name, *labels] = value
    return found


@settings(max_examples=50)
@given(telemetries())
def test_every_series_is_sent_with_its_value(telemetry: Telemetry) -> None:
    metrics = Metrics(telemetry, CONFIG)
    assert with_numbers(sent(metrics)) == with_numbers(shown(metrics))


def with_numbers(series: dict[tuple[Any, ...], float]) -> dict[tuple[Any, ...], float]:
    """Bounds of buckets as numbers: 1 and 1.0 are one bound. Values as Prometheus has them: floats, also beyond 2^53."""
    return {
        tuple(("le", float(part[1])) if part[0] == "le" else part for part in key): float(value)
        for key, value in series.items()
    }
