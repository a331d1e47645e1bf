"""The body of a request that names rows by their keys. No I/O."""

from __future__ import annotations

from typing import Any

import orjson

from actors.contract.event_encoder import read_any_document
from actors.contract.records import KeyText
from actors.snapshots.failures import SnapshotFailed

KEYS_MAX = 1_000


def read_keys(body: bytes) -> list[KeyText]:
    """Read `{"keys": [[value, ...], ...]}`, MessagePack or JSON, with values as events have them.

    Returns them as PostgreSQL's text. Raises SnapshotFailed.
    """
    read = read_any_document(body)
    keys = read.get("keys") if isinstance(read, dict) else None
    if not isinstance(keys, list) or not all(isinstance(key, list) and key for key in keys):
        raise SnapshotFailed("bad_request", 'the request has no `keys`: a list of keys, e.g. {"keys": [[1], [2]]}')
    if len(keys) > KEYS_MAX:
        raise SnapshotFailed("bad_request", f"{len(keys):,} keys: one request may name {KEYS_MAX:,}")
    return [tuple(_text(value) for value in key) for key in keys]


def _text(value: Any) -> str:
    """Return a value of an event as PostgreSQL reads it."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    if isinstance(value, dict | list):
        return orjson.dumps(value).decode()
    raise SnapshotFailed("bad_request", f"{value!r} is not a value of a key")
