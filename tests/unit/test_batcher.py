"""What goes into which message and batch: cuts, packing, compression, columns and tables that do not fit."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import msgpack
import orjson
import pytest
import trio
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from actors.batcher import Batcher, LeftOut, Limits, batch_items
from actors.channels import Channel
from actors.contract.bridge_record import Suspended
from actors.contract.compression import Compressor
from actors.contract.event_encoder import event_encoder, sent_size
from actors.contract.message_ids import position_of
from actors.messages import (
    Batch,
    Committed,
    EventKind,
    IdleMark,
    Item,
    Notes,
    RowChange,
    RowRun,
    SchemaChange,
    Table,
    TooLarge,
    Transaction,
    Truncated,
)
from actors.positions import SCHEMA_RANK, Lsn, Position
from actors.suspensions import Suspensions
from actors.telemetry.telemetry import Telemetry
from actors.wire.jetstream import OutMessage
from actors.wire.pgoutput import Column, Relation
from tests.unit.records import FakeStore, suspensions_of

COLUMNS = ("id", "small", "big", "bigger")


def table(name: str) -> Table:
    relation = Relation(1, "public", name, "d", tuple(Column(c, 25, -1, c == "id") for c in COLUMNS))
    return Table(relation, name, 7, ("id",), frozenset({"id"}))


A, B = table("a"), table("b")
INSERT_A, UPDATE_A, TRUNCATE_A, INSERT_B = (
    EventKind(A, "insert"), EventKind(A, "update"), EventKind(A, "truncate"), EventKind(B, "insert")
)  # fmt: skip
TXN = Transaction(Lsn(100), 5, 1_000_000)
COMMIT = Committed(Lsn(110), 1_000_000)


def run_of(*ids: object, kind: EventKind = INSERT_A, txn: Transaction = TXN, seq: int = 0) -> RowRun:
    return RowRun(kind, txn, seq, [{"id": one} for one in ids])


def change_of(row: dict[str, object], *, kind: EventKind = INSERT_A, txn: Transaction = TXN, seq: int = 0) -> RowChange:
    return RowChange(kind, txn, seq, row, None, None)


def schema_of(of: Table, seq: int, txn: Transaction = TXN) -> SchemaChange:
    return SchemaChange(of, Position(txn.commit_lsn, seq, SCHEMA_RANK), {"operation": "SCHEMA"})


def batcher_of(
    limits: Limits = Limits(),  # noqa: B008  (a value)
    *,
    encoding: str = "msgpack",
    zstd: bool = False,
    suspensions: Suspensions | None = None,
) -> Batcher:
    compressors = {"a": Compressor("a")} if zstd else None
    return Batcher(event_encoder(encoding, b"", compressors), limits, "slot", suspensions or suspensions_of())


def fed(batcher: Batcher, *items: Item, flush: bool = True) -> list[Batch]:
    batches = list(batcher.feed(list(items)))
    rest = batcher.flush() if flush else None
    return [*batches, rest] if rest is not None else batches


def bodies(batches: Iterable[Batch], *, encoding: str = "msgpack") -> list[dict[str, object]]:
    """The events of all batches, one by one, as a consumer reads them."""
    events: list[dict[str, object]] = []
    for batch in batches:
        for message in batch.messages:
            body = message.body
            if b"Content-Encoding: zstd" in message.headers:
                body = zstandard.ZstdDecompressor().decompress(body)
            read = orjson.loads(body) if encoding == "json" else msgpack.unpackb(body)
            events += read if isinstance(read, list) else [read]
    return events


def told(batches: Iterable[Batch]) -> list[tuple[object, ...]]:
    """(operation, table, id, last) of each event."""
    return [(e["operation"], e.get("table"), e.get("data", {}).get("id"), e.get("last", False)) for e in bodies(batches)]


# -- cuts


def test_the_last_event_of_a_transaction_says_so() -> None:
    batches = fed(batcher_of(), run_of(1, 2, 3), COMMIT)
    assert told(batches) == [("INSERT", "a", 1, False), ("INSERT", "a", 2, False), ("INSERT", "a", 3, True)]
    (batch,) = batches
    assert (batch.end_lsn, batch.position, batch.counts) == (110, Position(Lsn(100), 2), {INSERT_A: 3})
    assert (batch.oldest_commit_us, batch.newest_commit_us) == (TXN.commit_us, TXN.commit_us)


def test_an_event_is_held_back_until_it_is_known_whether_its_transaction_goes_on() -> None:
    batcher = batcher_of()
    assert [e["data"] for e in bodies(fed(batcher, run_of(1, 2)))] == [{"id": 1}]
    assert batcher.flush() is None
    assert told(fed(batcher, COMMIT)) == [("INSERT", "a", 2, True)]


def test_a_batch_is_cut_at_its_number_of_events_and_at_its_bytes() -> None:
    batches = fed(batcher_of(Limits(messages_max=4)), run_of(*range(10)), COMMIT)
    assert [len(batch.messages) for batch in batches] == [4, 4, 2]
    assert [batch.end_lsn for batch in batches] == [0, 0, 110], "confirmed with the last event, not before"
    wide = [change_of({"id": n, "big": "x" * 1000}, seq=n) for n in range(10)]
    batches = fed(batcher_of(Limits(bytes_max=3000)), *wide, COMMIT)
    assert [len(batch.messages) for batch in batches] == [3, 3, 3, 1]


def test_a_batch_may_hold_nothing_but_a_position_to_confirm() -> None:
    batcher = batcher_of()
    assert batcher.flush() is None
    (batch,) = fed(batcher, IdleMark(Lsn(500)))
    assert (batch.messages, batch.end_lsn, batch.position) == ([], 500, None)


def test_schemas_and_truncates_stand_in_their_order() -> None:
    truncate = Truncated(TRUNCATE_A, TXN, 1, True, False)
    (batch,) = fed(batcher_of(), schema_of(A, 0), run_of(1), truncate, COMMIT)
    assert told([batch]) == [
        ("SCHEMA", None, None, False), ("INSERT", "a", 1, False), ("TRUNCATE", "a", None, True)
    ]  # fmt: skip
    assert [change.table for change in batch.schema_changes] == [A]
    assert batch.counts == {INSERT_A: 1, TRUNCATE_A: 1}


# A transaction's changes: a run of rows, an update with an old row, a truncate, a schema event with the row that needs it.
steps = st.lists(
    st.one_of(
        st.tuples(st.just("run"), st.sampled_from([INSERT_A, INSERT_B]), st.integers(1, 12)),
        st.tuples(st.sampled_from(["update", "truncate", "schema"]), st.just(UPDATE_A), st.just(1)),
    ),
    max_size=6,
)


def items_of(script: Sequence[Sequence[tuple[str, EventKind, int]]]) -> Iterator[Item]:
    numbers = itertools.count()
    for number, transaction in enumerate(script, 1):
        txn, seq = Transaction(Lsn(number * 100), number, number), 0
        for what, kind, count in transaction:
            if what == "run":
                yield run_of(*itertools.islice(numbers, count), kind=kind, txn=txn, seq=seq)
            elif what == "update":
                yield RowChange(kind, txn, seq, {"id": next(numbers)}, {"id": "old"}, Notes(("big",)))
            elif what == "truncate":
                yield Truncated(TRUNCATE_A, txn, seq, False, False)
            else:
                yield schema_of(A, seq, txn)
                yield run_of(next(numbers), txn=txn, seq=seq)
            seq += count
        yield Committed(Lsn(number * 100 + 10), number)


@given(
    st.lists(steps, max_size=5), st.integers(1, 20), st.integers(200, 3000), st.sampled_from([1, 3]), st.booleans(),
    st.sampled_from(["msgpack", "json"]), st.integers(1, 5),
)  # fmt: skip
def test_every_event_goes_out_once_in_order_and_only_the_last_of_a_transaction_says_so(
    script: list[list[tuple[str, EventKind, int]]], events: int, size: int, pack: int, zstd: bool, encoding: str, block: int
) -> None:
    items = list(items_of(script))
    batcher = batcher_of(Limits(messages_max=events, bytes_max=size, pack=pack), encoding=encoding, zstd=zstd)
    batches: list[Batch] = []
    for start in range(0, len(items), block):
        batches += fed(batcher, *items[start : start + block])
    found = bodies(batches, encoding=encoding)
    expected = bodies(fed(batcher_of(Limits(messages_max=10**6, bytes_max=10**9)), *items))
    assert [e["msg_id"] for e in found] == [e["msg_id"] for e in expected]
    assert [e.get("data") for e in found] == [e.get("data") for e in expected]
    places = [position_of(str(e["msg_id"])) for e in found]
    assert places == sorted(set(places))
    rows = [e for e in found if e["operation"] != "SCHEMA"]
    for event, following in itertools.zip_longest(rows, rows[1:]):
        assert event.get("last", False) == (following is None or following["lsn"] != event["lsn"])
    for batch in batches:
        assert batch.size_bytes == sum(map(sent_size, batch.messages))
        assert len(batch.messages) <= events + 2, "a schema event may come with what was held back and packed before it"
        if batch.messages:
            assert batch.position == position_of(batch.messages[-1].msg_id.decode())
    assert sum(sum(batch.counts.values()) for batch in batches) == len(rows)
    ends = [batch.end_lsn for batch in batches if batch.end_lsn]
    assert ends == sorted(ends)
    assert not script or ends[-1] == len(script) * 100 + 10
    stored: set[object] = set()
    for batch in batches:  # what a batch confirms is in it or before it
        stored |= {e["msg_id"] for e in bodies([batch], encoding=encoding)}
        assert all(e["msg_id"] in stored for e, place in zip(found, places, strict=True) if place.lsn < batch.end_lsn)


# -- packing and compression


def test_events_of_one_kind_and_transaction_share_a_message_that_has_the_id_of_the_last() -> None:
    items = [run_of(*range(5)), run_of(5, 6, kind=INSERT_B, seq=5), COMMIT]
    (batch,) = fed(batcher_of(Limits(pack=3)), *items)
    packed = [[event["data"]["id"] for event in msgpack.unpackb(m.body)] for m in batch.messages]
    assert packed == [[0, 1, 2], [3, 4], [5, 6]]
    assert [m.msg_id for m in batch.messages] == [b"64-2-a-insert", b"64-4-a-insert", b"64-6-b-insert"]
    assert batch.counts == {INSERT_A: 5, INSERT_B: 2}


def test_a_packed_message_is_never_larger_than_a_message_may_be() -> None:
    for length in range(3500, 4100, 7):
        wide = [change_of({"id": n, "big": "x" * length}, seq=n) for n in range(3)]
        for batch in fed(batcher_of(Limits(pack=10, payload_max=4096)), *wide, COMMIT):
            assert all(sent_size(message) <= 4096 for message in batch.messages)


@pytest.mark.parametrize("encoding", ["msgpack", "json"])
def test_a_list_of_one_event_that_alone_would_fill_a_message_is_not_larger_than_a_message_may_be(encoding: str) -> None:
    def message_with(length: int, limits: Limits) -> OutMessage:
        change = change_of({"id": 1, "big": "x" * length})
        (batch,) = fed(batcher_of(limits, encoding=encoding), change, COMMIT)
        (message,) = batch.messages
        return message

    overhead = sent_size(message_with(1000, Limits())) - 1000
    for length in range(4096 - overhead - 8, 4096 - overhead + 1):
        assert sent_size(message_with(length, Limits())) == length + overhead, "alone the event fits"
        assert sent_size(message_with(length, Limits(pack=10, payload_max=4096))) <= 4096


def test_the_events_of_a_table_with_a_dictionary_are_compressed_and_the_others_are_not() -> None:
    text = "the same words again " * 20
    items = [change_of({"id": 1, "big": text}), change_of({"id": 2, "big": text}, kind=INSERT_B, seq=1), COMMIT]
    (batch,) = fed(batcher_of(zstd=True), *items)
    assert [bool(message.headers) for message in batch.messages] == [True, False]
    assert [e["data"]["big"] for e in bodies([batch])] == [text, text]
    runs = RowRun(INSERT_A, TXN, 0, [{"id": n, "big": text} for n in range(4)])
    (batch,) = fed(batcher_of(zstd=True), runs, COMMIT)
    assert all(message.headers for message in batch.messages)
    assert batch.size_bytes == sum(map(sent_size, batch.messages)) < 4 * len(text)


def test_an_event_that_fits_only_once_it_is_compressed_is_sent_whole() -> None:
    rows = [{"id": n, "big": "x" * 10_000} for n in range(3)]
    (batch,) = fed(batcher_of(Limits(payload_max=4096), zstd=True), RowRun(INSERT_A, TXN, 0, rows), COMMIT)
    assert [e["data"] for e in bodies([batch])] == rows
    assert not any("omitted" in e for e in bodies([batch]))


# -- rows and tables that do not fit

lengths = st.sampled_from([0, 1, 10, 100, 1000, 1700, 2000, 4000, 5000])


@given(
    st.tuples(lengths, lengths, lengths, lengths), st.booleans(), st.sampled_from([1, 5]), st.sampled_from(["msgpack", "json"])
)
def test_the_largest_columns_are_left_out_until_a_row_fits(
    sizes: tuple[int, ...], with_old: bool, pack: int, encoding: str
) -> None:
    row: dict[str, object] = {name: "x" * size for name, size in zip(COLUMNS, sizes, strict=True)}
    change = RowChange(UPDATE_A, TXN, 0, row, dict(row) if with_old else None, None)
    limits = Limits(payload_max=4096, pack=pack)
    whole = fed(batcher_of(limits._replace(payload_max=10**6), encoding=encoding), change, COMMIT)[0].messages[0]
    suspensions = suspensions_of()
    batcher = batcher_of(limits, encoding=encoding, suspensions=suspensions)
    (batch,) = fed(batcher, change, COMMIT)
    (message,) = batch.messages
    (event,) = bodies([batch], encoding=encoding)
    assert sent_size(message) <= 4096
    if event["operation"] == "GAP":
        assert suspensions.tables
        assert len(str(row["id"])) * (1 + with_old) > 3000, "only a key that is too large alone suspends a table"
        return
    omitted = event.get("omitted", [])
    assert isinstance(omitted, list)
    assert set(event["data"]) == set(COLUMNS) - set(omitted)  # type: ignore[call-overload]
    kept = [len(str(row[name])) for name in COLUMNS[1:] if name not in omitted]
    assert all(len(str(row[name])) >= size for name in omitted for size in kept), "the largest go first"
    assert bool(omitted) == (sent_size(whole) + (4 if pack > 1 else 0) > 4096) or sent_size(whole) in range(4090, 4102)
    assert batcher.omitting == bool(omitted)


def test_a_value_that_was_not_decoded_is_left_out_and_its_row_can_be_named() -> None:
    row: dict[str, object] = {"id": 7, "small": "s", "big": TooLarge(50_000_000), "bigger": "x" * 5000}
    notes = Notes(raw=("small", "bigger"), too_large=("big",))
    batcher = batcher_of(Limits(payload_max=4096))
    (batch,) = fed(batcher, RowChange(UPDATE_A, TXN, 0, row, row, notes), COMMIT)
    (event,) = bodies([batch])
    assert (event["data"], event["old"]) == ({"id": 7, "small": "s"},) * 2
    assert (event["omitted"], event["raw"]) == (["big", "bigger"], ["small"]), "raw names what is there"
    assert batcher.left_out == [LeftOut("a", "id=7", "big, bigger", True)]


def test_a_key_that_was_not_decoded_suspends_its_table() -> None:
    suspensions = suspensions_of()
    change = RowChange(INSERT_A, TXN, 0, {"id": TooLarge(5000), "small": "s"}, None, Notes(too_large=("id",)))
    (batch,) = fed(batcher_of(Limits(payload_max=4096), suspensions=suspensions), change, COMMIT)
    assert [e["operation"] for e in bodies([batch])] == ["GAP"]
    assert set(suspensions.tables) == {"a"}


HUGE = "k" * 5000
SMALL = Limits(payload_max=4096)


def test_a_table_is_suspended_in_the_middle_of_a_run_and_the_others_go_on() -> None:
    suspensions = suspensions_of()
    batcher = batcher_of(SMALL, suspensions=suspensions)
    batches = fed(batcher, run_of(1, HUGE, 3, 4), run_of(5, kind=INSERT_B, seq=4), COMMIT)
    assert told(batches) == [("INSERT", "a", 1, False), ("GAP", None, None, False), ("INSERT", "b", 5, True)]
    assert suspensions.tables == {"a": Suspended(Position(Lsn(100), 1))}
    later = Transaction(Lsn(200), 6, 2)
    batches = fed(batcher, schema_of(A, 0, later), run_of(6, txn=later), run_of(7, kind=INSERT_B, txn=later, seq=1), COMMIT)
    assert told(batches) == [("INSERT", "b", 7, True)]


@pytest.mark.parametrize("rows", [(1, HUGE), (1, HUGE, 3), (HUGE,), (HUGE, HUGE)])
@pytest.mark.parametrize("pack", [1, 10])
def test_a_gap_event_that_ends_a_transaction_says_so(rows: tuple[object, ...], pack: int) -> None:
    batches = fed(batcher_of(SMALL._replace(pack=pack)), run_of(*rows), COMMIT)
    assert told(batches)[-1] == ("GAP", None, None, True)
    assert [last for *_, last in told(batches)].count(True) == 1


def test_left_out_events_keep_the_last_published_one_held_back() -> None:
    batcher = batcher_of(suspensions=suspensions_of({"a": Suspended(Position(Lsn(1), 0))}))
    assert told(fed(batcher, run_of(5, kind=INSERT_B), run_of(1, 2, seq=1))) == []
    assert told(fed(batcher, COMMIT)) == [("INSERT", "b", 5, True)]


@pytest.mark.parametrize("follows", [False, True])
def test_after_a_restart_the_gap_event_takes_the_place_of_the_change_that_did_not_fit(follows: bool) -> None:
    batcher = batcher_of(SMALL, suspensions=suspensions_of({"a": Suspended(Position(Lsn(100), 1))}))
    items: list[Item] = [run_of(0, kind=INSERT_B), run_of(HUGE, 2, seq=1)]
    items += [run_of(9, kind=INSERT_B, seq=3)] if follows else []
    batches = fed(batcher, *items, COMMIT)
    assert told(batches) == [
        ("INSERT", "b", 0, False), ("GAP", None, None, not follows), *([("INSERT", "b", 9, True)] if follows else [])
    ]  # fmt: skip
    assert batches[-1].end_lsn == 110


def test_a_resumed_table_is_published_from_the_end_of_the_wal_on() -> None:
    suspensions = suspensions_of({"a": Suspended(Position(Lsn(1), 0), Lsn(200))})
    batcher = batcher_of(suspensions=suspensions)
    later = Transaction(Lsn(200), 6, 2)
    batches = fed(batcher, run_of(1, 2), COMMIT, run_of(3, 4, txn=later), Committed(Lsn(210), 2))
    assert told(batches) == [("INSERT", "a", 3, False), ("INSERT", "a", 4, True)]


# -- the coroutine


def test_a_suspension_is_recorded_before_its_gap_event_is_sent() -> None:
    async def main() -> None:
        store, telemetry = FakeStore(), Telemetry()
        suspensions = Suspensions(store, telemetry)  # type: ignore[arg-type]
        batcher = batcher_of(SMALL, suspensions=suspensions)
        items, batches = Channel[list[Item]]("items", 4, 10**6), Channel[Batch]("batches", 1, 10**6)
        seen: list[OutMessage] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(batch_items, items.receiver(), batches.sender(), batcher, suspensions, telemetry)
            with items.sender() as sender:
                await sender.send([run_of(1, HUGE, 3), COMMIT], 1)
            with batches.receiver() as receiver:
                async for batch in receiver:
                    seen += batch.messages
                    assert any(b"gap" in m.subject for m in batch.messages) <= ("a" in store.record.suspended)
        assert [m.subject.rpartition(b".")[2] for m in seen] == [b"insert", b"gap"]
        assert store.record.suspended == {"a": Suspended(Position(Lsn(100), 1))}
        assert "a" in telemetry.suspended_tables

    trio.run(main)


def test_a_batch_goes_out_at_once_when_nothing_more_waits() -> None:
    async def main() -> None:
        suspensions = suspensions_of()
        items, batches = Channel[list[Item]]("items", 4, 10**6), Channel[Batch]("batches", 4, 10**6)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                batch_items, items.receiver(), batches.sender(), batcher_of(suspensions=suspensions), suspensions, Telemetry()
            )
            sender, receiver = items.sender(), batches.receiver()
            with sender, receiver:
                await sender.send([run_of(1), COMMIT], 1)
                with trio.fail_after(5):
                    assert len((await receiver.receive()).messages) == 1

    trio.run(main)
