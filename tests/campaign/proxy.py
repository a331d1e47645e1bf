"""A network between two processes that can be cut, go silent or become slow."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress


class Proxy:
    """Passes TCP connections on to a port of 127.0.0.1; ends with the process."""

    def __init__(self, target: int) -> None:
        """Listen on `port`, a free one."""
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._listener.getsockname()[1])
        self._open: set[socket.socket] = set()
        self._flows = threading.Event()
        self._flows.set()
        self.delay_s = 0.0
        """Of each piece that is read, in each direction."""
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End all connections; new ones are taken."""
        for one in list(self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def go_silent(self) -> None:
        """Take connections and bytes, and pass nothing on until `heal`."""
        self._flows.clear()

    def heal(self) -> None:
        """Pass everything on at once, also what was held."""
        self.delay_s = 0.0
        self._flows.set()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            try:
                server = socket.create_connection(("127.0.0.1", self._target), timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            self._open |= {client, server}
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(1 << 16):
                self._flows.wait()
                if self.delay_s:
                    time.sleep(self.delay_s)
                sink.sendall(piece)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._open -= {source}
        source.close()
