"""otlp_exporter: sends metrics, and a span per batch from commit to stored, to an OpenTelemetry receiver.

The library works in threads, with one request at a time for each of the two; the loop only copies the figures. Needs the extra
`otel`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

import trio
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanKind
from opentelemetry.util.re import parse_env_headers

from actors import __version__
from actors.positions import format_lsn
from actors.settings.config import Config
from actors.telemetry.log import get_logger
from actors.telemetry.metrics import Metrics
from actors.telemetry.otlp_metrics import metrics_data
from actors.telemetry.telemetry import StoredBatch, Telemetry

log = get_logger("otlp_exporter")

SPANS_EVERY_S = 5.0
SPANS_MAX = 2048
"""Batches between two exports; of more, the oldest ones have no span. Both are the standard's defaults."""
LAST_EXPORT_S = 2.0
"""How long the end of the bridge waits for a last export."""


async def export_otlp(config: Config, telemetry: Telemetry) -> None:
    """Export until cancelled, and once more then. What goes wrong is only logged."""
    logging.getLogger("opentelemetry").setLevel(logging.ERROR)  # each attempt that is made again would be a warning
    try:
        exports = _exports(config, telemetry)
    except Exception as exc:  # a variable that the library reads itself
        log.warning("cannot export OpenTelemetry: the library does not take a setting", reason=str(exc))
        return
    try:
        async with trio.open_nursery() as nursery:
            for every_s, copied in exports:
                nursery.start_soon(_export_regularly, every_s, copied)
    finally:
        with trio.move_on_after(LAST_EXPORT_S) as last:
            last.shield = True
            async with trio.open_nursery() as nursery:
                for _, copied in exports:
                    nursery.start_soon(_in_thread, copied())


Copied = Callable[[], Callable[[], None]]
"""Takes the figures of this moment; what it returns sends them, in a thread."""


def _exports(config: Config, telemetry: Telemetry) -> list[tuple[float, Copied]]:
    """(seconds between two exports, what to export). Raises what the library does for a wrong variable."""
    resource = resource_of(config)
    found: list[tuple[float, Copied]] = []
    if config.otlp.metrics == "otlp":
        found.append((config.otlp.metrics_every_ms / 1000, _MetricExport(config, telemetry, resource).copied))
    if config.otlp.traces == "otlp":
        found.append((SPANS_EVERY_S, _SpanExport(config, telemetry, resource).copied))
    return found


async def _export_regularly(every_s: float, copied: Copied) -> None:
    while True:
        await trio.sleep(every_s)
        await _in_thread(copied())


async def _in_thread(export: Callable[[], None]) -> None:
    try:
        # a receiver that does not answer must not keep the bridge from ending
        await trio.to_thread.run_sync(export, abandon_on_cancel=True)
    except Exception as exc:  # nothing that goes wrong here may harm the bridge; the library logs what it knows itself
        log.warning("cannot export OpenTelemetry", reason=f"{type(exc).__name__}: {exc}")


def resource_of(config: Config) -> Resource:
    """Who sends: OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES beat what we say of ourselves."""
    ours = {
        "service.name": "walbridge", "service.version": __version__, "service.instance.id": config.source.slot,
        "walbridge.slot": config.source.slot, "walbridge.publication": config.source.publication,
        "walbridge.stream": config.publish.stream,
    }  # fmt: skip
    return Resource.create().merge(Resource(ours)).merge(OTELResourceDetector().detect())


def _address(config: Config, signal: str) -> tuple[str, Mapping[str, str]]:
    """Where a signal goes, and with which headers."""
    return f"{config.otlp.endpoint.rstrip('/')}/v1/{signal}", parse_env_headers(config.otlp.headers, liberal=True)


class _MetricExport:
    """Everything that /metrics shows."""

    def __init__(self, config: Config, telemetry: Telemetry, resource: Resource) -> None:
        endpoint, headers = _address(config, "metrics")
        self._exporter = OTLPMetricExporter(endpoint=endpoint, headers=headers)
        self._metrics = Metrics(telemetry, config)
        self._resource, self._scope = resource, InstrumentationScope("walbridge", __version__)
        self._started_ns = int(telemetry.started_at * 1e9)
        self._one_at_a_time = threading.Lock()

    def copied(self) -> Callable[[], None]:
        """Take the figures of this moment; the result sends them, in a thread."""
        families, now_ns = list(self._metrics.families()), time.time_ns()

        def export() -> None:
            with self._one_at_a_time:
                self._exporter.export(
                    metrics_data(families, self._resource, self._scope, started_ns=self._started_ns, now_ns=now_ns)
                )

        return export


class _Ended(SpanProcessor):
    """Keeps the spans that were sampled until they are taken."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled:
            self.spans.append(span)


class _SpanExport:
    """A span per stored batch. The library samples as OTEL_TRACES_SAMPLER says."""

    def __init__(self, config: Config, telemetry: Telemetry, resource: Resource) -> None:
        endpoint, headers = _address(config, "traces")
        self._exporter = OTLPSpanExporter(endpoint=endpoint, headers=headers)
        self._stream = config.publish.stream
        self._ended = _Ended()
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(self._ended)
        self._tracer = provider.get_tracer("walbridge", __version__)
        self._stored: deque[StoredBatch] = deque(maxlen=SPANS_MAX)
        telemetry.stored_batches = self._stored
        self._one_at_a_time = threading.Lock()

    def copied(self) -> Callable[[], None]:
        """Take the batches that were stored since; the result makes spans of them and sends them, in a thread."""
        batches = list(self._stored)
        self._stored.clear()

        def export() -> None:
            with self._one_at_a_time:
                for batch in batches:
                    self._make_span(batch)
                spans, self._ended.spans = self._ended.spans, []
                if spans:
                    self._exporter.export(spans)

        return export

    def _make_span(self, batch: StoredBatch) -> None:
        sent_ns, stored_ns = int(batch.sent_at * 1e9), int(batch.stored_at * 1e9)
        # PostgreSQL's clock may be ahead of ours
        begin_ns = min(int(batch.committed_at * 1e9), sent_ns) if batch.committed_at else sent_ns
        span = self._tracer.start_span(
            f"publish {self._stream}", kind=SpanKind.PRODUCER, start_time=begin_ns,
            attributes={
                "messaging.system": "nats", "messaging.operation.type": "send", "messaging.destination.name": self._stream,
                "messaging.batch.message_count": batch.messages, "walbridge.events": batch.events,
                "walbridge.bytes": batch.bytes, "walbridge.stream_seq": batch.last_seq,
                "walbridge.end_lsn": format_lsn(batch.end_lsn),
            },
        )  # fmt: skip
        span.add_event("sent", timestamp=sent_ns)
        span.end(end_time=stored_ns)
