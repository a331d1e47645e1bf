"""Whatever is published where bridges publish, consumers read it or refuse it, and a mirror applies it or refuses it."""

from __future__ import annotations

import atexit
import shutil
import sqlite3
import tempfile
from collections.abc import Hashable, Mapping
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import orjson
import trio
import zstandard
from hypothesis import assume, given
from hypothesis import strategies as st

from actors.contract.compression import Decompressors
from actors.contract.decoding import array_rows, decode_body, decode_event, decode_message
from actors.contract.records import ArrayChunk, Column, Delete, Event, Insert, Row, Truncate, Update
from actors.contract.row_bodies import decode_row_events
from actors.contract.subjects import parse
from actors.errors import MalformedMessage, WalbridgeError
from actors.mirror import IncompleteRow, NamesNoRow, apply_to
from actors.mirror.stores.dialect import SqliteDialect
from actors.mirror.stores.shapes import TableShape
from actors.mirror.stores.sqlite import SqliteStore
from actors.mirror.stores.store import ApplyConflict
from actors.mirror.track import Cursor, CutOff, FollowedTable, Track
from actors.positions import START
from property_tests.fuzz.hostile import VALUES, broken_bytes, broken_documents

COLUMNS = (
    Column("id", "integer", True),
    Column("v", "text", False),
    Column("doc", "jsonb", False),
    Column("at", "date[]", None),
)
SHAPE = TableShape("t", "public", "t", ("", "t"), COLUMNS, ("INTEGER", "TEXT", "TEXT", "TEXT"), 1)
ROW = {"id": 1, "v": "a", "doc": {"a": [1]}, "at": ["2026-01-01"]}


def event(operation: str, **more: Any) -> dict[str, Any]:
    return {
        "subject": f"cdc.t.{operation}", "table": "t", "schema": "public", "operation": operation.upper(), "relation_id": 1,
        "key": ["id"], "msg_id": f"64-0-t-{operation}", "lsn": 100, "xid": 1, "commit_ts": 0, "seq": 0, "last": True,
        **more,
    }  # fmt: skip


LISTED = [{"name": c.name, "data_type": c.type, "pk": c.pk, "base_type": ""} for c in COLUMNS]
EVENTS = [
    event("insert", data=ROW), event("insert", data={"id": 1}, unchanged=["v", "doc"], omitted=["at"]),
    event("update", data=ROW, old={"id": 2}, raw=["doc"], old_raw=["doc"]), event("delete", data=ROW), event("truncate", cascade=False,
    restart_identity=False), event("schema", columns=LISTED, schema_id=2), event("gap", slot="s", reason="r", from_lsn=1, to_lsn=2,
    tables=["t"]), event("published", change="changed", version="v", reason="r"),
]  # fmt: skip
STARTED = [{"name": c.name, "type": c.type, "pk": c.pk} for c in COLUMNS]
SNAPSHOTS: dict[str, dict[str, Any]] = {
    "init.start.t": {
        "table": "t",
        "snapshot_id": "s",
        "snapshot_lsn": 90,
        "stream_seq": 0,
        "columns": STARTED,
        "format": "msgpack",
    },
    "init.snap.t.s.0": {"snapshot_id": "s", "chunk": 0, "data": [ROW, ROW], "raw": [[0, "doc"]]},
    "init.meta.t": {"snapshot_id": "s", "snapshot_lsn": 90, "stream_seq": 0, "batch_count": 1, "row_count": 2},
    "init.error.t": {"error_type": "x", "error_message": "y", "available_tables": ["t"], "streams": ["CDC"]},
    "init.schema.t": {"table": "t", "schema": "public.t", "schema_id": 1, "columns": LISTED},
}
FORMS = (msgpack.packb, orjson.dumps)


@st.composite
def bodies(draw: st.DrawFn, documents: st.SearchStrategy[Any]) -> bytes:
    """A document in either encoding, or alone in a packed body, or with broken bytes."""
    document = draw(documents)
    try:
        body = bytes(draw(st.sampled_from(FORMS))([document] if draw(st.integers(0, 3)) == 0 else document))
    except (TypeError, ValueError, OverflowError):  # what this encoding cannot say
        body = bytes(msgpack.packb(str(document)))
    return draw(broken_bytes([body])) if draw(st.integers(0, 3)) == 0 else body


def read(subject: str, headers: Mapping[str, str], body: bytes) -> list[Any]:
    try:
        return list(decode_message(subject, headers, body))
    except MalformedMessage:
        return []


@given(st.lists(bodies(broken_documents(EVENTS)), min_size=1, max_size=3))
def test_a_copy_of_ones_own_takes_any_event_or_is_told(messages: list[bytes]) -> None:
    rows: dict[Hashable, Row] = {(1,): dict(ROW)}
    for body in messages:
        for found in read("cdc.t.insert", {}, body):
            if isinstance(found, (Insert, Update, Delete, Truncate)):
                try:
                    apply_to(rows, found, ["id"])
                except (KeyError, IncompleteRow, NamesNoRow):
                    pass


