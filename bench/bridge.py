"""The bridge as users run it, drained or under a steady load, and watched from outside."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from statistics import quantiles
from typing import Literal

from actors.embedded.bridge import Bridge
from actors.embedded.nats import NatsServer
from bench.servers import Servers
from bench.stored import StoredRows, open_stored
from bench.usage import UsageSampler
from bench.workload import PUBLICATION, Backlog, commit_at_rate, empty_table, rows_at_rate

Mode = Literal["fast", "plain", "durable"]
SAMPLE_EVERY_S = 0.02
COUNT_EVERY_S = 0.1
"""Counting costs nats-server some work, so it is done less often."""
SETTLE_S = 0.3
"""What comes after the last event belongs to the events too: acknowledgements, the record, the slot."""
PATIENCE_S = 300.0


@dataclass(frozen=True, slots=True)
class DrainRun:
    """The bridge at work on a backlog."""

    events_per_s: float
    """From the first event stored to the last, by JetStream's own timestamps."""
    wall_s: float
    """From the start of the process to the last event stored."""
    cpu_us_per_event: float
    """User and system time of the process from just before the first event to just after the last."""
    rss_before_mb: float
    """Just before the first event: what the imports and the connections take."""
    rss_peak_mb: float


@dataclass(frozen=True, slots=True)
class LatencyRun:
    """The bridge under a steady load."""

    events_per_s: float
    """As it was: a busy machine may not reach what was asked for."""
    p50_ms: float
    p99_ms: float
    max_ms: float
    cpu_us_per_event: float
    rss_idle_mb: float
    """Streaming, before the first event."""
    rss_peak_mb: float


def _sync_interval(sync: str) -> str | None:
    return None if sync == "default" else sync


def drain(
    servers: Servers,
    backlog: Backlog,
    mode: Mode,
    *,
    sync: str = "default",
    flags: tuple[str, ...] = (),
    is_packed: bool = False,
) -> DrainRun:
    """Run the bridge on a copy of the backlog's slot and an empty nats-server until everything is stored.

    `sync` is the server's `sync_interval`; `flags` are more flags of the bridge. If messages are packed, only the bridge
    can say how many events are stored: its own count is taken.
    """
    with (
        servers.new_slot(copy_of=backlog.slot) as slot,
        servers.new_nats(sync_interval=_sync_interval(sync)) as nats,
        _bridge(servers, nats, slot, mode, flags) as bridge,
    ):
        return asyncio.run(_drain(bridge, nats, backlog.rows, is_packed=is_packed))


Meanwhile = Callable[[Bridge], AbstractContextManager[None]]


def steady_load(
    servers: Servers, mode: Mode, per_second: int, seconds: int, *, meanwhile: Meanwhile | None = None, sync: str = "default"
) -> LatencyRun:
    """Run the bridge on a new slot and an empty nats-server while rows are committed one by one."""
    empty_table(servers)
    with (
        servers.new_slot() as slot,
        servers.new_nats(sync_interval=_sync_interval(sync)) as nats,
        _bridge(servers, nats, slot, mode) as bridge,
    ):
        return asyncio.run(_steady_load(servers, bridge, nats, per_second, seconds, meanwhile))


@contextmanager
def _bridge(servers: Servers, nats: NatsServer, slot: str, mode: Mode, flags: tuple[str, ...] = ()) -> Iterator[Bridge]:
    """A bridge that is not started yet; an ordered stop at the end, which must succeed, or a kill after an error."""
    bridge = Bridge(servers.postgres.dsn(), nats, servers.folder, "--publish", mode, *flags, slot=slot, pub=PUBLICATION)
    try:
        yield bridge
        if bridge.stop():
            raise RuntimeError(f"the bridge ended with exit code {bridge.exit_code}: {bridge.log()[-4000:]}")
    finally:
        bridge.kill()


async def _drain(bridge: Bridge, nats: NatsServer, rows: int, *, is_packed: bool) -> DrainRun:
    async with open_stored(nats.url) as stored:
        started = time.time()
        bridge.start(ready=False)
        usage = UsageSampler(_pid(bridge))
        await _wait_until_stored(bridge, stored, rows, usage, is_packed=is_packed)
        after = usage.sample()
        first, last = await stored.span()
        before = usage.last_before(first)
        return DrainRun(
            events_per_s=rows / (last - first),
            wall_s=last - started,
            cpu_us_per_event=(after.cpu_s - before.cpu_s) / rows * 1e6,
            rss_before_mb=before.rss_mb,
            rss_peak_mb=usage.peak_rss_mb(),
        )


async def _steady_load(
    servers: Servers, bridge: Bridge, nats: NatsServer, per_second: int, seconds: int, meanwhile: Meanwhile | None
) -> LatencyRun:
    rows = rows_at_rate(per_second, seconds)
    async with open_stored(nats.url) as stored:
        bridge.start()
        await asyncio.sleep(1)
        usage = UsageSampler(_pid(bridge))
        before = usage.sample()
        with nullcontext() if meanwhile is None else meanwhile(bridge):
            await asyncio.to_thread(commit_at_rate, servers, per_second, seconds)
        await _wait_until_stored(bridge, stored, rows, usage)
        after, peak_mb = usage.sample(), usage.peak_rss_mb()
        commits = await stored.commits()
    ages_ms = sorted((stored_at - committed_at) * 1e3 for committed_at, stored_at in commits)
    committed = [committed_at for committed_at, _ in commits]
    percentiles = quantiles(ages_ms, n=100)
    return LatencyRun(
        events_per_s=rows / (max(committed) - min(committed)),
        p50_ms=percentiles[49],
        p99_ms=percentiles[98],
        max_ms=ages_ms[-1],
        cpu_us_per_event=(after.cpu_s - before.cpu_s) / rows * 1e6,
        rss_idle_mb=before.rss_mb,
        rss_peak_mb=peak_mb,
    )


async def _wait_until_stored(
    bridge: Bridge, stored: StoredRows, rows: int, usage: UsageSampler, *, is_packed: bool = False
) -> None:
    """Sample the process until every row is stored and what follows is done. Raises RuntimeError if that fails."""

    async def count() -> int:
        messages = await stored.count()
        return int((await asyncio.to_thread(bridge.status))["cdc_events_published"]) if is_packed and messages else messages

    deadline = time.monotonic() + PATIENCE_S
    found, count_at = 0, 0.0
    while found < rows:
        if bridge.exit_code is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{found} of {rows} stored, exit code {bridge.exit_code}: {bridge.log()[-4000:]}")
        usage.sample()
        if time.monotonic() >= count_at:
            found, count_at = await count(), time.monotonic() + COUNT_EVERY_S
        await asyncio.sleep(SAMPLE_EVERY_S)
    await asyncio.sleep(SETTLE_S)
    found = await count()
    if found != rows:
        raise RuntimeError(f"{found} events stored for {rows} rows")


def _pid(bridge: Bridge) -> int:
    assert bridge.process is not None
    return bridge.process.pid
