"""The encodings and formats in which values and rows can be written."""

from __future__ import annotations

from typing import Literal

Encoding = Literal["msgpack", "json"]
Arrays = Literal["literal", "list"]
"""Arrays as PostgreSQL's text, or as nested lists."""
SnapshotFormat = Literal["map", "array"]
