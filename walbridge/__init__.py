"""Walbridge for consumers: `decode_message` makes typed records of every message, the rules say how a copy is kept.

Plain functions of bytes and values: connections and their client library are the consumer's own. The library is loaded at the
first use of a name, because the command line is in this package too and has no use for it.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actors import __version__
    from actors.mirror import (
        ArrayChunk,
        Column,
        Decompressors,
        Delete,
        Effect,
        Event,
        Gap,
        Identity,
        IncompleteRow,
        Insert,
        NamesNoRow,
        Published,
        RangesChunk,
        RangesStart,
        Raw,
        Record,
        RowRange,
        RowsInRounds,
        Schema,
        SchemaChange,
        SnapshotChunk,
        SnapshotError,
        SnapshotMeta,
        SnapshotStart,
        Truncate,
        Update,
        apply_to,
        array_rows,
        counts,
        decode_body,
        decode_event,
        decode_events,
        decode_message,
        decode_schema,
        effect_of,
        identity_of,
        is_certain,
        is_other_version,
        is_out_of_date,
        key_of,
        position_of,
    )

__all__ = [
    "ArrayChunk",
    "Column",
    "Decompressors",
    "Delete",
    "Effect",
    "Event",
    "Gap",
    "Identity",
    "IncompleteRow",
    "Insert",
    "NamesNoRow",
    "Published",
    "RangesChunk",
    "RangesStart",
    "Raw",
    "Record",
    "RowRange",
    "RowsInRounds",
    "Schema",
    "SchemaChange",
    "SnapshotChunk",
    "SnapshotError",
    "SnapshotMeta",
    "SnapshotStart",
    "Truncate",
    "Update",
    "__version__",
    "apply_to",
    "array_rows",
    "counts",
    "decode_body",
    "decode_event",
    "decode_events",
    "decode_message",
    "decode_schema",
    "effect_of",
    "identity_of",
    "is_certain",
    "is_other_version",
    "is_out_of_date",
    "key_of",
    "position_of",
]

if not TYPE_CHECKING:  # for a type checker there are the names above, and no others

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module 'walbridge' has no attribute {name!r}")
        actors = importlib.import_module("actors")
        if actors.__file__ is None or Path(actors.__file__).resolve().parents[1] != Path(__file__).resolve().parents[1]:
            raise ImportError(f"walbridge needs its own package `actors`; Python found another first: {list(actors.__path__)}")
        found = actors.__version__ if name == "__version__" else getattr(importlib.import_module("actors.mirror"), name)
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
