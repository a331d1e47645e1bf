"""One connection to NATS on trio. `wire.nats` has the protocol; only the supervisor retries."""

from __future__ import annotations

import os
import random
import secrets
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio

from actors import __version__
from actors.clients.nats.auth import ServerAddress, connect_options, servers_of, tls_context
from actors.errors import ConfigError, MalformedMessage, SinkUnavailable
from actors.settings.config import NatsConfig
from actors.telemetry.log import get_logger, mask
from actors.wire.api_subjects import OWN, ApiSubjects
from actors.wire.nats import (
    PING,
    PONG,
    Err,
    Event,
    Info,
    Msg,
    NatsParser,
    Ping,
    Pong,
    checked_subject,
    encode_connect,
    encode_pub,
    encode_sub,
)

log = get_logger("nats")

CONNECT_TIMEOUT_S = 5.0
PING_EVERY_S = 20.0
PONG_WITHIN_S = 10.0
RECEIVE_BYTES = 256 * 1024
ALLOW = "walbridge export nats-permissions   # prints the rights; put them into nats-server's configuration and reload it"


class SinkRefused(SinkUnavailable):
    """NATS does not let this user in, or refuses a request. Fatal before the first success, transient afterwards."""


class NatsConnection:
    """An open connection, from `open_nats`. Each send is complete, so frames of several tasks never mix.

    Callbacks of subscriptions run in the reading task: they must not block and must not raise.
    """

    def __init__(
        self, stream: trio.abc.Stream, server: ServerAddress, info: Mapping[str, Any], known: set[str],
        api: ApiSubjects = OWN,
    ) -> None:  # fmt: skip
        self.server = server
        self.api = api
        self.info: dict[str, Any] = {}
        self._known = known
        self._stream = stream
        self._sending = trio.Lock()
        self._broken = ""
        self._callbacks: dict[int, Callable[[Msg], None]] = {}
        self._last_sid = 0
        self._replies: dict[bytes, _Reply] = {}
        self._reply_prefix = b""
        self._requests = 0
        self._pong = trio.Event()
        self._take_info(info)

    @property
    def max_payload(self) -> int:
        """Bytes of the largest message, headers included, that this server takes."""
        announced = self.info.get("max_payload")
        return announced if isinstance(announced, int) else 1024 * 1024

    @property
    def version(self) -> tuple[int, int, int]:
        """The server's version."""
        numbers = str(self.info.get("version", "0")).split("-")[0].split(".")
        major, minor, patch = (*(int(n) if n.isdigit() else 0 for n in numbers), 0, 0, 0)[:3]
        return major, minor, patch

    async def send(self, frames: bytes) -> None:
        """Send complete frames. Raises SinkUnavailable. A cancelled send may leave half a frame, so it ends the connection.

        Who may be cancelled while others use the connection shields it: see `request`.
        """
        async with self._sending:
            if self._broken:
                raise SinkUnavailable("WB201", f"connection to NATS {self.server} lost", said=self._broken)
            self._broken = "a send was cancelled"
            try:
                await self._stream.send_all(frames)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                self._broken = _reason(exc)
                raise SinkUnavailable("WB201", f"connection to NATS {self.server} lost", said=self._broken) from exc
            self._broken = ""

    async def subscribe(self, subject: str, callback: Callable[[Msg], None]) -> None:
        """Hand every message on `subject` to `callback`, until the connection ends."""
        self._last_sid += 1
        self._callbacks[self._last_sid] = callback
        await self.send(encode_sub(checked_subject(subject), self._last_sid))

    async def inbox(self, callback: Callable[[Msg], None]) -> bytes:
        """Return a new prefix for reply subjects; messages on subjects below it go to `callback`."""
        prefix = b"_INBOX." + secrets.token_hex(8).encode()
        await self.subscribe(prefix.decode() + ".>", callback)
        return prefix

    async def request(
        self, subject: str, payload: bytes = b"", *, timeout_s: float, headers: Mapping[str, str] | None = None
    ) -> Msg:
        """Publish and wait for one reply. Raises SinkUnavailable when none comes in time, SinkRefused without permission.

        May be cancelled at any time, as the page's questions are when a tab is closed: the connection stays in use.
        """
        self._requests += 1
        number, reply, target = self._requests, _Reply(subject), b""
        try:
            with trio.move_on_after(timeout_s) as deadline:  # includes the send: a server that reads nothing answers nothing
                with trio.CancelScope(shield=True, deadline=deadline.deadline):
                    if not self._reply_prefix:
                        self._reply_prefix = await self.inbox(self._on_reply)
                    target = b"%b.%d" % (self._reply_prefix, number)
                    self._replies[target] = reply
                    await self.send(encode_pub(checked_subject(subject), target, payload, headers))
                await reply.came.wait()
        finally:
            self._replies.pop(target, None)
        if reply.refused:
            raise SinkRefused(
                "WB204", f"NATS user may not publish to {subject}", said=reply.refused,
                fix=ALLOW,
            )  # fmt: skip
        if reply.message is None:
            raise SinkUnavailable("WB202", f"no reply to {subject} within {timeout_s:g} s", means="NATS is gone or overloaded")
        return reply.message

    def _on_reply(self, message: Msg) -> None:
        reply = self._replies.get(message.subject)
        if reply is not None:
            reply.message = message
            reply.came.set()

    # -- what open_nats runs

    async def _read(self, parser: NatsParser) -> None:
        while True:
            try:
                data = await self._stream.receive_some(RECEIVE_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                self._broken = _reason(exc)
                raise SinkUnavailable("WB201", f"connection to NATS {self.server} lost", said=self._broken) from exc
            if not data:
                self._broken = "closed by the server"
                raise SinkUnavailable("WB201", f"connection to NATS {self.server} lost", said=self._broken)
            for event in parser.feed(bytes(data)):
                if type(event) is Msg:
                    callback = self._callbacks.get(event.sid)
                    if callback is not None:
                        callback(event)
                else:
                    await self._on_control(event)

    async def _on_control(self, event: Event) -> None:
        if isinstance(event, Ping):
            await self.send(PONG)
        elif isinstance(event, Pong):
            self._pong.set()
        elif isinstance(event, Info):
            self._take_info(event.fields)
            if event.fields.get("ldm"):
                raise SinkUnavailable(
                    "WB206", f"NATS {self.server} is shutting down (lame duck)", means="moving to another server of the cluster"
                )
        elif isinstance(event, Err):
            self._on_error(event.text)

    def _take_info(self, fields: Mapping[str, Any]) -> None:
        self.info.update(fields)
        urls = fields.get("connect_urls")
        if isinstance(urls, list):
            self._known.update(url for url in urls if isinstance(url, str))

    def _on_error(self, text: str) -> None:
        if "permissions violation" in text.lower():
            for reply in self._replies.values():
                if f'"{reply.subject}"' in text and not reply.refused:  # one complaint per request, even if requests are equal
                    reply.refused = text
                    reply.came.set()
                    return
            raise SinkRefused("WB204", "NATS user may not do this", said=text, fix=ALLOW)
        raise SinkUnavailable("WB203", f"NATS {self.server} ended the connection", said=text)

    async def _keep_alive(self) -> None:
        """Send PINGs, so that a peer that vanished is noticed within half a minute."""
        while True:
            await trio.sleep(PING_EVERY_S)
            self._pong = trio.Event()
            with trio.move_on_after(PONG_WITHIN_S) as deadline:
                await self.send(PING)
                await self._pong.wait()
            if deadline.cancelled_caught:
                raise SinkUnavailable("WB201", f"NATS {self.server} did not answer a PING within {PONG_WITHIN_S:g} s")


class _Reply:
    """A request that waits for its reply."""

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.came = trio.Event()
        self.message: Msg | None = None
        self.refused = ""


@asynccontextmanager
async def open_nats(config: NatsConfig, known: set[str]) -> AsyncGenerator[NatsConnection]:
    """Connect to one of the servers, in random order; `known` collects the servers that the cluster announces.

    Owns the connection and its tasks. When the connection ends, the body is cancelled and SinkUnavailable raised.
    Raises SinkUnavailable when no server can be reached, SinkRefused when a server refuses the credentials and no other accepts
    them.
    """
    config = config.latest()
    mask(config.file_secrets)
    connection, parser = await _connect_any(config, known)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection._read, parser)
            nursery.start_soon(connection._keep_alive)
            yield connection
            nursery.cancel_scope.cancel()
    finally:
        with trio.move_on_after(1) as closing:
            closing.shield = True
            await trio.aclose_forcefully(connection._stream)


