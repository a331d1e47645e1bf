"""Rewrites pgoutput messages of a database whose encoding is not UTF-8, so that all readers of the stream find UTF-8."""

from __future__ import annotations

import struct

from actors.errors import MalformedMessage
from actors.wire.text_encoding import TextEncoding

_u2 = struct.Struct(">H")
_u4 = struct.Struct(">I")
_WAL_DATA, _HEADER = ord("w"), 25
"""XLogData: tag, start, end, time; then the pgoutput message."""


def recoded(payload: bytes, encoding: TextEncoding) -> bytes:
    """Return a CopyData payload with names and values in UTF-8. Raises MalformedMessage for a message that is cut short."""
    if payload[:1] != b"w" or payload[_HEADER:].isascii():
        return payload
    try:
        return payload[:_HEADER] + _Rewriter(payload, encoding).message()
    except (IndexError, ValueError, struct.error) as exc:
        raise MalformedMessage(f"pgoutput: cannot read {payload[_HEADER : _HEADER + 48]!r}: {exc}") from exc


class _Rewriter:
    """Copies one message field by field."""

    def __init__(self, payload: bytes, encoding: TextEncoding) -> None:
        self._payload, self._encoding, self._at = payload, encoding, _HEADER
        self._out = bytearray()

    def message(self) -> bytes:
        tag = self._copy(1)
        if tag in (b"I", b"U", b"D"):
            self._copy(4)
            while self._at < len(self._payload):
                self._copy(1)  # K, O or N
                self._tuple()
        elif tag == b"R":
            self._copy(4)
            self._string()
            self._string()
            self._copy(1)
            (count,) = _u2.unpack(self._copy(2))
            for _ in range(count):
                self._copy(1)
                self._string()
                self._copy(8)
        elif tag == b"Y":
            self._copy(4)
            self._string()
            self._string()
        elif tag == b"O":
            self._copy(8)
            self._string()
        return bytes(self._out) + self._payload[self._at :]

    def _tuple(self) -> None:
        (count,) = _u2.unpack(self._copy(2))
        for _ in range(count):
            kind = self._copy(1)
            if kind == b"t":
                (size,) = _u4.unpack_from(self._payload, self._at)
                value = self._encoding.to_utf8(self._take(4 + size)[4:])
                self._out += _u4.pack(len(value)) + value
            elif kind == b"b":
                (size,) = _u4.unpack(self._copy(4))
                self._copy(size)

    def _string(self) -> None:
        end = self._payload.index(b"\0", self._at) + 1
        self._out += self._encoding.to_utf8(self._take(end - self._at))

    def _copy(self, size: int) -> bytes:
        taken = self._take(size)
        self._out += taken
        return taken

    def _take(self, size: int) -> bytes:
        taken = self._payload[self._at : self._at + size]
        if len(taken) != size:
            raise IndexError(f"a field of {size} bytes is cut short")
        self._at += size
        return taken
