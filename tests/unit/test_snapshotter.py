"""What the snapshotter decides from values: who is answered, what people see, and why a snapshot failed."""

from __future__ import annotations

import pytest

from actors.clients.postgres.connection import PostgresError
from actors.snapshots.chunks import RowTooLarge
from actors.snapshots.failures import SnapshotFailed, failure_of
from actors.snapshots.progress import REMEMBERED_MAX, SnapshotBoard
from actors.snapshotter import UNKNOWN_AT_ONCE, UNKNOWN_EVERY_S, UnknownTables
from actors.telemetry.telemetry import Telemetry


def test_an_unknown_table_is_answered_once_per_minute() -> None:
    unknown = UnknownTables()
    answers = [unknown.may_answer("a", now) for now in (0.0, 1.0, UNKNOWN_EVERY_S - 1, UNKNOWN_EVERY_S, UNKNOWN_EVERY_S + 1)]
    assert answers == [True, False, False, True, False]
    assert unknown.may_answer("b", 1.0)


def test_a_flood_of_unknown_tables_is_answered_in_part() -> None:
    unknown = UnknownTables()
    assert sum(unknown.may_answer(f"t{n}", 0.0) for n in range(10 * UNKNOWN_AT_ONCE)) == UNKNOWN_AT_ONCE
    assert unknown.may_answer("t", UNKNOWN_EVERY_S)


def test_the_board_shows_what_waits_runs_and_ended() -> None:
    telemetry = Telemetry()
    board = SnapshotBoard(telemetry)
    board.waiting(["a", "b"])
    assert {t: p.state for t, p in telemetry.snapshots.items()} == {"a": "waiting", "b": "waiting"}
    progress = board.running("a")
    board.waiting(["b"])
    board.begins(progress, "snap-1-abcd", 10)
    board.sent(progress, chunks=1, rows=4, new_bytes=100)
    board.begins(progress, "snap-2-abcd", 10)  # another attempt
    board.sent(progress, chunks=1, rows=4, new_bytes=100)
    board.sent(progress, chunks=2, rows=10, new_bytes=50)
    assert (progress.snapshot_id, progress.chunks, progress.rows, progress.bytes) == ("snap-2-abcd", 2, 10, 150)
    assert (telemetry.snapshot_rows, telemetry.snapshot_bytes) == (14, 250), "what was sent in vain counts too"
    board.done(progress)
    board.failed(board.running("b"), "nats_error: full")
    board.waiting([])
    assert {t: p.state for t, p in telemetry.snapshots.items()} == {"a": "done", "b": "failed"}
    assert telemetry.snapshots["b"].error == "nats_error: full"
    assert (telemetry.snapshots_done, telemetry.snapshots_failed, telemetry.snapshot_requests_waiting) == (1, 1, 0)


def test_the_board_forgets_the_oldest() -> None:
    telemetry = Telemetry()
    board = SnapshotBoard(telemetry)
    for number in range(REMEMBERED_MAX + 5):
        board.done(board.running(f"t{number}"))
    assert list(telemetry.snapshots) == [f"t{n}" for n in range(5, REMEMBERED_MAX + 5)]


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (SnapshotFailed("start_lost", "gone"), "start_lost", "gone"),
        (PostgresError("42501", "permission denied", hint="GRANT it"), "permission_denied", "GRANT it"),
        (PostgresError("42P01", "no such table"), "postgres_error", "no such table"),
        (RowTooLarge(5000, 4096), "row_too_large", "5,000 bytes"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), "unreadable_value", "not UTF-8"),
    ],
)
def test_every_failure_has_a_kind_and_words(error: Exception, kind: str, words: str) -> None:
    failure = failure_of(error)
    assert failure.kind == kind
    assert words in str(failure)
