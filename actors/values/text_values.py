"""Converts PostgreSQL's text output to native values, by type: the value rules of the contract, section 4.

One converter serves events and snapshots, so that a row has the same values in both. A converter is a function of a value's
bytes; for common types it also has a Python expression that the row compiler inlines.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import psycopg.postgres

from actors.values.arrays import DEPTH_MAX, parse_array
from actors.values.formats import Arrays, Encoding
from actors.values.json_values import Converted, json_converter, jsonb_converter


class Attribute(NamedTuple):
    """A field of a composite type."""

    name: str
    type_oid: int
    typmod: int
    number: int = 0
    """Never given twice: a field that is dropped and made again has another one."""


class TypeInfo(NamedTuple):
    """The facts about a type that its values' text depends on."""

    oid: int
    kind: Literal["base", "array", "domain", "other"]
    base_oid: int = 0
    """An array's element type, a domain's base type, a range's subtype."""
    delimiter: str = ","
    """Separates an array's elements."""
    labels: tuple[str, ...] = ()
    """Of an enum, in the order in which they were made."""
    attributes: tuple[Attribute, ...] = ()
    """Of a composite type."""


BUILTIN_TYPES: dict[int, TypeInfo] = {}
"""PostgreSQL's built-in types by OID, from psycopg's registry, which was generated from pg_type."""
for _info in psycopg.postgres.types:
    BUILTIN_TYPES[_info.oid] = TypeInfo(_info.oid, "base")
    if _info.array_oid:
        BUILTIN_TYPES[_info.array_oid] = TypeInfo(_info.array_oid, "array", _info.oid, _info.delimiter)


@dataclass(frozen=True, slots=True)
class Converter:
    """Converts the text of one type to a value.

    `convert` takes a value's bytes and returns the value and whether it was kept as PostgreSQL's text although the type has a
    native form. `inline`, if not empty, is the same conversion as an expression over the message `m` from `a` to `p`; it is
    valid when `guard` is true (always if `guard` is empty).

    `text_per_byte` and `is_nested` say how small a long text can become when it is encoded (see `large_values`).
    """

    convert: Callable[[bytes], Converted]
    inline: str = ""
    guard: str = ""
    text_per_byte: int = 1
    """Bytes of text for each byte of the value as events carry it."""
    is_nested: bool = False
    """The value is a document or a list: its text may be much longer than the value."""


def _text(text: bytes) -> Converted:
    return text.decode(), False


def _int(text: bytes) -> Converted:
    return int(text), False


def _json_int(text: bytes) -> Converted:
    value = int(text)
    return (value, False) if -(2**53) < value < 2**53 else (text.decode(), True)


def _bool(text: bytes) -> Converted:
    return text == b"t", False


def _float(text: bytes) -> Converted:
    return float(text), False


def _json_float(text: bytes) -> Converted:
    # JSON has no NaN and no infinities: write their names
    return (float(text) if text[-1:].isdigit() else text.decode()), False


def _timestamp(text: bytes) -> Converted:
    # "infinity" and BC dates are kept as PostgreSQL prints them
    value = text.decode()
    return (value.replace(" ", "T", 1) if value[-1:].isdigit() else value), False


def _timestamptz(text: bytes) -> Converted:
    value = text.decode()
    return (value[:-3].replace(" ", "T", 1) + "Z" if value.endswith("+00") else value), False


def _bytea(text: bytes) -> Converted:
    return bytes.fromhex(text[2:].decode()), False


def _json_bytea(text: bytes) -> Converted:
    return base64.b64encode(bytes.fromhex(text[2:].decode())).decode(), False


