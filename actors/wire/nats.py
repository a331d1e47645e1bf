"""The NATS client protocol, without I/O: https://docs.nats.io/reference/reference-protocols/nats-protocol"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from actors.errors import MalformedMessage

CONTROL_LINE_MAX = 65_536
"""INFO of a large cluster is the longest line."""
SENT_LINE_MAX = 4_096
"""A server ends the connection at a longer line, unless its `max_control_line` is larger."""
_SENT_LINE_MORE = 256
"""Of such a line, for the reply subject and sizes: more than this client needs."""
PAYLOAD_MAX = 64 * 1024 * 1024 + 65_536
"""nats-server refuses a max_payload above 64 MB; headers come on top."""
HEADER_VERSION = b"NATS/1.0"


class Info(NamedTuple):
    """The server's description of itself, sent at the start and whenever the cluster changes."""

    fields: dict[str, Any]


class Msg(NamedTuple):
    """One message of a subscription."""

    subject: bytes
    sid: int
    reply: bytes
    headers: bytes
    """The raw header block, empty when there is none."""
    payload: bytes

    @property
    def status(self) -> int:
        """The status in the header's first line (503: no responders); 0 when there is none."""
        if not self.headers.startswith(HEADER_VERSION + b" "):
            return 0
        code = self.headers[9:12]
        return int(code) if code.isdigit() else 0


class Ping(NamedTuple):
    """The server checks that the client is alive."""


class Pong(NamedTuple):
    """The server has read everything sent before the PING."""


class Ok(NamedTuple):
    """The server accepted a line; only in verbose mode."""


class Err(NamedTuple):
    """An error from the server, which usually ends the connection afterwards."""

    text: str


Event = Info | Msg | Ping | Pong | Ok | Err
_MSG = re.compile(rb"MSG ([^ \t]+)[ \t]+(\d{1,18})(?:[ \t]+([^ \t]+))?[ \t]+(\d{1,18})", re.IGNORECASE)
_HMSG = re.compile(rb"HMSG ([^ \t]+)[ \t]+(\d{1,18})(?:[ \t]+([^ \t]+))?[ \t]+(\d{1,18})[ \t]+(\d{1,18})", re.IGNORECASE)


class NatsParser:
    """Turns received bytes into events, however they are split. Holds at most one incomplete frame.

    `feed` raises MalformedMessage when the peer does not speak NATS or announces more than `payload_max` bytes.
    """

    def __init__(self, payload_max: int = PAYLOAD_MAX) -> None:
        self._buffer = b""
        self._payload_max = payload_max

    def feed(self, data: bytes) -> list[Event]:
        """Add received bytes; return the events that are complete now."""
        buffer = self._buffer + data if self._buffer else data
        events: list[Event] = []
        offset, end = 0, len(buffer)
        while offset < end:
            line_end = buffer.find(b"\r\n", offset, offset + CONTROL_LINE_MAX)
            if line_end < 0:
                if end - offset >= CONTROL_LINE_MAX:
                    raise MalformedMessage(f"NATS: a control line of more than {CONTROL_LINE_MAX} bytes")
                break
            first = buffer[offset]
            if first in b"MmHh":
                frame_end = self._message(buffer, offset, line_end, end, events)
                if frame_end < 0:
                    break
                offset = frame_end
            else:
                events.append(_control(buffer[offset:line_end]))
                offset = line_end + 2
        self._buffer = buffer[offset:]
        return events

    def _message(self, buffer: bytes, offset: int, line_end: int, end: int, events: list[Event]) -> int:
        """Parse one MSG or HMSG into `events`; return where it ends, or -1 while it is incomplete."""
        with_headers = buffer[offset] in b"Hh"
        line = buffer[offset:line_end]
        match = (_HMSG if with_headers else _MSG).fullmatch(line)
        if match is None:
            raise MalformedMessage(f"NATS: cannot read {line[:128]!r}")
        subject, sid, reply, *sizes = match.groups()
        header_size, total = (int(sizes[0]), int(sizes[1])) if with_headers else (0, int(sizes[0]))
        if total > self._payload_max or header_size > total:
            raise MalformedMessage(f"NATS: a message of {total} bytes, {header_size} of them headers")
        start = line_end + 2
        stop = start + total
        if stop + 2 > end:
            return -1
        if buffer[stop : stop + 2] != b"\r\n":
            raise MalformedMessage(f"NATS: a message does not end where it should: {line[:128]!r}")
        split = start + header_size
        events.append(Msg(subject, int(sid), reply or b"", buffer[start:split], buffer[split:stop]))
        return stop + 2