async def _connect_any(config: NatsConfig, known: set[str]) -> tuple[NatsConnection, NatsParser]:
    servers = servers_of(config.urls, known)
    failures: list[str] = []
    refusal: SinkRefused | None = None
    for server in random.sample(servers, len(servers)):
        try:
            with trio.fail_after(CONNECT_TIMEOUT_S):
                return await _connect(config, server, known)
        except SinkRefused as exc:
            refusal = exc  # another server may accept the credentials
        except ConfigError as exc:
            if exc.code != "WB205":
                raise
            # a file that cannot be used may be in the middle of its renewal: fatal only before the first success
            raise SinkRefused("WB205", exc.what, said=exc.said, means=exc.means, fix=exc.fix) from exc
        except (OSError, UnicodeError, trio.BrokenResourceError, ssl.SSLError, MalformedMessage, SinkUnavailable) as exc:
            failures.append(f"{server}: {_reason(exc)}")
        except trio.TooSlowError:
            failures.append(f"{server}: no answer within {CONNECT_TIMEOUT_S:g} s")
    if refusal is not None:
        raise refusal
    raise SinkUnavailable(
        "WB200",
        f"cannot connect to NATS at {', '.join(map(str, servers))}",
        said="; ".join(failures),
        fix="start nats-server -js there, or set NATS_URL to where it is, e.g. in the file of --env-file",
    )


