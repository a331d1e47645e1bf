"""What `walbridge tail` prints is one line per change that no value can break, and its place is found in any stream."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import trio
from hypothesis import example, given
from hypothesis import strategies as st

from actors.clients.nats.bisection import Found, first_reached
from actors.contract.records import Delete, Insert, Update
from actors.contract.table_token import table_name, table_token
from actors.mirror.stream_places import parse_beginning
from actors.mirror.table_choice import choose_tables
from actors.tail.lines import KeyChoice, LineMaker, json_line, plain

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=20) | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ROWS = st.dictionaries(NAMES, VALUES, min_size=1, max_size=5)


def change(kind: type[Any], row: dict[str, Any], key: tuple[str, ...], old: dict[str, Any] | None = None) -> Any:
    head = ("users", "public", "users", 24_446_776, 0, True, 7, 1_795_244_733_014_087, key, row, ())
    return {Insert: lambda: Insert(*head), Update: lambda: Update(*head, old, ()), Delete: lambda: Delete(*head)}[kind]()


@given(st.sampled_from([Insert, Update, Delete]), ROWS, st.data())
def test_a_change_is_one_line_that_steers_no_terminal(kind: type[Any], row: dict[str, Any], data: st.DataObject) -> None:
    key = tuple(data.draw(st.lists(st.sampled_from(sorted(row)), unique=True)))
    old = data.draw(st.none() | st.just(dict.fromkeys(key, "before"))) if kind is Update else None
    line = LineMaker(colour=False).line(12, 0, change(kind, row, key, old))
    assert line.isprintable()
    assert line.startswith("12 0/1750738   2026-11-21 07:05:33.014 " + kind.__name__.upper())
    coloured = LineMaker(colour=True).line(12, 0, change(kind, row, key, old))
    for code in ("2", "1", "31", "32", "33", "0"):
        coloured = coloured.replace(f"\x1b[{code}m", "")
    assert coloured == line


@given(ROWS)
def test_json_is_what_a_bridge_with_json_would_have_written(row: dict[str, Any]) -> None:
    (shown,) = [json.loads(line) for line in json_line(3, {"operation": "INSERT", "data": row}).splitlines()]
    assert shown == {"stream_seq": 3, "operation": "INSERT", "data": plain(row)}
    for name, value in row.items():
        if name.isprintable() and isinstance(value, int | float) and not isinstance(value, bool):
            written = shown["data"][name]  # a large integer is text, as what is no number is
            assert written == value or type(value)(written) == value or math.isnan(value)


@given(st.dictionaries(st.sampled_from("abc"), st.integers(0, 3) | st.sampled_from(["x", "a=1", "1"]), min_size=1))
def test_a_row_is_found_by_each_column_of_its_key_and_by_no_other(row: dict[str, Any]) -> None:
    key = tuple(name for name in "ab" if name in row)
    event = change(Insert, row, key)
    for name, value in row.items():
        named = f"{name}={value}"
        assert KeyChoice([named]).takes(event) == any(str(row[of]) == named or of == name for of in key)
    assert KeyChoice([f"{name}={row[name]}" for name in key]).takes(event)
    assert not KeyChoice(["9"]).takes(event)
    moved = change(Update, {**row, **dict.fromkeys(key, 9)}, key, {name: row[name] for name in key})
    assert KeyChoice([f"{name}={row[name]}" for name in key]).takes(moved), "by its old key too"


@given(st.lists(st.booleans(), max_size=30), st.integers(0, 40), st.integers(1, 9))
def test_the_first_message_of_a_place_is_found_with_few_looks(held: list[bool], wanted: int, first: int) -> None:
    """`held`: which sequences the stream still has. A message's value is its sequence; everything from `wanted` on is sought."""
    messages = [first + i for i, is_held in enumerate(held) if is_held]
    looks = 0

    async def look(seq: int) -> Found | None:
        nonlocal looks
        looks += 1
        found = next((one for one in messages if one >= seq), None)
        return None if found is None else Found(found, found >= wanted)

    end = first + len(held)
    place = trio.run(first_reached, first, end, look)
    assert [one for one in messages if one >= place] == [one for one in messages if one >= wanted]
    assert first <= place <= end
    assert looks <= len(held).bit_length() + 1


@given(st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1)), st.integers(1, 999), st.integers(0, 2**64 - 1))
def test_every_place_that_is_printed_can_be_given(time: datetime, number: int, lsn: int) -> None:
    now = datetime(2026, 11, 27, tzinfo=UTC)
    for text in (time.isoformat(), time.isoformat(sep=" "), f"{time.isoformat()}Z", f"{time.isoformat()}+00:00"):
        assert parse_beginning(text, now).time == time.replace(tzinfo=UTC)
    assert parse_beginning(str(number), now).seq == number
    assert parse_beginning(f"{number}m", now).time == now - timedelta(minutes=number)
    assert parse_beginning(f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}", now).lsn == lsn


@given(NAMES, NAMES, st.lists(st.tuples(NAMES, NAMES), max_size=3))
def test_a_table_is_chosen_by_the_name_that_is_shown(schema: str, table: str, others: list[tuple[str, str]]) -> None:
    token = table_token(schema, table)
    name = table_name(token)
    published = {table_token(*other): table_name(table_token(*other)) for other in others} | {token: name}
    if list(published.values()).count(name) == 1 and name not in published:  # `a.b` is shown for two tables, if both exist
        assert choose_tables([name], tuple(published)) == (token,)
    assert choose_tables([token], tuple(published)) == (token,)


@given(st.text() | st.from_regex(r"[0-9/:+\-T]{1,30}[smhdZ]?", fullmatch=True), st.datetimes(timezones=st.just(UTC)))
@example("999999d", datetime(2026, 1, 1, tzinfo=UTC))
def test_any_text_is_a_place_or_refused(text: str, now: datetime) -> None:
    with suppress(ValueError):
        assert parse_beginning(text, now).kind in ("now", "first", "seq", "time", "lsn")
