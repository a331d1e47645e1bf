"""The heartbeat's decisions, and that no trouble with the watchdog ends it."""

from __future__ import annotations

import time
from functools import partial

import pytest
import trio

from actors.embedded.process import free_port
from actors.errors import ConfigError
from actors.heartbeat import Progress, beat
from actors.settings.resolve import resolve
from actors.telemetry.telemetry import SlotHealth, Telemetry
from tests.servers import HANG_S
from tests.watchdog import Watchdog


def streaming() -> Telemetry:
    return Telemetry(state="streaming", last_received_at=time.time())


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


def test_a_paused_bridge_is_heard_until_its_wal_runs_out() -> None:
    telemetry, progress = streaming(), Progress()
    progress.said(telemetry)
    telemetry.state = "paused"
    assert progress.is_made(telemetry), "nothing moves, as was wanted"
    telemetry.slot = SlotHealth(wal_status="reserved", seconds_to_loss=3000)
    assert not progress.is_made(telemetry), "the budget"
    telemetry.slot = SlotHealth(wal_status="lost")
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