def _control(line: bytes) -> Event:
    word, _, rest = line.partition(b" ")
    kind = word.upper()
    if kind == b"PING":
        return Ping()
    if kind == b"PONG":
        return Pong()
    if kind == b"+OK":
        return Ok()
    if kind == b"-ERR":
        return Err(rest.strip().strip(b"'").decode("utf-8", "replace"))
    if kind == b"INFO":
        try:
            fields = orjson.loads(rest)
        except orjson.JSONDecodeError as exc:
            raise MalformedMessage(f"NATS: INFO is not JSON: {rest[:128]!r}") from exc
        if isinstance(fields, dict):
            return Info(fields)
    raise MalformedMessage(f"NATS: cannot read {line[:128]!r}")


_ILLEGAL_SUBJECT = re.compile(rb"[\x00-\x20\x7f]|^$|^\.|\.$|\.\.")


def checked_subject(subject: str) -> bytes:
    """Return a subject as bytes. Raises ValueError if it would break the frame, has empty tokens, or is too long to be sent."""
    raw = subject.encode()
    if len(raw) > SENT_LINE_MAX - _SENT_LINE_MORE:
        raise ValueError(f"a subject of {len(raw)} bytes, {subject[:64]!r}..., is longer than a NATS server takes")
    if _ILLEGAL_SUBJECT.search(raw):
        raise ValueError(f"{subject!r} is not a legal subject")
    return raw


def encode_headers(headers: Mapping[str, str]) -> bytes:
    """Return a header block. Raises ValueError for a name or value that would break it."""
    lines = [HEADER_VERSION]
    for name, value in headers.items():
        if not name or re.search(r"[\r\n: ]", name) or re.search(r"[\r\n]", value):
            raise ValueError(f"header {name!r}: {value!r} would break the frame")
        lines.append(f"{name}: {value}".encode())
    return b"\r\n".join(lines) + b"\r\n\r\n"


def decode_headers(block: bytes) -> dict[str, str]:
    """Return the names and values of a header block; for a repeated name the first value."""
    found: dict[str, str] = {}
    for line in block.split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            found.setdefault(name.decode("utf-8", "replace").strip(), value.decode("utf-8", "replace").strip())
    return found


def encode_pub(subject: bytes, reply: bytes, payload: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """Return a PUB or HPUB frame; `reply` may be empty."""
    target = subject + (b" " + reply if reply else b"")
    if not headers:
        return b"PUB %b %d\r\n%b\r\n" % (target, len(payload), payload)
    block = encode_headers(headers)
    return b"HPUB %b %d %d\r\n%b%b\r\n" % (target, len(block), len(block) + len(payload), block, payload)


def encode_connect(options: Mapping[str, object]) -> bytes:
    """Return CONNECT and a PING, whose PONG says that the server accepted CONNECT."""
    return b"CONNECT %b\r\nPING\r\n" % orjson.dumps(options)


def encode_sub(subject: bytes, sid: int) -> bytes:
    """Return a SUB frame: messages on `subject` will carry `sid`."""
    return b"SUB %b %d\r\n" % (subject, sid)


PING, PONG = b"PING\r\n", b"PONG\r\n"
