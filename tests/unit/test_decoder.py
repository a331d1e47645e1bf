"""The decoder: pgoutput's bytes to items in order, each numbered as PostgreSQL sent it, and nothing that is stored already."""

from __future__ import annotations

from collections import deque

import pytest
import trio

from actors.channels import Channel
from actors.decoder import Decoder, decode_blocks
from actors.errors import MalformedMessage
from actors.messages import Block, Committed, IdleMark, Item, RawMessage, RowChange, RowRun, SchemaChange, TooLarge, Truncated
from actors.positions import NO_LSN, ROW_RANK, SCHEMA_RANK, START, Lsn, Position
from actors.snapshots.transaction_log import TransactionLog
from actors.telemetry.telemetry import Telemetry
from actors.wire import pgoutput
from tests import pgoutput_bytes as pg
from tests.mock_time import on_mock_clock
from tests.scripted_replication import DESCRIPTION, OID, describe, relation, transaction

RELATION = pgoutput.decode(relation(), 25)
assert isinstance(RELATION, pgoutput.Relation)


def decoder(skip: Position = START, known: dict[str, int] | None = None) -> Decoder:
    return Decoder(skip, known or {}, encoding="msgpack", arrays="literal")


def decoded(decoder: Decoder, *messages: RawMessage) -> list[Item]:
    """All items, with the table described where the decoder asks for it."""
    items: list[Item] = []
    index, block = 0, list(messages)
    while index < len(block):
        index = decoder.feed(block, index, items)
        if decoder.wanted is not None:
            decoder.define(decoder.wanted, DESCRIPTION)
    return items


def begin(lsn: int = 1000) -> bytes:
    return pg.xlog(pg.begin(lsn, 7, 5))


def commit(lsn: int = 1000) -> bytes:
    return pg.xlog(pg.commit(lsn, lsn + 8, 5))


def test_a_transaction_is_its_shape_its_rows_and_its_commit() -> None:
    shape, run, committed = decoded(decoder(), relation(), *transaction(1000, 1, 2, 3))
    assert isinstance(shape, SchemaChange)
    assert (shape.table.token, shape.position) == ("users", Position(Lsn(1000), 0, SCHEMA_RANK))
    assert isinstance(run, RowRun)
    assert (run.kind.operation, run.seq, run.txn.xid) == ("insert", 0, 7)
    assert run.rows == [{"id": n, "name": f"name {n}"} for n in (1, 2, 3)]
    assert committed == Committed(Lsn(1008), run.txn.commit_us)


def test_seq_goes_on_over_operations_and_counts_each_truncated_table() -> None:
    insert, update = pg.xlog(pg.insert(OID, [b"1", b"a"])), pg.xlog(pg.update(OID, [b"1", b"b"], [b"9", None]))
    messages = (relation(), begin(), insert, insert, update, pg.xlog(pg.truncate([OID], 3)),
                pg.xlog(pg.delete(OID, [b"1", None])), commit())  # fmt: skip
    _, run, updated, truncated, deleted, _ = decoded(decoder(), *messages)
    assert isinstance(run, RowRun)
    assert (run.seq, len(run.rows)) == (0, 2)
    assert isinstance(updated, RowChange)
    assert (updated.seq, updated.data, updated.old) == (2, {"id": 1, "name": "b"}, {"id": 9}), "of a key's old row the key"
    assert isinstance(truncated, Truncated)
    assert (truncated.seq, truncated.cascade, truncated.restart_identity) == (3, True, True)
    assert isinstance(deleted, RowRun)
    assert (deleted.kind.operation, deleted.seq) == ("delete", 4)


def test_changes_with_old_rows_or_notes_are_runs_of_those_that_look_alike() -> None:
    updates = [pg.update(OID, [b"%d" % n, b"x"], [b"%d" % (n + 10), None]) for n in range(2)]
    toasted = [pg.update(OID, [b"%d" % n, "u"]) for n in range(3)]
    plain = pg.update(OID, [b"9", b"y"])
    payloads = [*updates, *toasted, plain, toasted[0]]
    _, renamed, unchanged, alone, last, _ = decoded(decoder(), relation(), begin(), *map(pg.xlog, payloads), commit())
    assert isinstance(renamed, RowRun)
    assert (renamed.seq, renamed.rows, renamed.olds) == (
        0,
        [{"id": 0, "name": "x"}, {"id": 1, "name": "x"}],
        [{"id": 10}, {"id": 11}],
    )
    assert isinstance(unchanged, RowRun)
    assert unchanged.notes is not None
    assert (unchanged.seq, unchanged.rows, unchanged.notes.unchanged) == (2, [{"id": n} for n in range(3)], ("name",))
    assert isinstance(alone, RowRun)
    assert (alone.seq, alone.rows, alone.notes) == (5, [{"id": 9, "name": "y"}], None)
    assert isinstance(last, RowChange)
    assert (last.seq, last.data) == (6, {"id": 0})


