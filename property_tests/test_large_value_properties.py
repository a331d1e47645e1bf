"""A large message is decoded without what cannot fit, and its event is the one that decoding everything would have given."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.contract.event_encoder import EventEncoder, event_encoder, sent_size
from actors.contract.omitted_columns import without_largest_columns
from actors.decoder import _decode_change, _decode_large, _Shape
from actors.messages import EventKind, Item, RowChange, RowRun, Table, Transaction
from actors.positions import Lsn
from actors.values.formats import Arrays, Encoding
from actors.values.large_values import NESTED_RATIO_MAX, can_fit, sparing_row_decoder
from actors.values.row_compiler import compile_row_decoders
from actors.values.text_values import Converter, converter_for
from actors.wire.pgoutput import Column, Relation
from tests import pgoutput_bytes as pg
from tests.examples import examples

FORMS: list[tuple[Encoding, Arrays]] = [("msgpack", "literal"), ("msgpack", "list"), ("json", "literal"), ("json", "list")]
TEXT, BYTEA, JSON, JSONB, INTS, TEXTS, JSONS, BYTEAS, TIMES = 25, 17, 114, 3802, 1007, 1009, 199, 1001, 1185
SIZE_MAX = 600
"""Of an event, as if messages were this small; texts have up to 40 times as much."""

# pieces of which a long text is made; the hostile ones are long as text and short as a value
WORDS = st.sampled_from(["x" * 60, "ä€𝄞" * 8, " " * 60, "0123456789" * 6, '\\"' * 20, "\x01" * 10, ",,,,", "a"])
ELEMENTS = st.sampled_from(
    ["false", "null", "1", "0", '""', "[]", "{}", '{"": 0}', '"\\u0001"', '"\\ud834\\udd1e"', "1.50", "1." + "0" * 40,
     " " * 40 + "7", "-12345678901234567", json.dumps("y" * 30), json.dumps("ä" * 9, ensure_ascii=False)]
)  # fmt: skip
TIMES_WRITTEN = '"2025-12-12 12:00:34.338547+00"'
COUNTS = st.sampled_from([0, 1, 3, 10, 40, 100, 400])


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@st.composite
def texts(draw: st.DrawFn, oid: int) -> str:
    """A value of the type as PostgreSQL prints it, often long."""
    count = draw(COUNTS)
    if oid == TEXT:
        return draw(WORDS) * count
    if oid == BYTEA:
        return "\\x" + draw(st.sampled_from(["00", "ff", "61"])) * 20 * count
    if oid in (JSON, JSONB):
        joint = draw(st.sampled_from([", ", ","] if oid == JSONB else [", ", ",", " \n\t ,  "]))
        return "[" + joint.join([draw(ELEMENTS)] * count + [draw(ELEMENTS)]) + "]"
    element = draw({
        INTS: st.sampled_from(["1", "NULL", "127", "-2147483648"]),
        TEXTS: WORDS.map(quoted) | st.just("NULL") | st.just('""'),
        JSONS: ELEMENTS.map(quoted) | st.just("NULL"),
        BYTEAS: st.sampled_from(['"\\\\x"', '"\\\\x00"', '"\\\\x' + "00" * 40 + '"', "NULL"]),
        TIMES: st.just(TIMES_WRITTEN) | st.just("NULL"),
    }[oid])  # fmt: skip
    return "{" + ",".join([element] * count) + "}"


def encoded_size(value: object, encoding: Encoding) -> int:
    return len(orjson.dumps(value)) if encoding == "json" else len(msgpack.packb(value))


@pytest.mark.parametrize("form", FORMS, ids="-".join)
@settings(max_examples=examples(100))
@given(data=st.data())
def test_what_is_said_not_to_fit_does_not_fit(form: tuple[Encoding, Arrays], data: st.DataObject) -> None:
    encoding, arrays = form
    oid = data.draw(st.sampled_from([TEXT, BYTEA, JSON, JSONB, INTS, TEXTS, JSONS, BYTEAS, TIMES]))
    text = data.draw(texts(oid)).encode()
    converter = converter_for(oid, {}, encoding, arrays)
    size = encoded_size(converter.convert(text)[0], encoding)
    if len(text) > 64 and len(text) <= NESTED_RATIO_MAX * size:
        assert can_fit(memoryview(text), converter, size)
    if len(text) > 64 * NESTED_RATIO_MAX:
        assert not can_fit(memoryview(text), converter, len(text) // NESTED_RATIO_MAX - 1)


COLUMNS = (("id", 23), ("a", TEXT), ("b", BYTEA), ("c", JSONB), ("d", TEXTS), ("e", TEXT))
KIND_OF = {ord("I"): "insert", ord("U"): "update", ord("D"): "delete"}


def shape_of(encoding: Encoding, arrays: Arrays, identity: str, key: frozenset[str]) -> _Shape:
    relation = Relation(
        5, "public", "t", identity, tuple(Column(name, oid, -1, name in key or identity == "f") for name, oid in COLUMNS)
    )
    names = tuple(c.name for c in relation.columns if c.is_key)
    table = Table(relation, "t", 1, names, key)
    columns: list[tuple[str, Converter]] = [(name, converter_for(oid, {}, encoding, arrays)) for name, oid in COLUMNS]
    decode, decode_run = compile_row_decoders(columns)
    kinds = {tag: EventKind(table, operation) for tag, operation in KIND_OF.items()}
    return _Shape(table, decode, decode_run, sparing_row_decoder(columns, decode, SIZE_MAX), kinds)


def values(draw: st.DrawFn, *, unchanged: bool) -> list[bytes | str | None]:
    found: list[bytes | str | None] = [draw(st.sampled_from([b"1", b"22"]))]
    for _, oid in COLUMNS[1:]:
        others = st.sampled_from([None, "u"]) if unchanged else st.none()
        found.append(draw(texts(oid).map(str.encode) | others))
    return found


@st.composite
def messages(draw: st.DrawFn, identity: str) -> bytes:
    kind = draw(st.sampled_from("IUD"))
    if kind == "I":
        return pg.xlog(pg.insert(5, values(draw, unchanged=False)))
    if kind == "D":
        return pg.xlog(pg.delete(5, values(draw, unchanged=False), "O" if identity == "f" else "K"))
    old = values(draw, unchanged=False) if identity == "f" or draw(st.booleans()) else None
    return pg.xlog(pg.update(5, values(draw, unchanged=True), old, "O" if identity == "f" else "K"))


def as_change(change: RowRun | RowChange) -> RowChange:
    return change.change(0) if isinstance(change, RowRun) else change


def fewest_left_out(change: RowChange, encoder: EventEncoder) -> tuple[dict[str, Any], bytes] | None:
    """The rule itself: whole, or without the largest column, the two largest, and so on until the event fits."""
    rows = (change.data, change.old or {})
    names = [name for name in dict.fromkeys((*rows[0], *rows[1])) if name not in change.kind.table.protected]
    size = {name: sum(encoder.value_size_bytes(row[name]) for row in rows if name in row) for name in names}
    ordered = sorted(names, key=lambda name: -size[name])
    for count in range(len(ordered) + 1):
        gone = ordered[:count]
        kept = [{name: value for name, value in row.items() if name not in gone} for row in rows]
        notes = change.notes and change.notes._replace(
            raw=tuple(n for n in change.notes.raw if n not in gone),
            old_raw=tuple(n for n in change.notes.old_raw if n not in gone),
        )
        smaller = change._replace(data=kept[0], old=None if change.old is None else kept[1], notes=notes)
        message = encoder.row(smaller, last=False, omitted=tuple(gone))
        if sent_size(message) <= SIZE_MAX:
            return comparable(encoder, message.body), message.msg_id
    return None


def comparable(encoder: EventEncoder, body: bytes) -> dict[str, Any]:
    """The event; columns of like size that were not decoded may be named in another order."""
    event = encoder.read_document(body)
    assert isinstance(event, dict)
    return event | {"omitted": sorted(event.get("omitted", []))}


@pytest.mark.parametrize("form", FORMS, ids="-".join)
@settings(max_examples=examples(150))
@given(data=st.data())
def test_the_event_is_the_one_that_decoding_everything_gives(form: tuple[Encoding, Arrays], data: st.DataObject) -> None:
    encoder = event_encoder(form[0])
    identity = data.draw(st.sampled_from(["d", "f", "i"]))
    key = data.draw(st.sampled_from([frozenset({"id"}), frozenset({"id", "a"}), frozenset[str]()]))
    shape = shape_of(*form, identity, key or (frozenset() if identity == "f" else frozenset({"id"})))
    message = data.draw(messages(identity))
    if any(len(part) > NESTED_RATIO_MAX * SIZE_MAX for part in message.split(b"\0")):
        return  # the one exception
    txn = Transaction(Lsn(100), 7, 1)
    tag = message[25]
    whole = as_change(_decode_change(message, tag, shape, txn, 3))
    items: list[Item] = []
    assert _decode_large([memoryview(message)], 0, 1, shape, txn, 3, b"", items.append) == (1, b"")
    (spared,) = items
    assert isinstance(spared, RowChange)
    expected = fewest_left_out(whole, encoder)
    for change in (whole, spared):
        found = without_largest_columns(change, encoder, last=False, size_max=SIZE_MAX)
        assert (found is None) == (expected is None)
        if found is not None:
            assert (comparable(encoder, found.message.body), found.message.msg_id) == expected
