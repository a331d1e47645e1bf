"""A replica in SQLite and plain maps, given the same random events in any split, hold the same rows; so do decoders."""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import Hashable
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.contract.records import Column, Delete, Event, Gap, Insert, Row, Truncate, Update
from actors.mirror import IncompleteRow, apply_to, counts, decode_body, decode_event, decode_events
from actors.mirror.stores.binding import array_literal
from actors.mirror.stores.dialect import SqliteDialect
from actors.mirror.stores.shapes import TableShape
from actors.mirror.track import Cursor, CutOff, FollowedTable, Stale, Track
from actors.positions import START
from actors.values.arrays import parse_array
from actors.values.canonical import canonical_for
from tests.examples import examples

pack: Any = msgpack.packb
COLUMNS = (Column("id", "integer", True), Column("v", "text", False), Column("big", "text", False))
SHAPE = TableShape("t", "public", "t", ("", "t"), COLUMNS, ("INTEGER", "TEXT", "TEXT"), 1)
KEYS = st.integers(0, 6)
VALUES = st.none() | st.sampled_from(["", "a", "it's", '"', "\x01"])


def body(operation: str, lsn: int, seq: int, data: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "subject": f"cdc.t.{operation}", "table": "t", "schema": "public", "operation": operation.upper(), "relation_id": 1,
        "key": ["id"], "msg_id": f"{lsn:x}-{seq}-t-{operation}", "lsn": lsn, "xid": 1, "commit_ts": 0, "seq": seq, "data": data,
        **more,
    }  # fmt: skip


@st.composite
def histories(draw: st.DrawFn) -> list[list[dict[str, Any]]]:
    """Transactions of changes that could have happened, as bodies; the rows that there are decide what can follow."""
    rows: dict[int, dict[str, Any]] = {}
    history: list[list[dict[str, Any]]] = []
    for lsn in range(100, 100 + draw(st.integers(1, 8)) * 10, 10):
        transaction: list[dict[str, Any]] = []
        for seq in range(draw(st.integers(1, 6))):
            key, value, kind = draw(KEYS), draw(VALUES), draw(st.integers(0, 9))
            if kind == 0:
                rows.clear()
                transaction.append(body("truncate", lsn, seq, {}, cascade=False, restart_identity=False))
            elif key not in rows:
                rows[key] = {"id": key, "v": value, "big": draw(VALUES)}
                transaction.append(body("insert", lsn, seq, dict(rows[key])))
            elif kind < 4:
                del rows[key]
                transaction.append(body("delete", lsn, seq, {"id": key, "v": None, "big": None}))
            else:
                new = draw(KEYS)
                moves = new != key and new not in rows
                row = rows.pop(key)
                row = {**row, "v": value, "id": new if moves else key}
                rows[row["id"]] = row
                unchanged = draw(st.booleans())
                data = {name: row[name] for name in ("id", "v") if name in row} | ({} if unchanged else {"big": row["big"]})
                more: dict[str, Any] = {"old": {"id": key}} if moves else {}
                if unchanged:
                    more["unchanged"] = ["big"]
                transaction.append(body("update", lsn, seq, data, **more))
        transaction[-1]["last"] = True
        history.append(transaction)
    return history


def fresh() -> sqlite3.Connection:
    replica = sqlite3.connect(":memory:", isolation_level=None)
    replica.execute(SqliteDialect().create_table(SHAPE))
    return replica


def run(replica: sqlite3.Connection, track: Track) -> None:
    for statement in track.drain():
        for one in statement.params:
            cursor = replica.execute(statement.sql, one)
            assert not statement.counted or cursor.rowcount == 1


def table(replica: sqlite3.Connection) -> list[tuple[Any, ...]]:
    return sorted(replica.execute('SELECT "id", "v", "big" FROM "t"'))


def expected(events: list[Event], snapshot_lsn: int = 0) -> list[tuple[Any, ...]]:
    rows: dict[Hashable, Row] = {}
    for event in events:
        assert isinstance(event, (Insert, Update, Delete, Truncate))
        if counts(event, snapshot_lsn):
            apply_to(rows, event, ["id"])
    return sorted((row["id"], row["v"], row["big"]) for row in rows.values())


@given(histories(), st.integers(0, 20))
@settings(max_examples=examples(200))
def test_a_replica_equals_the_source_after_every_transaction(history: list[list[dict[str, Any]]], replayed: int) -> None:
    dialect = SqliteDialect()
    replica, followed = fresh(), {"t": FollowedTable.of(dialect, SHAPE, 0)}
    track = Track(dialect, Cursor(0, START), followed)
    seen: list[Event] = []
    stream = [decode_event(one) for transaction in history for one in transaction]
    for number, event in enumerate(stream, 1):
        track.take(number, [event])
        seen.append(event)
        if track.open_lsn is None:
            run(replica, track)
            assert table(replica) == expected(seen)
            assert track.closed.stream_seq == number
    # what comes a second time, as after a bridge has lost its place, changes nothing
    for event in stream[-replayed:] if replayed else []:
        track.take(len(stream) + 1, [event])
    run(replica, track)
    assert table(replica) == expected(stream)


