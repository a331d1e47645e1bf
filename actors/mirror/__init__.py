"""The reference consumer, which keeps a replica in SQLite or PostgreSQL, and a library for writing other consumers.

The library has two halves, both plain functions: `decode_message` turns every message into typed records, and the rules keep a
copy equal to its source.
"""

from actors.contract.compression import Decompressors
from actors.contract.decoding import (
    array_rows,
    decode_body,
    decode_event,
    decode_events,
    decode_message,
    decode_schema,
)
from actors.contract.records import (
    ArrayChunk,
    Column,
    Delete,
    Event,
    Gap,
    Insert,
    Published,
    Raw,
    Record,
    Schema,
    SchemaChange,
    SnapshotChunk,
    SnapshotError,
    SnapshotMeta,
    SnapshotStart,
    Truncate,
    Update,
)
from actors.contract.rules import (
    Identity,
    IncompleteRow,
    NamesNoRow,
    apply_to,
    counts,
    identity_of,
    is_certain,
    is_other_version,
    is_out_of_date,
    position_of,
)

__all__ = [
    "ArrayChunk",
    "Column",
    "Decompressors",
    "Delete",
    "Event",
    "Gap",
    "Identity",
    "IncompleteRow",
    "Insert",
    "NamesNoRow",
    "Published",
    "Raw",
    "Record",
    "Schema",
    "SchemaChange",
    "SnapshotChunk",
    "SnapshotError",
    "SnapshotMeta",
    "SnapshotStart",
    "Truncate",
    "Update",
    "apply_to",
    "array_rows",
    "counts",
    "decode_body",
    "decode_event",
    "decode_events",
    "decode_message",
    "decode_schema",
    "identity_of",
    "is_certain",
    "is_other_version",
    "is_out_of_date",
    "position_of",
]
