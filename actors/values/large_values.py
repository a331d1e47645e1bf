"""Decides by the length of its text whether a value can fit into a message, before it is decoded.

Decoding a value costs several times its size in memory, and an event leaves out a column that is too large anyway. What may
fit is decoded, so that events are the same as if every value had been decoded, with one exception: see `NESTED_RATIO_MAX`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from actors.errors import MalformedMessage
from actors.messages import Notes, RawMessage, TooLarge
from actors.values.row_compiler import RowDecoder
from actors.values.text_values import Converter

NESTED_RATIO_MAX = 32
"""A document or list whose text is this many times as large as a message is not decoded, even if nearly all of it is white
space or digits that the encoded form does without."""
_STEP_BYTES = 256 * 1024
_VANISHING = b" \t\r\n0123456789+-."
_TEXT_PER_BYTE_MAX = 8  # of the rest: the element `"false",` of a list becomes one byte
_COLUMN = struct.Struct(">BI").unpack_from  # kind, length
_TEXT = ord("t")
_NULL = b"n"
_COUNT_BYTES = 2
_HEAD_BYTES = 5  # kind and length


def can_fit(text: memoryview, converter: Converter, size_max: int) -> bool:
    """Return whether a value, encoded in either encoding, may have at most `size_max` bytes. `text` has more than 64."""
    size = len(text) // converter.text_per_byte - 2  # less \\x, or less the zone and plus Z of a timestamp
    if size <= size_max:
        return True
    if not converter.is_nested or len(text) > size_max * NESTED_RATIO_MAX:
        return False
    counted = commas = 0
    for start in range(0, len(text), _STEP_BYTES):
        step = bytes(text[start : start + _STEP_BYTES])
        commas += step.count(b",")  # each stands for itself in a string, or for an element
        counted += len(step.translate(None, _VANISHING))
        if max(commas, counted // _TEXT_PER_BYTE_MAX) > size_max:
            return False
    return True


def sparing_row_decoder(columns: Sequence[tuple[str, Converter]], decode: RowDecoder, size_max: int) -> RowDecoder:
    """Return `decode` for large messages: values that cannot fit into `size_max` bytes become TooLarge, unread.

    The decoder copies the rest of the tuple, so the message may be a memoryview.
    """

    def decode_row(message: RawMessage, offset: int) -> tuple[dict[str, object], int, Notes | None]:
        view = memoryview(message)
        kept: list[bytes | memoryview] = [view[offset : offset + _COUNT_BYTES]]
        too_large: dict[str, TooLarge] = {}
        offset += _COUNT_BYTES
        try:
            for name, converter in columns:
                start = offset
                if view[offset] == _TEXT:
                    offset += _HEAD_BYTES + _COLUMN(view, offset)[1]
                    text = view[start + _HEAD_BYTES : offset]
                    if len(text) > size_max and not can_fit(text, converter, size_max):
                        too_large[name] = TooLarge(len(text) // converter.text_per_byte)
                        kept.append(_NULL)
                        continue
                else:
                    offset += 1
                kept.append(view[start:offset])
        except (IndexError, struct.error) as exc:
            raise MalformedMessage(f"pgoutput: cannot decode a tuple: {exc!r}") from exc
        row, _, notes = decode(b"".join(kept), 0)
        row.update(too_large)
        return row, offset, notes

    return decode_row
