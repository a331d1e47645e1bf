"""The bridge's HTTP server in a test's hands, without a bridge behind it, and what it must answer."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import trio

from actors.channels import Channel
from actors.contract.table_token import table_token
from actors.embedded.process import free_port
from actors.errors import SinkUnavailable
from actors.http_server import serve_http
from actors.pace import Pace
from actors.pause import Pause
from actors.positions import Lsn
from actors.settings.resolve import resolve
from actors.telemetry.telemetry import SlotHealth, StreamHealth, Telemetry
from actors.web.questions import Question
from tests.servers import HANG_S

SEED_METRICS = """bridge_uptime_seconds bridge_wal_messages_received_total bridge_cdc_events_published_total bridge_last_ack_lsn
bridge_connected bridge_reconnects_total bridge_nats_reconnects_total bridge_last_processing_time_us bridge_slot_active
bridge_wal_lag_bytes""".split()
SEED_STATUS = """status uptime_seconds wal_messages_received cdc_events_published current_lsn is_connected reconnect_count
nats_reconnect_count last_processing_time_us slot_active wal_lag_bytes wal_lag_mb""".split()


class FakeLookup:
    """Answers with what the test has put in, and remembers the questions."""

    def __init__(self) -> None:
        self.asked: list[Question] = []
        self.answer: dict[str, Any] = {"stream": "CDC", "first_seq": 1, "last_seq": 0, "messages": [], "more": None}
        self.schemas: dict[str, dict[str, Any]] = {}

    async def messages(self, question: Question) -> dict[str, Any]:
        self.asked.append(question)
        return self.answer

    async def schema(self, token: str) -> dict[str, Any] | None:
        return self.schemas.get(token)


class Server:
    """`serve_http` under trio in a thread of its own, from `__enter__` to `__exit__`."""

    def __init__(self, telemetry: Telemetry, *, bind: str = "127.0.0.1", token: str = "", messages: str = "yes") -> None:
        self.port = free_port()
        environ = {"POSTGRES_BRIDGE_USER": "x", "BRIDGE_HTTP_TOKEN": token, "BRIDGE_HTTP_MESSAGES": messages}
        self._config = resolve({"port": self.port, "bind": bind}, environ)
        self._telemetry, self._serving = telemetry, threading.Event()
        self.pause = Pause(telemetry)
        self._thread = threading.Thread(target=trio.run, args=[self._serve], daemon=True)
        self.stop_asked = False
        self.snapshots_asked: list[str] = []
        self.lookup = FakeLookup()

    def __enter__(self) -> Server:
        self._thread.start()
        assert self._serving.wait(HANG_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Cancel the server and see it end."""
        if self._thread.is_alive():
            trio.from_thread.run_sync(self._cancel.cancel, trio_token=self._token)
        self._thread.join(HANG_S)
        assert not self._thread.is_alive(), "the server does not end"

    async def _serve(self) -> None:
        stop = trio.Event()
        with trio.CancelScope() as self._cancel:
            async with trio.open_nursery() as nursery:
                self._token = trio.lowlevel.current_trio_token()
                await nursery.start(
                    partial(
                        serve_http,
                        self._config,
                        self._telemetry,
                        stop=stop,
                        pause=self.pause,
                        pace=Pace(self._telemetry, 0),
                        stream_info=self._stream_info,
                        request_snapshot=self._request_snapshot,
                        lookup=self.lookup,
                        acknowledge_gap=self._acknowledge_gap,
                        has_table=self._has_table,
                    )  # fmt: skip
                )
                self._serving.set()
                await stop.wait()
                self.stop_asked = True

    async def _stream_info(self, name: str) -> dict[str, Any] | None:
        if name == "AWAY":
            raise SinkUnavailable("WB200", "not connected to NATS")
        return {"config": {"name": name}} if name == "CDC" else None

    async def _request_snapshot(self, token: str) -> None:
        self.snapshots_asked.append(token)

    async def _has_table(self, token: str) -> bool:
        return token != "nowhere"

    async def _acknowledge_gap(self, seq: int) -> bool:
        shown = self._telemetry.gap_problems
        self._telemetry.gap_problems = tuple(p for p in shown if p.acknowledge != f"gaps/{seq}/acknowledge")
        return self._telemetry.gap_problems != shown

    def ask(self, method: str, path: str, **headers: str) -> tuple[int, http.client.HTTPMessage, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=HANG_S)
        connection.request(method, path, headers=headers)
        reply = connection.getresponse()
        body = reply.read().decode()
        connection.close()
        return reply.status, reply.headers, body

    @contextmanager
    def connected(self) -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self.port), timeout=HANG_S) as client:
            yield client


def streaming(telemetry: Telemetry, tables: int = 3) -> Telemetry:
    """Telemetry of a bridge that streams."""
    telemetry.state, telemetry.not_ready_reason, telemetry.publish_mode = "streaming", "", "fast"
    telemetry.postgres_connected = telemetry.nats_connected = True
    telemetry.postgres_address, telemetry.nats_address = "db:5432/shop", "nats:4222"
    now = time.time()
    telemetry.last_received_at = telemetry.last_ack_at = telemetry.last_commit_at = now
    lsn = Lsn(0xFFFF_DEADBEEF)
    telemetry.received_lsn = telemetry.decoded_lsn = telemetry.published_lsn = telemetry.durable_lsn = lsn
    telemetry.confirmed_lsn = lsn
    telemetry.last_processing_time_us, telemetry.wal_bytes_received = 12_345, 0
    telemetry.slot = SlotHealth(True, Lsn(lsn + 4096), Lsn(lsn - (48 << 20)), lsn, "reserved", 10 << 30, True)
    telemetry.stream = StreamHealth(1000, 5 << 20, 10 << 30, 1, 1000, now - 86400, now)
    telemetry.channels = {name: Channel(name, 4, 1024) for name in ("blocks", "items", "batches", "published")}
    telemetry.tables = tuple(table_token("public", f"table_{i:04d}") for i in range(tables))
    return telemetry
