"""The heartbeat: heard by a real HTTP server, sent by a real bridge, silent when there is no progress, and never any harm."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import trio

from actors.embedded.nats import NatsServer
from actors.embedded.process import free_port
from actors.errors import ConfigError
from actors.heartbeat import Progress, beat
from actors.settings.resolve import resolve
from actors.telemetry.telemetry import Telemetry
from tests.conftest import MakeBridge
from tests.servers import HANG_S, Database, wait_for_events


class Watchdog(ThreadingHTTPServer):
    """Counts who asks for its secret path; `answer` is the status that it gives."""

    def __init__(self, port: int = 0) -> None:
        heard = self.heard = []  # type: list[str]
        self.answer = 200
        watchdog = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                heard.append(self.path)
                self.send_response(watchdog.answer)
                self.end_headers()
                self.wfile.write(b"OK")

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", port), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/ping/hunter2-secret"

    def end(self) -> None:
        self.shutdown()
        self.server_close()


@pytest.fixture
def watchdog() -> Iterator[Watchdog]:
    watchdog = Watchdog()
    yield watchdog
    watchdog.end()


def wait_until(holds: Callable[[], object], words: Callable[[], object] = lambda: "") -> None:
    deadline = time.monotonic() + HANG_S
    while not holds():
        assert time.monotonic() < deadline, words()
        time.sleep(0.02)


def streaming() -> Telemetry:
    return Telemetry(state="streaming", last_received_at=time.time())


def test_a_streaming_bridge_is_heard_once_a_minute_and_no_more(
    watchdog: Watchdog, database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE users")
    bridge = make_bridge(database, nats, env={"BRIDGE_HEARTBEAT_URL": watchdog.url})
    database.execute("INSERT INTO users VALUES (1)")
    wait_for_events(nats.url, 1)
    wait_until(lambda: watchdog.heard, bridge.log)
    time.sleep(3)
    assert watchdog.heard == ["/ping/hunter2-secret"]
    assert bridge.stop() == 0
    assert "hunter2" not in bridge.log()


@pytest.mark.parametrize("trouble", ["nobody there", "answers 500", "never answers"])
def test_no_trouble_with_the_watchdog_harms_the_bridge_or_shows_the_url(
    trouble: str, watchdog: Watchdog, database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    watchdog.answer = 500
    url = watchdog.url
    if trouble == "nobody there":
        url = f"http://127.0.0.1:{free_port()}/ping/hunter2-secret"
    elif trouble == "never answers":
        watchdog.shutdown()  # it still takes connections
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE users")
    bridge = make_bridge(database, nats, env={"BRIDGE_HEARTBEAT_URL": url})
    if trouble != "never answers":
        wait_until(lambda: "no heartbeat could be sent" in bridge.log(), bridge.log)
    database.execute("INSERT INTO users VALUES (1)")
    assert len(wait_for_events(nats.url, 1)) == 1
    assert bridge.get("/ready")[0] == 200
    began = time.monotonic()
    assert bridge.stop() == 0
    assert time.monotonic() - began < HANG_S / 2, "the bridge's end does not wait for the watchdog"
    assert "hunter2" not in bridge.log()


def test_failures_end_and_it_goes_on() -> None:
    port = free_port()
    telemetry = streaming()

    async def run() -> list[str]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(beat, f"http://127.0.0.1:{port}/x", telemetry, every_s=0.05))
            await trio.sleep(0.3)
            watchdog = Watchdog(port)
            try:
                with trio.fail_after(HANG_S):
                    while len(watchdog.heard) < 3:
                        telemetry.last_received_at = time.time()
                        await trio.sleep(0.02)
            finally:
                nursery.cancel_scope.cancel()
                watchdog.end()
        return watchdog.heard

    assert trio.run(run)[:3] == ["/x"] * 3


def test_progress_is_what_was_stored_or_that_nothing_waits() -> None:
    telemetry, progress = streaming(), Progress()
    assert progress.is_made(telemetry), "idle, and PostgreSQL is heard"
    progress.said(telemetry)
    assert not progress.is_made(telemetry), "not a byte since"
    telemetry.last_received_at += 30
    assert progress.is_made(telemetry), "a keepalive"
    telemetry.sent_seq = 10
    telemetry.stored_seq = 4
    assert progress.is_made(telemetry), "something was stored since"
    progress.said(telemetry)
    telemetry.last_received_at += 30
    assert not progress.is_made(telemetry), "what is on its way does not move"
    telemetry.stored_seq = 5
    assert progress.is_made(telemetry)
    for state in ("starting", "waiting_postgres", "waiting_nats", "draining", "halted"):
        telemetry.state = state
        assert not progress.is_made(telemetry)


@pytest.mark.parametrize("url", ["hc-ping.com/x", "ftp://host/x", "file:///etc/passwd", "https://", "https://a b"])
def test_what_is_no_address_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve({}, {"POSTGRES_BRIDGE_USER": "x", "BRIDGE_HEARTBEAT_URL": url})
    assert "BRIDGE_HEARTBEAT_URL" in str(caught.value)
    assert url not in str(caught.value) or url == "https://"


def test_it_is_kept_secret() -> None:
    config = resolve({}, {"POSTGRES_BRIDGE_USER": "x", "BRIDGE_HEARTBEAT_URL": "https://hc-ping.com/hunter2-secret"})
    assert "hunter2" not in repr(config)
    assert "https://hc-ping.com/hunter2-secret" in config.secrets