def test_an_unchanged_toast_value_is_told_and_not_made_up() -> None:
    _, change, _ = decoded(decoder(), relation(), begin(), pg.xlog(pg.update(OID, [b"1", "u"])), commit())
    assert isinstance(change, RowChange)
    assert change.data == {"id": 1}
    assert change.notes is not None
    assert change.notes.unchanged == ("name",)
    old = pg.xlog(pg.update(OID, [b"1", "u"], [b"1", b"kept"], kind="O"))
    _, change, _ = decoded(decoder(), relation(), begin(), old, commit())
    assert isinstance(change, RowChange)
    assert (change.data, change.notes) == ({"id": 1, "name": "kept"}, None), "the whole old row has it"


def test_what_is_stored_is_counted_and_not_handed_on() -> None:
    known = {"users": decoder().define(RELATION, DESCRIPTION).table.schema_id}
    messages = (relation(), *transaction(1000, 1, 2), *transaction(2000, 3, 4, 5), *transaction(3000, 6))
    items = decoded(decoder(Position(Lsn(2000), 1, ROW_RANK), known), *messages)
    rows = [(item.txn.commit_lsn, item.seq, item.rows) for item in items if isinstance(item, RowRun)]
    assert rows == [(2000, 2, [{"id": 5, "name": "name 5"}]), (3000, 0, [{"id": 6, "name": "name 6"}])]
    assert [item.end_lsn for item in items if isinstance(item, Committed)] == [1008, 2008, 3008]
    assert not [item for item in items if isinstance(item, SchemaChange)], "the readers know this shape"


def test_a_shape_that_readers_do_not_know_comes_before_its_first_row() -> None:
    wider = pg.xlog(pg.relation(OID, "users", [("id", 20, True), ("name", 25, False)]))
    messages = (relation(), *transaction(1000, 1), begin(2000), pg.xlog(pg.insert(OID, [b"2", b"a"])), wider,
                pg.xlog(pg.insert(OID, [b"3", b"b"])), commit(2000))  # fmt: skip
    items = decoded(decoder(), *messages)
    kinds = [type(item) for item in items]
    assert kinds == [SchemaChange, RowRun, Committed, RowRun, SchemaChange, RowRun, Committed]
    second = items[4]
    assert isinstance(second, SchemaChange)
    assert second.position == Position(Lsn(2000), 1, SCHEMA_RANK)


@pytest.mark.parametrize("lsn", [2**63 - 1, 2**63, 2**64 - 9])
def test_an_lsn_has_64_bits_and_no_sign(lsn: int) -> None:
    log = TransactionLog()
    made = Decoder(START, {}, encoding="msgpack", arrays="literal", log=log)
    *_, run, committed = decoded(made, relation(), *transaction(lsn, 1))
    assert isinstance(run, RowRun)
    assert (run.txn.commit_lsn, committed, list(log)) == (lsn, Committed(Lsn(lsn + 8), run.txn.commit_us), [(lsn, 7)])
    (idle,) = decoded(made, pg.keepalive(2**64 - 1))
    assert isinstance(idle, IdleMark)


def test_an_announcement_alone_changes_nothing() -> None:
    items = decoded(decoder(), relation(), *transaction(1000, 1), relation(), relation(), *transaction(2000, 2))
    assert [type(item) for item in items] == [SchemaChange, RowRun, Committed, RowRun, Committed]


def test_silence_is_told_only_between_transactions() -> None:
    items = decoded(decoder(), pg.keepalive(500), begin(), pg.keepalive(900), commit(), pg.keepalive(1100))
    assert [item for item in items if isinstance(item, IdleMark)] == [IdleMark(Lsn(500)), IdleMark(Lsn(1100))]


def test_a_keepalive_within_a_transaction_is_no_row_of_transactions_that_look_alike() -> None:
    within = [begin(1000), pg.keepalive(900), commit(1000), begin(2000), commit(2000), pg.keepalive(2100)]
    assert [type(item) for item in decoded(decoder(), *within)] == [Committed, Committed, IdleMark]
    rows = [relation(), *transaction(1000, 1), pg.keepalive(1100), *transaction(2000, 2), pg.keepalive(2100)]
    assert [type(item) for item in decoded(decoder(), *rows)][1:] == [RowRun, Committed, IdleMark, RowRun, Committed, IdleMark]


