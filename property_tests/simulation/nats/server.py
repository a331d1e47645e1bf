"""nats-server: its text protocol over simulated connections."""

from __future__ import annotations

import random
from collections.abc import Callable

import orjson

from property_tests.simulation.nats.jetstream import JetStream
from property_tests.simulation.nats.store import matches
from property_tests.simulation.network import Link, Network
from property_tests.simulation.trace import Trace

VERSION = "2.15.1"
MAX_PAYLOAD = 1024 * 1024


class NatsServer:
    """A server that can be stopped and started."""

    def __init__(self, network: Network, dice: random.Random, trace: Trace) -> None:
        self.is_up = True
        self.jetstream = JetStream(self.deliver, network.timers, dice)
        self._clients: list[Client] = []
        self._trace = trace

    def accept(self, link: Link) -> Client | None:
        if not self.is_up:
            return None
        client = Client(self, link)
        self._clients.append(client)
        return client

    def stop(self) -> None:
        """End all connections and forget what is in memory."""
        self.is_up = False
        for client in list(self._clients):
            client.link.cut()
        self.jetstream.restart()

    def start(self) -> None:
        self.is_up = True

    def left(self, client: Client) -> None:
        if client in self._clients:
            self._clients.remove(client)

    def deliver(self, inbox: str, subject: str, reply: str, headers: bytes, data: bytes) -> None:
        """Send a message to whoever has subscribed to `inbox`."""
        for client in self._clients:
            for pattern, sid in client.subscriptions.items():
                if matches(pattern, inbox):
                    client.send(sid, subject, reply, headers, data)

    def published(self, subject: str, reply: str, headers: bytes, data: bytes) -> None:
        """Hand a message of a client to JetStream and to subscribers."""
        jetstream = self.jetstream
        taken = jetstream.api(subject, reply, data) if subject.startswith("$JS.API.") else False
        if not taken and not subject.startswith("$JS.API."):
            taken = jetstream.publish(subject, reply, headers, data)
            if not subject.startswith("cdc."):
                self.deliver(subject, subject, reply, headers, data)
        if not taken and reply:
            self.deliver(reply, reply, "", b"NATS/1.0 503\r\n\r\n", b"")


class Client:
    """One connection."""

    def __init__(self, server: NatsServer, link: Link) -> None:
        self.link = link
        self.subscriptions: dict[str, int] = {}
        self._server = server
        self._buffer = b""
        info = {"version": VERSION, "headers": True, "max_payload": MAX_PAYLOAD, "proto": 1, "jetstream": True}
        link.send(b"INFO %b\r\n" % orjson.dumps(info))

    def ended(self) -> None:
        self._server.left(self)

    def send(self, sid: int, subject: str, reply: str, headers: bytes, data: bytes) -> None:
        target = f"{subject} {sid}{' ' + reply if reply else ''}"
        if headers:
            self.link.send(f"HMSG {target} {len(headers)} {len(headers) + len(data)}\r\n".encode() + headers + data + b"\r\n")
        else:
            self.link.send(f"MSG {target} {len(data)}\r\n".encode() + data + b"\r\n")

    def received(self, data: bytes) -> None:
        buffer = self._buffer + data
        while (end := buffer.find(b"\r\n")) >= 0:
            words, rest = buffer[:end].decode().split(), buffer[end + 2 :]
            if words[0] in ("PUB", "HPUB"):
                size = int(words[-1])
                if len(rest) < size + 2:
                    break
                head = int(words[-2]) if words[0] == "HPUB" else 0
                names = words[1 : -2 if words[0] == "HPUB" else -1]
                self._server.published(names[0], (*names[1:], "")[0], rest[:head], rest[head:size])
                buffer = rest[size + 2 :]
                continue
            self._control(words)
            buffer = rest
        self._buffer = buffer

    def _control(self, words: list[str]) -> None:
        handlers: dict[str, Callable[[], None]] = {
            "PING": lambda: self.link.send(b"PONG\r\n"),
            "PONG": lambda: None,
            "CONNECT": lambda: None,
            "SUB": lambda: self.subscriptions.__setitem__(words[1], int(words[-1])),
        }
        handlers[words[0]]()
