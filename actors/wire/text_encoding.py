"""Text of databases whose encoding is not UTF-8, without a loss: what is no character of the encoding keeps its bytes.

PostgreSQL converts text to UTF-8 itself, but ends the stream at the first byte that has no character: 0x81 in WIN1252, or
Latin-1 in an SQL_ASCII database. Such databases are read as they are, and converted here. A byte 0x80 to 0xFF that is no
character becomes one of U+EF80 to U+EFFF, which Unicode assigns to nobody, and can be turned back: two values are equal as
text if and only if they are equal as bytes.

https://www.postgresql.org/docs/18/multibyte.html
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

_BASE = 0xEF00
_KEPT = re.compile(f"[{chr(_BASE + 0x80)}-{chr(_BASE + 0xFF)}]")
_KEPT_AS_UTF8 = re.compile(rb"\xee[\xbe\xbf][\x80-\xbf]")
"""The same characters, should they occur in text that is UTF-8: their bytes are kept too, or the way back would be lost."""

_SINGLE_BYTE = {
    "LATIN1": "latin-1", "LATIN2": "iso8859-2", "LATIN3": "iso8859-3", "LATIN4": "iso8859-4", "LATIN5": "iso8859-9",
    "LATIN6": "iso8859-10", "LATIN7": "iso8859-13", "LATIN8": "iso8859-14", "LATIN9": "iso8859-15", "LATIN10": "iso8859-16",
    "ISO_8859_5": "iso8859-5", "ISO_8859_6": "iso8859-6", "ISO_8859_7": "iso8859-7", "ISO_8859_8": "iso8859-8",
    "WIN866": "cp866", "WIN874": "cp874", "WIN1250": "cp1250", "WIN1251": "cp1251", "WIN1252": "cp1252", "WIN1253": "cp1253",
    "WIN1254": "cp1254", "WIN1255": "cp1255", "WIN1256": "cp1256", "WIN1257": "cp1257", "WIN1258": "cp1258",
    "KOI8R": "koi8-r", "KOI8U": "koi8-u",
}  # fmt: skip
"""Python's codec by PostgreSQL's name."""


def _keep(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError), "encoding goes piece by piece"
    return "".join(chr(_BASE + byte) for byte in error.object[error.start : error.end]), error.end


codecs.register_error("walbridge.keep", _keep)


@dataclass(frozen=True, slots=True)
class TextEncoding:
    """How a session's text is turned into str and back."""

    name: str
    """PostgreSQL's name of the database's encoding, or UTF8 where PostgreSQL converts."""
    codec: str
    keeps_bytes: bool = True
    """Whether this module converts, rather than PostgreSQL."""

    @property
    def client_encoding(self) -> str:
        """For the session: SQL_ASCII passes bytes as they are."""
        return "SQL_ASCII" if self.keeps_bytes else "UTF8"

    def decode(self, data: bytes) -> str:
        """Return text of the server; never raises."""
        if not self.keeps_bytes or data.isascii():
            return data.decode("utf-8", "surrogateescape")
        if self.codec != "utf-8":
            return data.decode(self.codec, "walbridge.keep")
        found, at = [], 0
        for kept in _KEPT_AS_UTF8.finditer(data):
            found.append(data[at : kept.start()].decode("utf-8", "walbridge.keep"))
            found.append("".join(chr(_BASE + byte) for byte in kept.group()))
            at = kept.end()
        return "".join(found) + data[at:].decode("utf-8", "walbridge.keep")

    def encode(self, text: str) -> bytes:
        """Return the bytes of a statement or name, as the server has them. Raises UnicodeEncodeError for other characters."""
        if not self.keeps_bytes or text.isascii():
            return text.encode("utf-8", "surrogateescape")
        found, at = [], 0
        for kept in _KEPT.finditer(text):
            found += [text[at : kept.start()].encode(self.codec), bytes([ord(kept.group()) - _BASE])]
            at = kept.end()
        return b"".join(found) + text[at:].encode(self.codec)

    def to_utf8(self, data: bytes) -> bytes:
        """Return a value as it would have come from a UTF-8 database."""
        return data if data.isascii() else self.decode(data).encode()


UTF8 = TextEncoding("UTF8", "utf-8", keeps_bytes=False)


def encoding_of(server_encoding: str) -> TextEncoding:
    """Return how to read a database. PostgreSQL knows the other multibyte encodings better than Python, and converts them."""
    if server_encoding == "SQL_ASCII":
        return TextEncoding("SQL_ASCII", "utf-8")
    codec = _SINGLE_BYTE.get(server_encoding)
    return UTF8 if codec is None else TextEncoding(server_encoding, codec)
