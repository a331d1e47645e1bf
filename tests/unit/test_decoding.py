"""Decoding: bodies of bridges become records, and bodies of anybody else raise MalformedMessage and nothing else."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from actors.contract.compression import Compressor, Decompressors
from actors.contract.decoding import array_rows, decode_event, decode_events, decode_message
from actors.contract.records import ArrayChunk, Column, Delete, Event, Gap, Raw, SchemaChange, SnapshotChunk
from actors.errors import MalformedMessage

pack: Any = msgpack.packb
INSERT = {
    "subject": "cdc.users.insert", "table": "users", "schema": "public", "operation": "INSERT", "relation_id": 1, "key": ["id"],
    "lsn": 16, "xid": 1, "commit_ts": 1, "msg_id": "10-0-users-insert", "seq": 0, "data": {"id": 1}, "last": True,
}  # fmt: skip
GAP = {
    "operation": "GAP", "msg_id": "10-0-_bridge-gap", "slot": "s", "reason": "r", "from_lsn": 1, "to_lsn": 2, "tables": ["t"],
}  # fmt: skip
SCHEMA = {
    "operation": "SCHEMA", "msg_id": "10-1-users-schema", "table": "users", "schema": "public.users", "lsn": 16, "seq": 1,
    "schema_id": 7, "relation_id": 1, "columns": [{"name": "id", "data_type": "integer", "pk": True}],
}  # fmt: skip
CHUNK = {"snapshot_id": "s", "chunk": 0, "data": [{"id": 1, "doc": "{}"}], "raw": [[0, "doc"]]}

hostile = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=9) | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def damaged(draw: st.DrawFn) -> dict[str, Any]:
    """A bridge's body in which fields are missing or have values of any kind."""
    body: dict[str, Any] = dict(draw(st.sampled_from([INSERT, GAP, SCHEMA, CHUNK])))
    for name in draw(st.lists(st.sampled_from(sorted({*body, "raw", "old", "old_raw", "omitted"})), max_size=3)):
        if draw(st.booleans()):
            body.pop(name, None)
        else:
            body[name] = draw(hostile)
    return body


def test_a_frame_with_anything_after_it_is_refused() -> None:
    compressor = Compressor()
    frame = compressor.compress(b"a body")
    assert Decompressors().unpack(compressor.headers, frame) == b"a body"
    for extra in (b"x", frame, b"\x00" * 100):
        with pytest.raises(MalformedMessage):
            Decompressors().unpack(compressor.headers, frame + extra)


def test_a_frame_is_refused_before_it_takes_memory() -> None:
    bomb = zstandard.compress(bytes(300 * 1024 * 1024))
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(b"no size")
    for frame in (bomb, unsized):
        with pytest.raises(MalformedMessage, match="the limit is"):
            Decompressors().unpack({"Content-Encoding": "zstd"}, frame)


def test_a_dictionary_is_missing_until_it_is_added() -> None:
    samples = [json.dumps(INSERT | {"seq": i}).encode() for i in range(1000)]
    dictionary = zstandard.train_dictionary(2048, samples).as_bytes()  # type: ignore[arg-type]
    compressor, decompressors = Compressor("users", dictionary), Decompressors()
    frame = compressor.compress(samples[0])
    assert decompressors.missing(compressor.headers) == compressor.dictionary_id
    with pytest.raises(MalformedMessage, match="cannot be unpacked"):
        decompressors.unpack(compressor.headers, frame)
    decompressors.add(compressor.headers["Dictionary-Id"], dictionary)
    assert decompressors.missing(compressor.headers) is None
    assert decompressors.unpack(compressor.headers, frame) == samples[0]
    assert decompressors.missing({}) is None, "a plain body needs none"


@pytest.mark.parametrize(
    "body",
    [
        GAP | {"msg_id": "x"},
        GAP | {"msg_id": "no hex-0-_bridge-gap"},
        GAP | {"msg_id": "10-no number-_bridge-gap"},
        SCHEMA | {"msg_id": "x-y"},
        INSERT | {"data": 5, "raw": ["id"]},
        INSERT | {"operation": "SELECT"},
        INSERT | {"operation": ["INSERT"]},
    ],
)
def test_an_event_with_a_wrong_field_is_malformed(body: dict[str, Any]) -> None:
    with pytest.raises(MalformedMessage, match="not an event"):
        decode_event(body)


