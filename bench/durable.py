"""The ways to publish beside each other, on a nats-server that syncs lazily and on one that syncs before it acknowledges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Literal, NamedTuple

from bench.bridge import DrainRun, LatencyRun, Mode, drain, steady_load
from bench.raw_batches import MESSAGES, publish_batches
from bench.servers import Servers
from bench.workload import backlog

Sync = Literal["default", "always"]
SYNCS: tuple[Sync, ...] = ("default", "always")
SLOW_SHARE = 10
"""Where each message is synced by itself, a tenth of the rows must do."""


class Way(NamedTuple):
    mode: Mode
    sync: Sync

    @property
    def is_slow(self) -> bool:
        """Whether nats-server syncs each message by itself."""
        return self.sync == "always" and self.mode != "durable"

    def __str__(self) -> str:
        return self.mode if self.sync == "default" else f"{self.mode}, sync always"


DRAINED = tuple(Way(mode, sync) for sync in SYNCS for mode in ("fast", "durable", "plain"))
TIMED = (Way("fast", "default"), Way("durable", "default"), Way("durable", "always"))


@dataclass(slots=True)
class DurableResults:
    """Rounds of every way in turn, so that each round compares within itself."""

    raw_per_s: dict[Sync, list[float]] = field(default_factory=lambda: {sync: [] for sync in SYNCS})
    drains: dict[int, dict[Way, list[DrainRun]]] = field(default_factory=dict)
    """By rows per transaction."""
    latency: dict[Way, list[LatencyRun]] = field(default_factory=lambda: {way: [] for way in TIMED})

    def of_fast(self, each: int, way: Way) -> float:
        """A way's speed by that of `fast` on a server that syncs lazily: the median over the rounds."""
        fast = self.drains[each][Way("fast", "default")]
        return median(run.events_per_s / other.events_per_s for run, other in zip(self.drains[each][way], fast, strict=True))

    def of_raw(self, each: int, way: Way) -> float:
        """A way's speed by that of atomic batches alone, on the same kind of server."""
        pairs = zip(self.drains[each][way], self.raw_per_s[way.sync], strict=True)
        return median(run.events_per_s / raw for run, raw in pairs)


def run_durable(
    servers: Servers, rows: int, single_rows: int, per_second: int, seconds: int, repeat: int, say: Callable[[str], None],
    round_begins: Callable[[], None],
) -> DurableResults:  # fmt: skip
    """Run everything; `round_begins` is called before each round."""
    results = DurableResults()
    for number in range(1, repeat + 1):
        round_begins()
        for sync in SYNCS:
            with servers.new_nats(sync_interval=None if sync == "default" else sync) as server:
                results.raw_per_s[sync].append(publish_batches(server, rows // MESSAGES))
            say(f"  {number}/{repeat} atomic batches alone, sync {sync:<8} {results.raw_per_s[sync][-1]:>9,.0f} events/s")
    for total, each in ((rows, 1_000), (single_rows, 1)):
        say(f"writing {total:,} rows, {each:,} per transaction")
        found = results.drains[each] = {way: list[DrainRun]() for way in DRAINED}
        with backlog(servers, total, each) as whole:
            for number in range(1, repeat + 1):
                round_begins()
                for way in DRAINED:
                    if not way.is_slow:
                        found[way].append(drain(servers, whole, way.mode, sync=way.sync))
                        say(f"  {number}/{repeat} {way!s:<22} {found[way][-1].events_per_s:>9,.0f} events/s")
        with backlog(servers, total // SLOW_SHARE, each) as part:
            for number in range(1, repeat + 1):
                for way in DRAINED:
                    if way.is_slow:
                        found[way].append(drain(servers, part, way.mode, sync=way.sync))
                        say(f"  {number}/{repeat} {way!s:<22} {found[way][-1].events_per_s:>9,.0f} events/s")
    say(f"committing {per_second:,} rows per second for {seconds} s, one per transaction")
    for number in range(1, repeat + 1):
        round_begins()
        for way in TIMED:
            run = steady_load(servers, way.mode, per_second, seconds, sync=way.sync)
            results.latency[way].append(run)
            say(f"  {number}/{repeat} {way!s:<22} {run.events_per_s:>9,.0f} events/s, "
                f"p50 {run.p50_ms:.2f} ms, p99 {run.p99_ms:.2f} ms")  # fmt: skip
    return results
