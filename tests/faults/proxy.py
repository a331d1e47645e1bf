"""A network between two processes that can be cut, half-closed or reset, fall silent, become slow, or end after some bytes."""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import suppress

_LINGER_0 = struct.pack("ii", 1, 0)
"""A socket that is closed with it sends RST in place of FIN, and what it holds is thrown away."""


class Proxy:
    """Passes TCP connections on to a port of 127.0.0.1; ends with the process."""

    def __init__(self, target: int) -> None:
        """Listen on `port`, a free one."""
        self.target = target
        """Where new connections lead."""
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._listener.getsockname()[1])
        self._clients: set[socket.socket] = set()
        self._servers: set[socket.socket] = set()
        self._resets: set[socket.socket] = set()
        self._flows = threading.Event()
        self._flows.set()
        self._lock = threading.Lock()
        self._left: int | None = None
        """Bytes until the next cut."""
        self.delay_s = 0.0
        """Of each piece that is read, in each direction."""
        self.bytes_per_s = 0
        """In each direction; 0 is without a limit."""
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End all connections; new ones are taken. What was held is lost."""
        for one in self._open():
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def cut_after(self, count: int) -> None:
        """Cut once so many bytes more have passed, whichever way: in the middle of whatever that is."""
        with self._lock:
            self._left = count

    def reset(self) -> None:
        """End all connections with RST, as a firewall does that has forgotten them."""
        for one in self._open():
            self._resets.add(one)
            with suppress(OSError):
                one.shutdown(socket.SHUT_RD)

    def half_close(self) -> None:
        """Tell the clients that the server sends nothing more; what they send still arrives."""
        for one in list(self._clients):
            with suppress(OSError):
                one.shutdown(socket.SHUT_WR)

    def go_silent(self) -> None:
        """Take connections and bytes, and pass nothing on until `heal`."""
        self._flows.clear()

    def heal(self) -> None:
        """Pass everything on at once, also what was held."""
        self.delay_s, self.bytes_per_s = 0.0, 0
        with self._lock:
            self._left = None
        self._flows.set()

    def _open(self) -> list[socket.socket]:
        return [*self._clients, *self._servers]

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            try:
                server = socket.create_connection(("127.0.0.1", self.target), timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            self._clients.add(client)
            self._servers.add(server)
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(1 << 16):
                self._flows.wait()
                if self.delay_s:
                    time.sleep(self.delay_s)
                allowed = self._allowed(len(piece))
                self._send(sink, piece[:allowed])
                if allowed < len(piece):
                    self.cut()
                    break
        if {source, sink} & self._resets:
            with suppress(OSError):
                source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
        else:
            for one in (source, sink):
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
        self._clients.discard(source)
        self._servers.discard(source)
        source.close()

    def _allowed(self, count: int) -> int:
        """How many bytes of a piece pass before a cut that was asked for."""
        with self._lock:
            if self._left is None:
                return count
            allowed = min(count, self._left)
            self._left = self._left - allowed if allowed == count else None
            return allowed

    def _send(self, sink: socket.socket, piece: bytes) -> None:
        at = 0
        while self.bytes_per_s and at < len(piece):
            sink.sendall(piece[at : at + 1])
            at += 1
            time.sleep(1 / self.bytes_per_s)
        sink.sendall(piece[at:])