@pytest.mark.parametrize("raw", [[[7, "doc"]], [[0, "none"]], [["0", "doc"]], [[0]], 5])
def test_a_chunk_with_a_wrong_list_of_text_values_is_malformed(raw: Any) -> None:
    with pytest.raises(MalformedMessage, match="not a message of a snapshot"):
        decode_message("init.snap.users.s.0", {}, pack(CHUNK | {"raw": raw}))


@given(damaged() | hostile, st.sampled_from(["cdc.users.insert", "init.snap.users.s.0", "init.start.users", "init.meta.users",
                                             "init.error.users", "snapshot.data.users", "elsewhere", ""]),
       st.sampled_from([{}, {"Snapshot-Id": "s", "Chunk": "0"}, {"Snapshot-Id": "s", "Chunk": "x"}]))  # fmt: skip
def test_any_body_is_records_or_malformed(body: Any, subject: str, headers: dict[str, str]) -> None:
    try:
        found = decode_message(subject, headers, pack(body))
    except MalformedMessage:
        return
    assert isinstance(found, list)


@given(st.binary(max_size=300) | damaged().map(pack).map(lambda body: body[: len(body) // 2]))
@example(b"\x81\x90\x01")  # a map whose key is a list
@example(b"\x81\xc0\x01")  # a map whose key is nil
@example(b"[" * 100_000)
@example(b"\x91" * 100_000)
@example(b"\xd6\xff\x00\x00\x00\x00")  # a timestamp
@example(b"\xc7\x0c\xff\xff\xff\xff\xff\x7f\xff\xff\xff\xff\xff\xff\xff")  # a timestamp out of range
def test_any_bytes_are_events_or_malformed(body: bytes) -> None:
    try:
        events = decode_events(body)
    except MalformedMessage:
        return
    assert isinstance(events, list)


def test_records_are_what_the_body_says() -> None:
    events: list[Event] = decode_events(json.dumps([INSERT, GAP, SCHEMA]).encode())
    assert [type(event).__name__ for event in events] == ["Insert", "Gap", "SchemaChange"]
    gap, schema = events[1], events[2]
    assert isinstance(gap, Gap)
    assert (gap.lsn, gap.seq, gap.tables, gap.of_table) == (16, 0, ("t",), False)
    assert isinstance(schema, SchemaChange)
    assert (schema.token, schema.schema, schema.columns) == ("users", "public", (Column("id", "integer", True),))
    suspended = decode_event(GAP | {"msg_id": "10-3-users-gap"})
    assert isinstance(suspended, Gap)
    assert suspended.of_table


def test_a_delete_has_the_columns_that_identify_its_row_and_no_other() -> None:
    row = {"id": 1, "name": None, "doc": None}
    delete = INSERT | {"operation": "DELETE", "subject": "cdc.users.delete", "data": row, "key": ["id"], "raw": []}
    for key, known in ((["id"], {"id": 1}), (["id", "name", "doc"], row), ([], {})):
        found = decode_event(delete | {"key": key})
        assert isinstance(found, Delete)
        assert found.row == known


def test_text_that_was_kept_is_marked() -> None:
    (chunk,) = decode_message("init.snap.users.s.0", {}, pack(CHUNK))
    assert isinstance(chunk, SnapshotChunk)
    assert type(chunk.rows[0]["doc"]) is Raw
    columns = (Column("id", "integer", True), Column("doc", "json", False))
    rows = array_rows(ArrayChunk("users", "s", 0, [[1, '{"a": 1}'], [2, "1e400"], [3, None]], "json"), columns)
    assert [row["doc"] for row in rows] == [{"a": 1}, "1e400", None]
    assert [type(row["doc"]) is Raw for row in rows] == [False, True, False]
