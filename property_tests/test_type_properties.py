"""A value that a replica gives back equals the source's text, for every type of PostgreSQL's own: converters beside canonical.py."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from typing import Any

import msgspec
import orjson
import psycopg.postgres
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.contract.decoding import decode_body
from actors.contract.records import Raw
from actors.mirror.stores.binding import postgres_binder, sqlite_binder, sqlite_type
from actors.values.canonical import canonical_for
from actors.values.formats import Arrays, Encoding
from actors.values.text_values import BUILTIN_TYPES, TEXT, TypeInfo, converter_for, without_domains
from tests.examples import examples

WORDS = {info.oid: info.regtype for info in psycopg.postgres.types}
ELEMENTS = {info.array_oid: info.oid for info in psycopg.postgres.types}
DELIMITERS = {info.oid: info.delimiter for info in psycopg.postgres.types}
FORMS: list[tuple[Encoding, Arrays]] = [("msgpack", "literal"), ("msgpack", "list"), ("json", "literal"), ("json", "list")]

ANY_TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
PLAIN_NUMBERS = ("0", "1.50", "-7", "9007199254740993", "12345678901234567890123", "0.1")


def documents(*, is_jsonb: bool) -> st.SearchStrategy[str]:
    """As jsonb prints them, which has no repeated keys, exponents, negative zero or lone surrogates; else as json keeps them."""
    strange = ["-0", "-0.0", "15e-1", "1e400", '"\\ud800"', '"\\u0000"']
    simple = st.sampled_from([*PLAIN_NUMBERS, "null", "true", "false", *(() if is_jsonb else strange)])

    def around(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        pairs = st.tuples(st.sampled_from(['"a"', '"b"', '""']), inner)
        unique_by = (lambda pair: pair[0]) if is_jsonb else None
        return st.one_of(
            st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
            st.lists(pairs, max_size=3, unique_by=unique_by).map(lambda ps: "{" + ", ".join(f"{k}: {v}" for k, v in ps) + "}"),
            inner.map(lambda one: "[" * 101 + one + "]" * 101),
        )

    text = ANY_TEXT.map(lambda text: json.dumps(text, ensure_ascii=False))
    return st.recursive(simple | text, around, max_leaves=5)


MOMENTS = st.one_of(
    st.datetimes().map(lambda moment: moment.isoformat(" ")),
    st.sampled_from(["0001-01-01 00:00:00", "12025-12-12 12:00:00.5", "294276-12-31 23:59:59.999999"]),
)
ENDS = st.sampled_from(["infinity", "-infinity"])


def integers(bits: int) -> st.SearchStrategy[str]:
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1).map(str)


def floats(width: Any) -> st.SearchStrategy[str]:
    names = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
    return st.floats(width=width).map(repr).map(lambda text: names.get(text, text.removesuffix(".0")))


NATIVE: dict[int, st.SearchStrategy[str]] = {
    16: st.sampled_from(["t", "f"]),
    17: st.binary(max_size=8).map(lambda value: "\\x" + value.hex()),
    20: integers(64),
    21: integers(16),
    23: integers(32),
    26: st.integers(0, 2**32 - 1).map(str),
    114: documents(is_jsonb=False),
    700: floats(32),
    701: floats(64),
    1114: st.one_of(MOMENTS, ENDS, st.just("0044-03-15 01:02:03.5 BC")),
    1184: st.one_of(MOMENTS.map(lambda text: text + "+00"), ENDS, st.just("0044-03-15 01:02:03+00 BC")),
    3802: documents(is_jsonb=True),
}
"""What PostgreSQL prints for the types whose values are not text in every form."""
TEXTUAL = sorted(WORDS.keys() - NATIVE)


LIST, LISTS = 90_001, 90_002
DOMAINS = BUILTIN_TYPES | {LIST: TypeInfo(LIST, "domain", 1007), LISTS: TypeInfo(LISTS, "array", LIST)}
"""A domain over integer[], and arrays of it."""


def given_back(oid: int, words: str, text: str) -> Iterator[tuple[str, Any]]:
    """What replicas hold of a value, by each form of events: in SQLite, and as the text that PostgreSQL is given."""
    column = sqlite3.connect(":memory:")
    column.execute(f"CREATE TABLE held (v {sqlite_type(words)})")
    for encoding, arrays in FORMS:
        value, is_raw = converter_for(oid, DOMAINS, encoding, arrays).convert(text.encode())
        sent = decode_body(orjson.dumps({"v": value}) if encoding == "json" else msgspec.msgpack.encode({"v": value}))["v"]
        read = Raw(sent) if is_raw else sent
        for_sqlite, for_postgres = sqlite_binder(words), postgres_binder(words)
        column.execute("DELETE FROM held")
        column.execute("INSERT INTO held VALUES (?)", [for_sqlite(read) if for_sqlite else read])
        yield f"{encoding} {arrays} sqlite", column.execute("SELECT v FROM held").fetchone()[0]
        yield f"{encoding} {arrays} postgresql", for_postgres(read) if for_postgres else read
    column.close()


def check(oid: int, words: str, text: str) -> None:
    canonical = canonical_for(oid, DOMAINS)
    for form, value in given_back(oid, words, text):
        assert canonical(value) == canonical(text), (words, form, value)


def array_literal(elements: list[Any], delimiter: str) -> str:
    """An array as PostgreSQL may print it; text is quoted although it need not be."""
    written = [
        "NULL" if one is None else array_literal(one, delimiter) if isinstance(one, list)
        else '"' + one.replace("\\", "\\\\").replace('"', '\\"') + '"'
        for one in elements
    ]  # fmt: skip
    return "{" + delimiter.join(written) + "}"


def test_the_types_with_a_native_form_are_all_here() -> None:
    with_one = {oid for oid in WORDS for encoding, arrays in FORMS if converter_for(oid, {}, encoding, arrays) is not TEXT}
    assert with_one == set(NATIVE), "give a new one its texts above, and look at actors/values/canonical.py"


@pytest.mark.parametrize("oid", NATIVE, ids=lambda oid: WORDS[oid])
@settings(max_examples=examples(100))
@given(data=st.data())
def test_a_native_value_given_back_equals_the_sources_text(oid: int, data: st.DataObject) -> None:
    check(oid, WORDS[oid], data.draw(NATIVE[oid]))


@pytest.mark.parametrize("oid", NATIVE, ids=lambda oid: f"{WORDS[oid]}[]")
@settings(max_examples=examples(100))
@given(data=st.data())
def test_an_array_given_back_equals_the_sources_text(oid: int, data: st.DataObject) -> None:
    elements = st.lists(st.none() | NATIVE[oid], max_size=3)
    nested = st.lists(elements.filter(bool), min_size=1, max_size=2)
    literal = array_literal(data.draw(elements | nested), ",")
    bounds = data.draw(st.sampled_from(["", "[0:2]="]))
    check(psycopg.postgres.types[WORDS[oid]].array_oid, f"{WORDS[oid]}[]", bounds + literal)


@settings(max_examples=examples(50))
@given(
    lists=st.lists(st.none() | st.lists(st.integers(-9, 9).map(str), max_size=2), max_size=3), has_two_dimensions=st.booleans()
)
def test_an_array_of_a_domain_over_an_array_given_back_equals_the_sources_text(
    lists: list[list[str] | None], has_two_dimensions: bool
) -> None:
    elements: list[Any] = [one if one is None else array_literal(one, ",") for one in lists]
    oid, brackets = without_domains(LISTS, DOMAINS)
    literal = array_literal([elements] if elements and has_two_dimensions else elements, ",")
    check(LISTS, f"{WORDS[ELEMENTS[oid]]}[]{brackets}", literal)


@settings(max_examples=examples(50))
@given(
    text=st.one_of(
        ANY_TEXT, MOMENTS, documents(is_jsonb=False), ENDS, st.sampled_from(["NaN", "t", "\\x00", "(1,2)", "[1,5)", ""])
    )
)
def test_text_given_back_equals_the_sources_text(text: str) -> None:
    for oid in TEXTUAL:
        check(oid, WORDS[oid], text)
        if array_oid := psycopg.postgres.types[oid].array_oid:
            check(array_oid, f"{WORDS[oid]}[]", array_literal([text, None], DELIMITERS[oid]))
