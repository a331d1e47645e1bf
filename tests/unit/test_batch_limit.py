"""How many messages an atomic batch may have, from one refusal to the next."""

from __future__ import annotations

from actors.errors import BatchTooLarge, SinkUnavailable
from actors.startup.batch_limit import BatchLimit


def too_large(messages_max: int) -> BatchTooLarge:
    fault = BatchTooLarge("WB226", "smaller")
    fault.messages_max = messages_max
    return fault


def test_the_limit_that_the_server_names_is_followed_and_a_useless_one_halves_it() -> None:
    limit = BatchLimit()
    limit.note(SinkUnavailable("WB221", "refused"))
    assert limit.messages_max == 1000
    limit.note(too_large(300))
    assert limit.messages_max == 300
    limit.note(too_large(1000))
    assert limit.messages_max == 150
    for _ in range(9):
        limit.note(too_large(1000))
    assert limit.messages_max == 1
