"""A pooler such as PgBouncer, small: between the tests and a PostgreSQL that trusts its clients."""

from __future__ import annotations

import socket
import struct
import threading
from types import TracebackType
from typing import Literal

SSL_REQUEST, GSS_REQUEST, CANCEL_REQUEST = 80877103, 80877104, 80877102


class Pooler:
    """Gives each transaction the server connection that was free last, or each session its own. A context manager."""

    def __init__(self, port: int, mode: Literal["transaction", "session"], *, size: int = 20) -> None:
        """`port` is PostgreSQL's; `size` limits the server connections."""
        self._target, self._mode = port, mode
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._free: list[socket.socket] = []
        self._room = threading.Semaphore(size)
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Pooler:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None,
                 _trace: TracebackType | None) -> None:  # fmt: skip
        for one in (self._listener, *self._sockets):
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server: socket.socket | None = None
        try:
            startup = _startup(client)
            state = b"I"
            if startup is not None:
                server = self._take(startup)
                client.sendall(self._greeting)
            while startup is not None:
                if server is not None and state == b"I" and self._mode == "transaction":
                    server = self._give_back(server)
                message = _message(client)
                if message[:1] == b"X":
                    break
                server, state = server or self._take(startup), b"T"
                server.sendall(message)
                if message[:1] in (b"Q", b"S", b"c", b"f"):
                    state = _relay(server, client)
        except OSError:
            pass  # one side has closed
        client.close()
        if server is not None:
            server.close()
            self._room.release()

    def _take(self, startup: bytes) -> socket.socket:
        """A free server connection, or a new one."""
        self._room.acquire()
        if self._free:
            return self._free.pop()
        server = socket.create_connection(("127.0.0.1", self._target))
        self._sockets.append(server)
        server.sendall(startup)
        greeting = b""
        while (message := _message(server))[:1] != b"Z":
            assert message[:1] != b"E", message
            # K is the key for cancellations: poolers have their own
            greeting += message if message[:1] != b"K" else b"K" + struct.pack(">III", 12, 4242, 1)
        self._greeting = greeting + message
        return server

    def _give_back(self, server: socket.socket) -> None:
        self._free.append(server)
        self._room.release()


def _startup(client: socket.socket) -> bytes | None:
    """The startup packet; None for a request to cancel."""
    while True:
        head = _exactly(client, 8)
        size, code = struct.unpack(">II", head)
        packet = head + _exactly(client, size - 8)
        if code not in (SSL_REQUEST, GSS_REQUEST):
            return None if code == CANCEL_REQUEST else packet
        client.sendall(b"N")


def _message(source: socket.socket) -> bytes:
    head = _exactly(source, 5)
    return head + _exactly(source, struct.unpack(">I", head[1:])[0] - 4)


def _relay(server: socket.socket, client: socket.socket) -> bytes:
    """Pass on what the server says until it waits for the client; return the state of its transaction."""
    while True:
        message = _message(server)
        client.sendall(message)
        if message[:1] == b"Z":
            return message[5:]
        if message[:1] == b"G":  # COPY: the client sends
            return b"T"


def _exactly(source: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        piece = source.recv(size - len(found))
        if not piece:
            raise OSError("closed")
        found += piece
    return found
