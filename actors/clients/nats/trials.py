"""Tries what a NATS user may do, without doing it: each request is one that the server refuses for another reason."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from actors.clients.nats.connection import NatsConnection, SinkRefused, open_nats
from actors.errors import SinkUnavailable, WalbridgeError
from actors.process import most_telling
from actors.settings.config import NatsConfig
from actors.wire.jetstream import EXPECTED_STREAM_HEADER

TRIAL_S = 2.0
_AT_ONCE = 50
_NO_STREAM = {EXPECTED_STREAM_HEADER: "_no_stream_has_this_name"}
_NOT_A_REQUEST = b'"trial"'
"""JSON, but no request: JetStream answers that it cannot read it."""


async def refused_publishes(connection: NatsConnection, subjects: Sequence[str]) -> list[str]:
    """Return the subjects on which the user may not publish. No stream stores anything; who listens gets an empty message."""
    return await _refused(connection, [(subject, b"", _NO_STREAM) for subject in subjects])


async def refused_requests(connection: NatsConnection, actions: Sequence[str]) -> list[str]:
    """Return which of JetStream's actions the user may not ask for, as subjects. Not for actions that read no body."""
    return await _refused(connection, [(f"$JS.API.{action}", _NOT_A_REQUEST, None) for action in actions])


async def _refused(connection: NatsConnection, trials: Sequence[tuple[str, bytes, dict[str, str] | None]]) -> list[str]:
    limit = trio.CapacityLimiter(_AT_ONCE)
    refused: set[str] = set()

    async def attempt(subject: str, body: bytes, headers: dict[str, str] | None) -> None:
        async with limit:
            try:
                await connection.request(subject, body, timeout_s=TRIAL_S, headers=headers)
            except SinkRefused:
                refused.add(subject)
            except SinkUnavailable as exc:
                if exc.code != "WB202":  # no answer is no refusal, which would have come at once
                    raise

    async with trio.open_nursery() as nursery:
        for trial in trials:
            nursery.start_soon(attempt, *trial)
    return [subject for subject, *_ in trials if subject in refused]


async def may_subscribe(config: NatsConfig, subject: str) -> bool:
    """Try a subscription on a connection of its own, which a refusal ends. Raises SinkUnavailable without a connection."""
    try:
        async with open_nats(config, set()) as connection:
            await connection.subscribe(subject, lambda _: None)
            # a refusal comes before the answer to anything that is sent later
            await refused_requests(connection, ["INFO"])
    except (WalbridgeError, BaseExceptionGroup) as exc:
        error = most_telling(exc)
        if isinstance(error, SinkRefused) and error.code == "WB204":
            return False
        raise error from None
    return True
