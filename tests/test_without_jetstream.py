"""A NATS where nothing can be stored: the bridge ends with the fix instead of waiting for what will not come."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from actors.embedded.nats import find_nats_server
from actors.embedded.process import free_port, port_is_free
from tests.conftest import MakeBridge, MakeNats
from tests.servers import HANG_S, Database


@contextmanager
def server_without_jetstream() -> Iterator[str]:
    port = free_port()
    with subprocess.Popen([find_nats_server(), "-a", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + HANG_S
            while port_is_free(port):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield f"nats://127.0.0.1:{port}"
        finally:
            process.kill()


@pytest.mark.parametrize("whose", ["server", "account"])
def test_a_nats_without_jetstream_ends_the_start(
    whose: str, database: Database, make_nats: MakeNats, make_bridge: MakeBridge
) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE t")
    if whose == "server":
        with server_without_jetstream() as url:
            bridge = make_bridge(database, url, start=False)
            bridge.start(ready=False)
            code = bridge.wait()
    else:
        nats = make_nats(extra_config="accounts { A { users: [{user: u, password: pw}] } }")
        env = {"NATS_BRIDGE_USER": "u", "NATS_BRIDGE_PASSWORD": "pw"}
        bridge = make_bridge(database, nats.url, start=False, env=env)
        bridge.start(ready=False)
        code = bridge.wait()
    assert code == 2, bridge.log()
    assert "error WB211: JetStream is off for" in bridge.log()
    assert "fix:   start the server with JetStream: nats-server -js; for an account" in bridge.log()
