"""Whatever a peer sends: a right value or MalformedMessage, never another exception, never unbounded memory."""

from __future__ import annotations

import json
import struct
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.contract.table_token import split_token, table_token
from actors.errors import MalformedMessage
from actors.positions import Lsn, format_lsn, parse_lsn
from actors.values.arrays import parse_array
from actors.values.json_values import json_converter, jsonb_converter
from actors.values.row_compiler import RUN_HEAD_END, compile_row_decoders, plain_row_decoder
from actors.values.text_values import BUILTIN_TYPES, converter_for
from actors.wire import pgoutput, replication
from tests import pgoutput_bytes as pg

MESSAGES = [
    pg.begin(100), pg.commit(100, 110), pg.relation(7, "tüble", [("id", 23, True), ("v", 25, False)]),
    pg.insert(7, [b"1", None, "u"]), pg.update(7, [b"1"], [b"2"], "O"), pg.delete(7, [b"1", None]),
    pg.truncate([1, 2, 3], 3), b"O" + struct.pack(">q", 5) + b"origin\0", b"Y" + struct.pack(">I", 5) + b"s\0mood\0",
    b"M\x01" + struct.pack(">q", 5) + b"prefix\0" + struct.pack(">I", 3) + b"abc",
]  # fmt: skip


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: chr(m[0]))
def test_every_message_decodes_and_none_decodes_when_cut_or_extended(message):
    pgoutput.decode(message)
    for end in range(len(message)):
        with pytest.raises(MalformedMessage):
            pgoutput.decode(message[:end])
    with pytest.raises(MalformedMessage):
        pgoutput.decode(message + b"\0")


@given(st.sampled_from(MESSAGES), st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes_give_a_value_or_the_typed_error(message, flips):
    broken = bytearray(message)
    for at, value in flips:
        broken[at % len(broken)] = value
    try:
        pgoutput.decode(bytes(broken))
    except MalformedMessage:
        pass


@given(st.integers(0, 2**64 - 1))
def test_an_lsn_is_read_as_it_is_written(lsn):
    assert parse_lsn(format_lsn(lsn)) == lsn
    status = replication.encode_status(Lsn(lsn), Lsn(0), Lsn(0), 10**15)
    assert (len(status), status[:1], struct.unpack_from(">Q", status, 1)[0]) == (34, b"r", lsn)


# -- rows

TYPED = {
    16: st.sampled_from([b"t", b"f"]),
    17: st.binary(max_size=20).map(lambda b: b"\\x" + b.hex().encode()),
    20: st.integers(-(2**63), 2**63 - 1).map(lambda i: b"%d" % i),
    23: st.integers(-(2**31), 2**31 - 1).map(lambda i: b"%d" % i),
    25: st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])).map(str.encode),
    701: st.one_of(st.floats(allow_nan=False, allow_infinity=False).map(lambda f: repr(f).encode()),
                   st.sampled_from([b"NaN", b"Infinity", b"-Infinity"])),
    1114: st.sampled_from([b"2025-12-12 12:00:34.338547", b"infinity", b"0044-03-15 12:00:00 BC"]),
    1184: st.sampled_from([b"2025-12-12 12:00:34.338547+00", b"-infinity", b"0044-03-15 12:00:00+00 BC"]),
    1007: st.sampled_from([b"{1,2,NULL}", b"{}", b"[0:1]={1,2}", b"{{1},{2}}"]),
    3802: st.sampled_from([b"null", b'{"a": 12345678901234567890}', b"[1.10, {}]", b'"x"']),
}  # fmt: skip
column = st.sampled_from(sorted(TYPED)).flatmap(
    lambda oid: st.tuples(st.just(oid), st.one_of(TYPED[oid], st.none(), st.just("u")))
)
settings_of = st.tuples(st.sampled_from(["msgpack", "json"]), st.sampled_from(["literal", "list"]))


@given(st.lists(column, max_size=12), settings_of, st.text(max_size=5))
def test_the_compiled_decoder_is_the_plain_one(columns, how, prefix):
    named = [(f"{prefix}{i}", converter_for(oid, {}, *how)) for i, (oid, _) in enumerate(columns)]
    message = b"\0" * 31 + pg.tuple_data([value for _, value in columns])
    compiled, plain = compile_row_decoders(named).row, plain_row_decoder(named)
    assert repr(compiled(message, 31)) == repr(plain(message, 31))
    assert compiled(message, 31)[1] == len(message)
    for end in range(31, len(message)):
        try:  # a value may end early and still be a number: then the offset is beyond the message
            assert compiled(message[:end], 31)[1] > end
        except MalformedMessage:
            pass


