"""Serves an application with hypercorn on trio: settings, and fixes for what the libraries leave open."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Awaitable, Callable

import hypercorn
import hypercorn.trio
import trio
from hypercorn.config import Sockets
from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
from quart_trio import QuartTrio

from actors.errors import ConfigError
from actors.process import most_telling
from actors.settings.config import HttpConfig

IDLE_S = 15.0
"""A client that asks for nothing more for so long is dropped."""
UNREAD_S = 5.0
"""A client that reads nothing of its answer for this long is dropped."""


async def serve_app(
    app: QuartTrio,
    http: HttpConfig,
    *,
    beside: Callable[[], Awaitable[None]] = trio.sleep_forever,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled, with a task `beside`. Reports started once the port is bound.

    Raises ConfigError when the port is taken.
    """
    settings = _Settings()
    host = f"[{http.bind}]" if ":" in http.bind else http.bind
    settings.bind = [f"{host}:{http.port}"]
    settings.accesslog = None
    settings.errorlog = logging.getLogger("hypercorn")  # its level is WARNING: the bridge logs the start itself
    settings.graceful_timeout = 1.0
    settings.keep_alive_timeout = IDLE_S
    settings.h11_max_incomplete_size = 16 * 1024
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(beside)
            await hypercorn.trio.serve(_finishing(app), settings, shutdown_trigger=trio.sleep_forever, task_status=task_status)
    except* OSError as group:
        error = most_telling(group)
        assert isinstance(error, OSError)
        raise cannot_listen(http, error) from None


def page_url(http: HttpConfig) -> str:
    """The address of the page for a browser on this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(http.bind, http.bind)
    return f"http://{f'[{host}]' if ':' in host else host}:{http.port}/"


def cannot_listen(http: HttpConfig, error: OSError, said: str = "") -> ConfigError:
    """Return the error for an address on which the bridge cannot listen."""
    port, host = http.port, f"[{http.bind}]" if ":" in http.bind else http.bind
    if error.errno != errno.EADDRINUSE:
        return ConfigError("WB005", f"cannot listen on {host}:{port}", said=str(error), fix="give --bind and --port")
    return ConfigError(
        "WB005", f"--port {port} is taken", said=said,
        means="Prometheus uses 9090 by default" if port == 9090 else "",
        fix=f"give another one, e.g. --port {port + 1 if port < 65535 else 9091}",
    )  # fmt: skip


class _Settings(hypercorn.Config):
    """Hypercorn's settings, plus a timeout for clients that ask and never read: no stop could interrupt such a send."""

    def create_sockets(self) -> Sockets:
        sockets = super().create_sockets()
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; accepted connections inherit it
            for listener in sockets.insecure_sockets:
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNREAD_S * 1000))
        return sockets


def _finishing(app: QuartTrio) -> ASGIFramework:
    """Shield the application's sends from cancellation.

    quart-trio cancels a request as soon as hypercorn reports the answer complete. Hypercorn does so inside the last send,
    before it closes the connection or starts its idle timer, so without the shield neither would happen.
    """

    async def finishing(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        async def send_whole(event: ASGISendEvent) -> None:
            with trio.CancelScope(shield=True):
                await send(event)

        await app(scope, receive, send_whole)

    return finishing
