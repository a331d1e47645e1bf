"""The status_reporter: tells PostgreSQL in time how far it is, and never more than is so."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from actors.errors import SourceUnavailable
from actors.feedback import ASK_AFTER_S, QUIET_S, Feedback
from actors.positions import NO_LSN, Lsn
from actors.status_reporter import LiveStream, report_status
from tests.mock_time import on_mock_clock
from tests.scripted_replication import ScriptedReplication


class Timed(ScriptedReplication):
    """Knows when each status was sent, from its making on."""

    def __init__(self) -> None:
        super().__init__()
        self.began = trio.current_time()
        self.at_s: list[float] = []

    async def send_status(self, received: Lsn, flushed: Lsn, applied: Lsn, *, reply_wanted: bool = False) -> None:
        await super().send_status(received, flushed, applied, reply_wanted=reply_wanted)
        self.at_s.append(round(trio.current_time() - self.began, 3))


@asynccontextmanager
async def reporting(confirmed: int = 0, *, is_held: bool = False) -> AsyncIterator[tuple[Timed, Feedback]]:
    stream, feedback = Timed(), Feedback(Lsn(confirmed), is_held=is_held)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(report_status, stream, feedback)
        yield stream, feedback
        nursery.cancel_scope.cancel()


@on_mock_clock
async def test_an_idle_stream_hears_of_us_every_second() -> None:
    async with reporting() as (stream, _):
        await trio.sleep(3.5)
        assert stream.at_s == [0, 1, 2, 3]


@on_mock_clock
async def test_a_newly_confirmed_lsn_is_sent_at_once() -> None:
    async with reporting() as (stream, feedback):
        feedback.data_arrived(Lsn(5000), reply_wanted=False)
        await trio.sleep(0.5)
        feedback.confirmed.value = Lsn(4000)
        await trio.sleep(0.01)
        assert stream.at_s[-1] == 0.5
        assert stream.statuses[-1] == (5000, 4000, False)


@on_mock_clock
async def test_a_question_is_answered_at_once() -> None:
    async with reporting() as (stream, feedback):
        await trio.sleep(0.5)
        feedback.data_arrived(Lsn(5000), reply_wanted=True)
        await trio.sleep(0.01)
        assert stream.at_s[-1] == 0.5


@on_mock_clock
async def test_data_is_answered_once_it_has_gone_quiet_not_each_time() -> None:
    async with reporting() as (stream, feedback):
        await trio.sleep(0.1)
        for _ in range(10):
            feedback.data_arrived(Lsn(5000), reply_wanted=False)
            await trio.sleep(QUIET_S / 2)
        assert stream.at_s == [0]
        await trio.sleep(QUIET_S)
        assert len(stream.at_s) == 2
        assert stream.at_s[1] < 0.5


@on_mock_clock
async def test_data_that_never_goes_quiet_keeps_no_status_back_for_more_than_a_second() -> None:
    async with reporting() as (stream, feedback):
        for _ in range(200):
            feedback.data_arrived(Lsn(5000), reply_wanted=False)
            await trio.sleep(QUIET_S / 2)
        assert len(stream.at_s) >= 5
        assert max(b - a for a, b in zip(stream.at_s, stream.at_s[1:], strict=False)) <= 1.001


@on_mock_clock
async def test_nothing_is_confirmed_that_postgresql_has_not_sent() -> None:
    async with reporting(confirmed=9000) as (stream, feedback):
        await trio.sleep(0.5)
        assert stream.statuses == [(NO_LSN, NO_LSN, False)], "nothing was received yet"
        feedback.data_arrived(Lsn(7000), reply_wanted=True)
        await trio.sleep(0.1)
        assert stream.statuses[-1] == (7000, 7000, False)
        feedback.data_arrived(Lsn(9500), reply_wanted=True)
        await trio.sleep(0.1)
        assert stream.statuses[-1] == (9500, 9000, False)


@on_mock_clock
async def test_a_held_confirmation_is_told_once_so_that_postgresql_does_not_wait_for_it_at_its_own_stop() -> None:
    async with reporting(3000, is_held=True) as (stream, feedback):
        feedback.data_arrived(Lsn(5000), reply_wanted=False)
        await trio.sleep(1.5)
        feedback.confirmed.value = Lsn(4000)
        await trio.sleep(2)
    assert [flushed for _, flushed, _ in stream.statuses if flushed] == [4000]
    assert stream.statuses[-1] == (5000, 0, False)


@on_mock_clock
async def test_a_silent_postgresql_is_asked_for_a_sign_of_life_once_per_silence() -> None:
    async with reporting() as (stream, feedback):
        await trio.sleep(ASK_AFTER_S - 0.5)
        assert not any(asked for *_, asked in stream.statuses)
        await trio.sleep(ASK_AFTER_S)
        assert sum(asked for *_, asked in stream.statuses) == 1
        feedback.data_arrived(Lsn(1), reply_wanted=False)
        await trio.sleep(ASK_AFTER_S - 1)
        assert sum(asked for *_, asked in stream.statuses) == 1
        await trio.sleep(2)
        assert sum(asked for *_, asked in stream.statuses) == 2


@on_mock_clock
async def test_the_end_of_a_stream_is_raised_where_the_pipeline_watches() -> None:
    stream = ScriptedReplication()
    live = LiveStream(stream, Feedback(NO_LSN))  # type: ignore[arg-type]
    stream.error = SourceUnavailable("WB100", "connection to PostgreSQL lost")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(live.run_status)
        with trio.fail_after(5), pytest.raises(SourceUnavailable, match="lost"):
            await live.watch()
        await live.close()
    assert stream.closed


@on_mock_clock
async def test_closing_ends_the_statuses_and_the_connection_and_nothing_is_raised() -> None:
    stream = ScriptedReplication()
    live = LiveStream(stream, Feedback(NO_LSN))  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(live.run_status)
        await trio.sleep(2.5)
        await live.close()
        before = len(stream.statuses)
        await trio.sleep(5)
        await live.watch()
    assert (stream.closed, len(stream.statuses)) == (True, before)
