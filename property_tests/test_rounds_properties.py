"""The rule for a snapshot in rounds over random histories: a reader that obeys it has the table; five that do not, have not.

Events and chunks are the bytes that the bridge writes, what is left is read back from the last chunk, as after a kill.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.contract.event_encoder import event_encoder
from actors.contract.ranges import RowsInRounds
from actors.contract.records import Insert, RangesChunk, RangesStart, Row, RowRange, Truncate, Update
from actors.contract.round_encoder import ChunkMessages, ChunkPlace, RoundMessages, RoundsHead
from actors.contract.rules import key_of
from actors.messages import EventKind, Notes, RowChange, Table, Transaction, Truncated
from actors.mirror import decode_events, decode_message
from actors.positions import Lsn
from actors.snapshots.course import Course
from actors.snapshots.lanes import Cut, KeyedPiece
from actors.values.formats import Encoding
from actors.values.row_blocks import Piece, RowBlocks
from actors.values.text_values import INT, TEXT
from actors.wire.pgoutput import Column, Relation
from tests.examples import examples

KEYS = 14
NAMES = ("pk", "e", "a", "t", "f")
OIDS = (23, 23, 23, 25, 23)


class Case(NamedTuple):
    """How a history is written and read; the defaults obey the rule."""

    identity: str = "default"
    """`default`, `full`, or `index` over the column `e`."""
    filtered: bool = False
    omits: bool = False
    encoding: Encoding = "msgpack"
    exact: bool = True
    """`stream_seq` is the last message with a lower LSN, not some message before."""
    marks_inserts: bool = True
    """An INSERT that lacks values makes its row incomplete."""
    by_identity: bool = True
    """Ranges are over the key of the replica identity."""
    from_left: bool = True
    """A bridge goes on with what the last chunk says is left, not behind the last chunk."""
    holds: bool = True
    """The reader applies no event beyond the newest chunk's place."""


class Written(NamedTuple):
    """A message of the stream of events."""

    seq: int
    lsn: int
    body: bytes


@dataclass
class World:
    """A table, its true history, and the stream of its events."""

    case: Case
    chance: random.Random
    rows: dict[int, Row] = field(default_factory=dict)
    events: list[Written] = field(default_factory=list)
    lsn: int = 0
    fresh: int = 0

    def __post_init__(self) -> None:
        self.encoder = event_encoder(self.case.encoding)
        key = {"default": ("pk",), "index": ("e",), "full": NAMES}[self.case.identity]
        self.relation = Relation(
            1, "public", "t", {"default": "d", "full": "f", "index": "i"}[self.case.identity],
            tuple(Column(name, oid, -1, name in key) for name, oid in zip(NAMES, OIDS, strict=True)),
        )  # fmt: skip
        table = Table(self.relation, "t", 1, key, frozenset(key))
        self.kinds = {name: EventKind(table, name) for name in ("insert", "update", "delete", "truncate")}
        self.key = ("e",) if self.case.identity == "index" else ("pk",)
        """By which a reader keeps rows."""
        self.range_key = self.key if self.case.by_identity else ("pk",)

    def published(self) -> dict[int, Row]:
        return {pk: dict(row) for pk, row in self.rows.items() if self._is_published(row)}

    def transact(self, *, fills: bool = False) -> None:
        """Commit one transaction."""
        chance = self.chance
        self.lsn += 10
        txn = Transaction(Lsn(self.lsn), 1, 0)
        for seq in range(chance.randint(1, 4)):
            pick = chance.random()
            free = [pk for pk in range(KEYS) if pk not in self.rows]
            if pick < 0.03:
                self.rows.clear()
                event = self.encoder.truncated(Truncated(self.kinds["truncate"], txn, seq, False, False), last=False)
                self.events.append(Written(len(self.events) + 1, self.lsn, event.body))
            elif (pick < 0.35 or fills) and free:
                row = {"pk": chance.choice(free), **{name: self._next() for name in "ea"}, "t": str(self._next())}
                self.rows[row["pk"]] = row | {"f": int(chance.random() < 0.7)}
                self._write(txn, seq, None, self.rows[row["pk"]])
            elif self.rows:
                old = self.rows.pop(chance.choice(list(self.rows)))
                new = None if pick < 0.5 else self._changed(old, free)
                if new is not None:
                    self.rows[new["pk"]] = new
                self._write(txn, seq, old, new)

    def _changed(self, old: Row, free: list[int]) -> Row:
        chance, new = self.chance, {**old, "a": self._next()}
        if chance.random() < 0.35:
            new["t"] = str(self._next())
        if chance.random() < 0.3:
            new["f"] = 1 - old["f"]
        if chance.random() < 0.45 and free:
            new["pk"] = chance.choice(free)
        if self.case.identity == "index" and chance.random() < 0.2:
            new["e"] = self._next()
        return new

    def _write(self, txn: Transaction, seq: int, old: Row | None, new: Row | None) -> None:
        """Write the event that PostgreSQL makes of a change: a row that moves into the filter is an INSERT."""
        was, full = old is not None and self._is_published(old), self.case.identity == "full"
        unchanged = () if full or old is None or new is None or old["t"] != new["t"] else ("t",)
        if new is None or not self._is_published(new):
            if was and old is not None:
                named = {name: old[name] if full or name in self.key else None for name in NAMES}
                self._append("delete", txn, seq, named, None, ())
            return
        sent = {name: value for name, value in new.items() if name not in unchanged}
        if not was or old is None:
            self._append("insert", txn, seq, sent, None, unchanged)
            return
        moved = any(old[name] != new[name] for name in self.key)
        before = dict(old) if full else {name: old[name] for name in self.key} if moved else None
        self._append("update", txn, seq, sent, before, unchanged)

    def _append(
        self, kind: str, txn: Transaction, seq: int, data: Row, old: Row | None, unchanged: tuple[str, ...]
    ) -> None:  # fmt: skip
        omitted = ("t",) if self.case.omits and kind != "delete" and "t" in data and self.chance.random() < 0.05 else ()
        data = {name: value for name, value in data.items() if name not in omitted}
        change = RowChange(self.kinds[kind], txn, seq, data, old, Notes(unchanged))
        event = self.encoder.row(change, last=False, omitted=omitted)
        self.events.append(Written(len(self.events) + 1, self.lsn, event.body))

    def _is_published(self, row: Row) -> bool:
        return not self.case.filtered or bool(row["f"])

    def _next(self) -> int:
        self.fresh += 1
        return self.fresh


