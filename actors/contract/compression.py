"""zstd for message bodies, with a dictionary per table where there is one. No I/O.

One frame a body, with its content size: https://datatracker.ietf.org/doc/html/rfc8878. A dictionary is known by an id that
tells its content, so that a body can be read as long as that id is in KV `dictionaries`.
"""

from __future__ import annotations

import hashlib

import zstandard

from actors.contract.subjects import dictionary_key
from actors.errors import MalformedMessage

LEVEL = 1
"""1 to 2 ms per megabyte; higher levels cost more than they save here."""
ENCODING_HEADER, DICTIONARY_HEADER = "Content-Encoding", "Dictionary-Id"


def dictionary_id(token: str, dictionary: bytes) -> str:
    """The key under which this very dictionary stays in KV `dictionaries`."""
    return dictionary_key(token, hashlib.sha256(dictionary).hexdigest()[:8])


class Compressor:
    """Compresses the bodies of one table, one after the other; not for two tasks.

    Raises ValueError when `dictionary` is none that zstd can use.
    """

    def __init__(self, token: str = "", dictionary: bytes | None = None) -> None:
        self.headers = {ENCODING_HEADER: "zstd"}
        self.dictionary_id: str | None = None
        data = None
        if dictionary is not None:
            self.dictionary_id = self.headers[DICTIONARY_HEADER] = dictionary_id(token, dictionary)
            try:
                data = zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_FULLDICT)
                data.precompute_compress(level=LEVEL)
            except zstandard.ZstdError as exc:
                raise ValueError(f"not a zstd dictionary: {exc}") from exc
        self.header_lines = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items()).encode()
        """The same as lines of a NATS header block."""
        self.compress = zstandard.ZstdCompressor(level=LEVEL, dict_data=data, write_dict_id=False).compress
        """bytes -> one frame."""


def decompress(frame: bytes, *, bytes_max: int, dictionary: bytes | None = None) -> bytes:
    """The body in a frame. Raises MalformedMessage when it is none, or larger than `bytes_max` unpacked."""
    data = None if dictionary is None else zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_FULLDICT)
    try:
        size = zstandard.get_frame_parameters(frame).content_size
        if size > bytes_max:  # an unknown size is the largest of all
            raise MalformedMessage(f"a zstd frame of {size} bytes unpacked; {bytes_max} is the most that is taken")
        return zstandard.ZstdDecompressor(dict_data=data).decompress(frame, max_output_size=bytes_max, allow_extra_data=False)
    except zstandard.ZstdError as exc:
        raise MalformedMessage(f"not a zstd frame: {exc}") from exc
