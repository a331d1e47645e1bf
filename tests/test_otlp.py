"""OpenTelemetry: what a receiver decodes is what the bridge did; one that fails or is missing harms nothing."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.embedded.nats import NatsServer
from tests.conftest import MakeBridge
from tests.otlp_receiver import OtlpReceiver, attributes
from tests.servers import HANG_S, ROOT, Database, wait_for, wait_for_events


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    receiver = OtlpReceiver()
    yield receiver
    receiver.end()


def test_metrics_and_a_span_per_batch_arrive_and_are_true(
    receiver: OtlpReceiver, database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE users")
    bridge = make_bridge(database, nats, env={
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url + "/", "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20hunter2-secret",
        "OTEL_METRIC_EXPORT_INTERVAL": "200", "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test", "OTEL_SERVICE_NAME": "mine",
    })  # fmt: skip
    before_ns = time.time_ns()
    for transaction in range(5):
        database.execute(f"INSERT INTO users SELECT generate_series({transaction * 10}, {transaction * 10 + 9})")
    database.execute("DELETE FROM users WHERE id < 3")
    stored = wait_for_events(nats.url, 53)

    def total(name: str, **labels: str) -> int:
        found = [point for point in receiver.metrics()[name].sum.data_points if labels.items() <= attributes(point.attributes).items()]  # fmt: skip
        return int(found[0].as_int)

    wait_for(lambda: receiver.requests["/v1/metrics"] and total("bridge_cdc_events_published") == 53, bridge.log)
    assert total("bridge_table_events", table="users", operation="insert") == 50
    assert total("bridge_table_events", table="users", operation="delete") == 3
    metrics = receiver.metrics()
    assert metrics["bridge_connected"].gauge.data_points[0].as_int == 1
    assert metrics["bridge_lag_seconds"].unit == "s"
    latency = metrics["bridge_event_latency_seconds"].histogram.data_points[0]
    assert latency.count == 53 == sum(latency.bucket_counts)
    assert len(latency.bucket_counts) == len(latency.explicit_bounds) + 1
    _, text = bridge.get("/metrics")
    shown = {name.removesuffix("_total") for name in re.findall(r"^([a-z_]+?)(?:_bucket|_sum|_count)?(?:\{.*\})? ", text, re.MULTILINE)}  # fmt: skip
    endless = {"bridge_slot_seconds_to_loss"}  # +Inf, until there is something to extrapolate
    assert shown - endless <= metrics.keys() | endless

    assert bridge.stop() == 0
    spans = receiver.spans()
    seen = [attributes(span.attributes) for span in spans]
    assert sum(one["walbridge.events"] for one in seen) == 53
    assert sum(one["messaging.batch.message_count"] for one in seen) == 53
    assert max(one["walbridge.stream_seq"] for one in seen) == stored[-1].seq
    commits_us = {event.body["commit_ts"] for event in stored}
    for span, one in zip(spans, seen, strict=True):
        assert (span.name, one["messaging.destination.name"]) == ("publish CDC", "CDC")
        assert round(span.start_time_unix_nano / 1000) in commits_us
        (sent,) = span.events
        assert before_ns - 10**9 < span.start_time_unix_nano <= sent.time_unix_nano <= span.end_time_unix_nano < time.time_ns()
    assert len({span.span_id for span in spans}) == len(spans)
    for resource in receiver.resources():
        assert resource["service.name"] == "mine"
        assert resource["deployment.environment"] == "test"
        assert resource["walbridge.stream"] == "CDC"
    assert all(headers.get("authorization") == "Bearer hunter2-secret" for headers in receiver.headers)
    assert "hunter2" not in bridge.log()


@pytest.mark.parametrize("trouble", ["answers 500", "never answers", "a wrong variable"])
def test_no_trouble_with_the_receiver_harms_the_bridge(
    trouble: str, receiver: OtlpReceiver, database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    receiver.status = 500
    if trouble == "never answers":
        receiver.shutdown()  # it still takes connections
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_METRIC_EXPORT_INTERVAL": "100", "OTEL_EXPORTER_OTLP_TIMEOUT": "2"}
    if trouble == "a wrong variable":
        env["OTEL_EXPORTER_OTLP_TIMEOUT"] = "soon"
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE users")
    bridge = make_bridge(database, nats, env=env)
    database.execute("INSERT INTO users VALUES (1)")
    assert len(wait_for_events(nats.url, 1)) == 1
    if trouble != "never answers":
        wait_for(lambda: re.search("Failed to export|does not take a setting", bridge.log()), bridge.log)
    assert bridge.get("/ready")[0] == 200
    began = time.monotonic()
    assert bridge.stop() == 0
    assert time.monotonic() - began < HANG_S / 2, "the bridge's end does not wait for the receiver"
    assert "Traceback" not in bridge.log()


def test_without_the_library_the_bridge_streams_and_says_what_is_missing(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, tmp_path: Path
) -> None:
    (tmp_path / "opentelemetry.py").write_text("raise ModuleNotFoundError(\"No module named 'opentelemetry'\")")
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE users")
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "PYTHONPATH": str(tmp_path)}
    bridge = make_bridge(database, nats, env=env)
    assert "pip install 'walbridge[otel]'" in bridge.log()
    assert bridge.stop() == 0


def test_it_costs_nothing_while_it_is_off() -> None:
    code = "import sys, actors.bridge; print([name for name in sys.modules if name.startswith(('opentelemetry', 'actors.statsd', 'actors.otlp'))])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
