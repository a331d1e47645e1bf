"""Three nats-servers that are one cluster."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import nats

from actors.embedded.nats import NatsServer
from actors.embedded.process import free_port
from tests.servers import HANG_S


class Cluster:
    """JetStream on each of three servers; `make` starts one with the options of `NatsServer`, and owns it."""

    def __init__(self, make: Callable[..., NatsServer]) -> None:
        routes = [free_port() for _ in range(3)]
        addresses = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes)
        self.servers = {
            f"n{i}": make(
                extra_config=f'server_name: n{i}\ncluster {{ name: test, listen: "127.0.0.1:{port}", routes: [{addresses}] }}'
            )
            for i, port in enumerate(routes)
        }

    @property
    def url(self) -> str:
        """Of all three, as clients take it."""
        return ",".join(server.url for server in self.servers.values())

    def ask(self, subject: str, body: dict[str, Any]) -> dict[str, Any]:
        """An answer of JetStream's, from whoever leads."""

        async def request() -> dict[str, Any]:
            up = [server.url for server in self.servers.values() if server.pid is not None]
            client = await nats.connect(up, allow_reconnect=False)
            try:
                return dict(json.loads((await client.request(subject, json.dumps(body).encode(), timeout=5)).data))
            finally:
                await client.close()

        deadline = time.monotonic() + HANG_S
        while True:
            try:
                answer = asyncio.run(request())
                if "error" not in answer:
                    return answer
            except (nats.errors.Error, OSError):
                answer = {}
            assert time.monotonic() < deadline, answer
            time.sleep(0.2)

    def leader(self, stream: str) -> str:
        """The name of the server that leads a stream, once there is one."""
        deadline = time.monotonic() + HANG_S
        while True:
            info = self.ask(f"$JS.API.STREAM.INFO.{stream}", {})
            if info["cluster"].get("leader"):
                return str(info["cluster"]["leader"])
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def wait_for_replicas(self) -> None:
        """Until all three have the stream whole: a second loss before that is more than three copies promise."""
        deadline = time.monotonic() + HANG_S
        while True:
            replicas = self.ask("$JS.API.STREAM.INFO.CDC", {})["cluster"].get("replicas", [])
            if len(replicas) == 2 and all(r["current"] and not r.get("offline") for r in replicas):
                return
            assert time.monotonic() < deadline, replicas
            time.sleep(0.2)
