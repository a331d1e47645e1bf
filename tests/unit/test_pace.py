"""The rate of snapshots, which an operator may change while one waits."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from actors.pace import Pace
from actors.telemetry.telemetry import Telemetry


def test_all_that_is_sent_keeps_to_the_rate() -> None:
    async def send() -> float:
        pace = Pace(Telemetry(), 2)
        for _ in range(5):
            await pace.wait()
            pace.sent(4_000_000)
        await pace.wait()
        return trio.current_time()

    began = trio.run(_now, clock=MockClock(autojump_threshold=0))
    assert trio.run(send, clock=MockClock(autojump_threshold=0)) - began == 10


async def _now() -> float:
    return trio.current_time()


def test_who_waits_goes_by_the_new_rate_at_once() -> None:
    async def change(rate_mb_s: int) -> float:
        telemetry = Telemetry()
        pace, began = Pace(telemetry, 1), trio.current_time()
        pace.sent(10_000_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pace.wait)
            await trio.sleep(2)
            pace.limit(rate_mb_s)
        assert telemetry.snapshot_rate_mb_s == rate_mb_s
        return trio.current_time() - began

    for rate_mb_s, took_s in ((4, 4.0), (0, 2.0), (1, 10.0)):
        assert trio.run(change, rate_mb_s, clock=MockClock(autojump_threshold=0)) == took_s
