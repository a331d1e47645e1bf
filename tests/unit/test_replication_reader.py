"""The replication_reader: hands on everything it has read, in order, and says how far that is."""

from __future__ import annotations

import pytest
import trio

from actors.channels import Channel
from actors.clients.postgres.replication import HUGE_BYTES
from actors.errors import SourceUnavailable
from actors.feedback import Feedback
from actors.messages import Block
from actors.positions import NO_LSN, Lsn
from actors.replication_reader import BLOCK_BYTES_MAX, BLOCK_MESSAGES_MAX, RENEW_AFTER_S, RETRY_RENEW_S, read_blocks
from actors.telemetry.telemetry import Telemetry
from tests import pgoutput_bytes as pg
from tests.mock_time import on_mock_clock
from tests.scripted_replication import ScriptedReplication, transaction


class Reading:
    """A reader at work on a scripted stream."""

    def __init__(self, capacity: int = 1000) -> None:
        self.stream, self.feedback, self.telemetry = ScriptedReplication(), Feedback(NO_LSN), Telemetry()
        self.blocks = Channel[Block]("blocks", capacity, 1 << 30)
        self.intake = trio.CancelScope()

    async def run(self) -> None:
        await read_blocks(self.stream, self.blocks.sender(), self.feedback, self.intake, self.telemetry)  # type: ignore[arg-type]


