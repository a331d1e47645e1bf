"""The body of a request that names rows: whatever bytes come, it is read or refused, and ends nothing else."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from actors.snapshots.failures import SnapshotFailed
from actors.snapshots.key_requests import read_keys


def packed(value: object) -> bytes:
    pack: Any = msgpack.packb
    body: bytes = pack(value)
    return body


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.binary(), inner, max_size=3),
    max_leaves=8,
)


@given(st.binary() | st.builds(packed, VALUES | st.builds(lambda keys: {"keys": keys}, st.lists(st.lists(VALUES)))))
@example(packed({"keys": [[{"a": b"x"}]]}))
@example(packed({"keys": [[{b"a": 1}]]}))
@example(packed({"keys": [[{"a": msgpack.Timestamp(1)}]]}))
@example(packed({"keys": [[msgpack.ExtType(5, b"x" * 1000)]]}))
@example(json.dumps({"keys": [[nested(280)]]}).encode())
@example(json.dumps({"keys": [["a\0b"]]}).encode())
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        keys = read_keys(body)
    except SnapshotFailed as exc:
        assert (exc.kind, len(str(exc)) < 500) == ("bad_request", True)  # noqa: PT017 what it may raise is the point
    else:
        assert all(isinstance(text, str) and "\0" not in text for key in keys for text in key)


@pytest.mark.parametrize("encode", [packed, lambda value: json.dumps(value).encode()])
def test_values_are_as_postgresql_reads_them(encode: Any) -> None:
    assert read_keys(encode({"keys": [[1, "a", True, 1.5, {"a": [1]}]]})) == [("1", "a", "true", "1.5", '{"a":[1]}')]
