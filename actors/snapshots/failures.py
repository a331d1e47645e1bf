"""How a snapshot fails: the kinds and words of `init.error`, and the failures that deserve another attempt."""

from __future__ import annotations

from actors.clients.postgres.connection import PostgresError
from actors.snapshots.chunks import RowTooLarge


class SnapshotFailed(Exception):
    """The failure of one snapshot, with `kind` and words for init.error."""

    def __init__(self, kind: str, words: str) -> None:
        super().__init__(words)
        self.kind = kind


class NoWatermark(Exception):
    """No LSN divides what the PostgreSQL snapshot sees from what the stream brings: take another snapshot."""


class TableChanged(Exception):
    """The table has changed since the publication was read, or readers have not been told yet: read the publication again."""


def failure_of(exc: Exception) -> SnapshotFailed:
    """Return the kind and words for an error that ended a snapshot."""
    if isinstance(exc, SnapshotFailed):
        return exc
    if isinstance(exc, PostgresError):
        kind = "permission_denied" if exc.sqlstate == "42501" else "postgres_error"
        return SnapshotFailed(kind, exc.said + (f"; {exc.hint}" if exc.hint else ""))
    if isinstance(exc, RowTooLarge):
        return SnapshotFailed(
            "row_too_large", f"{exc}; raise max_payload of nats-server and max_msg_size of stream INIT, or --zstd"
        )
    if isinstance(exc, UnicodeDecodeError):
        return SnapshotFailed("unreadable_value", f"a text is not UTF-8: {exc}")
    return SnapshotFailed("nats_error", str(exc))
