"""A TCP proxy between a consumer and nats-server that can cut all connections at once."""

from __future__ import annotations

import trio


class Proxy:
    """Forwards connections of 127.0.0.1 to a server's port. Started with `nursery.start`."""

    def __init__(self, port: int) -> None:
        self._server_port = port
        self.port = 0
        self._connections: set[trio.CancelScope] = set()

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Forward until cancelled."""
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._forward, listeners)

    def cut(self) -> None:
        """Cut what is connected now, wherever its messages are."""
        for scope in self._connections:
            scope.cancel()

    async def _forward(self, client: trio.SocketStream) -> None:
        with trio.CancelScope() as scope:
            self._connections.add(scope)
            try:
                server = await trio.open_tcp_stream("127.0.0.1", self._server_port)
            except OSError:
                self._connections.discard(scope)
                return  # the consumer sees its connection closed, as if the server were down
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_copy, client, server, scope)
                    nursery.start_soon(_copy, server, client, scope)
            finally:
                self._connections.discard(scope)
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                    await trio.aclose_forcefully(server)


async def _copy(source: trio.SocketStream, to: trio.SocketStream, ends: trio.CancelScope) -> None:
    try:
        async for data in source:
            await to.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    ends.cancel()
