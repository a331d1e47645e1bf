"""What a connection makes of a server's words about itself, and what it does not send."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import memory_stream_pair

from actors.clients.nats.auth import ServerAddress
from actors.clients.nats.connection import NatsConnection
from actors.wire.nats import Info, checked_subject
from tests.unit.nats_peer import connected


@pytest.mark.parametrize(
    ("fields", "known"),
    [
        ({"connect_urls": ["a:4222", 5, None, ["b"], "c:1"]}, {"a:4222", "c:1"}),
        ({"connect_urls": None}, set()),
        ({"connect_urls": 5}, set()),
        ({"connect_urls": "abc"}, set()),
        ({"connect_urls": {"a": 1}}, set()),
    ],
)
def test_only_texts_in_a_list_are_servers(fields: dict[str, Any], known: set[str]) -> None:
    async def hear() -> set[str]:
        found: set[str] = set()
        connection = NatsConnection(memory_stream_pair()[0], ServerAddress("h", 4222), {}, found)
        await connection._on_control(Info(fields))
        return found

    assert trio.run(hear) == known


@pytest.mark.parametrize("announced", [None, "many", [], {}, 1.5])
def test_an_unreadable_limit_is_the_servers_usual_one(announced: object) -> None:
    connection = NatsConnection(memory_stream_pair()[0], ServerAddress("h", 4222), {"max_payload": announced}, set())
    assert connection.max_payload == 1024 * 1024


def test_a_subject_that_would_cut_the_connection_is_not_sent() -> None:
    assert len(checked_subject("a" * 3_800)) == 3_800
    with pytest.raises(ValueError, match="longer than a NATS server takes"):
        checked_subject("a" * 4_000)
    with pytest.raises(ValueError, match="longer than a NATS server takes"):
        checked_subject("\u00fc" * 2_000)

    async def ask() -> int:
        async with connected(lambda _: b"{}") as (connection, published):
            with pytest.raises(ValueError, match="longer"):
                await connection.request("$JS.API.STREAM.INFO." + "A" * 5_000, timeout_s=1)
            await connection.request("$JS.API.INFO", timeout_s=1)
            return len(published)

    assert trio.run(ask) == 1
