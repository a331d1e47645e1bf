"""Whatever PostgreSQL, or something in its place, sends: replication messages, rows of COPY, arrays, histories of timelines."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actors.contract.table_schema import CatalogColumn, Description
from actors.decoder import Decoder
from actors.errors import MalformedMessage
from actors.messages import Item
from actors.positions import START
from actors.values.arrays import parse_array
from actors.values.canonical import canonical_for
from actors.values.formats import Arrays, Encoding
from actors.values.text_values import BUILTIN_TYPES, converter_for
from actors.wire.replication import parse_timeline_history
from property_tests.fuzz.hostile import broken_bytes
from tests import pgoutput_bytes as pg

STREAM = [
    pg.xlog(pg.begin(1000)), pg.xlog(pg.relation(1, "t", [("id", 23, True), ("v", 25, False), ("doc", 3802, False)])),
    pg.xlog(pg.insert(1, [b"1", b"a", b'{"a": 1}'])), pg.xlog(pg.update(1, [b"1", "u", None])), pg.xlog(pg.delete(1, [b"1", None, None])),
    pg.xlog(pg.truncate([1])), pg.xlog(pg.commit(1000, 1010), 1010), pg.keepalive(1020),
]  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 15), st.sampled_from(range(len(STREAM))).flatmap(lambda i: broken_bytes([STREAM[i]]))), max_size=3),
       st.integers(1, 8))  # fmt: skip
def test_a_replication_stream_with_broken_messages_is_decoded_or_refused(broken: list[tuple[int, bytes]], block: int) -> None:
    messages = [*STREAM, *STREAM]
    for at, message in broken:
        messages[at] = message
    decoder = Decoder(START, {}, encoding="msgpack", arrays="literal")
    try:
        for start in range(0, len(messages), block):
            part, index, items = messages[start : start + block], 0, list[Item]()
            while index < len(part):
                index = decoder.feed(part, index, items)
                if decoder.wanted is not None:
                    columns = decoder.wanted.columns
                    catalog = tuple(CatalogColumn(c.name, c.type_oid, c.typmod, True, None, c.is_key) for c in columns)
                    decoder.define(decoder.wanted, Description({}, tuple("x" for _ in columns), catalog))
    except MalformedMessage:
        pass


OIDS = sorted(BUILTIN_TYPES)
TEXTS = [
    b"t", b"1", b"-9223372036854775808", b"NaN", b"1e999", b"\\x00ff", b"2026-01-01", b"infinity", b"0044-03-15 12:00:00+00 BC",
    b'{"a": [1, 2.50, null]}', b"{1,NULL,2}", b'{{"a","b\\""},{c,d}}', b"[0:1]={1,2}", b"(1,2)", b"12:00:00.5+02", b"1 day",
]  # fmt: skip


@given(st.sampled_from(OIDS), broken_bytes(TEXTS), st.sampled_from(["msgpack", "json"]), st.sampled_from(["literal", "list"]))
def test_any_text_of_any_type_becomes_a_value_or_is_refused(oid: int, text: bytes, encoding: Encoding, arrays: Arrays) -> None:
    try:
        converter_for(oid, {}, encoding, arrays).convert(text)
    except (MalformedMessage, ValueError):  # the decoder adds the column's name to a ValueError
        pass


@given(broken_bytes([b"{1,NULL,2}", b'{{"a","b\\""},{c,d}}', b"[0:1]={1,2}", b"{}", b"{{{{{{1}}}}}}"]), st.sampled_from(",;"))
def test_any_array_is_read_or_refused(literal: bytes, delimiter: str) -> None:
    try:
        parse_array(literal.decode("utf-8", "surrogateescape"), delimiter, str)
    except ValueError:
        pass


@given(st.sampled_from(OIDS), broken_bytes(TEXTS) | st.integers(-(2**63), 2**63 - 1) | st.floats())
def test_anything_that_a_replica_holds_can_be_compared(oid: int, value: bytes | int | float) -> None:
    held = value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
    assert isinstance(canonical_for(oid, {})(held), str)


@given(broken_bytes([b"1\t0/3000000\tno recovery target specified\n\n2\t0/5000000\tbefore 2026\n# x\n"]))
def test_any_history_of_timelines_is_read_or_refused(text: bytes) -> None:
    try:
        parse_timeline_history(text.decode("utf-8", "replace"))
    except MalformedMessage:
        pass
