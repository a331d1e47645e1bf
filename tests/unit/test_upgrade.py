"""A server with another system identifier is taken for an upgrade only if nothing contradicts it, and then goes on exactly."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.contract.bridge_record import BridgeRecord
from actors.positions import Lsn, Position
from actors.startup.checkpoint import Source, StreamTail, find_loss, plan_start, tail_position
from actors.startup.upgrade import after_upgrade, why_no_upgrade

OLD = BridgeRecord("cdc_slot", "cdc_pub", "7000", 3, ((1, Lsn(10)),), Position(Lsn(900), 4), 50, Lsn(1000), database="app")
NEW = Source("cdc_slot", "8000", 1, (), Lsn(9000), Lsn(5000), database="app")
TAIL = StreamTail("CDC", 50, "384-4-users-insert", token="users", relation_oid=16385)
OIDS = {"users": 16385, "orders": 16390}


def why(source: Source = NEW, tail: StreamTail = TAIL, record: BridgeRecord = OLD) -> str:
    return why_no_upgrade(source, tail, record, tail_position(tail, record), OIDS)


def test_what_agrees_is_accepted() -> None:
    assert why() == ""
    assert why(tail=replace(TAIL, token="orders", relation_oid=None)) == "", "an event that names no table"
    assert why(tail=replace(TAIL, token="gone", relation_oid=1)) == "", "a table that is published no longer"
    assert why(record=replace(OLD, database="")) == ""


@pytest.mark.parametrize(
    ("source", "tail", "words"),
    [
        (replace(NEW, confirmed_lsn=None), TAIL, "did not come through"),
        (replace(NEW, lost="wal_removed"), TAIL, "did not come through"),
        (replace(NEW, database="other"), TAIL, "database is other"),
        (replace(NEW, confirmed_lsn=Lsn(1000)), TAIL, "0/3E8 is stored"),
        (NEW, replace(TAIL, last_seq=60, msg_id="1388-0-users-insert"), "0/1388 is stored"),
        (replace(NEW, read_before=True), TAIL, "has been read"),
        (NEW, replace(TAIL, relation_oid=1), "in the stream 1"),
    ],
)
def test_what_contradicts_is_said(source: Source, tail: StreamTail, words: str) -> None:
    assert words in why(source, tail)


@given(
    record_seq=st.integers(1, 60), record_lsn=st.integers(100, 900), last_seq=st.integers(1, 60), lsn=st.integers(100, 900),
    deleted=st.integers(0, 5),
)  # fmt: skip
def test_it_goes_on_without_a_gap_unless_the_stream_was_cut_short(
    record_seq: int, record_lsn: int, last_seq: int, lsn: int, deleted: int
) -> None:
    record = replace(OLD, last_seq=record_seq, position=Position(Lsn(record_lsn), 0), confirmed_lsn=Lsn(record_lsn + 5))
    lsn = record_lsn if record_seq == last_seq else max(lsn, record_lsn) if record_seq < last_seq else min(lsn, record_lsn)
    tail = StreamTail("CDC", last_seq, f"{lsn:x}-0-users-insert", deleted=min(deleted, last_seq - 1))
    position = tail_position(tail, record)
    assert why_no_upgrade(NEW, tail, record, position, OIDS) == ""
    adopted = after_upgrade(NEW, record)
    assert find_loss(NEW, tail, adopted, (), position) is None
    start = plan_start(NEW, tail, adopted, (), position, ("users",))
    if record_seq > last_seq:
        assert start.gap is not None
        assert start.gap.from_lsn <= lsn
        assert start.gap.to_lsn == NEW.confirmed_lsn
    else:
        assert start.gap is None
        assert start.skip == position
    assert start.proven_lsn == NEW.confirmed_lsn