@given(bodies(broken_documents(EVENTS)))
def test_the_short_way_to_events_about_rows_gives_what_the_long_way_gives(body: bytes) -> None:
    assume(body[:1] not in (b"{", b"["))
    short = decode_row_events(body)
    try:
        document = decode_body(body)
        long = [decode_event(one) for one in (document if isinstance(document, list) else [document])]
    except MalformedMessage:
        assert short is None
        return
    if short is None:  # something else, or a text that only the long way reads
        assert not all(isinstance(one, (Insert, Update, Delete, Truncate)) for one in long) or not is_text_in(body)
    else:
        assert repr(short) == repr(long)


def is_text_in(body: bytes) -> bool:
    """Whether all text of a MessagePack body is UTF-8."""
    try:
        msgspec.msgpack.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


@cache
def replica() -> SqliteStore:
    """A replica with one row."""
    path = f"{tempfile.mkdtemp()}/replica.db"
    store = trio.run(SqliteStore.open, path)
    atexit.register(shutil.rmtree, Path(path).parent)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(SqliteDialect().create_table(SHAPE))
        connection.execute('INSERT INTO "t" ("id") VALUES (1)')
        connection.commit()
    return store


@given(st.lists(bodies(broken_documents(EVENTS)), min_size=1, max_size=3))
def test_a_mirror_takes_any_event_or_refuses_it(messages: list[bytes]) -> None:
    dialect, store = SqliteDialect(), replica()
    track = Track(dialect, Cursor(0, START), {"t": FollowedTable.of(dialect, SHAPE, 0)})

    async def apply() -> None:
        for seq, body in enumerate(messages, 1):
            events: list[Event] = read("cdc.t.insert", {}, body)
            try:
                if events:
                    track.take(seq, events)
                await store.run(track.drain(), commit=False)
            except (CutOff, ApplyConflict, WalbridgeError):
                break
        await store.rollback()

    trio.run(apply)


@given(st.sampled_from(sorted(SNAPSHOTS)).flatmap(lambda subject: st.tuples(
    st.just(subject), bodies(broken_documents([SNAPSHOTS[subject]])))))  # fmt: skip
def test_any_message_of_a_snapshot_is_read_or_refused(message: tuple[str, bytes]) -> None:
    read(message[0], {}, message[1])


@given(broken_documents([[[1, "a", '{"a": 1}', "{2026-01-01}"]]]), st.sampled_from(FORMS),
       st.dictionaries(st.sampled_from(["Snapshot-Id", "Chunk"]), st.text(max_size=5) | st.just("0")))  # fmt: skip
def test_any_rows_of_the_array_format_are_read_or_refused(rows: Any, write: Any, headers: dict[str, str]) -> None:
    try:
        body = bytes(write(rows))
    except (TypeError, ValueError, OverflowError):
        return
    for chunk in read("snapshot.data.t", {"Snapshot-Id": "s", "Chunk": "0"} | headers, body):
        assert isinstance(chunk, ArrayChunk)
        try:
            array_rows(chunk, COLUMNS)
        except MalformedMessage:
            pass


@given(VALUES | st.binary(max_size=50), st.binary(max_size=40))
def test_any_body_is_a_value_or_refused(value: Any, junk: bytes) -> None:
    for data in (
        junk,
        b"{" + junk,
        b"[" + junk,
        b"\xc7" + junk,
        b"\xd6\xff" + junk,
        b"\x82" + junk,
        b"\xdd\xff\xff\xff\xff" + junk,
    ):
        try:
            decode_body(data)
        except MalformedMessage:
            pass
    assert repr(decode_body(msgpack.packb(value))) == repr(value)


@given(bodies(broken_documents(EVENTS)), st.dictionaries(st.sampled_from(["Content-Encoding", "Dictionary-Id"]),
       st.sampled_from(["zstd", "gzip", "", "t_dict.00000000"]) | st.text(max_size=5)), st.booleans())  # fmt: skip
def test_any_compression_is_undone_or_refused(body: bytes, headers: dict[str, str], compressed: bool) -> None:
    packed = zstandard.compress(body) if compressed else body
    try:
        Decompressors(bytes_max=1 << 20).unpack(headers, packed)
    except MalformedMessage:
        pass


SUBJECTS = [
    b"cdc.t.insert", b"cdc._bridge.gap", b"init.snap.t.s.0", b"init.start.t", b"snapshot.request.t@CDC", b"snapshot.request.users+ranges",
    b"$KV.schemas.t", b"$KV.dictionaries.EVEN.t_dict.00000000", b"snapshot.data.t",
]  # fmt: skip


@given(broken_bytes(SUBJECTS))
def test_any_subject_is_read_or_nobodys(subject: bytes) -> None:
    found = parse(subject.decode("utf-8", "replace"))
    assert found is None or isinstance(found.token, str)