def test_of_a_large_message_what_no_message_can_carry_is_not_decoded() -> None:
    small, large, row = b"a" * 200_000, b"b" * 2_000_000, pg.xlog(pg.insert(OID, [b"2", b"c"]))
    many = [pg.xlog(pg.insert(OID, [b"1", text])) for text in (small, large)]
    full = pg.xlog(pg.update(OID, [b"1", "u"], [b"1", large], kind="O"))
    fits = pg.xlog(pg.update(OID, [b"1", small * 4], [b"1", small * 4], kind="O"))
    one = decoder()
    items = decoded(one, relation(), begin(), many[0], many[1])
    for message in (full, fits, pg.xlog(pg.delete(OID, [b"1", large], kind="O"))):
        items += decoded(one, row, memoryview(bytearray(message)))  # libpq's memory may be written to
    items += decoded(one, row, commit())
    _, run, inserted, _, updated, _, kept, _, deleted, _, committed = items
    gone = TooLarge(len(large))
    assert isinstance(run, RowRun)
    assert run.rows == [{"id": 1, "name": small.decode()}]
    changes = [change for change in (inserted, updated, kept, deleted) if isinstance(change, RowChange)]
    assert [(change.seq, change.data, change.old) for change in changes] == [
        (1, {"id": 1, "name": gone}, None),
        (3, {"id": 1, "name": gone}, {"id": 1, "name": gone}),
        (5, {"id": 1, "name": (small * 4).decode()}, {"id": 1, "name": (small * 4).decode()}),
        (7, {"id": 1, "name": gone}, None),
    ]
    assert [change.notes and change.notes.too_large for change in changes] == [("name",), ("name",), None, ("name",)]
    assert isinstance(committed, Committed)


@pytest.mark.parametrize(
    "messages",
    [
        [relation(), pg.xlog(pg.insert(OID, [b"1", b"a"]))],
        [begin(), pg.xlog(pg.insert(999, [b"1"]))],
        [begin(), commit(2000)],
        [relation(), begin(), pg.xlog(pg.insert(OID, [b"1", b"a"]) + b"more")],
        [relation(), begin(), pg.xlog(pg.insert(OID, [b"1", b"a"])[:-1])],
        [begin(), pg.xlog(b"I\0")],
        [b"w"],
    ],
    ids=["outside of a transaction", "of an unknown table", "another commit", "too long", "too short", "cut off", "nothing"],
)
def test_what_cannot_be_read_is_malformed(messages: list[bytes]) -> None:
    with pytest.raises(MalformedMessage, match="pgoutput"):
        decoded(decoder(), *messages)


@on_mock_clock
async def test_blocks_become_items_in_order_and_the_end_is_handed_on() -> None:
    blocks, items = Channel[Block]("blocks", 10, 10_000), Channel[list[Item]]("items", 10, 10_000)
    telemetry, announced = Telemetry(), list[SchemaChange]()
    with blocks.sender() as sender:
        for messages in ([relation(), *transaction(1000, 1, 2)], transaction(2000, 3)):
            await sender.send(Block(messages, 100, Lsn(messages and 2008)), 100)
    with trio.fail_after(1):
        await decode_blocks(blocks.receiver(), items.sender(), decoder(), describe, announced.append, deque(), telemetry)
        handed = [item async for item in items.receiver()]
    assert [[type(item) for item in items] for items in handed] == [[SchemaChange, RowRun, Committed], [RowRun, Committed]]
    assert [change.table.token for change in announced] == ["users"]
    assert (telemetry.transactions, telemetry.largest_transaction_events, telemetry.decoded_lsn) == (2, 2, 2008)


@on_mock_clock
async def test_a_snapshot_that_waits_for_a_place_in_the_wal_is_answered_once_its_block_is_decoded() -> None:
    blocks, items = Channel[Block]("blocks", 10, 10_000), Channel[list[Item]]("items", 10, 10_000)
    log = TransactionLog()
    logging = Decoder(START, {}, encoding="msgpack", arrays="literal", log=log)
    assert log.reached.value == NO_LSN
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            decode_blocks, blocks.receiver(), items.sender(), logging, describe, lambda _: None, deque(), Telemetry()
        )
        with trio.fail_after(1), items.receiver() as handed:
            with blocks.sender() as sender:
                for lsn, transactions in ((1000, [(1000, 7)]), (2000, [(1000, 7), (2000, 7)])):
                    await sender.send(Block([relation(), *transaction(lsn, 1)], 100, Lsn(lsn + 50)), 100)
                    await log.reached.wait_value(lambda reached, end=lsn + 50: reached >= end)
                    assert log.reached.value == lsn + 50
                    assert list(log) == transactions, "by then they are in the log"
            assert len([item async for item in handed]) == 2
