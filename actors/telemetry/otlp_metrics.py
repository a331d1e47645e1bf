"""The metrics of /metrics as OpenTelemetry has them: the same names, labels and values. Needs the extra `otel`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.export import Metric as OtlpMetric
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.core import Metric
from prometheus_client.samples import Sample

UNITS = {"seconds": "s", "bytes": "By"}
"""The last word of a name -> the unit, as UCUM spells it."""
_CUMULATIVE = AggregationTemporality.CUMULATIVE


def metrics_data(
    families: Iterable[Metric], resource: Resource, scope: InstrumentationScope, *, started_ns: int, now_ns: int
) -> MetricsData:
    """What an OTLP exporter takes. Counters and histograms count since `started_ns`. Infinite values are left out."""
    metrics = [metric for family in families for metric in _converted(family, started_ns, now_ns)]
    return MetricsData([ResourceMetrics(resource, [ScopeMetrics(scope, metrics, "")], "")])


def _converted(family: Metric, started_ns: int, now_ns: int) -> Iterator[OtlpMetric]:
    unit = UNITS.get(family.name.rpartition("_")[2], "")
    if family.type == "histogram":
        yield OtlpMetric(
            family.name, family.documentation, unit, Histogram([_histogram(family, started_ns, now_ns)], _CUMULATIVE)
        )
        return
    points = [
        NumberDataPoint(dict(sample.labels), started_ns, now_ns, _whole(sample.value))
        for sample in family.samples
        if math.isfinite(sample.value)
    ]
    if not points:
        return
    if family.type == "counter":
        yield OtlpMetric(family.name, family.documentation, unit, Sum(points, _CUMULATIVE, is_monotonic=True))
    else:
        name = family.samples[0].name  # an info is called bridge, its sample bridge_info
        yield OtlpMetric(name, family.documentation, unit, Gauge(points))


def _histogram(family: Metric, started_ns: int, now_ns: int) -> HistogramDataPoint:
    """One without labels, as all of ours are."""
    buckets: list[Sample] = [sample for sample in family.samples if sample.name.endswith("_bucket")]
    (total,) = [sample.value for sample in family.samples if sample.name.endswith("_sum")]
    below = [int(sample.value) for sample in buckets]
    counts = [upto - before for upto, before in zip(below, [0, *below], strict=False)]
    bounds = [float(sample.labels["le"]) for sample in buckets[:-1]]
    return HistogramDataPoint({}, started_ns, now_ns, below[-1], total, counts, bounds, math.inf, -math.inf)


def _whole(value: float) -> float:
    """An LSN is beyond what a float shows in all its digits: whole numbers are sent as such."""
    return int(value) if value == int(value) else value