@dataclass
class Bridge:
    """Copies the table in rounds, and is killed between any two chunks."""

    world: World
    init: list[RangesChunk] = field(default_factory=list)

    def __post_init__(self) -> None:
        world = self.world
        head = RoundsHead(
            "snap-1-aaaa", "t+ranges", "ranges", world.relation, ("x",) * len(NAMES), frozenset({"pk"}), world.key, "CDC", "v",
            "1", 1,
        )  # fmt: skip
        message = RoundMessages(head, world.encoder).start()
        (start,) = decode_message(message.subject, {}, message.body)
        assert isinstance(start, RangesStart)
        self.course = Course(start, 1)
        self.messages = ChunkMessages("t+ranges", "t", "CDC", "snap-1-aaaa", NAMES, world.encoder)
        kinds = [TEXT if name == "t" else INT for name in NAMES]
        self.blocks = RowBlocks(list(zip(NAMES, kinds, strict=True)), world.case.encoding, "map")

    def copy(self) -> None:
        """Take all rounds."""
        world, chance, course = self.world, self.world.chance, self.course
        lanes = chance.randint(1, 3)
        if chance.random() < 0.6:
            bounds: list[Any] = [(f"{n:02}",) for n in sorted(chance.sample(range(30), chance.randint(1, 3)))]
            course.replace(0, [RowRange(*pair) for pair in zip([None, *bounds], [*bounds, None], strict=True)])
        while course.left:
            for _ in range(chance.randint(0, 5)):
                world.transact()
            rows, seq = world.published(), len(world.events)
            place = ChunkPlace(Lsn(world.lsn + 1), seq)
            if not world.case.exact:
                low = self.init[-1].stream_seq if self.init else 0
                place = ChunkPlace(Lsn(world.lsn + 1), max(low, seq - chance.randint(0, 4)))
            for _ in range(chance.randint(0, 3)):  # while the round is read
                world.transact()
            self._round(rows, place, lanes)

    def _round(self, rows: dict[int, Row], place: ChunkPlace, lanes: int) -> None:
        chance, course = self.world.chance, self.course
        queues: dict[int, list[Cut]] = {}
        for number in list(course.left)[:lanes]:
            span = course.left[number]
            found = sorted((self._key(row), row) for row in rows.values() if self._is_in(self._key(row), span))
            queues[number] = []
            while True:
                part, found = found[:2], found[2:]
                queues[number].append(self._cut(part, is_last=not found))
                if not found:
                    break
        total = sum(map(len, queues.values()))
        for _ in range(total if chance.random() < 0.6 else chance.randint(0, total)):
            number = chance.choice([n for n, queue in queues.items() if queue])
            cut = queues[number].pop(0)
            covered = course.cover(number, cut)
            course.rows += cut.rows
            self._store([keyed.piece for keyed in cut.pieces], place, covered)
        if self.init:  # whatever was killed: only what is stored is known
            course.left = dict(enumerate(self.init[-1].left))
            course._numbers = len(course.left)

    def _store(self, pieces: list[Any], place: ChunkPlace, covered: RowRange) -> None:
        course = self.course
        left = list(course.left.values())
        if not self.world.case.from_left:
            beyond = covered.through
            left = [] if beyond is None else [
                RowRange(max(beyond, one.after or beyond), one.through)
                for one in left if one.through is None or one.through > beyond
            ]  # fmt: skip
        message = self.messages.chunk(course.chunks, pieces, place, covered, left, course.rows)
        course.chunks += 1
        (chunk,) = decode_message(message.subject, message.headers, message.body)
        assert isinstance(chunk, RangesChunk)
        self.init.append(chunk)

    def _key(self, row: Row) -> tuple[str, ...]:
        return tuple(f"{row[name]:02}" for name in self.world.range_key)

    @staticmethod
    def _is_in(key: tuple[str, ...], span: RowRange) -> bool:
        return (span.after is None or key > span.after) and (span.through is None or key <= span.through)

    def _cut(self, part: list[tuple[tuple[str, ...], Row]], *, is_last: bool) -> Cut:
        if not part:
            return Cut([], is_last)
        keys = [key for key, _ in part]
        body = self.blocks._encoded([row for _, row in part])
        return Cut([KeyedPiece(Piece(body, len(part), []), keys.__getitem__)], is_last)


