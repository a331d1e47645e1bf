"""Frames unpacked as consumers unpack them."""

from __future__ import annotations

from actors.contract.compression import DICTIONARY_HEADER, ENCODING_HEADER, Decompressors


def decompress(frame: bytes, *, bytes_max: int, dictionary: bytes | None = None) -> bytes:
    """The body in a frame, of at most `bytes_max` bytes. Raises MalformedMessage."""
    headers = {ENCODING_HEADER: "zstd"} | ({} if dictionary is None else {DICTIONARY_HEADER: "x"})
    decompressors = Decompressors({} if dictionary is None else {"x": dictionary}, bytes_max=bytes_max)
    return decompressors.unpack(headers, frame)
