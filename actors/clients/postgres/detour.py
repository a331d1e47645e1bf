"""Feeds libpq a large message in portions: by itself it may read for seconds in one call, and nothing else runs.

libpq reads from its file descriptor until nothing is there, and a server that is fast enough always has more. While a detour
is in place, that descriptor is one end of a socket pair, and the connection is read and written here. Bytes pass unchanged,
so TLS is still between libpq and PostgreSQL.
"""

from __future__ import annotations

import array
import fcntl
import os
import socket
import termios
from contextlib import suppress

import trio

PORTION_BYTES = 128 * 1024
"""Less than a socket pair holds."""


class Detour:
    """A detour of one descriptor, from its creation to `end` or `close`. No task may wait for the descriptor at either."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._connection = socket.socket(fileno=os.dup(descriptor))
        self._ours, theirs = socket.socketpair()
        with theirs:
            for each in (self._connection, self._ours, theirs):
                each.setblocking(False)
            os.dup2(theirs.fileno(), descriptor, inheritable=False)
        self._incoming = b""  # what libpq had no room for
        self._outgoing = memoryview(b"")

    async def portion(self) -> None:
        """Wait for more from PostgreSQL and let libpq have it. A cancelled call takes nothing."""
        if not self._incoming:
            await trio.lowlevel.wait_readable(self._connection)
            try:
                self._incoming = self._connection.recv(PORTION_BYTES)
            except BlockingIOError:
                return
            except OSError:  # libpq will see the connection end
                self._incoming = b""
            if not self._incoming:
                self._ours.shutdown(socket.SHUT_WR)
                return
        self._hand_over()

    def _hand_over(self) -> None:
        with suppress(BlockingIOError):
            sent = self._ours.send(self._incoming)
            self._incoming = self._incoming[sent:]

    async def forward(self) -> None:
        """Send on to PostgreSQL what libpq has written; a cancelled call is continued by the next.

        Raises OSError if the connection has ended.
        """
        while True:
            while self._outgoing:
                await trio.lowlevel.wait_writable(self._connection)
                with suppress(BlockingIOError):
                    self._outgoing = self._outgoing[self._connection.send(self._outgoing) :]
            try:
                self._outgoing = memoryview(self._ours.recv(PORTION_BYTES))
            except BlockingIOError:
                return
            if not self._outgoing:
                return

    def end(self) -> bool:
        """Give libpq its connection back, unless bytes are still on the way; return whether that was done.

        Call it after libpq has read what it was given, and again after it has read more.
        """
        if self._incoming:
            self._hand_over()
            return False
        if self._outgoing or waiting_bytes(self._ours.fileno()) or waiting_bytes(self._descriptor):
            return False
        os.dup2(self._connection.fileno(), self._descriptor, inheritable=False)
        self.close()
        return True

    def close(self) -> None:
        """End the detour without giving the connection back. A task in `portion` or `forward` gets trio.ClosedResourceError."""
        for each in (self._connection, self._ours):
            if each.fileno() >= 0:
                trio.lowlevel.notify_closing(each)
                each.close()


def waiting_bytes(descriptor: int) -> int:
    """Return how many bytes can be read at once."""
    count = array.array("i", [0])
    fcntl.ioctl(descriptor, termios.FIONREAD, count)
    return count[0]
