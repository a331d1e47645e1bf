"""The publisher: batches in order, each at its place in the stream, and only so much ahead of what is stored."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
import trio

from actors.batches.joining import BatchSize
from actors.channels import Channel
from actors.clients.nats.acknowledgements import Acknowledgements
from actors.errors import BatchTooLarge, SinkFenced, SinkUnavailable
from actors.messages import Batch, SentBatch
from actors.positions import Lsn
from actors.publisher import Publisher, Window, durable_window, publish_batches
from actors.settings.resolve import resolve
from actors.telemetry.telemetry import Telemetry
from actors.wire.jetstream import OutMessage
from tests.fake_nats import FakeNats
from tests.mock_time import on_mock_clock

CONFIG = resolve({}, {"DATABASE_URL": "postgresql://u@h/db", "NATS_URL": "nats://fake"})


def batch(first: int, count: int, end_lsn: int = 0) -> Batch:
    messages = [OutMessage(b"cdc.t.insert", b"a-%d-t-insert" % n, b"{}") for n in range(first, first + count)]
    return Batch(messages, 100 * count, {}, None, Lsn(end_lsn), 0, 0)


@dataclass
class Run:
    """A publisher at work: batches go in, the acker's side comes out."""

    batches: Channel[Batch] = field(default_factory=lambda: Channel("batches", 100, 1 << 30))
    published: Channel[SentBatch] = field(default_factory=lambda: Channel("published", 100, 1 << 30))
    telemetry: Telemetry = field(default_factory=Telemetry)
    nats: FakeNats = field(default_factory=FakeNats)

    @asynccontextmanager
    async def running(self, mode: str, window: Window = Window(), last_seq: int = 0) -> AsyncIterator[None]:  # noqa: B008
        async with self.nats.connected(CONFIG) as connection, trio.open_nursery() as nursery:
            acks = Acknowledgements(last_seq, self.telemetry.publish_rejected)
            acks.reply_prefix = await connection.inbox(acks.on_reply)
            publisher = Publisher(mode, acks.reply_prefix, last_seq)  # type: ignore[arg-type]
            nursery.start_soon(
                publish_batches, self.batches.receiver(), self.published.sender(), connection, publisher, acks, window,
                self.telemetry,
            )  # fmt: skip
            self.acks = acks
            yield

    def ids(self) -> list[str]:
        return [message.headers["Nats-Msg-Id"] for message in self.nats.streams["CDC"]]


@pytest.mark.parametrize("mode", ["plain", "fast", "durable"])
@on_mock_clock
async def test_batches_are_stored_once_and_in_order_and_the_end_is_handed_on(mode: str) -> None:
    run = Run()
    async with run.running(mode):
        with run.batches.sender() as sender:
            for first, count in ((0, 3), (3, 1), (4, 12)):
                await sender.send(batch(first, count, 1000 + first), 1)
        with trio.fail_after(5):
            sent = [one async for one in run.published.receiver()]
            await run.acks.beyond(15)
    assert run.ids() == [f"a-{n}-t-insert" for n in range(16)]
    assert [one.last_seq for one in sent] == [3, 4, 16]
    assert run.telemetry.published_lsn == 1004
    assert run.telemetry.sent_seq == 16


@on_mock_clock
async def test_a_batch_without_messages_passes_and_is_at_the_place_of_the_one_before() -> None:
    run = Run()
    async with run.running("plain"):
        with run.batches.sender() as sender:
            await sender.send(batch(0, 2), 1)
            await sender.send(batch(2, 0, 5000), 1)
        sent = [one async for one in run.published.receiver()]
    assert [(one.last_seq, one.batch.end_lsn) for one in sent] == [(2, 0), (2, 5000)]


@pytest.mark.parametrize(
    ("window", "most"), [(Window(messages_max=5), 6), (Window(bytes_max=500), 4)], ids=["messages", "bytes"]
)
@on_mock_clock
async def test_no_more_is_on_its_way_than_the_window_holds(window: Window, most: int) -> None:
    run = Run()
    run.nats.silent = True
    async with run.running("plain", window):
        with run.batches.sender() as sender:
            for first in range(0, 20, 2):
                await sender.send(batch(first, 2), 1)
        await trio.sleep(1)
        assert len(run.nats.streams["CDC"]) == most, "batches of two messages and 200 bytes; one begins while there is room"
        for _ in range(most):
            await run.nats.speak(one=True)
        await trio.sleep(1)
        assert len(run.nats.streams["CDC"]) == 2 * most, "what was acknowledged has made room"
        await run.nats.speak()
        with trio.fail_after(5):
            await run.acks.beyond(19)
    assert len(run.ids()) == 20