class Reader(RowsInRounds):
    """A copy that obeys the rule as far as its case does."""

    def __init__(self, world: World) -> None:
        super().__init__(world.key)
        self.world, self.at = world, 0

    def upto(self, seq: int) -> None:
        """Apply events up to a sequence."""
        while self.at < min(seq, len(self.world.events)):
            (event,) = decode_events(self.world.events[self.at].body)
            self.at += 1
            if isinstance(event, Insert) and event.unchanged and not self.world.case.marks_inserts:
                event = event._replace(row=event.row | dict.fromkeys(event.unchanged), unchanged=())
            self.apply(event)  # type: ignore[arg-type]

    def read(self, init: list[RangesChunk]) -> None:
        """Read the snapshot from its beginning, and ask for what is incomplete at its end."""
        world, chance = self.world, self.world.chance
        self.at = init[0].stream_seq if chance.random() < 0.7 else chance.randint(0, init[0].stream_seq)
        for chunk in init:
            ahead = 0 if world.case.holds else chance.randint(0, 3)
            self.upto(max(self.at, chunk.stream_seq + ahead))
            self.chunk(chunk.rows)
        while self.missing:
            for _ in range(chance.randint(0, 2)):
                world.transact()
            asked = list(self.missing)
            self.upto(len(world.events))  # up to the place of the answer
            rows = {key_of(row, self.key): row for row in world.published().values()}
            self.answer([*asked, *self.missing], [rows[key] for key in {*asked, *self.missing} if key in rows])


def differences(seed: int, case: Case) -> list[str]:
    """What a reader has otherwise than the table, after a random history."""
    world = World(case, random.Random(seed))
    for _ in range(world.chance.randint(0, 8)):
        world.transact(fills=True)
    bridge, reader = Bridge(world), Reader(world)
    bridge.copy()
    reader.read(bridge.init)
    for _ in range(world.chance.randint(0, 5)):
        world.transact()
    reader.upto(len(world.events))
    truth = {key_of(row, world.key): row for row in world.published().values()}
    found = [f"lost {key}" for key in truth.keys() - reader.rows.keys()]
    found += [f"stale {key}" for key in reader.rows.keys() - truth.keys()]
    for key in truth.keys() & reader.rows.keys():
        unknown = reader.missing.get(key, set())
        found += [
            f"{name} of {key}" for name, value in truth[key].items()
            if name not in unknown and reader.rows[key].get(name) != value
        ]  # fmt: skip
    return found


RIGHT = [
    Case(), Case(identity="full"), Case(identity="index"), Case(filtered=True), Case(omits=True),
    Case(filtered=True, omits=True, encoding="json"),
]  # fmt: skip
WRONG = {
    "a lower bound for the place": Case(exact=False),
    "an INSERT with holes just writes": Case(filtered=True, marks_inserts=False),
    "ranges over another key than the identity": Case(identity="index", by_identity=False),
    "going on behind the last chunk with parallel ranges": Case(from_left=False),
    "running ahead of the newest chunk": Case(holds=False),
}


@pytest.mark.parametrize("case", RIGHT, ids=str)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=examples(300), deadline=None)
def test_a_reader_that_obeys_the_rule_has_the_table(case: Case, seed: int) -> None:
    assert not differences(seed, case)


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG.keys())
def test_a_reader_or_bridge_that_does_not_is_caught(case: Case) -> None:
    assert any(differences(seed, case) for seed in range(3000))


def test_the_record_of_events_is_complete() -> None:
    """The history has every kind of change, or the properties above prove little."""
    kinds: set[tuple[type[object], bool]] = set()
    for seed in range(40):
        world = World(Case(filtered=True, omits=True), random.Random(seed))
        for _ in range(20):
            world.transact()
        for written in world.events:
            (event,) = decode_events(written.body)
            kinds.add((type(event), bool(getattr(event, "unchanged", ()) or getattr(event, "omitted", ()))))
    assert {(Insert, False), (Insert, True), (Update, True), (Truncate, False)} <= kinds
