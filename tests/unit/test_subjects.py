"""Subjects and keys: what is built is read back, and one table's never matches another's."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from actors.contract import subjects
from actors.contract.subjects import OPERATIONS, Subject, matches, overlap, parse
from actors.contract.table_token import find_token, table_token
from actors.wire.nats import checked_subject
from actors.wire.sql_names import quoted

NAMES = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=12),
    st.sampled_from(
        ["a.b", "*", ">", "users.>", "_bridge", "_", "=", "$KV", "cdc", "schema", "gap", "insert", "a b", "ü", "\r\n", "/"]
    ),
)
TOKENS = st.builds(table_token, st.one_of(st.just("public"), NAMES), NAMES)
BUILT: list[tuple[Callable[[str], str], Callable[[str], Subject]]] = [
    *((lambda t, o=o: subjects.cdc_event(t, o), lambda t, o=o: Subject("event", t, o)) for o in OPERATIONS),
    (subjects.cdc_schema, lambda t: Subject("schema", t)),
    (subjects.init_start, lambda t: Subject("start", t)),
    (
        lambda t: subjects.init_chunk(t, "snap-1764115200-ab12", 17),
        lambda t: Subject("chunk", t, "", "snap-1764115200-ab12", 17),
    ),
    (subjects.init_meta, lambda t: Subject("meta", t)),
    (subjects.init_error, lambda t: Subject("error", t)),
    (subjects.init_schema, lambda t: Subject("init schema", t)),
    (subjects.array_start, lambda t: Subject("array start", t)),
    (subjects.array_chunk, lambda t: Subject("array chunk", t)),
    (subjects.request, lambda t: Subject("request", t)),
    (lambda t: subjects.request(t, "EVEN"), lambda t: Subject("request", t, stream="EVEN")),
    (lambda t: subjects.bucket_key("schemas", subjects.schema_key(t)), lambda t: Subject("key", t, bucket="schemas")),
    (
        lambda t: subjects.bucket_key("schemas", subjects.schema_key(t, "EVEN")),
        lambda t: Subject("key", f"EVEN.{t}", bucket="schemas"),
    ),
    (
        lambda t: subjects.bucket_key("dictionaries", subjects.dictionary_key(t, "0a1b2c3d")),
        lambda t: Subject("key", f"{t}_dict.0a1b2c3d", bucket="dictionaries"),
    ),
]


@pytest.mark.parametrize(("build", "read"), BUILT)
@given(token=TOKENS)
def test_what_is_built_is_read_back(build: Callable[[str], str], read: Callable[[str], Subject], token: str) -> None:
    subject = build(token)
    assert parse(subject) == read(token)
    assert checked_subject(subject)


def test_the_gap_is_no_tables() -> None:
    assert parse(subjects.CDC_GAP) == Subject("gap", "_bridge")
    assert matches(subjects.CDC_NOTICES, subjects.CDC_GAP)
    assert not matches(subjects.cdc_of_table(table_token("public", "_bridge")), subjects.CDC_GAP)


@given(TOKENS, TOKENS)
def test_no_pattern_of_one_table_matches_anothers_subject(one: str, other: str) -> None:
    assume(one != other)
    theirs = [build(other) for build, _ in BUILT]
    patterns = [
        subjects.cdc_of_table(one), *subjects.snapshot_of_table(one), *subjects.arrays_of_table(one),
        *subjects.init_of_table(one), subjects.init_chunks(one, "snap-1764115200-ab12"), subjects.request(one),
        subjects.request(one, "EVEN"),
    ]  # fmt: skip
    assert not [(pattern, subject) for pattern in patterns for subject in theirs if matches(pattern, subject)]


@given(TOKENS)
def test_a_tables_patterns_match_all_of_its_own(token: str) -> None:
    assert all(matches(subjects.cdc_of_table(token), s) for s in subjects.cdc_subjects(token) if parse(s).token == token)  # type: ignore[union-attr]
    of_snapshots = [s for s in subjects.init_subjects(token) if s != subjects.init_schema(token)]
    assert subjects.covers(subjects.snapshot_of_table(token), of_snapshots)
    assert subjects.covers(subjects.init_of_table(token), [*subjects.init_subjects(token), *subjects.arrays_of_table(token)])


STREAMS = st.one_of(st.just("CDC"), st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True))


@given(TOKENS, STREAMS)
def test_a_request_names_a_bridge_or_none(token: str, stream: str) -> None:
    assert parse(subjects.request(token, stream)) == Subject("request", token, stream=stream)
    assert parse(subjects.request(token)) == Subject("request", token)
    assert matches("snapshot.request.*", subjects.request(token, stream)), "one token: one message is kept of each"
    assert checked_subject(subjects.request(token, stream))


@given(TOKENS, STREAMS, st.from_regex(r"[+~][A-Za-z0-9=+~_/-]{0,20}", fullmatch=True))
def test_a_suffix_asks_for_something_else_than_the_table(token: str, stream: str, suffix: str) -> None:
    assert parse(f"{subjects.request(token)}{suffix}") == Subject("request", token, suffix=suffix)
    assert parse(subjects.request(token + suffix, stream)) == Subject("request", token, suffix=suffix, stream=stream)


@given(TOKENS, STREAMS, TOKENS, STREAMS, st.sampled_from(["", "0a1b2c3d"]))
def test_no_two_bridges_and_tables_share_a_key(one: str, here: str, other: str, there: str, digest: str) -> None:
    key = subjects.dictionary_key(one, digest, here)
    assert subjects.is_dictionary_of(key, one, here)
    assume((one, here) != (other, there))
    assert subjects.schema_key(one, here) != subjects.schema_key(other, there)
    assert not subjects.is_dictionary_of(key, other, there)


def test_a_stream_named_like_a_dictionary_shares_no_key_with_it() -> None:
    theirs = [subjects.dictionary_key("0a1b2c3d", digest, "users_dict") for digest in ("", "0a1b2c3d")]
    assert theirs == ["users_dict.0a1b2c3d_dict", "users_dict.0a1b2c3d_dict.0a1b2c3d"]
    assert not [key for key in theirs if subjects.is_dictionary_of(key, "users")]


def test_the_streams_take_all_of_theirs() -> None:
    assert subjects.covers([subjects.CDC_ALL], subjects.cdc_subjects("users"))
    assert subjects.covers([subjects.INIT_ALL], subjects.init_subjects("users"))
    assert subjects.covers(subjects.ARRAY_ALL, subjects.arrays_of_table("users"))
    assert subjects.covers([subjects.REQUEST_ALL], [subjects.request("users")])
    assert not subjects.covers([subjects.INIT_ALL], subjects.arrays_of_table("users"))
    assert not subjects.covers([], ["cdc.users.insert"])


def test_the_names_are_those_of_the_documents() -> None:
    assert [*subjects.cdc_subjects("users")] == [
        "cdc.users.insert", "cdc.users.update", "cdc.users.delete", "cdc.users.truncate", "cdc.users.schema", "cdc._bridge.gap",
        "cdc._bridge.published",
    ]  # fmt: skip
    assert subjects.init_chunk("users", "snap-1764115200-ab12", 0) == "init.snap.users.snap-1764115200-ab12.0"
    assert [*subjects.arrays_of_table("users")] == ["snapshot.init.users", "snapshot.data.users"]
    assert subjects.request("users", "EVEN") == "snapshot.request.users@EVEN"
    assert (subjects.schema_key("users", "EVEN"), subjects.dictionary_key("users", "0a1b2c3d", "EVEN")) == (
        "EVEN.users",
        "EVEN.users_dict.0a1b2c3d",
    )
    assert (subjects.request("users"), subjects.INIT_STARTS) == ("snapshot.request.users", "init.start.*")
    assert [subjects.publish_prefix(stream) for stream in ("CDC", "EVEN")] == ["", "_EVEN."]
    assert (subjects.bucket_stream("schemas"), subjects.bucket_key("schemas", "users")) == ("KV_schemas", "$KV.schemas.users")
    assert (subjects.dictionary_key("users"), subjects.dictionary_key("users", "0a1b2c3d")) == (
        "users_dict",
        "users_dict.0a1b2c3d",
    )


@given(st.one_of(st.text(max_size=40), st.lists(st.sampled_from(
    ["cdc", "init", "snapshot", "$KV", "snap", "start", "request", "users", "insert", "07", "9" * 5000, "", "*", ">", "٣"]
), max_size=6).map(".".join)))  # fmt: skip
def test_any_subject_is_read(subject: str) -> None:
    found = parse(subject)
    if found is not None and found.kind == "chunk":
        assert subjects.init_chunk(found.token, found.snapshot_id, found.chunk) == subject


@pytest.mark.parametrize(
    "foreign",
    ["", ".", "cdc", "cdc.", "cdc.users", "cdc..insert", "cdc.users.upsert", "cdc.users.insert.more", "init.snap.users.id", "init.users",
     "init.snap.users.id.07", "init.snap.users.id.-1", "init.start.", "snapshot.request", "snapshot.request.", "snapshot.users",
     "$KV.schemas", "$KV..users", "$KV.schemas.", "_EVEN.cdc.users.insert", "other"],
)  # fmt: skip
def test_what_no_bridge_publishes_is_nothing(foreign: str) -> None:
    assert parse(foreign) is None


def test_whatever_is_asked_for_is_a_request() -> None:
    """It is answered: nobody waits for a table of that name in vain."""
    assert parse("snapshot.request.sales.orders") == Subject("request", "sales.orders")
    assert parse("snapshot.request.sales.orders@EVEN") == Subject("request", "sales.orders", stream="EVEN")
    for neither in ("users@", "@EVEN", "users@no stream", "users@a@b", "users@a.b", "+all", "~"):
        assert parse(f"snapshot.request.{neither}") == Subject("request", neither)


@pytest.mark.parametrize(
    ("pattern", "subject", "expected"),
    [
        ("cdc.>", "cdc.users.insert", True), ("cdc.>", "cdc", False), ("cdc.*", "cdc.users.insert", False),
        ("cdc.*.insert", "cdc.users.insert", True), ("*.>", "cdc.users", True), (">", "cdc", True), ("cdc.users", "cdc.users", True),
        ("cdc.users.insert", "cdc.users", False), ("cdc.*.insert", "cdc.users.update", False),
    ],
)  # fmt: skip
def test_patterns_match_as_the_server_says(pattern: str, subject: str, expected: bool) -> None:
    assert matches(pattern, subject) is expected


PATTERNS = st.lists(st.sampled_from(["a", "b", "*"]), min_size=1, max_size=3).flatmap(
    lambda tokens: st.sampled_from([".".join(tokens), ".".join([*tokens, ">"]), ">"])
)
ALL = [".".join(tokens) for length in range(1, 6) for tokens in product("abx", repeat=length)]
"""Every subject that two such patterns can tell apart: `x` stands for any other token."""


@given(PATTERNS, PATTERNS)
def test_two_patterns_overlap_if_some_subject_matches_both(one: str, other: str) -> None:
    assert overlap(one, other) == any(matches(one, subject) and matches(other, subject) for subject in ALL)


@given(st.one_of(st.just("public"), NAMES), NAMES)
def test_a_table_is_found_by_its_token_its_name_and_as_sql_quotes_it(schema: str, table: str) -> None:
    token = table_token(schema, table)
    quoted_both = f"{quoted(schema)}.{quoted(table)}"
    assert find_token(token, {token}) == find_token(quoted_both, {token}) == find_token(f"{schema}.{table}", {token}) == token
    if schema == "public":
        assert find_token(table, {token}) == find_token(quoted(table), {token}) == token
    assert find_token(quoted_both, {table_token(schema, table + "x")}) is None
