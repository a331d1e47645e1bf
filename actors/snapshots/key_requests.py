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

    Returns them as PostgreSQL's text. Raises SnapshotFailed, whatever the bytes are.
    """
    read = read_any_document(body)
    keys = read.get("keys") if isinstance(read, dict) else None
    if not isinstance(keys, list) or not all(isinstance(key, list) and key for key in keys):
        raise SnapshotFailed("bad_request", 'the request has no `keys`: a list of keys, e.g. {"keys": [[1], [2]]}')
    if len(keys) > KEYS_MAX:
        raise SnapshotFailed("bad_request", f"{len(keys):,} keys: one request may name {KEYS_MAX:,}")
    found = [tuple(_text(value) for value in key) for key in keys]
    if any("\0" in text for key in found for text in key):  # it would end the statement
        raise SnapshotFailed("bad_request", "no value of PostgreSQL has a character U+0000")
    return found


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
        try:
            return orjson.dumps(value).decode()
        except TypeError as exc:  # bytes or a date within it, or too many lists within lists
            raise SnapshotFailed("bad_request", f"a value of a key is not JSON: {exc}") from exc
    raise SnapshotFailed("bad_request", f"a {type(value).__name__} is not a value of a key")