@given(st.lists(st.sampled_from(sorted(TYPED)), max_size=4), settings_of, st.data())
def test_a_run_is_the_rows_that_have_nothing_to_note(oids, how, data):
    named = [(f"{i}", converter_for(oid, {}, *how)) for i, oid in enumerate(oids)]
    row = st.tuples(*(st.one_of(TYPED[oid], TYPED[oid], st.none(), st.just("u")) for oid in oids))
    broken = st.sampled_from([b"", b"", b"", b"n", b"\0"])
    block = [pg.xlog(pg.insert(7, values)) + more for values, more in data.draw(st.lists(st.tuples(row, broken), max_size=9))]
    other = pg.xlog(pg.insert(8, [b"1"] * len(oids)))
    block.insert(data.draw(st.integers(0, len(block))), other)
    start = data.draw(st.integers(0, len(block) - 1))
    expected, plain = [], plain_row_decoder(named)
    for message in block[start:]:
        values, end, notes = plain(message, RUN_HEAD_END - 2)
        if message == other or notes or end != len(message):
            break
        expected.append(values)
    rows = []
    head = pg.xlog(pg.insert(7, [None] * len(oids)))[25:RUN_HEAD_END]
    assert compile_row_decoders(named).run(block, start, len(block), head, rows) == start + len(rows)
    assert repr(rows) == repr(expected)


def test_column_names_never_become_code():
    name = "x'); import os; os.system('false'); ('"
    row, _, _ = compile_row_decoders([(name, converter_for(25, {}, "msgpack", "literal"))]).row(pg.tuple_data([b"v"]), 0)
    assert row == {name: "v"}


def test_1600_columns_compile():
    named = [(f"c{i}", converter_for(23, {}, "msgpack", "literal")) for i in range(1600)]
    row, _, notes = compile_row_decoders(named).row(pg.tuple_data([b"%d" % i for i in range(1600)]), 0)
    assert (row["c1599"], len(row), notes) == (1599, 1600, None)


# -- values


@given(st.recursive(st.one_of(st.none(), st.text()), lambda inner: st.lists(inner, min_size=1, max_size=3), max_leaves=8))
def test_arrays_are_read_as_they_are_written(value):
    if not isinstance(value, list):
        value = [value]

    def write(item: object, depth: int) -> str:
        if isinstance(item, list):
            return "{" + ",".join(write(i, depth + 1) for i in item) + "}"
        return "NULL" if item is None else '"' + str(item).replace("\\", "\\\\").replace('"', '\\"') + '"'

    literal = write(value, 0)
    try:
        assert parse_array(literal, ",", str) == value
    except ValueError:
        assert literal.startswith("{" * 7) or "{{{{{{{" in literal, "deeper than PostgreSQL's six dimensions"


@given(st.text(alphabet='{}",;\\ NULabc1[]:=', max_size=20))
def test_hostile_array_literals_are_refused_or_read(literal):
    try:
        parse_array(literal, ",", str)
    except ValueError:
        pass


numbers = st.one_of(
    st.integers().map(str), st.decimals(allow_nan=False, allow_infinity=False).map(lambda d: format(d, "f")),
    st.sampled_from(["1e400", "1E-400", "0.1", "1.10", "123456789012345678", "9007199254740993", "-0", "1e5"]),
)  # fmt: skip
documents = st.recursive(
    st.one_of(numbers, st.sampled_from(["null", "true", "false"]), st.text(max_size=5).map(json.dumps)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: "[" + ", ".join(items) + "]"),
        st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), inner), max_size=3).map(
            lambda pairs: "{" + ", ".join(f'"{k}": {v}' for k, v in pairs) + "}"
        ),
    ),
    max_leaves=6,
)


@given(documents, st.sampled_from(["msgpack", "json"]))
def test_a_nested_document_is_decimally_the_same_or_stays_text(text, encoding):
    value, raw = json_converter(encoding)(text.encode())
    if raw:
        assert value == text
        return
    assert value is not None
    exact = json.loads(text, parse_float=Decimal, parse_int=Decimal)
    again = json.loads(json.dumps(value), parse_float=Decimal, parse_int=Decimal)
    assert again == exact
    if '"a": ' in text and "{" in text:
        json.loads(text, object_pairs_hook=lambda pairs: dict(pairs) if len(dict(pairs)) == len(pairs) else pytest.fail("key"))


@given(documents)
def test_the_fast_way_for_jsonb_is_the_exact_way(text):
    canonical = text.replace("e400", "").replace("E-400", "").replace("1e5", "100000").replace("-0", "0")
    assume_unique = canonical.count('"a": ') <= 1 and canonical.count('"b": ') <= 1 and canonical.count('"c": ') <= 1
    if assume_unique:
        assert jsonb_converter("msgpack")(canonical.encode()) == json_converter("msgpack")(canonical.encode())


@pytest.mark.parametrize("oid", sorted(BUILTIN_TYPES))
def test_every_builtin_type_has_a_converter(oid):
    assert converter_for(oid, {}, "msgpack", "list").convert is not None


# -- table tokens

names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(names, names)
def test_a_token_is_legal_and_tells_its_table(schema, table):
    token = table_token(schema, table)
    assert split_token(token) == (schema, table)
    assert set(token) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=/")
    assert not token.startswith("_")


@given(names, names, names, names)
def test_tokens_are_injective(schema_a, table_a, schema_b, table_b):
    same = (schema_a, table_a) == (schema_b, table_b)
    assert (table_token(schema_a, table_a) == table_token(schema_b, table_b)) == same
