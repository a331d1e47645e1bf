"""From PostgreSQL's bytes to the messages: runs of rows give what encoding every change alone, the obvious way, gives."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import msgpack
import orjson
from hypothesis import given
from hypothesis import strategies as st

from actors.batcher import Batcher, Limits
from actors.contract.compression import Compressor
from actors.contract.event_encoder import event_encoder
from actors.contract.table_schema import Description
from actors.decoder import Decoder
from actors.messages import Batch, Committed, Item, RawMessage, RowRun, TransactionRun
from actors.positions import NO_LSN, Position
from actors.values.formats import Encoding
from actors.values.text_values import converter_for
from actors.wire import pgoutput
from tests import pgoutput_bytes as pg
from tests.unit.records import suspensions_of

COLUMNS = [("id", 23, True), ("naïve", 25, False), ("f", 701, False), ("at", 1184, False), ("doc", 3802, False)]
TABLES = {1: "a", 2: "b"}
IDENTITIES = {1: "d", 2: "f"}
VALUES: list[list[bytes | str | None]] = [
    [b"1", b"-70000", b"4294967296"],
    [b"x", b"", "ÿ€".encode(), b"y" * 40, b"z" * 300, b"m:26", b"ends in n", b"u", None],
    [b"1.5", b"NaN", b"1e+300", None],
    [b"2025-12-12 12:00:34.5+00", b"infinity", b"0044-03-15 12:00:00+00 BC", None],
    [b'{"a": [1, null]}', b"null", b'{"a": 12345678901234567890}', None],
]
TOAST: list[list[bytes | str | None]] = [*VALUES[:1], [*VALUES[1], "u"], *VALUES[2:4], [*VALUES[4], "u"]]
ALIKE: list[list[bytes | str | None]] = [*VALUES[:2], [b"1.5"], *VALUES[3:4], [None]]
"""Rows of these have nothing to note, so that neighbours are runs."""


def rows_of(values: Sequence[Sequence[bytes | str | None]]) -> st.SearchStrategy[tuple[bytes | str | None, ...]]:
    return st.tuples(*map(st.sampled_from, values))


class Change(NamedTuple):
    operation: str
    oid: int
    new: tuple[bytes | str | None, ...] | None
    old: tuple[bytes | str | None, ...] | None

    @property
    def payload(self) -> bytes:
        kind = "O" if IDENTITIES[self.oid] == "f" else "K"
        if self.operation == "insert":
            assert self.new is not None
            return pg.insert(self.oid, self.new)
        if self.operation == "delete":
            assert self.old is not None
            return pg.delete(self.oid, self.old, kind)
        assert self.new is not None
        return pg.update(self.oid, self.new, self.old, kind)


def old_of(oid: int, values: list[list[bytes | str | None]]) -> st.SearchStrategy[tuple[bytes | str | None, ...]]:
    return rows_of(values) if IDENTITIES[oid] == "f" else rows_of(values[:1]).map(lambda key: (*key, None, None, None, None))


def change_of(oid: int) -> st.SearchStrategy[Change]:
    old = old_of(oid, VALUES)
    return st.one_of(
        st.builds(Change, st.just("insert"), st.just(oid), rows_of(VALUES), st.none()),
        st.builds(Change, st.just("update"), st.just(oid), rows_of(TOAST), st.one_of(st.none(), old)),
        st.builds(Change, st.just("delete"), st.just(oid), st.none(), old),
    )


changes = st.one_of(
    st.sampled_from(list(TABLES)).flatmap(change_of).map(lambda change: [change]),
    st.sampled_from(list(TABLES)).flatmap(change_of).flatmap(lambda change: st.integers(1, 12).map(lambda n: [change] * n)),
    st.sampled_from(list(TABLES)).flatmap(
        lambda oid: st.lists(st.builds(Change, st.just("insert"), st.just(oid), rows_of(VALUES), st.none()), max_size=12)
    ),
    st.sampled_from(list(TABLES)).flatmap(
        lambda oid: st.lists(
            st.builds(Change, st.just("update"), st.just(oid), rows_of(ALIKE), old_of(oid, ALIKE)), min_size=3, max_size=12
        )
    ),
)
several = st.lists(changes, min_size=1, max_size=5).map(lambda parts: [[c for p in parts for c in p]])
alike = changes.map(lambda of_several: [[change] for change in of_several])
transactions = st.lists(st.one_of(several, alike), min_size=1, max_size=4).map(lambda parts: [t for p in parts for t in p])


def messages_of(script: list[list[Change]]) -> list[RawMessage]:
    payloads = []
    for oid, name in TABLES.items():
        is_full = IDENTITIES[oid] == "f"  # then PostgreSQL says that every column is of the key
        columns = [(column, type_oid, is_key or is_full) for column, type_oid, is_key in COLUMNS]
        payloads.append(pg.relation(oid, name, columns, identity=IDENTITIES[oid]))
    for number, changes in enumerate(script, 1):
        payloads.append(pg.begin(number * 1000, number, number))
        payloads += [change.payload for change in changes]
        payloads.append(pg.commit(number * 1000, number * 1000 + 10, number))
    return [pg.xlog(payload) for payload in payloads]


# -- the obvious way


def obvious(script: list[list[Change]], encoding: Encoding) -> list[tuple[tuple[object, ...], bytes]]:
    """(what events of one message have in common, body) of each event, from the plain decoders."""
    found = []
    for number, of_one in enumerate(script, 1):
        for seq, change in enumerate(of_one):
            event = event_of(number, seq, change, encoding)
            if seq == len(of_one) - 1:
                event["last"] = True
            body = orjson.dumps(event) if encoding == "json" else msgpack.packb(event)
            found.append(((number, event["subject"]), body))
    return found


def event_of(number: int, seq: int, change: Change, encoding: Encoding) -> dict[str, object]:
    name, is_full = TABLES[change.oid], IDENTITIES[change.oid] == "f"
    decoded: Any = pgoutput.decode(change.payload)
    old: dict[str, object] | None = None
    old_raw: list[str] = []
    if change.old is not None:
        old, _, old_raw = row_of(decoded.old, encoding)
    unchanged: list[str] = []
    if change.new is None:
        data, raw, old, old_raw = old or {}, old_raw, None, []
    else:
        data, unchanged, raw = row_of(decoded.new, encoding)
        if old is not None:
            old = old if is_full else {"id": old["id"]}
            old_raw = [column for column in old_raw if column in old]
            complete = old | data
            data = {column: complete[column] for column, _, _ in COLUMNS if column in complete}
            raw += [column for column in old_raw if column in unchanged]
            unchanged = [column for column in unchanged if column not in old]
    subject = f"cdc.{name}.{change.operation}"
    event: dict[str, object] = {
        "subject": subject, "table": name, "schema": "public", "operation": change.operation.upper(), "relation_id": change.oid,
        "key": [column for column, _, is_key in COLUMNS if is_key or is_full], "lsn": number * 1000, "xid": number,
        "commit_ts": 946_684_800_000_000 + number, "msg_id": f"{number * 1000:x}-{seq}-{name}-{change.operation}", "seq": seq,
        "data": data,
    }  # fmt: skip
    notes = {"old": old, "unchanged": unchanged, "raw": raw, "old_raw": old_raw}
    return event | {what: note for what, note in notes.items() if note or (what == "old" and note is not None)}


def row_of(values: tuple[pgoutput.TupleValue, ...], encoding: Encoding) -> tuple[dict[str, object], list[str], list[str]]:
    row: dict[str, object] = {}
    unchanged, raw = [], []
    for (name, type_oid, _), value in zip(COLUMNS, values, strict=True):
        if value.kind == "u":
            unchanged.append(name)
        elif value.kind == "n":
            row[name] = None
        else:
            row[name], kept_as_text = converter_for(type_oid, {}, encoding, "literal").convert(value.data)
            if kept_as_text:
                raw.append(name)
    return row, unchanged, raw


def packed(events: list[tuple[tuple[object, ...], bytes]], pack: int, encoding: Encoding) -> list[bytes]:
    """The bodies of messages: up to `pack` consecutive events of a transaction and subject."""
    if pack == 1:
        return [body for _, body in events]
    found = []
    for _, together in groupby(events, lambda event: event[0]):
        bodies = [body for _, body in together]
        for first in range(0, len(bodies), pack):
            part = bodies[first : first + pack]
            head = msgpack.Packer().pack_array_header(len(part))
            found.append(b"[" + b",".join(part) + b"]" if encoding == "json" else head + b"".join(part))
    return found


# -- the bridge's way


def items_of(messages: list[RawMessage], size: int, encoding: Encoding) -> list[list[Item]]:
    decoder = Decoder(Position(NO_LSN, 0), {}, encoding=encoding, arrays="literal")
    found = []
    for start in range(0, len(messages), size):
        block, items, index = messages[start : start + size], list[Item](), 0
        while index < len(block):
            index = decoder.feed(block, index, items)
            if decoder.wanted is not None:
                decoder.define(decoder.wanted, Description({}, ("?",) * len(COLUMNS), ()))
        found.append([item for item in items if "SchemaChange" not in type(item).__name__])
    return found


def batches_of(blocks: list[list[Item]], limits: Limits, encoding: Encoding, *, zstd: bool, flush: bool) -> list[Batch]:
    compressors = {"a": Compressor("a")} if zstd else None
    batcher = Batcher(event_encoder(encoding, b"", compressors), limits, "slot", suspensions_of())
    batches: list[Batch] = []
    for items in blocks:
        batches += batcher.feed(items)
        if flush and (rest := batcher.flush()) is not None:
            batches.append(rest)
    return [*batches, *filter(None, [batcher.flush()])]


def one_by_one(items: list[Item]) -> list[Item]:
    """The same changes, none of them in a run."""
    found: list[Item] = []
    for item in items:
        if isinstance(item, RowRun):
            found += [item.change(i) for i in range(len(item.rows))]
        elif isinstance(item, TransactionRun):
            for i, (txn, end_lsn) in enumerate(zip(item.txns, item.end_lsns, strict=True)):
                found += [item.change(i), Committed(end_lsn, txn.commit_us)]
        else:
            found.append(item)
    return found


encodings: st.SearchStrategy[Encoding] = st.sampled_from(["msgpack", "json"])


@given(transactions, st.integers(1, 30), encodings, st.sampled_from([1, 1, 3, 10]))
def test_messages_are_the_bytes_that_the_obvious_way_gives(
    script: list[list[Change]], block: int, encoding: Encoding, pack: int
) -> None:
    blocks = items_of(messages_of(script), block, encoding)
    limits = Limits(messages_max=10**6, bytes_max=10**9, pack=pack)
    batches = batches_of(blocks, limits, encoding, zstd=False, flush=False)
    messages = [message for batch in batches for message in batch.messages]
    assert [message.body for message in messages] == packed(obvious(script, encoding), pack, encoding)
    for message in messages:
        events: Any = orjson.loads(message.body) if encoding == "json" else msgpack.unpackb(message.body)
        last = events[-1] if pack > 1 else events
        assert (message.subject.decode(), message.msg_id.decode()) == (last["subject"], last["msg_id"])


@given(
    transactions, st.integers(1, 30), encodings, st.sampled_from([1, 3, 10]), st.integers(1, 12), st.integers(300, 5000),
    st.integers(600, 3000), st.booleans(), st.booleans(), st.booleans(),
)  # fmt: skip
def test_runs_are_cut_into_the_batches_of_changes_that_come_one_by_one(
    script: list[list[Change]], block: int, encoding: Encoding, pack: int, messages_max: int, bytes_max: int, payload_max: int,
    at_ends: bool, zstd: bool, flush: bool,
) -> None:  # fmt: skip
    blocks = items_of(messages_of(script), block, encoding)
    limits = Limits(messages_max, bytes_max, pack, payload_max, at_ends)
    runs = batches_of(blocks, limits, encoding, zstd=zstd, flush=flush)
    alone = batches_of([one_by_one(items) for items in blocks], limits, encoding, zstd=zstd, flush=flush)
    if zstd and pack == 1:  # how many compressed rows fit is known once they are compressed
        assert [message for batch in runs for message in batch.messages] == [m for batch in alone for m in batch.messages]
        return
    for run, change in zip(runs, alone, strict=True):
        for field in Batch.__dataclass_fields__:
            if field != "counts":
                assert getattr(run, field) == getattr(change, field), field
        assert [(k.operation, k.table.token, n) for k, n in run.counts.items()] == [
            (k.operation, k.table.token, n) for k, n in change.counts.items()
        ]
