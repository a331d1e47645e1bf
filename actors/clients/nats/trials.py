"""Tries what a NATS user may do, without doing it: each request is one that the server refuses for another reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import trio

from actors.clients.nats.connection import NatsConnection, SinkRefused, open_nats
from actors.contract.subjects import is_bucket_key
from actors.errors import SinkUnavailable, WalbridgeError
from actors.process import most_telling
from actors.settings.config import NatsConfig
from actors.wire.jetstream import EXPECTED_STREAM_HEADER

TRIAL_S = 1.0
_AT_ONCE = 50
_NO_STREAM = {EXPECTED_STREAM_HEADER: "_no_stream_has_this_name"}
NOT_A_REQUEST = b'"trial"'
"""JSON, but no request: JetStream answers that it cannot read it. Not for PURGE, which nats-server 2.15 then does."""


async def refused_publishes(connection: NatsConnection, subjects: Iterable[str]) -> dict[str, str]:
    """Return the subjects on which the user may not publish, with the server's words.

    No stream stores anything; who listens without JetStream gets an empty message.
    """
    targets = [connection.api.key(subject) if is_bucket_key(subject) else subject for subject in subjects]
    return await _refused(connection, [(target, b"", _NO_STREAM) for target in targets])


async def refused_requests(connection: NatsConnection, requests: Mapping[str, bytes]) -> dict[str, str]:
    """Return which of JetStream's actions the user may not ask for, as subjects, with the server's words.

    `requests` are bodies by action, with which the action changes nothing.
    """
    return await _refused(connection, [(connection.api.action(action), body, None) for action, body in requests.items()])


async def _refused(connection: NatsConnection, trials: Sequence[tuple[str, bytes, dict[str, str] | None]]) -> dict[str, str]:
    limit = trio.CapacityLimiter(_AT_ONCE)
    refused: dict[str, str] = {}

    async def attempt(subject: str, body: bytes, headers: dict[str, str] | None) -> None:
        async with limit:
            try:
                await connection.request(subject, body, timeout_s=TRIAL_S, headers=headers)
            except SinkRefused as exc:
                refused[subject] = exc.said
            except SinkUnavailable as exc:
                if exc.code != "WB202":  # no answer is no refusal, which would have come at once
                    raise

    async with trio.open_nursery() as nursery:
        for trial in trials:
            nursery.start_soon(attempt, *trial)
    return {subject: refused[subject] for subject, *_ in trials if subject in refused}


async def may_subscribe(config: NatsConfig, subject: str) -> bool:
    """Try a subscription on a connection of its own, which a refusal ends. Raises SinkUnavailable without a connection."""
    try:
        async with open_nats(config, set()) as connection:
            await connection.subscribe(subject, lambda _: None)
            # a refusal comes before the answer to anything that is sent later
            await refused_requests(connection, {"INFO": b""})
    except (WalbridgeError, BaseExceptionGroup) as exc:
        error = most_telling(exc)
        if isinstance(error, SinkRefused) and error.code == "WB204":
            return False
        raise error from None
    return True
