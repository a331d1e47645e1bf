"""Some publishes ahead of their acknowledgements, and every refusal raised."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
import trio.testing

from actors.clients.nats.jetstream import JetStreamError
from actors.clients.nats.publish_window import ACK_TIMEOUT_S, AHEAD_MAX, PublishWindow
from actors.errors import SinkUnavailable
from tests.unit.nats_peer import NO_RESPONDERS, Published, connected


def stored(_: Published) -> bytes:
    return b'{"stream":"INIT","seq":1}'


def test_messages_go_out_in_order_with_their_headers_and_drain_waits_for_the_last() -> None:
    async def publish() -> None:
        async with connected(stored) as (connection, published):
            window = PublishWindow(connection)
            await window.drain()  # nothing was sent: nothing to wait for
            for i in range(20):
                await window.send("init.snap.users.snap-1-a.0", b"%d" % i, {"Chunk": str(i)})
            await window.drain()
            assert [(m.body, m.headers["Chunk"]) for m in published] == [(b"%d" % i, str(i)) for i in range(20)]

    trio.run(publish)


def test_no_more_than_the_window_is_ahead_of_the_acknowledgements() -> None:
    async def publish() -> None:
        async with connected(lambda _: None) as (connection, published), trio.open_nursery() as nursery:
            window = PublishWindow(connection)

            async def send_all() -> None:
                for i in range(AHEAD_MAX + 3):
                    await window.send("a", b"%d" % i, {})

            nursery.start_soon(send_all)
            await trio.testing.wait_all_tasks_blocked()
            assert len(published) == AHEAD_MAX
            nursery.cancel_scope.cancel()

    trio.run(publish)


@pytest.mark.parametrize(
    ("reply", "kind", "code"),
    [
        (b'{"error":{"code":503,"err_code":10077,"description":"maximum bytes exceeded"}}', JetStreamError, "WB210"),
        (b'{"error":{"code":400}}', JetStreamError, "WB210"),
        (b"{}", JetStreamError, "WB210"),
        (NO_RESPONDERS, JetStreamError, "WB210"),
        (b"{", SinkUnavailable, "WB212"),
        (b"[]", SinkUnavailable, "WB212"),
        (b'{"error":7}', SinkUnavailable, "WB212"),
    ],
)
def test_a_refusal_ends_the_window(reply: bytes, kind: type[SinkUnavailable], code: str) -> None:
    async def publish() -> None:
        async with connected(lambda _: reply) as (connection, _):
            window = PublishWindow(connection)
            await window.send("a", b"", {})
            for again in (window.drain, lambda: window.send("a", b"", {})):
                with pytest.raises(kind) as caught:
                    await again()
                assert (type(caught.value), caught.value.code) == (kind, code)

    trio.run(publish)


def test_silence_ends_the_window() -> None:
    async def publish() -> None:
        async with connected(lambda _: None) as (connection, _):
            window = PublishWindow(connection)
            await window.send("a", b"", {})
            began = trio.current_time()
            with pytest.raises(SinkUnavailable) as caught:
                await window.drain()
            assert (caught.value.code, trio.current_time() - began) == ("WB222", ACK_TIMEOUT_S)

    run_in_no_time(publish)


def run_in_no_time(main: Callable[[], object]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