@on_mock_clock
async def test_small_atomic_batches_wait_for_the_one_in_flight_and_go_out_together() -> None:
    run = Run()
    run.nats.silent = True
    async with run.running("durable", durable_window(BatchSize(messages_max=10))):
        with run.batches.sender() as sender:
            await sender.send(batch(0, 2, 1000), 1)
            await trio.sleep(1)
            assert run.nats.batches == [2], "nothing is in flight: it goes out at once"
            for first in (2, 3):
                await sender.send(batch(first, 1, 1000 + first), 1)
            await trio.sleep(1)
            assert run.nats.batches == [2], "less than half a batch: it waits for more while another one is in flight"
            await run.nats.speak(one=True)
            await trio.sleep(1)
            assert run.nats.batches == [2, 2]
            for first in range(4, 12, 2):
                await sender.send(batch(first, 2, 1000 + first), 1)
            await trio.sleep(1)
            await run.nats.speak()
        with trio.fail_after(5):
            await run.acks.beyond(11)
        sent = [one async for one in run.published.receiver()]
    assert run.ids() == [f"a-{n}-t-insert" for n in range(12)]
    assert run.nats.batches == [2, 2, 8], "all that waited, together"
    assert [(one.last_seq, one.batch.end_lsn) for one in sent] == [(2, 1000), (4, 1003), (12, 1010)]


@on_mock_clock
async def test_full_atomic_batches_are_in_flight_together_and_a_part_of_a_transaction_is_joined_with_nothing() -> None:
    run = Run()
    run.nats.silent = True
    async with run.running("durable", durable_window(BatchSize(messages_max=4))):
        with run.batches.sender() as sender:
            for first in range(0, 24, 4):
                await sender.send(replace(batch(first, 4), is_whole=False), 1)
            await trio.sleep(1)
            assert run.nats.batches == [4] * 3, "a fourth one would begin at three full ones"
            await run.nats.speak()
        with trio.fail_after(5):
            await run.acks.beyond(23)
    assert run.nats.batches == [4] * 6


@on_mock_clock
async def test_a_server_that_takes_only_smaller_atomic_batches_names_its_limit() -> None:
    run = Run()
    run.nats.batch_messages_max = 7
    with pytest.RaisesGroup(pytest.RaisesExc(BatchTooLarge, check=lambda e: e.messages_max == 7), flatten_subgroups=True):
        async with run.running("durable"):
            await run.batches.sender().send(batch(0, 8), 1)
            await trio.sleep(1)
            await run.acks.beyond(0)
    assert run.ids() == []


@on_mock_clock
async def test_a_batch_larger_than_the_window_goes_alone() -> None:
    run = Run()
    async with run.running("plain", Window(bytes_max=10)):
        with run.batches.sender() as sender:
            await sender.send(batch(0, 3), 1)
            await sender.send(batch(3, 3), 1)
        with trio.fail_after(5):
            await run.acks.beyond(5)


@on_mock_clock
async def test_another_writer_fences_it_off_and_nothing_is_stored_twice() -> None:
    run = Run()
    run.nats.streams["CDC"] = []
    with pytest.RaisesGroup(SinkFenced, allow_unwrapped=False, flatten_subgroups=True):
        async with run.running("plain", Window(messages_max=1), last_seq=7):  # the stream is empty: somebody purged it
            sender = run.batches.sender()
            await sender.send(batch(0, 2), 1)
            await sender.send(batch(2, 2), 1)
            await trio.sleep(5)
    assert run.ids() == []
    assert set(run.telemetry.publish_rejected) == {10071}


@on_mock_clock
async def test_a_refused_message_ends_it_with_jetstreams_own_words() -> None:
    run = Run()
    run.nats.refusal = {"code": 503, "err_code": 10077, "description": "maximum bytes exceeded"}
    with pytest.RaisesGroup(pytest.RaisesExc(SinkUnavailable, match="refused"), flatten_subgroups=True) as caught:
        async with run.running("fast", Window(messages_max=1)):
            sender = run.batches.sender()
            await sender.send(batch(0, 1), 1)
            await sender.send(batch(1, 1), 1)
            await trio.sleep(5)
    (error,) = _leaves(caught.value)
    assert isinstance(error, SinkUnavailable)
    assert (error.code, error.said) == ("WB221", "503 10077 maximum bytes exceeded")


def _leaves(group: BaseException) -> list[BaseException]:
    if isinstance(group, BaseExceptionGroup):
        return [leaf for inner in group.exceptions for leaf in _leaves(inner)]
    return [group]


@pytest.mark.parametrize("mode", ["plain", "fast", "durable"])
def test_ids_that_the_server_remembers_go_in_another_header(mode: str) -> None:
    publisher = Publisher(mode, b"_INBOX.x", 7, remembered=3)  # type: ignore[arg-type]
    frames = [publisher.frames(batch(first, 2)) for first in (0, 2, 4)]
    for data, name, other in zip(
        frames, (b"Walbridge-Msg-Id", b"Walbridge-Msg-Id", b"Nats-Msg-Id"), (b"Nats-Msg", b"Nats-Msg", b"Walb"), strict=True
    ):
        assert data.count(b"\r\n" + name + b": a-") == 2
        assert other not in data
        for line in data.split(b"HPUB ")[1:]:
            head, _, rest = line.partition(b"\r\n")
            header_size, total = map(int, head.split()[-2:])
            assert rest[:header_size].endswith(b"\r\n\r\n")
            assert len(rest) == total + 2
