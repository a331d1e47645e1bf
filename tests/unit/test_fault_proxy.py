"""The proxy of the faults does to a connection what its name says."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.faults.proxy import Proxy


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """In front of a server that sends back what it gets."""
    listener = socket.create_server(("127.0.0.1", 0))

    def echo(client: socket.socket) -> None:
        with suppress(OSError), client:
            while piece := client.recv(1 << 16):
                client.sendall(piece)

    def serve() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=echo, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield Proxy(listener.getsockname()[1])
    listener.close()


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as connection:
        connection.sendall(b"here")
        assert read(connection, 4) == b"here"
        yield connection


def read(connection: socket.socket, count: int) -> bytes:
    """So many bytes, or fewer at the end."""
    found = b""
    while len(found) < count and (piece := connection.recv(count - len(found))):
        found += piece
    return found


def test_it_cuts_after_exactly_so_many_bytes_and_takes_new_connections(proxy: Proxy, client: socket.socket) -> None:
    proxy.cut_after(10 + 7)  # ten on their way there
    client.sendall(b"x" * 10)
    assert read(client, 10) == b"x" * 7
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as another:
        another.sendall(b"y" * 50)
        assert read(another, 50) == b"y" * 50


def test_a_reset_is_not_an_end(proxy: Proxy, client: socket.socket) -> None:
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_a_half_closed_connection_ends_for_the_client(proxy: Proxy, client: socket.socket) -> None:
    proxy.half_close()
    assert client.recv(1) == b""


def test_a_silent_one_keeps_what_it_takes_until_it_is_healed(proxy: Proxy, client: socket.socket) -> None:
    proxy.go_silent()
    client.sendall(b"later")
    client.settimeout(0.2)
    with pytest.raises(TimeoutError):
        client.recv(5)
    client.settimeout(10)
    proxy.heal()
    assert read(client, 5) == b"later"


def test_one_byte_at_a_time(proxy: Proxy, client: socket.socket) -> None:
    proxy.bytes_per_s = 20
    begun = time.monotonic()
    client.sendall(b"slow")
    assert client.recv(100) == b"s"
    assert read(client, 3) == b"low"
    assert time.monotonic() - begun > 3 / 20