@given(histories(), st.data())
@settings(max_examples=examples(200))
def test_a_snapshot_at_any_transaction_and_the_events_behind_any_earlier_place_give_the_same(
    history: list[list[dict[str, Any]]], data: st.DataObject
) -> None:
    stream = [decode_event(one) for transaction in history for one in transaction]
    taken = data.draw(st.integers(0, len(history)))
    snapshot_lsn = 100 + 10 * taken
    in_snapshot = [event for event in stream if event.lsn < snapshot_lsn]
    start = data.draw(st.integers(0, len(in_snapshot)))
    dialect, replica = SqliteDialect(), fresh()
    for row in expected(in_snapshot):
        replica.execute('INSERT INTO "t" VALUES (?, ?, ?)', row)
    track = Track(dialect, Cursor(start, START), {"t": FollowedTable.of(dialect, SHAPE, snapshot_lsn)})
    for number, event in enumerate(stream[start:], start + 1):
        track.take(number, [event])
    run(replica, track)
    assert table(replica) == expected(stream)


@given(histories())
@settings(max_examples=examples(100))
def test_both_encodings_and_packed_bodies_decode_alike(history: list[list[dict[str, Any]]]) -> None:
    for transaction in history:
        as_is = [decode_event(one) for one in transaction]
        for packed in (pack(transaction), json.dumps(transaction).encode()):
            assert decode_events(packed) == as_is
        for one, event in zip(transaction, as_is, strict=True):
            assert decode_events(pack(one)) == decode_events(json.dumps(one).encode()) == [event]
            assert decode_body(pack(one)) == one


@given(histories(), st.integers(0, 7))
def test_a_gap_leaves_the_table_as_it_was_and_lets_lower_positions_pass(history: list[list[dict[str, Any]]], at: int) -> None:
    dialect = SqliteDialect()
    both = {token: FollowedTable.of(dialect, SHAPE, 0) for token in ("t", "other")}
    track = Track(dialect, Cursor(0, START), both)
    before = history[:at]
    for number, one in enumerate(itertools.chain.from_iterable(before), 1):
        track.take(number, [decode_event(one)])
    track.take(1000, [Gap(5, -1, False, "s", "slot lost", 5, 9, ("t",), False)])
    assert set(track.stale) == {"t"}
    assert track.stale["t"].needed_seq == 1000
    assert set(track.tables) == {"other"}
    low = body("insert", 7, 0, {"id": 1, "v": None, "big": None}, subject="cdc.other.insert", last=True)
    gathered = track.gathered
    track.take(1001, [decode_event(low)])
    assert track.gathered == gathered + 1, "positions begin anew behind a gap"


@given(st.recursive(st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.binary()
                    | st.text(st.characters(codec="utf-8") | st.sampled_from(["\udc80", "\udcff"])),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))  # fmt: skip
def test_bodies_are_decoded_as_they_were_encoded_also_with_text_that_is_not_utf_8(value: Any) -> None:
    assert decode_body(pack({"data": value}, unicode_errors="surrogateescape")) == {"data": value}


TEXTS = st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))


@given(st.lists(TEXTS))
def test_array_literals_are_read_back_as_they_were(values: list[str | None]) -> None:
    assert parse_array(array_literal(values, "text"), ",", str) == values


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))  # fmt: skip
def test_json_is_compared_by_what_it_says_and_not_by_how_it_is_written(value: Any) -> None:
    canonical = canonical_for(3802, {})
    assert canonical(json.dumps(value, indent=1)) == canonical(json.dumps(value, sort_keys=True, ensure_ascii=False))
    assert canonical(json.dumps([value])) != canonical(json.dumps([value, 0]))


@given(st.sampled_from(["insert", "update"]), st.booleans())
def test_a_column_that_no_schema_told_means_another_copy(operation: str, later_in_the_transaction: bool) -> None:
    table = FollowedTable.of(SqliteDialect(), SHAPE, 0)
    track = Track(SqliteDialect(), Cursor(0, START), {"t": table})
    row = {"id": 1, "v": None, "big": None, "new": 1}
    strange = decode_event(body(operation, 100, 1, row))
    if not later_in_the_transaction:
        track.take(1, [strange])
        assert track.stale["t"].needed_seq == 1
        assert "new" in track.stale["t"].reason
        assert track.drain() == []
        return
    with pytest.raises(CutOff) as cut:
        track.take(1, [decode_event(body("insert", 100, 0, {"id": 1, "v": None, "big": None})), strange])
    assert (cut.value.token, cut.value.lsn) == ("t", 100)


@given(histories(), st.data())
@settings(max_examples=examples(100))
def test_a_row_that_lacks_values_leaves_the_table_as_it_was_before_its_transaction(
    history: list[list[dict[str, Any]]], data: st.DataObject
) -> None:
    dialect, replica = SqliteDialect(), fresh()
    at = data.draw(st.integers(0, len(history) - 1)) if history else 0
    lsn = history[at][0]["lsn"] if history else 100
    seq = data.draw(st.sampled_from([-1, 99]))
    moved_in = body("insert", lsn, seq, {"id": 9, "v": 1}, unchanged=["big"], last=seq > 0)
    before = [decode_event(one) for transaction in history[:at] for one in transaction]
    its_own = [decode_event(one) for one in (history[at] if history else [])]
    its_own = [decode_event(moved_in), *its_own] if seq < 0 else [*its_own, decode_event(moved_in)]
    stale_from: dict[str, tuple[int, Stale]] = {}
    while True:
        track = Track(dialect, Cursor(0, START), {"t": FollowedTable.of(dialect, SHAPE, 0)}, stale_from=stale_from)
        try:
            for number, event in enumerate([*before, *its_own], 1):
                track.take(number, [event])
            break
        except CutOff as cut:
            stale_from[cut.token] = cut.lsn, cut.stale
    run(replica, track)
    assert table(replica) == expected(before)
    assert "did not send big" in track.stale["t"].reason
    assert track.stale["t"].cause == "rows"
    with pytest.raises(IncompleteRow):
        expected([*before, *its_own])
