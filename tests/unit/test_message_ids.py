"""The id of a message tells its position, and nothing else passes for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.contract.message_ids import gap_id, id_in, message_id, position_of
from actors.contract.subjects import BRIDGE_TOKEN
from actors.contract.table_token import table_token
from actors.positions import GAP_RANK, ROW_RANK, SCHEMA_RANK, Lsn, Position


@given(st.integers(0, 2**63), st.integers(0, 2**40), st.sampled_from(["users", "a-b/c-d", "=5Fx", "insert", "x-gap"]),
       st.sampled_from(["insert", "update", "delete", "truncate"]))  # fmt: skip
def test_a_message_id_tells_its_position(lsn: int, seq: int, token: str, operation: str) -> None:
    position = Position(Lsn(lsn), seq, ROW_RANK)
    assert position_of(message_id(position, token, operation)) == position


@pytest.mark.parametrize(
    ("token", "operation", "rank"),
    [
        ("users", "schema", SCHEMA_RANK),
        ("users", "gap", ROW_RANK),
        ("users", "insert", ROW_RANK),
    ],
)
def test_what_comes_first_of_one_place_has_the_lower_rank(token: str, operation: str, rank: int) -> None:
    assert position_of(message_id(Position(Lsn(0x191BFD0), 3, rank), token, operation)) == Position(Lsn(0x191BFD0), 3, rank)


@given(st.integers(0, 2**63), st.integers(0, 2**40))
def test_gap_events_at_one_place_have_ids_of_their_own(lsn: int, number: int) -> None:
    place = Position(Lsn(lsn), 0, GAP_RANK)
    assert position_of(gap_id(place, number)) == position_of(message_id(place, BRIDGE_TOKEN, "gap")) == place


names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(names, names, st.integers(0, 2**63), st.integers(0, 2**40))
def test_any_table_has_ids_of_printable_ascii(schema: str, table: str, lsn: int, seq: int) -> None:
    position = Position(Lsn(lsn), seq, ROW_RANK)
    made = message_id(position, table_token(schema, table), "delete")
    assert made.isascii()
    assert made.isprintable()
    assert position_of(made) == position


@pytest.mark.parametrize(
    "foreign",
    ["", "-", "mine", "1-2", "1-2-", "1-2-users", "1-2-users-", "1-2--insert", "x-2-users-insert", "1-x-users-insert",
     "1--2-users-insert", "1-2-users-upsert", "snap-1764115200-ab12", "1-2-users-INSERT",
     "0x1-2-users-insert", "1_0-2-users-insert", "+1-2-users-insert", " 1-2-users-insert", "A-2-users-insert",
     "1-٢-users-insert", "10000000000000000-2-users-insert"],
)  # fmt: skip
def test_what_no_bridge_wrote_is_refused(foreign: str) -> None:
    with pytest.raises(ValueError, match="not a message id of a bridge"):
        position_of(foreign)


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        position_of(text)
    except ValueError:
        pass


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({"Nats-Msg-Id": "a"}, "a"),
        ({"Walbridge-Msg-Id": "b"}, "b"),
        ({"Nats-Msg-Id": "a", "Walbridge-Msg-Id": "b"}, "a"),
        ({"Nats-Msg-Size": "3"}, None),
    ],
)
def test_an_id_is_in_one_of_two_headers(headers: dict[str, str], found: str | None) -> None:
    assert id_in(headers) == found
