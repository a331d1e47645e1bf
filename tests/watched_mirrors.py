"""A mirror that serves health and metrics, and what these say."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from actors.embedded.nats import NatsServer
from actors.embedded.process import free_port
from tests.mirrors import MirrorProcess
from tests.servers import HANG_S

Samples = dict[tuple[str, tuple[str, ...]], float]


class WatchedMirror(MirrorProcess):
    """A mirror that serves its metrics."""

    def __init__(self, nats: NatsServer | str, to: str, folder: Path, *flags: str) -> None:
        self.port = free_port()
        super().__init__(nats, to, folder, "--port", str(self.port), *flags)

    def get(self, path: str) -> tuple[int, str]:
        """Status and body."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=HANG_S) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as exc:
            return exc.code, exc.read().decode()

    def is_ready(self) -> bool:
        try:
            return self.get("/ready")[0] == 200
        except OSError:
            return False

    def samples(self) -> Samples:
        """Every series: (name, values of its labels, sorted by their names) -> value."""
        return parsed(self.get("/metrics")[1])

    def value(self, name: str, *labels: str) -> float:
        return self.samples()[name, labels]

    def wait_value(self, condition: Callable[[float], bool], name: str, *labels: str) -> None:
        """Until a series is so."""

        def holds() -> bool:
            try:
                return condition(self.value(name, *labels))
            except OSError:
                return False

        self.wait_until(holds, lambda: f"{name}{labels} is {self.value(name, *labels)}")


def parsed(text: str) -> Samples:
    families = text_string_to_metric_families(text)
    return {
        (s.name, tuple(value for _, value in sorted(s.labels.items()))): s.value for family in families for s in family.samples
    }
