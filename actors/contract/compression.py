"""Compresses and decompresses message bodies with zstd, with a dictionary per table if there is one. No I/O.

A body is one frame that states its content size: https://datatracker.ietf.org/doc/html/rfc8878. A dictionary's id contains a
hash of its content, so a body can be read for as long as KV `dictionaries` holds that id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import zstandard

from actors.contract.subjects import CDC, dictionary_key
from actors.errors import MalformedMessage

LEVEL = 1
"""1 to 2 ms per megabyte; higher levels cost more than they save here."""
ENCODING_HEADER, DICTIONARY_HEADER = "Content-Encoding", "Dictionary-Id"
UNPACKED_BYTES_MAX = 256 * 1024 * 1024
"""The largest body that readers unpack; a bridge's bodies have at most a few megabytes."""


def dictionary_id(token: str, dictionary: bytes, stream: str = CDC) -> str:
    """Return the key under which KV `dictionaries` holds this version of the dictionary permanently."""
    return dictionary_key(token, hashlib.sha256(dictionary).hexdigest()[:8], stream)


class Compressor:
    """Compresses the bodies of one table. For one task at a time.

    Raises ValueError when zstd cannot use `dictionary`.
    """

    def __init__(self, token: str = "", dictionary: bytes | None = None, stream: str = CDC) -> None:
        self.headers = {ENCODING_HEADER: "zstd"}
        self.dictionary_id: str | None = None
        data = None
        if dictionary is not None:
            self.dictionary_id = self.headers[DICTIONARY_HEADER] = dictionary_id(token, dictionary, stream)
            try:
                data = zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_FULLDICT)
                data.precompute_compress(level=LEVEL)
            except zstandard.ZstdError as exc:
                raise ValueError(f"not a zstd dictionary: {exc}") from exc
        self.header_lines = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items()).encode()
        """`headers` as lines of a NATS header block."""
        self.compress = zstandard.ZstdCompressor(level=LEVEL, dict_data=data, write_dict_id=False).compress
        """bytes -> one frame."""


class Decompressors:
    """Unpacks bodies with the dictionaries that their headers name. Before `unpack`, `add` the one that `missing` names."""

    def __init__(self, dictionaries: Mapping[str, bytes] | None = None, *, bytes_max: int = UNPACKED_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._by_id: dict[str, zstandard.ZstdDecompressor] = {"": zstandard.ZstdDecompressor()}
        for name, content in (dictionaries or {}).items():
            self.add(name, content)

    def add(self, dictionary_id: str, content: bytes) -> None:
        """Take the value of a key of KV `dictionaries`. Raises MalformedMessage when it is not a dictionary."""
        try:
            data = zstandard.ZstdCompressionDict(content, dict_type=zstandard.DICT_TYPE_FULLDICT)
            self._by_id[dictionary_id] = zstandard.ZstdDecompressor(dict_data=data)
        except zstandard.ZstdError as exc:
            raise MalformedMessage(f"dictionary {dictionary_id}: {exc}") from exc

    def missing(self, headers: Mapping[str, str]) -> str | None:
        """Return the id of the dictionary that a message needs and that was not added yet; None if there is none."""
        wanted = headers.get(DICTIONARY_HEADER, "")
        return None if wanted in self._by_id else wanted

    def unpack(self, headers: Mapping[str, str], body: bytes) -> bytes:
        """Return the body before compression. Raises MalformedMessage unless `body` is exactly one frame of a bounded size."""
        coding = headers.get(ENCODING_HEADER)
        if coding is None:
            return body
        decompressor = self._by_id.get(headers.get(DICTIONARY_HEADER, ""))
        if coding != "zstd" or decompressor is None:
            raise MalformedMessage(f"a body in {coding}, dictionary {headers.get(DICTIONARY_HEADER)}: cannot be unpacked")
        try:
            size = zstandard.get_frame_parameters(body).content_size
            if size > self._bytes_max:  # a frame without a stated size reports the largest integer
                raise MalformedMessage(f"a zstd frame of {size} bytes unpacked; the limit is {self._bytes_max}")
            return decompressor.decompress(body, max_output_size=self._bytes_max, allow_extra_data=False)
        except zstandard.ZstdError as exc:
            raise MalformedMessage(f"not a zstd frame: {exc}") from exc