async def _connect(config: NatsConfig, server: ServerAddress, known: set[str]) -> tuple[NatsConnection, NatsParser]:
    stream: trio.abc.Stream = await trio.open_tcp_stream(server.host, server.port)
    try:
        if config.tls_first:
            stream = await _start_tls(config, server, stream)
        parser = NatsParser()
        info = (await _expect(stream, parser, Info))[0].fields
        if not config.tls_first and (server.tls or config.ca or config.cert or info.get("tls_required")):
            stream = await _start_tls(config, server, stream)
            parser = NatsParser()  # plain text after INFO need not be from the server
        if not info.get("headers", False):
            raise ConfigError("WB207", f"NATS {server} has no headers", said=f"version {info.get('version')}",
                              fix="the bridge needs nats-server 2.10 or later")  # fmt: skip
        await stream.send_all(encode_connect(connect_options(config, server, info, __version__)))
        _, rest = await _expect(stream, parser, Pong)
        connection = NatsConnection(stream, server, info, known, config.api)
        for event in rest:  # a second INFO has the limits of this account
            await connection._on_control(event)
        return connection, parser  # noqa: TRY300
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise


async def _start_tls(config: NatsConfig, server: ServerAddress, stream: trio.abc.Stream) -> trio.abc.Stream:
    tls = trio.SSLStream(stream, tls_context(config), server_hostname=server.tls_name or server.host, https_compatible=True)
    try:
        await tls.do_handshake()
    except trio.BrokenResourceError as exc:
        cause = exc.__cause__
        if config.tls_first and isinstance(cause, ssl.SSLError) and cause.reason == "WRONG_VERSION_NUMBER":
            # Not a matter of trust: the server sent INFO in plain text, as handshake_first: auto does when the client is
            # 50 ms late. The next attempt may be in time.
            raise ConnectionError(
                "the server did not wait for TLS: NATS_TLS_FIRST is for servers with handshake_first"
            ) from None
        if isinstance(cause, ssl.SSLError):
            raise SinkRefused(
                "WB208",
                f"no trusted TLS connection to NATS at {server}",
                said=_reason(exc),
                means="nothing is sent to a server whose identity is not proven",
                fix="NATS_CA: the authority that signed the server's certificate; NATS_URL: a host name in that certificate",
            ) from exc
        raise
    return tls


_E = TypeVar("_E", Info, Pong)


async def _expect(stream: trio.abc.Stream, parser: NatsParser, kind: type[_E]) -> tuple[_E, list[Event]]:
    """Read until an event of this kind comes; return the event and those after it.

    While the connection opens, only INFO, PING and errors may come before.
    """
    while True:
        data = await stream.receive_some(RECEIVE_BYTES)
        if not data:
            raise trio.BrokenResourceError("closed by the server")
        events = parser.feed(bytes(data))
        for i, event in enumerate(events):
            if isinstance(event, kind):
                return event, events[i + 1 :]
            if isinstance(event, Err):
                refused = "auth" in event.text.lower() and "timeout" not in event.text.lower()
                raise (SinkRefused if refused else SinkUnavailable)(
                    "WB203",
                    "NATS refused the connection",
                    said=event.text,
                    fix="check NATS_BRIDGE_USER and NATS_BRIDGE_PASSWORD, NATS_TOKEN, NATS_NKEY_SEED or NATS_CREDS",
                )
            if isinstance(event, Ping):
                await stream.send_all(PONG)


def _reason(exc: BaseException) -> str:
    """Return the system's own words, each once: trio's error may wrap one failure per address of the host."""
    cause = exc.__cause__ or exc
    if isinstance(cause, BaseExceptionGroup):
        return ", ".join(dict.fromkeys(map(_reason, cause.exceptions)))
    if isinstance(cause, ConnectionError) and cause.errno:
        return os.strerror(cause.errno)
    return str(cause) or type(cause).__name__