TEXT = Converter(_text, "m[a:p].decode()")
INT = Converter(_int, "int(m[a:p])")
FLOAT = Converter(_float, "float(m[a:p])")
BOOL = Converter(_bool, "m[a] == 116")
BYTEA = Converter(_bytea, "fromhex(m[a + 2:p].decode())", text_per_byte=2)
TIMESTAMP = Converter(_timestamp, 'm[a:p].decode().replace(" ", "T", 1)', "m[p - 1] < 58")
TIMESTAMPTZ = Converter(_timestamptz, 'm[a:p - 3].decode().replace(" ", "T", 1) + "Z"', "m[p - 3] == 43")
JSON_FLOAT = Converter(_json_float, "float(m[a:p])", "m[p - 1] < 58")
JSON_INT = Converter(_json_int, "int(m[a:p])", "p - a < 16")
JSON_OIDS = frozenset({114, 3802})
_COMMON: dict[int, Converter] = {
    16: BOOL,
    17: BYTEA,
    20: INT,
    21: INT,
    23: INT,
    26: INT,
    114: Converter(json_converter("msgpack"), is_nested=True),
    700: FLOAT,
    701: FLOAT,
    1114: TIMESTAMP,
    1184: TIMESTAMPTZ,
    3802: Converter(jsonb_converter("msgpack"), is_nested=True),
}
_SCALARS: dict[str, dict[int, Converter]] = {
    "msgpack": _COMMON,
    "json": _COMMON
    | {
        17: Converter(_json_bytea, text_per_byte=2),
        20: JSON_INT,
        114: Converter(json_converter("json"), is_nested=True),
        700: JSON_FLOAT,
        701: JSON_FLOAT,
        3802: Converter(jsonb_converter("json"), is_nested=True),
    },
}


def without_domains(oid: int, types: Mapping[int, TypeInfo]) -> tuple[int, str]:
    """Return the OID of the type under all domains, and `[]` for each array of a domain around it."""
    info = types.get(oid)
    if info is not None and info.kind == "domain":
        return without_domains(info.base_oid, types)
    if info is not None and info.kind == "array":
        element, brackets = without_domains(info.base_oid, types)
        return (oid, "") if element == info.base_oid else (element, brackets + "[]")
    return oid, ""


def base_type(type_oid: int, types: Mapping[int, TypeInfo]) -> TypeInfo | None:
    """Return the type under a type's domains; None when it is unknown."""
    seen: set[int] = set()
    info = BUILTIN_TYPES.get(type_oid) or types.get(type_oid)
    while info is not None and info.kind == "domain" and info.oid not in seen:
        seen.add(info.oid)
        info = BUILTIN_TYPES.get(info.base_oid) or types.get(info.base_oid)
    return info


def converter_for(type_oid: int, types: Mapping[int, TypeInfo], encoding: Encoding, arrays: Arrays) -> Converter:
    """Return the converter of a type. `types` describes types that are not built in; an unknown type stays text."""
    info = base_type(type_oid, types)
    if info is None:
        return TEXT
    if info.kind == "array":
        if arrays == "literal":
            return TEXT
        element = base_type(info.base_oid, types)
        if element is not None and element.kind == "array":
            return _TEXT_OF_ARRAY
        depth_max = 1 if element is not None and element.oid in JSON_OIDS else DEPTH_MAX
        return _array_converter(converter_for(info.base_oid, types, encoding, arrays), info.delimiter, depth_max)
    return _SCALARS[encoding].get(info.oid, TEXT)


def _text_of_array(text: bytes) -> Converted:
    return text.decode(), True


_TEXT_OF_ARRAY = Converter(_text_of_array)
"""For arrays of a domain over an array: a list in a list could be an element or a dimension."""


class _RawElementError(ValueError):
    """An element has no native form, so the complete array is kept as text."""


def _array_converter(element: Converter, delimiter: str, depth_max: int) -> Converter:
    """`depth_max` is 1 for json and jsonb: a list in a list could be an element, which is a document, or a dimension."""

    def element_value(text: str) -> object:
        value, raw = element.convert(text.encode())
        if raw:
            raise _RawElementError
        return value

    def convert(text: bytes) -> Converted:
        literal = text.decode()
        try:
            return parse_array(literal, delimiter, element_value, depth_max), False
        except ValueError:  # explicit bounds or dimensions that lists cannot keep, or an element that is kept as text
            return literal, True

    return Converter(convert, is_nested=True)
