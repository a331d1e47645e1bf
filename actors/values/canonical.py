"""Converts equal values to equal text, whether PostgreSQL printed them or a replica in SQLite or PostgreSQL holds them.

The text is PostgreSQL's own except where a replica may rightly differ: the spelling of json and floats, and the letters T and Z
of timestamps. Negative zero equals zero, because SQLite has no negative zero.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from actors.values.arrays import parse_array
from actors.values.text_values import TypeInfo, base_type

Canonical = Callable[[Any], str]
"""Takes a value that is not NULL."""

_T = re.compile(r"^(\d+-\d\d-\d\d)T")


def canonical_for(type_oid: int, types: Mapping[int, TypeInfo]) -> Canonical:
    """Return the conversion that makes values of a type comparable; `types` has the types that are not built in."""
    info = base_type(type_oid, types)
    if info is None:
        return str
    if info.kind == "array":
        element = canonical_for(info.base_oid, types)
        return lambda value: _array(str(value), info.delimiter, element)
    return _BY_OID.get(info.oid, str)


def digest(values: Sequence[str | None]) -> bytes:
    """Hash a row to 128 bits."""
    parts: list[bytes] = []
    for value in values:
        if value is None:
            parts.append(b"-")
        else:
            encoded = value.encode("utf-8", "surrogateescape")
            parts += (b"%d:" % len(encoded), encoded)
    return hashlib.blake2b(b"".join(parts), digest_size=16).digest()


# SQLite accepts any value in any column. A value that is not of the column's type must equal no value of that type.


def _bool(value: Any) -> str:
    return ("t" if value else "f") if type(value) is int and value in (0, 1) else str(value)


def _float(value: Any) -> str:
    try:
        number = float(value if isinstance(value, (str, int, float)) else str(value))
    except ValueError:
        return str(value)
    return "NaN" if math.isnan(number) else repr(number + 0.0)


def _binary(value: Any) -> str:
    return "\\x" + value.hex() if isinstance(value, bytes) else str(value)


def _timestamp(value: Any) -> str:
    return _T.sub(r"\1 ", str(value))


def _timestamptz(value: Any) -> str:
    text = str(value)
    return _timestamp(text[:-1] + "+00" if text.endswith("Z") else text)


def _document(value: Any) -> str:
    try:
        return _written(json.loads(str(value), parse_float=Decimal, parse_int=Decimal, object_pairs_hook=_Pairs))
    except (ValueError, RecursionError, ArithmeticError):
        return str(value)


class _Pairs(list[tuple[str, Any]]):
    """The members of a json object, in which a key may occur twice."""


def _written(value: Any) -> str:
    if isinstance(value, _Pairs):
        return "{" + ",".join(f"{json.dumps(k)}:{_written(v)}" for k, v in sorted(value, key=lambda pair: pair[0])) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_written, value)) + "]"
    if isinstance(value, Decimal):
        # 1.50 and 15e-1 are the same number; a huge exponent is not expanded
        sign, digits, exponent = value.as_tuple()
        text = "".join(map(str, digits)).lstrip("0")
        stripped = text.rstrip("0")
        assert isinstance(exponent, int), "json has no NaN"
        return f"{'-' if sign else ''}{stripped}e{exponent + len(text) - len(stripped)}" if stripped else "0"
    return json.dumps(value)


def _array(text: str, delimiter: str, element: Canonical) -> str:
    try:
        return json.dumps(parse_array(text, delimiter, element))
    except ValueError:  # an array with explicit bounds, which lists do not have
        return text


_BY_OID: dict[int, Canonical] = {
    16: _bool,
    17: _binary,
    114: _document,
    700: _float,
    701: _float,
    1114: _timestamp,
    1184: _timestamptz,
    3802: _document,
}
