"""What users see of snapshots: which tables wait, which snapshot is running, and how the last snapshots ended."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Literal

from actors.contract.table_token import table_name
from actors.telemetry.quantities import counted
from actors.telemetry.telemetry import SnapshotProgress, Telemetry

REMEMBERED_MAX = 200


class SnapshotBoard:
    """Writes all snapshot fields of telemetry. Owned by the snapshotter."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def waiting(self, tokens: Sequence[str]) -> None:
        """Show the tables that wait, the next table first."""
        snapshots = self._telemetry.snapshots
        self._telemetry.snapshot_requests_waiting = len(tokens)
        for token in [t for t, progress in snapshots.items() if progress.state == "waiting"]:
            del snapshots[token]
        for token in tokens[:REMEMBERED_MAX]:
            snapshots.setdefault(token, SnapshotProgress(token))

    def running(self, token: str) -> SnapshotProgress:
        """Show that a table's snapshot is being taken."""
        progress = self._telemetry.snapshots[token] = SnapshotProgress(token, "running", started_at=time.time())
        self._telemetry.journal.note("snapshot", f"snapshot of {table_name(token)} begins", table=token)
        return progress

    def begins(self, progress: SnapshotProgress, snapshot_id: str, rows_expected: int) -> None:
        """Show that a snapshot's rows begin; the rows of an earlier attempt do not count."""
        progress.snapshot_id, progress.rows_expected = snapshot_id, rows_expected
        progress.rows = progress.chunks = progress.bytes = 0

    @contextmanager
    def reading(self, progress: SnapshotProgress) -> Iterator[None]:
        """Show that a transaction of a snapshot is open, which holds back VACUUM."""
        progress.rounds += 1
        self._telemetry.snapshot_rounds += 1
        progress.transaction_since = time.time()
        try:
            yield
        finally:
            progress.transaction_since = 0.0

    def sent(self, progress: SnapshotProgress, *, chunks: int, rows: int, new_bytes: int) -> None:
        """Show how many chunks and rows of a snapshot were sent, and count the new ones."""
        self._telemetry.snapshot_bytes += new_bytes
        self._telemetry.snapshot_rows += rows - progress.rows
        progress.bytes += new_bytes
        progress.chunks, progress.rows = chunks, rows
        progress.seconds = time.time() - progress.started_at

    def interrupted(self) -> None:
        """Show that a snapshot that was running has to be taken again."""
        for token, progress in self._telemetry.snapshots.items():
            if progress.state == "running":
                self._telemetry.snapshots[token] = SnapshotProgress(token)

    def done(self, progress: SnapshotProgress) -> None:
        """Show that a snapshot is complete."""
        self._telemetry.snapshots_done += 1
        words = f"snapshot of {table_name(progress.table)} is complete: {counted(progress.rows, 'row')}"
        self._telemetry.journal.note("snapshot", words, "ok", table=progress.table)
        self._end(progress, "done")

    def failed(self, progress: SnapshotProgress, error: str, fix: str = "") -> None:
        """Show why a snapshot failed."""
        self._telemetry.snapshots_failed += 1
        words = f"snapshot of {table_name(progress.table)} failed: {error}"
        self._telemetry.journal.note("snapshot", words, "bad", table=progress.table)
        progress.error, progress.fix = error, fix
        self._end(progress, "failed")

    def _end(self, progress: SnapshotProgress, state: Literal["done", "failed"]) -> None:
        progress.state = state
        progress.seconds = time.time() - progress.started_at
        snapshots = self._telemetry.snapshots
        snapshots[progress.table] = snapshots.pop(progress.table)  # the newest last
        for token in list(islice(snapshots, max(0, len(snapshots) - REMEMBERED_MAX))):
            del snapshots[token]
