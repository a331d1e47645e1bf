"""One question to JetStream over a connection of its own, for commands that do not try again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from actors.clients.nats.connection import open_nats
from actors.clients.nats.jetstream import JetStream
from actors.errors import ConfigError, SinkUnavailable
from actors.process import most_telling
from actors.settings.config import NatsConfig

T = TypeVar("T")


async def over_jetstream(config: NatsConfig, ask: Callable[[JetStream], Awaitable[T]]) -> T:
    """Connect, ask, and disconnect; return the answer.

    Raises ConfigError, also when NATS is away, and what else `ask` raises.
    """
    try:
        async with open_nats(config, set()) as nats:
            return await ask(JetStream(nats))
    except* (SinkUnavailable, ConfigError) as group:
        cause = most_telling(group)
        assert isinstance(cause, SinkUnavailable | ConfigError)
        raise ConfigError(cause.code, cause.what, said=cause.said, means=cause.means, fix=cause.fix) from None
    raise AssertionError("the body returns or raises")
