"""How soon a started bridge stores its first event, and what it costs while nothing happens."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from actors.embedded.bridge import Bridge
from actors.embedded.nats import NatsServer
from bench.servers import Servers
from bench.stored import open_stored
from bench.usage import UsageSampler
from bench.workload import PUBLICATION, backlog

SETTLE_S = 3.0
"""After the first event, until the bridge is idle: what a start does late is no idling."""
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class StartRun:
    """One start with one row waiting, then nothing to do."""

    first_event_s: float
    """From the start of the process to the timestamp of the stored event; nats-server is empty."""
    start_cpu_s: float
    """User and system time of the process until then, and three seconds more."""
    idle_cpu_percent: float
    """Of one core, afterwards; the kernel counts in steps of 10 ms."""
    idle_rss_mb: float


def start_bridge(servers: Servers, idle_s: float) -> StartRun:
    """Start a bridge on one row, then watch it for `idle_s` seconds."""
    with backlog(servers, 1, 1) as waiting, servers.new_nats() as nats:
        bridge = Bridge(servers.postgres.dsn(), nats, servers.folder, slot=waiting.slot, pub=PUBLICATION)
        try:
            return asyncio.run(_start(bridge, nats, idle_s))
        finally:
            bridge.kill()


async def _start(bridge: Bridge, nats: NatsServer, idle_s: float) -> StartRun:
    async with open_stored(nats.url) as stored:
        started = time.time()
        bridge.start(ready=False)
        assert bridge.process is not None
        while not await stored.count():
            if bridge.exit_code is not None or time.time() > started + PATIENCE_S:
                raise RuntimeError(f"no event; exit code {bridge.exit_code}: {bridge.log()[-4000:]}")
            await asyncio.sleep(0.05)
        first, _ = await stored.span()
    await asyncio.sleep(SETTLE_S)
    usage = UsageSampler(bridge.process.pid)
    before = usage.sample()
    await asyncio.sleep(idle_s)
    after = usage.sample()
    idle_cpu = (after.cpu_s - before.cpu_s) / (after.at - before.at)
    return StartRun(first - started, before.cpu_s, idle_cpu * 100, after.rss_mb)
