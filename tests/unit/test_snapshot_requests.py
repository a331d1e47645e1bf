"""Snapshots in INIT: which one a replica can use, and whether a request for another one was answered."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from actors.mirror.mirror_counts import MirrorCounts
from actors.mirror.replica import Replica
from actors.mirror.snapshot_requests import find_usable_start, is_answered, watch_requests
from actors.mirror.state import STALE, TableRecord
from actors.mirror.stores.dialect import SqliteDialect
from actors.mirror.stores.store import Store
from actors.mirror.table_choice import KeptTables
from tests.unit.fake_stream import FakeJetStream, event, source_of

COLUMNS = [{"name": "id", "type": "integer", "pk": True}]


class NoStore:
    """A replica's database that is never asked."""

    dialect = SqliteDialect()


class StoreWithPlace(NoStore):
    """A replica's database that has a copy in rounds, or none."""

    def __init__(self, *, has_place: bool) -> None:
        self._has_place = has_place

    async def query(self, sql: str, params: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
        assert "_walbridge_rounds" in sql
        return [("users", "s1", "", *[0] * 9)] if self._has_place else []


def start(stream_seq: int, snapshot_id: str = "s1", **more: str) -> tuple[str, str, bytes]:
    body = {"snapshot_id": snapshot_id, "table": "users", "schema": "public", "snapshot_lsn": 1, "stream_seq": stream_seq,
            "format": "map", "columns": COLUMNS, **more}  # fmt: skip
    return "init.start.users", "", json.dumps(body).encode()


def error(snapshot_id: str = "s1", **more: str) -> tuple[str, str, bytes]:
    body = {"snapshot_id": snapshot_id, "table": "users", "error_type": "row_too_large", "error_message": "too large", **more}
    return "init.error.users", "", json.dumps(body).encode()


def asked(
    init: list[tuple[str, str, bytes] | None],
    *,
    since_seq: int,
    needed_seq: int = 0,
    init_seq: int = 0,
    deleted_seq: int = 0,
    stored_at: str = "2026-06-01T00:00:00Z",
) -> tuple[int | None, bool]:
    """The usable start's sequence, and whether a request is answered, of a stale table."""
    events = [None if i == deleted_seq else event("users", 16 * i, 0, last=True) for i in range(1, 11)]
    js = FakeJetStream({"INIT": init, "CDC": events}, stored_at={"CDC": stored_at})
    replica = Replica(cast(Store, NoStore()), "CDC", MirrorCounts())
    replica.tables["users"] = TableRecord("users", "", "users", STALE, needed_seq=needed_seq, init_seq=init_seq)
    source = source_of(js)

    async def ask() -> tuple[int | None, bool]:
        await source.look()
        found, reason = await find_usable_start(replica, source, "users")
        assert (found is None) == bool(reason)
        answered = await is_answered(replica, source, "users", since_seq)
        return None if found is None else found.seq, answered

    return trio.run(ask)


def test_a_snapshot_that_failed_answers_no_later_request() -> None:
    assert asked([start(5)], since_seq=1) == (1, True)
    assert asked([start(5), error()], since_seq=2) == (None, False), "it began before the request, and failed"
    assert asked([start(5), error()], since_seq=1) == (None, True), "it was refused after the request"
    assert asked([start(5), error(), start(6, "s2")], since_seq=3) == (3, True)


@pytest.mark.parametrize("needed_seq", [0, 5, 6])
def test_a_snapshot_must_have_reached_what_is_needed(needed_seq: int) -> None:
    usable = needed_seq <= 5
    assert asked([start(5)], since_seq=1, needed_seq=needed_seq) == (1 if usable else None, usable)


def test_a_snapshot_is_used_once_and_must_be_of_this_stream() -> None:
    assert asked([start(5)], since_seq=1, init_seq=1) == (None, False)
    assert asked([start(11)], since_seq=1) == (None, False), "the stream was cut short"
    assert asked([start(10)], since_seq=1) == (1, True)
    assert asked([], since_seq=0) == (None, False)
    assert asked([("init.start.users", "", b"garbage")], since_seq=1) == (None, False)


@pytest.mark.parametrize("deleted_seq", [4, 5, 6, 9])
def test_a_snapshot_from_before_a_deleted_message_is_not_used(deleted_seq: int) -> None:
    usable = deleted_seq <= 5
    assert asked([start(5)], since_seq=1, deleted_seq=deleted_seq) == (1 if usable else None, usable)


def test_a_snapshot_is_not_used_when_the_stream_has_grown_to_its_place_again() -> None:
    assert asked([start(5)], since_seq=1, stored_at="2026-05-31T23:59:59.9Z") == (1, True)
    assert asked([start(5)], since_seq=1, stored_at="2026-06-01T00:00:00.1Z") == (None, False)


@pytest.mark.parametrize("others", [1, 2, 9, 33])
def test_another_bridges_answers_hide_none_and_count_for_nothing(others: int) -> None:
    """A start without `stream` is of CDC: older bridges wrote none."""
    foreign = [start(5, f"o{n}", stream="OTHER") for n in range(others)]
    errors = [error(f"o{n}", stream="OTHER") for n in range(others)]
    assert asked([*foreign, *errors], since_seq=0) == (None, False)
    assert asked([start(5), *foreign, *errors], since_seq=1) == (1, True)
    assert asked([*foreign, start(5, stream="CDC"), *foreign, *errors], since_seq=others) == (others + 1, True)
    assert asked([start(5), error(stream="CDC"), *foreign, *errors], since_seq=2) == (None, False)
    assert asked([start(5), None, error(stream="CDC"), *foreign], since_seq=1) == (None, True)


def test_that_a_request_without_a_name_is_ambiguous_answers_no_request_with_one() -> None:
    ambiguous = error("", stream="CDC", error_type="ambiguous")
    assert asked([ambiguous], since_seq=0) == (None, False)
    assert asked([start(5), ambiguous], since_seq=1) == (1, True)


@pytest.mark.parametrize("has_place", [False, True])
def test_a_copy_in_rounds_that_has_begun_waits_for_no_answer(has_place: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A round may wait for long for writing transactions, and stores nothing meanwhile."""
    replica = Replica(cast(Store, StoreWithPlace(has_place=has_place)), "CDC", MirrorCounts())
    replica.tables["users"] = TableRecord("users", "", "users", STALE)
    source, kept = source_of(FakeJetStream({"INIT": [], "CDC": []})), cast(KeptTables, SimpleNamespace(tokens=("users",)))

    async def watch() -> None:
        with trio.move_on_after(60):
            await watch_requests(replica, source, kept)

    with caplog.at_level(logging.WARNING):
        trio.run(watch, clock=MockClock(autojump_threshold=0))
    assert ("no bridge has answered the request for a snapshot" in caplog.text) is not has_place
