"""Text of databases that are not UTF-8: nothing is lost, and two values are equal as text if and only if they are as bytes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.wire.pgoutput import decode
from actors.wire.pgoutput_recoding import recoded
from actors.wire.text_encoding import _SINGLE_BYTE, UTF8, encoding_of

KEEPING = ["SQL_ASCII", *_SINGLE_BYTE]
BYTES = (
    st.binary()
    | st.text().map(str.encode)
    | st.lists(st.sampled_from([b"\xee\xbe\x80", b"\xee", b"\xc3\xa9", b"a"])).map(b"".join)
)


@given(st.sampled_from(KEEPING), BYTES)
def test_every_byte_comes_back(name: str, data: bytes) -> None:
    encoding = encoding_of(name)
    text = encoding.decode(data)
    assert encoding.encode(text) == data
    assert encoding.to_utf8(data) == text.encode(), "no lone surrogate"


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters=[chr(c) for c in range(0xEF80, 0xF000)])))
def test_text_that_is_utf8_reads_as_it_is(text: str) -> None:
    assert encoding_of("SQL_ASCII").decode(text.encode()) == UTF8.decode(text.encode()) == text


NAMES = st.binary(max_size=5).map(lambda name: name.replace(b"\0", b""))
VALUES = st.sampled_from([b"n", b"u"]) | BYTES.map(lambda value: b"t" + struct.pack(">I", len(value)) + value)
TUPLES = st.lists(VALUES, max_size=4).map(lambda values: struct.pack(">H", len(values)) + b"".join(values))
MESSAGES = st.one_of(
    st.builds(lambda new: b"I\xff\0\0\x01N" + new, TUPLES),
    st.builds(lambda new: b"U\0\0\0\xffN" + new, TUPLES),
    st.builds(lambda kind, old, new: b"U\0\0\0\xff" + kind + old + b"N" + new, st.sampled_from([b"K", b"O"]), TUPLES, TUPLES),
    st.builds(lambda kind, old: b"D\0\0\0\xff" + kind + old, st.sampled_from([b"K", b"O"]), TUPLES),
    st.builds(
        lambda schema, name, columns: b"R\0\0\xff\0" + schema + b"\0" + name + b"\0d" + struct.pack(">H", len(columns))
        + b"".join(b"\x01" + column + b"\0\0\0\0\x19\xff\xff\xff\xff" for column in columns),
        NAMES, NAMES, st.lists(NAMES, max_size=3),
    ),
    st.builds(lambda schema, name: b"Y\0\0\xff\0" + schema + b"\0" + name + b"\0", NAMES, NAMES),
    st.builds(lambda name: b"O" + b"\xff" * 8 + name + b"\0", NAMES),
    st.just(b"B" + b"\xff" * 20), st.just(b"C" + b"\xfe" * 25), st.just(b"T\0\0\0\x01\0\0\0\xff\xff"),
)  # fmt: skip


def _as_utf8(value: object, name: str) -> object:
    """The decoded message with each text converted by itself: the plain way."""
    encoding = encoding_of(name)
    if isinstance(value, bytes):
        return encoding.to_utf8(value)
    if isinstance(value, str):
        return encoding.decode(value.encode("utf-8", "surrogateescape"))
    if isinstance(value, tuple):
        made = [_as_utf8(inner, name) for inner in value]
        return type(value)(*made) if hasattr(value, "_fields") else tuple(made)
    if hasattr(value, "__dataclass_fields__"):
        return type(value)(*(_as_utf8(getattr(value, field), name) for field in value.__dataclass_fields__))
    return value


@given(st.sampled_from(["SQL_ASCII", "WIN1252", "ISO_8859_7"]), MESSAGES)
def test_a_message_says_the_same_in_utf8(name: str, message: bytes) -> None:
    header = b"w" + b"\xff" * 24
    assert decode(recoded(header + message, encoding_of(name)), 25) == _as_utf8(decode(message), name)


@pytest.mark.parametrize("payload", [b"k" + b"\xff" * 17, b"w" + b"\0" * 24 + b"I\0\0\0\x01N\0\x01t\0\0\0\x01a"])
def test_what_has_no_text_of_another_encoding_is_not_touched(payload: bytes) -> None:
    assert recoded(payload, encoding_of("WIN1252")) is payload
