"""Converts json and jsonb to nested values, when that loses nothing.

A document is kept as PostgreSQL's text when a reader of the nested form would see another document: a number that a float
cannot reproduce, a repeated key, the document `null` (which would read as SQL's NULL), nesting deeper than 100.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import orjson

DEPTH_MAX = 100
_DIGITS = bytes(ord("0") if chr(i) in "0123456789." else i for i in range(256))
_LONG_NUMBER = b"0" * 16
_INT64 = range(-(2**63), 2**64)
_SAFE_INT = range(-(2**53) + 1, 2**53)

Converted = tuple[object, bool]
"""A value, and whether it was kept as PostgreSQL's text."""


class _ChangedError(ValueError):
    """The nested form would not be the same document."""


def jsonb_converter(encoding: str) -> Callable[[bytes], Converted]:
    """Return the converter for jsonb, whose text has no repeated keys or exponents: one pass of orjson if numbers are short."""
    exact = json_converter(encoding)

    def convert(text: bytes) -> Converted:
        # fewer than 16 digits and points in a row: every number is exact as a float, every integer is below 2^53
        if _LONG_NUMBER in text.translate(_DIGITS) or text.count(b"[") + text.count(b"{") > DEPTH_MAX or text == b"null":
            return exact(text)
        return orjson.loads(text), False

    return convert


def json_converter(encoding: str) -> Callable[[bytes], Converted]:
    """Return the converter for json, whose text is as the user wrote it: check every number and key."""
    integers = _SAFE_INT if encoding == "json" else _INT64

    def parse_int(text: str) -> int:
        if len(text) > 20 or (value := int(text)) not in integers:
            raise _ChangedError(text)
        return value

    loads = json.JSONDecoder(
        parse_int=parse_int, parse_float=_parse_float, object_pairs_hook=_object, parse_constant=_refuse
    ).decode

    def convert(text: bytes) -> Converted:
        document = text.decode()
        try:
            value: Any = loads(document)
            if value is None or not _can_be_nested(value, DEPTH_MAX):
                return document, True
            # a lone surrogate is not Unicode text: neither encoding can carry it
            if "\\u" in document:
                orjson.dumps(value)
        except (_ChangedError, RecursionError, TypeError):
            return document, True
        return value, False

    return convert


def _parse_float(text: str) -> float:
    value = float(text)
    # a hostile exponent would make Decimal compute for hours; a float has none beyond three digits
    exponent = re.search(r"[eE][+-]?(\d+)", text)
    if (exponent and len(exponent.group(1)) > 4) or Decimal(text) != Decimal(repr(value)):
        raise _ChangedError(text)
    return value


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _ChangedError("repeated key")
    return found


def _refuse(text: str) -> object:
    raise _ChangedError(text)


def _can_be_nested(value: object, depth: int) -> bool:
    if isinstance(value, dict):
        return depth > 0 and all(_can_be_nested(v, depth - 1) for v in value.values())
    if isinstance(value, list):
        return depth > 0 and all(_can_be_nested(v, depth - 1) for v in value)
    return True
