"""Publishes messages in order, a few ahead of their acknowledgements. For messages that need no fixed sequence."""

from __future__ import annotations

import orjson
import trio
from trio_util import AsyncValue

from actors.clients.nats.connection import NatsConnection
from actors.clients.nats.jetstream import JetStreamError
from actors.errors import SinkUnavailable
from actors.wire.nats import Msg, encode_pub

AHEAD_MAX = 4
ACK_TIMEOUT_S = 10.0


class PublishWindow:
    """A window of up to four unacknowledged messages. One task sends; the connection's reader handles replies."""

    def __init__(self, connection: NatsConnection) -> None:
        self._connection = connection
        self._prefix = b""
        self._sent = 0
        self._waiting: set[bytes] = set()
        self._outstanding = AsyncValue(0)
        self._failure: SinkUnavailable | None = None

    async def send(self, subject: str, body: bytes, headers: dict[str, str]) -> None:
        """Send one message once there is room. Raises JetStreamError when this or an earlier message was refused."""
        if not self._prefix:
            self._prefix = await self._connection.inbox(self._on_reply)
        await self._until(AHEAD_MAX - 1)
        self._sent += 1
        target = b"%b.%d" % (self._prefix, self._sent)
        self._waiting.add(target)
        self._outstanding.value = len(self._waiting)
        await self._connection.send(encode_pub(subject.encode(), target, body, headers))

    async def drain(self) -> None:
        """Wait until every message is stored. Raises as `send` does."""
        await self._until(0)

    async def _until(self, most: int) -> None:
        with trio.move_on_after(ACK_TIMEOUT_S) as deadline:
            await self._outstanding.wait_value(lambda count: count <= most or self._failure is not None)
        if self._failure is not None:
            raise self._failure
        if deadline.cancelled_caught:
            raise SinkUnavailable("WB222", f"JetStream has acknowledged nothing for {ACK_TIMEOUT_S:g} s")

    def _on_reply(self, message: Msg) -> None:
        self._waiting.discard(message.subject)
        try:
            reply = orjson.loads(message.payload) if message.payload else {"error": {"code": message.status}}
            error = reply.get("error")
            if error is not None or "seq" not in reply:
                error = error or {"description": "the reply is not an acknowledgement"}
                self._failure = JetStreamError(
                    "store a message",
                    int(error.get("code", 0)),
                    int(error.get("err_code", 0)),
                    str(error.get("description", "")),
                )
        except (ValueError, AttributeError, TypeError) as exc:
            self._failure = SinkUnavailable("WB212", "the reply to a request to store a message is not JSON", said=repr(exc))
        self._outstanding.value = len(self._waiting) if self._failure is None else -1
