"""Where batches are cut: a transaction that fits into one is never divided, and nothing is lost, doubled or confirmed early."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import msgpack
from hypothesis import given
from hypothesis import strategies as st

from actors.batcher import Batcher, Limits
from actors.batches.joining import BatchSize, joined
from actors.contract.event_encoder import event_encoder, sent_size
from actors.messages import (
    Batch,
    Committed,
    EventKind,
    IdleMark,
    Item,
    PublishedChange,
    RowChange,
    RowRun,
    SchemaChange,
    Table,
    Transaction,
    Truncated,
)
from actors.positions import ROW_RANK, SCHEMA_RANK, Lsn, Position
from actors.wire.jetstream import OutMessage
from actors.wire.pgoutput import Column, Relation
from tests.unit.records import suspensions_of

COLUMNS = (Column("id", 20, -1, True), Column("text", 25, -1, False))
TABLES = [Table(Relation(oid, "public", name, "d", COLUMNS), name, oid, ("id",), frozenset({"id"}))
          for oid, name in ((1, "a"), (2, "b"))]  # fmt: skip
MESSAGES_MAX, BYTES_MAX = 6, 3000
FIRST_LSN, LSN_STEP = 1000, 100

lengths = st.sampled_from([0, 1, 100, 700, 2000])
steps = st.one_of(
    st.tuples(st.just("run"), st.integers(0, 1), st.lists(lengths, min_size=1, max_size=9)),
    st.tuples(st.just("change"), st.integers(0, 1), st.lists(lengths, min_size=1, max_size=1)),
    st.tuples(st.sampled_from(["truncate", "schema"]), st.integers(0, 1), st.just([0])),
)
between = st.sampled_from(["", "idle", "published", "schema"])
scripts = st.lists(st.tuples(st.lists(steps, max_size=5), between), max_size=10)


def items_of(script: list[tuple[list[tuple[str, int, list[int]]], str]]) -> Iterator[list[Item]]:
    """Per transaction, and per what comes between two."""
    for number, (changes, after) in enumerate(script):
        txn, seq = Transaction(Lsn(FIRST_LSN + LSN_STEP * number), number, 1_000_000 + number), 0
        items: list[Item] = []
        for what, which, sizes in changes:
            table = TABLES[which]
            kind = EventKind(table, "truncate" if what == "truncate" else "insert")
            rows: list[dict[str, object]] = [{"id": seq + i, "text": "x" * size} for i, size in enumerate(sizes)]
            match what:
                case "run":
                    items.append(RowRun(kind, txn, seq, rows))
                case "change":
                    items.append(RowChange(kind, txn, seq, rows[0], None, None))
                case "truncate":
                    items.append(Truncated(kind, txn, seq, False, False))
                case "schema":  # stands before the first row that needs it
                    body: dict[str, object] = {"operation": "SCHEMA"}
                    items.append(SchemaChange(table, Position(txn.commit_lsn, seq, SCHEMA_RANK), body))
                    items.append(RowChange(kind, txn, seq, rows[0], None, None))
            seq += len(rows)
        yield [*items, Committed(Lsn(txn.commit_lsn + 10), txn.commit_us)]
        at = Position(Lsn(txn.commit_lsn + 20), 0, ROW_RANK)
        if after == "idle":
            yield [IdleMark(Lsn(at.lsn + 10))]
        elif after == "published":
            yield [PublishedChange(at, "a", "changed", "v", "", txn)]
        elif after == "schema":
            yield [SchemaChange(TABLES[0], at._replace(rank=SCHEMA_RANK), {"operation": "SCHEMA"}, last=True)]


def batcher_of(pack: int, *, at_ends: bool) -> Batcher:
    limits = Limits(MESSAGES_MAX, BYTES_MAX, pack, 2500, at_ends=at_ends)
    return Batcher(event_encoder("msgpack"), limits, "slot", suspensions_of())


def events_of(messages: list[OutMessage]) -> list[dict[str, object]]:
    bodies = [msgpack.unpackb(message.body) for message in messages]
    return [event for body in bodies for event in (body if isinstance(body, list) else [body])]


def unit_of(message: OutMessage) -> int:
    """Which transaction a message is of, or which message between two."""
    (event, *_) = events_of([message])
    lsn = event["lsn"]
    assert isinstance(lsn, int)
    return lsn


def fed(batcher: Batcher, blocks: list[list[Item]], flushes: list[bool]) -> list[Batch]:
    found: list[Batch] = []
    for i, block in enumerate(blocks):
        found += batcher.feed(block)
        if flushes[i % len(flushes)] and (rest := batcher.flush()) is not None:
            found.append(rest)
    return [*found, *filter(None, [batcher.flush()])]


def joined_as_they_wait(batches: list[Batch], waits: list[bool], size: BatchSize) -> list[Batch]:
    found: list[Batch] = []
    for i, batch in enumerate(batches):
        if found and waits[i % len(waits)] and size.can_join(found[-1], batch):
            found[-1] = joined(found[-1], batch)
        else:
            found.append(batch)
    return found


@given(
    scripts, st.sampled_from([1, 1, 3]), st.integers(1, 4), st.lists(st.booleans(), min_size=1, max_size=7),
    st.lists(st.booleans(), min_size=1, max_size=7),
)  # fmt: skip
def test_batches_are_cut_at_the_ends_of_transactions(
    script: list[tuple[list[tuple[str, int, list[int]]], str]], pack: int, block: int, flushes: list[bool], waits: list[bool]
) -> None:
    items = [item for unit in items_of(script) for item in unit]
    blocks = [items[i : i + block] for i in range(0, len(items), block)]
    expected = [message for batch in fed(batcher_of(pack, at_ends=False), [items], [False]) for message in batch.messages]
    size = BatchSize(MESSAGES_MAX, BYTES_MAX)
    batches = joined_as_they_wait(fed(batcher_of(pack, at_ends=True), blocks, flushes), waits, size)
    stored = [message for batch in batches for message in batch.messages]
    if pack == 1:
        assert stored == expected
    assert events_of(stored) == events_of(expected), "nothing is lost, doubled or in another order"

    units = {unit: list(of_unit) for unit, of_unit in groupby(stored, unit_of)}
    last_of = {unit: of_unit[-1] for unit, of_unit in units.items()}
    whole = {unit for unit, of_unit in units.items()
             if len(of_unit) <= MESSAGES_MAX and sum(map(sent_size, of_unit)) <= BYTES_MAX}  # fmt: skip
    position, confirmed, done = Position(Lsn(0), 0), 0, 0
    for batch in batches:
        messages = batch.messages
        assert batch.size_bytes == sum(map(sent_size, messages))
        assert len(messages) <= MESSAGES_MAX
        assert len(messages) == 1 or batch.size_bytes <= BYTES_MAX
        assert sum(batch.counts.values()) == sum(event["operation"] in ("INSERT", "TRUNCATE") for event in events_of(messages))
        assert all(batch.counts.values())
        for unit in {unit_of(message) for message in messages}:
            inside = [message for message in messages if unit_of(message) == unit]
            # packed events may fill other messages where a batch is cut, so which transactions fit is only known without
            if pack == 1 and unit in whole:
                assert inside == units[unit], "a transaction that fits was divided"
        if messages:
            ends = messages[-1] == last_of[unit_of(messages[-1])]
            assert batch.is_whole == ends
            if not ends:
                assert {unit_of(message) for message in messages} == {unit_of(messages[0])}, "a part is with others"
            assert batch.position is not None
            assert batch.position > position
            position = batch.position
            assert position.lsn == unit_of(messages[-1])
        commits = [e["commit_ts"] for e in events_of(messages) if e["operation"] in ("INSERT", "TRUNCATE")]
        assert (batch.oldest_commit_us, batch.newest_commit_us) == ((commits[0], commits[-1]) if commits else (0, 0))
        done += len(messages)
        assert batch.transactions == len({unit_of(m) for m in messages if m == last_of[unit_of(m)]})
        if batch.end_lsn:
            assert batch.end_lsn > confirmed
            confirmed = batch.end_lsn
            assert all(unit_of(message) >= confirmed for message in stored[done:]), "what is still to come was confirmed"
    assert confirmed == max((item.end_lsn if isinstance(item, Committed) else item.wal_end
                             for item in items if isinstance(item, Committed | IdleMark)), default=0)  # fmt: skip
