"""How a snapshot fails: the kinds and words of `init.error`, and the failures that deserve another attempt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actors.clients.postgres.connection import PostgresError
from actors.contract.subjects import snapshot_command
from actors.contract.table_token import split_token
from actors.snapshots.chunks import RowTooLarge
from actors.startup.stream_sizes import as_flag
from actors.wire.sql_names import quoted

_LARGER_BYTES = 64 << 20
"""The smallest limit of INIT that is suggested."""


class SnapshotFailed(Exception):
    """The failure of one snapshot, with `kind` and words for init.error."""

    def __init__(self, kind: str, words: str, shown: str | None = None) -> None:
        """`shown`: the words without values of rows, for those who may see the bridge's state and not its data."""
        super().__init__(words)
        self.kind, self.shown = kind, words if shown is None else shown


class NoWatermark(Exception):
    """No LSN divides what the PostgreSQL snapshot sees from what the stream brings: take another snapshot."""


class TableChanged(Exception):
    """The table has changed since the publication was read, or readers have not been told yet: read the publication again."""


def start_lost(init: Mapping[str, Any] | None, sent_bytes: int) -> SnapshotFailed:
    """Return why stream INIT no longer has the start of a running snapshot, of which `sent_bytes` were stored.

    `init` is what JetStream says of the stream.
    """
    config, held = ({}, 0) if init is None else (init["config"], int(init["state"]["bytes"]))
    bytes_max = int(config.get("max_bytes") or 0)
    if int(config.get("max_msgs") or 0) > 0:
        why = "it may have too few messages: nats stream edit INIT --max-msgs=-1"
    elif 0 < bytes_max < max(2 * held, sent_bytes):  # other snapshots may have filled it as well
        larger = as_flag(max(2 * bytes_max, 2 * sent_bytes, _LARGER_BYTES))
        why = f"the snapshot is larger than the stream may be: nats stream edit INIT --max-bytes={larger}   # or more"
    else:
        why = "somebody has purged or deleted it, or the stream's max_age has; request the snapshot again"
    return SnapshotFailed("start_lost", f"stream INIT has lost the start of this snapshot: {why}")


def fix_of(failure: SnapshotFailed, qualified: str, token: str, stream: str) -> str:
    """Return what to do about a failed snapshot of a table, which SQL calls `qualified`, for the bridge of `stream`."""
    again = snapshot_command(token, stream)
    if failure.kind == "permission_denied" and "for schema" in str(failure):
        schema = quoted(split_token(token)[0])
        return f"GRANT USAGE ON SCHEMA {schema} TO ...; GRANT SELECT ON {qualified} TO ...;   -- the bridge's role\n{again}"
    if failure.kind == "permission_denied":
        return f"GRANT SELECT ON {qualified} TO ...;   -- the bridge's role\n{again}"
    if failure.kind == "row_too_large":
        return f"raise max_payload of nats-server, and max_msg_size of stream INIT if it has one\n{again}"
    return f"{again}   # once the cause is gone"


def failure_of(exc: Exception) -> SnapshotFailed:
    """Return the kind and words for an error that ended a snapshot."""
    if isinstance(exc, SnapshotFailed):
        return exc
    if isinstance(exc, PostgresError):
        kind = "permission_denied" if exc.sqlstate == "42501" else "postgres_error"
        has_values = exc.sqlstate.startswith(("22", "23"))
        shown = f"PostgreSQL could not read a value ({exc.sqlstate})" if has_values else None
        return SnapshotFailed(kind, exc.said + (f"; {exc.hint}" if exc.hint else ""), shown)
    if isinstance(exc, RowTooLarge):
        fix = "raise max_payload of nats-server and max_msg_size of stream INIT, or --zstd"
        return SnapshotFailed("row_too_large", f"{exc}; {fix}", f"{exc.without_row}; {fix}")
    if isinstance(exc, UnicodeDecodeError):
        return SnapshotFailed("unreadable_value", f"a text is not UTF-8: {exc}", "a text is not UTF-8")
    return SnapshotFailed("nats_error", str(exc))
