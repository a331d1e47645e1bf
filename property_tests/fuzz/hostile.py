"""Strategies that turn a valid input into a hostile or broken peer's: they change bytes, and values within documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

_INTEGERS = st.sampled_from([0, 1, -1, 2**31, 2**53 + 1, 2**63, 2**64 - 1, -(2**63)]) | st.integers(-(2**63), 2**64 - 1)
_SCALARS = st.none() | st.booleans() | _INTEGERS | st.floats() | st.text(max_size=20)
VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=5
)
"""Anything that JSON and MessagePack can say."""


@st.composite
def broken_bytes(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """One of the seeds with bytes flipped, cut out, doubled or put in; now and then any bytes at all."""
    if draw(st.integers(0, 15)) == 0:
        return draw(st.binary(max_size=200))
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 8)))
        kind = draw(st.integers(0, 3))
        if kind == 0:
            data[start:end] = draw(st.binary(min_size=end - start, max_size=end - start))
        elif kind == 1:
            del data[start:end]
        elif kind == 2:
            data[start:start] = data[start:end]
        else:
            data[start:start] = draw(st.binary(max_size=8))
    return bytes(data)


@st.composite
def broken_documents(draw: st.DrawFn, seeds: Sequence[Any]) -> Any:
    """One of the seeds in which one to three values, at any depth, are other values or are gone."""
    document = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 3))):
        document = _broken(draw, document)
    return document


def _broken(draw: st.DrawFn, value: Any) -> Any:
    """The value, or one within it, replaced or removed."""
    if isinstance(value, Mapping) and value and draw(st.integers(0, 7)):
        name = draw(st.sampled_from(sorted(value, key=str)))
        rest = {key: item for key, item in value.items() if key != name}
        return rest if draw(st.integers(0, 4)) == 0 else {**rest, name: _broken(draw, value[name])}
    if isinstance(value, list) and value and draw(st.integers(0, 7)):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], _broken(draw, value[at]), *value[at + 1 :]]
    return draw(VALUES)
