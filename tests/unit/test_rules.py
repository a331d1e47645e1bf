"""The rules of a copy: which events count, whose row a change is about, and when a copy cannot continue."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.contract.records import Column, Delete, Gap, Insert, Row, SchemaChange, Truncate, Update
from actors.contract.rules import (
    Identity,
    IncompleteRow,
    NamesNoRow,
    apply_to,
    counts,
    identity_of,
    is_certain,
    is_out_of_date,
    key_of,
    position_of,
    written_columns,
)
from actors.contract.stream_view import FoundMessage, Place, StreamView, why_out_of_date
from actors.positions import GAP_RANK, ROW_RANK, SCHEMA_RANK


def insert(row: Row, *, omitted: tuple[str, ...] = (), lsn: int = 10, seq: int = 0) -> Insert:
    return Insert("t", "public", "t", lsn, seq, True, 1, 0, ("id",), row, omitted)


def update(row: Row, old: Row | None = None, *, key: tuple[str, ...] = ("id",), omitted: tuple[str, ...] = ()) -> Update:
    return Update("t", "public", "t", 10, 0, True, 1, 0, key, row, omitted, old, ())


def delete(row: Row, key: tuple[str, ...] = ("id",)) -> Delete:
    return Delete("t", "public", "t", 10, 0, True, 1, 0, key, row, ())


TRUNCATE = Truncate("t", "public", "t", 10, 0, True, 1, 0, False, False)


def test_positions_are_ordered_at_one_change() -> None:
    gap = Gap(10, 0, True, "s", "r", 10, 20, ("t",), False)
    schema = SchemaChange("t", "public", "t", 10, 0, False, 1, 1, ())
    row = insert({"id": 1})
    assert position_of(gap) < position_of(schema) < position_of(row)
    assert [position_of(one).rank for one in (gap, schema, row)] == [GAP_RANK, SCHEMA_RANK, ROW_RANK]
    assert position_of(gap._replace(of_table=True)) == position_of(row), "it stands for the row that did not fit"


def test_what_committed_below_a_snapshots_lsn_is_in_it() -> None:
    assert [counts(insert({"id": 1}, lsn=lsn), 10) for lsn in (9, 10, 11)] == [False, True, True]


def test_a_change_finds_its_row() -> None:
    assert identity_of(update({"id": 2, "v": 1}, {"id": 1}), ["id"], 2) == Identity(("id",), {"id": 1}, False)
    assert identity_of(update({"id": 2, "v": 1}), ["id"], 2) == Identity(("id",), {"id": 2, "v": 1}, False)
    full = delete({"a": 1, "b": None}, ("a", "b"))
    assert identity_of(full, [], 2) == Identity(("a", "b"), {"a": 1, "b": None}, True)
    assert identity_of(full, ["b"], 2).columns == ("b",), "the primary key, also under REPLICA IDENTITY FULL"
    assert identity_of(delete({"a": 1, "b": None}, ("a",)), ["b"], 2) == Identity(("a",), {"a": 1, "b": None}, False)
    with pytest.raises(NamesNoRow, match="names no row"):
        identity_of(delete({"a": 1}, ()), [], 1)


def test_unknown_values_are_none_and_unchanged_ones_stay() -> None:
    assert written_columns(insert({"id": 1}, omitted=("big",))) == {"id": 1, "big": None}
    rows: dict[Hashable, Row] = {}
    apply_to(rows, insert({"id": 1, "v": "a", "big": "x"}), ["id"])
    apply_to(rows, update({"id": 1, "v": "b"}), ["id"])
    assert rows == {(1,): {"id": 1, "v": "b", "big": "x"}}
    apply_to(rows, update({"id": 2, "v": "c"}, {"id": 1}, omitted=("big",)), ["id"])
    assert rows == {(2,): {"id": 2, "v": "c", "big": None}}
    with pytest.raises(KeyError):
        apply_to(rows, delete({"id": 1, "v": None, "big": None}), ["id"])
    apply_to(rows, TRUNCATE, ["id"])
    assert rows == {}


def test_a_row_is_not_lost_where_another_one_has_its_key_for_a_moment() -> None:
    """As with a DEFERRABLE key: `UPDATE t SET id = id + 1`."""
    held: dict[Hashable, Row] = {(1,): {"id": 1, "v": "a"}, (2,): {"id": 2, "v": "b"}}
    for change in (update({"id": 2, "v": "a"}, {"id": 1, "v": "a"}), insert({"id": 2, "v": "c"})):
        with pytest.raises(NamesNoRow, match=r"two rows of .* have the key \(2,\)"):
            apply_to(dict(held), change, ["id"])


def test_an_insert_without_all_of_its_row_is_never_applied() -> None:
    rows: dict[Hashable, Row] = {}
    moved_in = insert({"id": 1, "v": "a"})._replace(unchanged=("big",), schema="Sales")
    with pytest.raises(IncompleteRow, match=r'did not send big; .* ALTER TABLE "Sales"\."t" REPLICA IDENTITY FULL$'):
        apply_to(rows, moved_in, ["id"])
    assert rows == {}


@given(st.dictionaries(st.integers(0, 9), st.integers(), min_size=1), st.data())
def test_an_insert_and_a_delete_leave_nothing(held: dict[int, int], data: st.DataObject) -> None:
    rows: dict[Hashable, Row] = {(key,): {"id": key, "v": value} for key, value in held.items()}
    before = {key: dict(row) for key, row in rows.items()}
    added = data.draw(st.integers(10, 99))
    apply_to(rows, insert({"id": added, "v": 1}), ["id"])
    assert len(rows) == len(before) + 1
    apply_to(rows, delete({"id": added, "v": None}), ["id"])
    assert rows == before


def info(first: int, last: int, created: str = "now") -> dict[str, Any]:
    return {"created": created, "state": {"first_seq": first, "last_seq": last}}


@given(st.integers(1, 100), st.integers(0, 100), st.integers(0, 200))
def test_a_copy_continues_exactly_when_the_stream_holds_the_next_message(first: int, held: int, seq: int) -> None:
    last = first + held - 1
    assert (is_out_of_date(seq, "now", info(first, last)) == "") == (first - 1 <= seq <= last)
    assert is_out_of_date(seq, "before", info(first, last)) == "the stream was created again"
    assert is_out_of_date(seq, "", info(first, last)) == is_out_of_date(seq, "now", info(first, last))


def test_why_a_copy_cannot_continue() -> None:
    assert is_out_of_date(9, "now", info(1, 8)) == "the stream was cut short"
    assert is_out_of_date(9, "now", info(11, 20)) == "the stream no longer holds what comes next"


def test_deleted_messages_and_another_message_at_the_place() -> None:
    deleted = {"created": "now", "state": {"first_seq": 1, "last_seq": 20, "num_deleted": 2, "deleted": [7, 12]}}
    assert is_out_of_date(11, "now", deleted) == "messages that come next were deleted from the stream"
    assert is_out_of_date(12, "now", deleted) == ""
    unsaid = {"created": "now", "state": {"first_seq": 1, "last_seq": 20, "num_deleted": 2}}
    assert is_out_of_date(19, "now", unsaid) != "", "asked without deleted_details, nobody can tell"
    assert is_out_of_date(9, "now", info(1, 20), message_id="a-0-t-insert", found_id="a-0-t-insert") == ""
    assert "cut short and has grown again" in is_out_of_date(9, "now", info(1, 20), message_id="a-0-t-insert", found_id="b")
    assert "no longer holds" in is_out_of_date(9, "now", info(1, 20), message_id="a-0-t-insert")


def test_a_snapshot_is_from_before_what_the_stream_holds_now() -> None:
    view, place = StreamView.of(info(1, 20)), Place(9, stored_by="2026-01-01T00:00:00.5Z")
    assert why_out_of_date(place, view, FoundMessage("id", "2026-01-01T00:00:00.5Z")) == ""
    assert why_out_of_date(place, view, FoundMessage("id", "2026-01-01T00:00:00Z")) == ""
    assert "since the snapshot began" in why_out_of_date(place, view, FoundMessage("id", "2026-01-01T00:00:00.50001Z"))
    assert why_out_of_date(place, view, None) == "", "removed by age: what comes next is there"


A, B, C = Column("a", "integer", True), Column("b", "text", False), Column("c", "text", False)


@pytest.mark.parametrize(
    ("held", "told", "certain"),
    [
        ((A, B, C), (A, B, C), True),
        ((A, B, C), (A, C), True),
        ((A, B), (A, B, C), False),  # a new column
        ((A, B, C), (A, C, B), False),  # another column under that name
        ((A, B), (A, B._replace(type="integer")), False),
        ((A, B), (B,), False),  # the key is gone
    ],
)
def test_only_dropped_columns_are_certain(held: tuple[Column, ...], told: tuple[Column, ...], certain: bool) -> None:
    assert is_certain(held, told) is certain


@pytest.mark.parametrize(("key", "other"), [([1, 2], [1, 3]), ({"a": 1, "b": 2}, {"a": 1})])
def test_arrays_and_documents_can_be_keys(key: object, other: object) -> None:
    rows: dict[Hashable, Row] = {}
    for value in (key, other):
        apply_to(rows, insert({"id": value, "v": 1}), ["id"])
    apply_to(rows, update({"id": dict(reversed(key.items())) if isinstance(key, dict) else key, "v": 2}), ["id"])
    assert rows[key_of({"id": key}, ["id"])]["v"] == 2
    apply_to(rows, delete({"id": other, "v": None}), ["id"])
    assert len(rows) == 1


def test_a_change_without_its_key_names_no_row() -> None:
    rows: dict[Hashable, Row] = {(1,): {"id": 1, "v": 1}}
    with pytest.raises(NamesNoRow, match="lacks values of its key"):
        apply_to(rows, update({"v": 2}), ["id"])