@on_mock_clock
async def test_everything_is_handed_on_in_order_within_the_limits_of_a_block() -> None:
    reading = Reading()
    messages = [message for n in range(1, 1200) for message in transaction(100 * n, n)]
    large = [pg.xlog(b"x" * (BLOCK_BYTES_MAX // 2), 999_999) for _ in range(5)]
    reading.stream.feed(*messages, *large)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reading.run)
        await trio.sleep(1)
        reading.intake.cancel()
    blocks = [block async for block in reading.blocks.receiver()]
    assert [message for block in blocks for message in block.messages] == [*messages, *large]
    assert max(len(block.messages) for block in blocks) == BLOCK_MESSAGES_MAX
    assert all(block.size_bytes == sum(map(len, block.messages)) for block in blocks)
    assert max(block.size_bytes for block in blocks) <= 1.6 * BLOCK_BYTES_MAX
    assert reading.telemetry.wal_messages_received == len(messages) + 5


@on_mock_clock
async def test_how_far_it_is_comes_from_data_and_from_keepalives() -> None:
    reading = Reading()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reading.run)
        reading.stream.feed(*transaction(1000, 1))
        await trio.sleep(1)
        assert reading.feedback.received == 1008
        reading.stream.feed(pg.keepalive(5000))
        await trio.sleep(1)
        assert reading.feedback.received == 5000
        reading.stream.feed(pg.keepalive(3000), pg.xlog(b"x", 4000))
        await trio.sleep(1)
        assert reading.feedback.received == 5000, "it never goes back"
        nursery.cancel_scope.cancel()
    receiver = reading.blocks.receiver()
    assert [(await receiver.receive()).wal_end for _ in range(3)] == [1008, 5000, 5000]


@on_mock_clock
async def test_a_question_anywhere_in_a_block_is_heard() -> None:
    reading = Reading()
    due = trio.Event()

    async def wait() -> None:
        await reading.feedback.until_due(trio.current_time() + 100)
        due.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        nursery.start_soon(reading.run)
        reading.stream.feed(pg.keepalive(10, reply=True), *transaction(1000, 1))
        await trio.sleep(0.01)
        assert due.is_set(), "before the stream has gone quiet"
        nursery.cancel_scope.cancel()


@on_mock_clock
async def test_while_nobody_takes_its_blocks_it_reads_no_further() -> None:
    reading = Reading(capacity=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reading.run)
        for n in range(1, 6):
            reading.stream.feed(*transaction(1000 * n, n))
            await trio.sleep(1)
        assert reading.telemetry.received_lsn == 2008, "one waits in the channel, one in the reader's hands"
        nursery.cancel_scope.cancel()


@on_mock_clock
async def test_cancelling_the_intake_ends_the_next_stage_and_not_the_pipeline() -> None:
    reading = Reading()
    reading.stream.feed(*transaction(1000, 1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reading.run)
        await trio.sleep(1)
        reading.intake.cancel()
    assert not nursery.cancel_scope.cancelled_caught
    assert len([block async for block in reading.blocks.receiver()]) == 1


@on_mock_clock
async def test_the_end_of_the_connection_is_raised_after_what_came_before_it() -> None:
    reading = Reading()
    reading.stream.feed(*transaction(1000, 1))
    reading.stream.end(SourceUnavailable("WB100", "connection to PostgreSQL lost"))
    with trio.fail_after(5), pytest.raises(SourceUnavailable):
        await reading.run()
    (block,) = [block async for block in reading.blocks.receiver()]
    assert block.wal_end == Lsn(1008)


# -- the buffer that a huge message leaves behind

HUGE = pg.xlog(b"I" + bytes(HUGE_BYTES), 1000)


def data_of(blocks: list[Block]) -> list[bytes]:
    return [bytes(message) for block in blocks for message in block.messages if message[:1] == b"w"]


@on_mock_clock
async def test_after_a_huge_message_an_idle_stream_goes_over_to_a_new_connection_once() -> None:
    reading = Reading()
    begin, *_, commit = transaction(1000, 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reading.run)
        reading.stream.feed(begin, HUGE)
        await trio.sleep(2 * RENEW_AFTER_S)
        assert not reading.stream.renewals, "amid a transaction there is no place to continue from"
        reading.stream.feed(commit, pg.keepalive(2000))
        await trio.sleep(1)
        assert reading.stream.renewals == [1008]
        reading.stream.feed(*transaction(3000, 2))
        await trio.sleep(10 * RENEW_AFTER_S)
        assert reading.stream.renewals == [1008]
        reading.stream.feed(begin, HUGE, commit)
        await trio.sleep(RENEW_AFTER_S / 2)
        assert reading.stream.renewals == [1008], "more may follow"
        await trio.sleep(RENEW_AFTER_S)
        assert reading.stream.renewals == [1008, 1008]
        reading.intake.cancel()
    blocks = [block async for block in reading.blocks.receiver()]
    assert data_of(blocks) == [begin, HUGE, commit, *transaction(3000, 2), begin, HUGE, commit]


@pytest.mark.parametrize("refused", [0, 1, 1000])
@on_mock_clock
async def test_in_a_flood_nothing_is_lost_or_doubled_when_the_connection_changes(refused: int) -> None:
    reading = Reading()
    reading.stream.refuse_renewals = refused
    begin, *_, commit = transaction(1000, 1)
    messages = [begin, HUGE, commit]
    for n in range(2, 400):
        messages += transaction(1000 * n, *range(n % 7))

    async def flood() -> None:
        for start in range(0, len(messages), 5):
            reading.stream.feed(*messages[start : start + 5], pg.keepalive(1, reply=True))
            await trio.sleep(RETRY_RENEW_S / 40)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reading.run)
        await flood()
        await trio.sleep(1)
        reading.intake.cancel()
    blocks = [block async for block in reading.blocks.receiver()]
    assert data_of(blocks) == messages
    assert len(reading.stream.renewals) == (refused < 1000)


@on_mock_clock
async def test_the_connection_that_made_a_temporary_slot_is_kept() -> None:
    reading = Reading()
    reading.stream.is_renewable = False
    begin, *_, commit = transaction(1000, 1)
    reading.stream.feed(begin, HUGE, commit)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reading.run)
        await trio.sleep(10 * RENEW_AFTER_S)
        assert not reading.stream.renewals
        nursery.cancel_scope.cancel()
