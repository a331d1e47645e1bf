"""A receiver of OTLP over HTTP, as a collector is one: decodes what comes with the standard's own protobuf."""

from __future__ import annotations

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span

REQUESTS = {"/v1/metrics": ExportMetricsServiceRequest, "/v1/traces": ExportTraceServiceRequest}


class OtlpReceiver(ThreadingHTTPServer):
    """Keeps every request; answers with `status`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = 200
        self.headers: list[dict[str, str]] = []
        self.requests: dict[str, list[Any]] = {path: [] for path in REQUESTS}
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def resources(self) -> list[dict[str, Any]]:
        """The attributes of each resource that sent something."""
        sent = [one for request in self.requests["/v1/metrics"] for one in request.resource_metrics]
        sent += [one for request in self.requests["/v1/traces"] for one in request.resource_spans]
        return [attributes(one.resource.attributes) for one in sent]

    def metrics(self) -> dict[str, Metric]:
        """Name -> the metric in the last request."""
        last = self.requests["/v1/metrics"][-1:]
        return {one.name: one for request in last for part in request.resource_metrics for scope in part.scope_metrics for one in scope.metrics}  # fmt: skip

    def spans(self) -> list[Span]:
        return [span for request in self.requests["/v1/traces"] for part in request.resource_spans for scope in part.scope_spans for span in scope.spans]  # fmt: skip

    def end(self) -> None:
        self.shutdown()
        self.server_close()


def attributes(found: Any) -> dict[str, Any]:
    """Attributes as plain values."""
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in found}


class _Handler(BaseHTTPRequestHandler):
    server: OtlpReceiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.headers.append(dict(self.headers))
        self.server.requests[self.path].append(REQUESTS[self.path].FromString(body))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass
