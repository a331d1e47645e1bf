"""A connection for questions beside the pipeline: those of the page and the HTTP API, and of the stream_monitor."""

from __future__ import annotations

import random
from typing import Any

import trio

from actors.clients.nats.connection import open_nats
from actors.clients.nats.jetstream import JetStream
from actors.contract.subjects import request
from actors.errors import SinkUnavailable, WalbridgeError
from actors.settings.config import NatsConfig
from actors.telemetry.log import get_logger
from actors.wire.nats import checked_subject, encode_pub

log = get_logger("nats")

AGAIN_S = 2.0
REQUESTED_WITHIN_S = 5.0


class JetStreamLink:
    """JetStream over a connection of its own: whatever is asked here, the pipeline's connection stays.

    `run` owns the connection. Every other method raises SinkUnavailable while NATS is away.
    """

    def __init__(self, config: NatsConfig, stream: str) -> None:
        self._config, self._stream = config, stream
        self._js: JetStream | None = None

    async def run(self) -> None:
        """Stay connected until cancelled. Reports nothing: the pipeline meets the same faults on its own connection."""
        known: set[str] = set()
        while True:
            try:
                async with open_nats(self._config, known) as connection:
                    self._js = JetStream(connection)
                    await trio.sleep_forever()
            except* WalbridgeError as group:
                log.debug("the connection for questions is lost", error=str(group.exceptions[0]))
            finally:
                self._js = None
            await trio.sleep(AGAIN_S * random.uniform(0.75, 1.25))

    async def stream_info(self, name: str) -> dict[str, Any] | None:
        """Return a stream's configuration and state; None when there is no such stream."""
        return await self.jetstream().stream_info(name)

    async def stream_consumers(self, name: str) -> list[dict[str, Any]]:
        """List a stream's consumers. Raises SinkRefused when the NATS user may not list them."""
        return await self.jetstream().consumers(name)

    async def request_snapshot(self, token: str) -> None:
        """Publish a request for a table's snapshot, as any client may. Raises ValueError for what no token can be."""
        subject = checked_subject(request(token, self._stream))
        with trio.CancelScope(shield=True, deadline=trio.current_time() + REQUESTED_WITHIN_S):  # the page may be closed
            await self.jetstream().connection.send(encode_pub(subject, b"", b""))

    def jetstream(self) -> JetStream:
        """Return the open connection's JetStream, for further questions."""
        if self._js is None:
            raise SinkUnavailable("WB200", "not connected to NATS")
        return self._js
