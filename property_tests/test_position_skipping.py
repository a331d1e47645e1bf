"""Wherever a stream is cut off, the rest comes after it once and in order: the tail is the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from actors.batcher import Batcher, Limits
from actors.contract.event_encoder import event_encoder
from actors.contract.message_ids import position_of
from actors.contract.table_schema import CatalogColumn, Description
from actors.decoder import Decoder
from actors.messages import Batch, Item
from actors.positions import START, Position
from actors.wire.jetstream import OutMessage
from tests import pgoutput_bytes as pg
from tests.unit.records import suspensions_of

SHAPES = ([("id", 23, True)], [("id", 23, True), ("v", 25, False)], [("id", 20, True), ("v", 25, False)])
changes = st.lists(
    st.tuples(st.sampled_from("IUDTR"), st.sampled_from([1, 2]), st.integers(0, 2), st.integers(0, 99)), max_size=12
)
scripts = st.lists(changes, max_size=6)


def wire(script: Sequence[Sequence[tuple[str, int, int, int]]]) -> list[bytes]:
    """A replication stream: tables change shape, and PostgreSQL announces them anew whenever it likes."""
    messages: list[bytes] = []
    lsn = 1000
    shape_of: dict[int, int] = {}
    announced: set[int] = set()
    for transaction in script:
        lsn += 100
        messages.append(pg.xlog(pg.begin(lsn)))
        for kind, oid, shape, value in transaction:
            if kind == "R":
                shape_of[oid] = shape
                announced.discard(oid)
                continue
            if oid not in announced:
                messages.append(pg.xlog(pg.relation(oid, f"t{oid}", SHAPES[shape_of.setdefault(oid, 0)])))
                announced.add(oid)
            row = [b"%d" % value, b"v"][: len(SHAPES[shape_of[oid]])]
            body = {
                "I": pg.insert(oid, row), "U": pg.update(oid, row), "D": pg.delete(oid, row), "T": pg.truncate([oid])
            }[kind]  # fmt: skip
            messages.append(pg.xlog(body))
        messages.append(pg.xlog(pg.commit(lsn, lsn + 10), lsn + 10))
        messages.append(pg.keepalive(lsn + 20))
    return messages


def run(messages: list[bytes], skip: Position, known: dict[str, int], block: int = 7) -> list[OutMessage]:
    """Through decoder and batcher, as the pipeline does."""
    decoder = Decoder(skip, known, encoding="msgpack", arrays="literal")
    batcher = Batcher(event_encoder("msgpack"), Limits(messages_max=5), "slot", suspensions_of())
    stored: list[OutMessage] = []
    for start in range(0, len(messages), block):
        items: list[Item] = []
        index, part = 0, messages[start : start + block]
        while index < len(part):
            index = decoder.feed(part, index, items)
            if decoder.wanted is not None:
                columns = decoder.wanted.columns
                catalog = tuple(CatalogColumn(c.name, c.type_oid, c.typmod, True, None, c.is_key) for c in columns)
                decoder.define(decoder.wanted, Description({}, tuple("x" for _ in columns), catalog))
        made = [*batcher.feed(items), batcher.flush()]
        for batch in made:
            assert batch is None or isinstance(batch, Batch)
            stored += batch.messages if batch is not None else []
    return stored


@given(scripts, st.integers(1, 20))
def test_blocks_may_be_cut_anywhere(script, block):
    messages = wire(script)
    cut, whole = run(messages, START, {}, block), run(messages, START, {}, 1)
    assert [m.msg_id for m in cut] == [m.msg_id for m in whole]
    # a schema's body tells when it was made
    assert [m.body for m in cut if b"schema" not in m.subject] == [m.body for m in whole if b"schema" not in m.subject]


@given(scripts, st.data())
def test_a_stream_cut_off_anywhere_goes_on_with_the_very_next_message(script, data):
    messages = wire(script)
    whole = run(messages, START, {})
    ids = [m.msg_id for m in whole]
    assert len(set(ids)) == len(ids)
    assert [position_of(i.decode()) for i in ids] == sorted(position_of(i.decode()) for i in ids)
    cut = data.draw(st.integers(0, len(whole)))
    skip = position_of(whole[cut - 1].msg_id.decode()) if cut else START
    rest = run(messages, skip, {})
    assert [m.msg_id for m in rest] == ids[cut:]
