"""Channels: bounded in items and in bytes, ended by closing, and they count who waits."""

from __future__ import annotations

import pytest
import trio

from actors.channels import Channel
from tests.mock_time import on_mock_clock


@on_mock_clock
async def test_a_full_channel_holds_its_sender_until_something_is_taken() -> None:
    channel = Channel[int]("c", 2, 1000)
    sender, receiver = channel.sender(), channel.receiver()
    sent: list[int] = []

    async def send() -> None:
        for number in range(4):
            await sender.send(number, 1)
            sent.append(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await trio.sleep(3)
        assert sent == [0, 1]
        assert [await receiver.receive() for _ in range(4)] == [0, 1, 2, 3]
    assert channel.blocked_s == pytest.approx(3), "the three seconds are the sender's"
    assert (channel.items_waiting, channel.bytes_waiting) == (0, 0)


@on_mock_clock
async def test_bytes_hold_the_sender_too_but_one_item_alone_may_be_larger() -> None:
    channel = Channel[str]("c", 100, 10)
    sender, receiver = channel.sender(), channel.receiver()
    with trio.fail_after(1):
        await sender.send("larger than all", 50)
    with trio.move_on_after(1) as waited:
        await sender.send("small", 1)
    assert waited.cancelled_caught
    assert await receiver.receive() == "larger than all"
    with trio.fail_after(1):
        await sender.send("nine", 9)
        await sender.send("two", 2)  # ten were not reached before it
    with trio.move_on_after(1) as waited:
        await sender.send("more", 1)
    assert waited.cancelled_caught
    assert [await receiver.receive(), await receiver.receive()] == ["nine", "two"]
    assert receiver.is_empty(), "what was cancelled was not sent"


@on_mock_clock
async def test_what_was_sent_before_the_close_is_received_after_it() -> None:
    channel = Channel[int]("c", 10, 1000)
    with channel.sender() as sender:
        await sender.send(1, 1)
        await sender.send(2, 1)
    assert [number async for number in channel.receiver()] == [1, 2]


@on_mock_clock
async def test_closing_wakes_the_side_that_waits() -> None:
    ended, refused = Channel[int]("ended", 1, 10), Channel[int]("refused", 1, 10)
    await refused.sender().send(1, 1)

    async def receive_to_the_end() -> None:
        assert [number async for number in ended.receiver()] == []

    async def send_to_nobody() -> None:
        with pytest.raises(trio.BrokenResourceError, match="refused"):
            await refused.sender().send(2, 1)

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive_to_the_end)
            nursery.start_soon(send_to_nobody)
            await trio.sleep(1)
            with ended.sender(), refused.receiver():
                pass


@on_mock_clock
async def test_a_cancelled_receive_takes_nothing() -> None:
    channel = Channel[int]("c", 10, 1000)
    with trio.move_on_after(1):
        await channel.receiver().receive()
    await channel.sender().send(7, 1)
    assert await channel.receiver().receive() == 7


@on_mock_clock
async def test_an_item_that_waits_is_taken_if_it_is_wanted_and_makes_room() -> None:
    channel = Channel[int]("c", 1, 1000)
    sender, receiver = channel.sender(), channel.receiver()
    assert receiver.take_if(lambda _: True) is None
    await sender.send(7, 1)
    assert receiver.take_if(lambda item: item > 7) is None
    assert receiver.take_if(lambda item: item == 7) == 7
    with trio.fail_after(1):
        await sender.send(8, 1)
    assert await receiver.receive() == 8
