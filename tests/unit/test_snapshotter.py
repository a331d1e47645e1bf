"""What the snapshotter decides from values: who is answered, what people see, and why a snapshot failed."""

from __future__ import annotations

import json
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.clients.nats.jetstream import JetStream
from actors.clients.postgres.connection import PostgresError
from actors.contract.bridge_record import BridgeRecord
from actors.snapshots.chunks import RowTooLarge
from actors.snapshots.failures import SnapshotFailed, failure_of, start_lost
from actors.snapshots.progress import REMEMBERED_MAX, SnapshotBoard
from actors.snapshots.requests import Asked, SnapshotRequests, verdict_on
from actors.snapshots.seats import Seats
from actors.snapshots.unknown_tables import UNKNOWN_AT_ONCE, UNKNOWN_EVERY_S, UnknownTables
from actors.startup.other_bridges import same_tables_elsewhere
from actors.telemetry.telemetry import Telemetry
from actors.wire.nats import Msg


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
    ("config", "held", "sent", "words"),
    [
        ({"max_bytes": 5 << 30}, 4 << 30, 9, "nats stream edit INIT --max-bytes=10GB"),
        ({"max_bytes": 5000}, 4000, 9, "nats stream edit INIT --max-bytes=64MB"),
        ({"max_bytes": 5 << 30, "max_msgs": 5}, 100, 9, "nats stream edit INIT --max-msgs=-1"),
        ({"max_bytes": 5 << 30, "max_msgs": -1}, 100, 9, "somebody has purged or deleted it"),
        ({"max_bytes": 1_200_000}, 583_112, 2_620_338, "nats stream edit INIT --max-bytes=64MB"),
        ({"max_bytes": 1 << 30}, 100, 3 << 30, "nats stream edit INIT --max-bytes=6GB"),
        ({"max_bytes": -1}, 100, 9, "somebody has purged or deleted it"),
    ],
)
def test_a_lost_start_is_explained_by_what_the_stream_may_hold(
    config: dict[str, int], held: int, sent: int, words: str
) -> None:
    failure = start_lost({"config": config, "state": {"bytes": held}}, sent)
    assert failure.kind == "start_lost"
    assert words in str(failure)
    assert "somebody" in str(start_lost(None, 9)), "the whole stream is gone"


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


STREAMS = st.sets(st.sampled_from(["CDC", "ALL", "EVEN", "ODD", "Z"]))


@given(STREAMS, STREAMS)
def test_exactly_one_bridge_answers_a_request_that_names_none(running: set[str], publishing: set[str]) -> None:
    """Whichever bridges there are: at most one answers, and one does unless the one that would is not there."""
    verdicts = {own: verdict_on(Asked("users"), own, publishing) for own in running | publishing | {"CDC"}}
    (answering,) = [own for own, verdict in verdicts.items() if verdict != "another bridge's"]
    expected = "snapshot" if "CDC" in publishing or len(publishing) == 1 else "ambiguous" if publishing else "unknown table"
    assert verdicts[answering] == expected
    assert answering == ("CDC" if "CDC" in publishing or not publishing else min(publishing))


@given(st.sampled_from(["CDC", "EVEN", "ODD"]), STREAMS)
def test_the_bridge_that_is_named_answers(own: str, publishing: set[str]) -> None:
    assert verdict_on(Asked("users", own), own, publishing) == ("snapshot" if own in publishing else "unknown table")


def asking(*subjects: str, stream: str = "EVEN") -> SnapshotRequests:
    """Requests that a bridge hears."""
    requests = SnapshotRequests(cast(JetStream, None), (), stream=stream, kept=False)
    for subject in subjects:
        requests._on_message(Msg(f"snapshot.request.{subject}".encode(), 1, b"", b"", b""))
    return requests


def test_a_bridge_hears_what_names_it_or_none_and_asks_for_a_whole_table() -> None:
    heard = asking("users@EVEN", "users", "users", "users@ODD", "users+ranges", "users~acme@EVEN", "users@EVEN", "orders@EVEN")
    ranges = Asked("users", "", "+ranges")
    assert heard.waiting == (Asked("users", "EVEN"), Asked("users"), ranges, Asked("orders", "EVEN"))
    assert heard.tables == ("users", "users+ranges", "orders")
    heard.leave(Asked("users", "EVEN"), Asked("orders", "EVEN"))
    assert heard.waiting == (Asked("users"), ranges)


def test_a_seat_is_kept_for_small_tables_and_nobody_takes_what_another_waits_for() -> None:
    freed: list[int] = []
    seats = Seats(2, lambda: freed.append(1))
    large, small = seats.take(is_small=False), seats.take(is_small=True)
    assert large is not None
    assert small is not None
    assert seats.take(is_small=False) is None, "the last one is for small tables"
    kept = seats.take(is_small=True)
    assert kept is not None
    assert seats.take(is_small=True) is None
    for give_back in (kept, small):
        give_back()
    with seats.more() as more:
        assert (more, seats.free) == (1, 0)
    assert (seats.free, len(freed)) == (1, 3)
    seats.is_anybody_waiting = True
    with seats.more() as more:
        assert (more, seats.free) == (0, 1)


def record(system_id: str, database: str, *tables: str) -> BridgeRecord:
    return BridgeRecord("slot", "pub", system_id, 1, tables=tables, database=database)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (record("1", "app", "users"), None), (record("1", "", "users"), None), (record("1", "shop", "orders"), None),
        (record("1", "shop", "orders", "users"), "publishes users from database shop"),
        (record("2", "app", "users"), "publishes users from another PostgreSQL"),
        (record("2", "", "users"), "publishes users from another PostgreSQL"),
    ],
)  # fmt: skip
def test_one_name_in_two_databases_is_a_problem(other: BridgeRecord, words: str | None) -> None:
    found = same_tables_elsewhere(record("1", "app", "users"), {"OTHER": BridgeRecord.decode(other.encode(), "OTHER")})
    assert [problem.code for problem in found] == ([] if words is None else ["WB243"])
    assert words is None or words in found[0].what


def test_a_record_of_an_older_bridge_names_no_database() -> None:
    body = json.loads(record("1", "app", "users").encode())
    del body["database"]
    assert BridgeRecord.decode(json.dumps(body).encode(), "CDC").database == ""
