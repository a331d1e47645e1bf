"""What is published is told: in an order that no restart confuses, and to every reader whose copy it makes out of date."""

from __future__ import annotations

import random
from collections import deque
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from actors.contract.message_ids import message_id, position_of
from actors.contract.publication import Composite, Enum, KnownTable, TableFacts
from actors.contract.subjects import BRIDGE_TOKEN
from actors.decoder import Decoder
from actors.messages import Item, News, PublishedChange, RowRun, SchemaChange
from actors.positions import START, Lsn, Position
from actors.publication_model import Difference, PublicationModel
from tests import pgoutput_bytes as pg
from tests.scripted_replication import DESCRIPTION, relation, transaction

# -- the place of news in the stream


def positions(item: Item) -> list[Position]:
    match item:
        case RowRun():
            return [Position(item.txn.commit_lsn, item.seq + i) for i in range(len(item.rows))]
        case SchemaChange() | PublishedChange():
            return [item.position]
        case _:
            return []


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[int, list[bytes]]]:
    """(where the WAL ends, messages): transactions and idle WAL."""
    found, lsn = list[tuple[int, list[bytes]]](), 1000
    for rows in draw(st.lists(st.one_of(st.none(), st.integers(0, 3)), min_size=1, max_size=8)):
        lsn += 100
        messages = [pg.keepalive(lsn + 8)] if rows is None else transaction(lsn, *range(rows))
        found.append((lsn + 8, messages))
    return found


@given(histories(), st.lists(st.integers(0, 9), max_size=6), st.randoms(use_true_random=False))
def test_news_have_places_of_their_own_whatever_restarts(
    history: list[tuple[int, list[bytes]]], looks: list[int], rng: random.Random
) -> None:
    untold = [
        News(Lsn(history[min(at, len(history) - 1)][0] - 4), f"t{i}", "changed", "v") for i, at in enumerate(sorted(looks))
    ]
    stored: list[tuple[Position, str]] = []
    skip, rows, known = START, 0, dict[str, int]()
    for run in range(4):
        decoder = Decoder(skip, known, encoding="msgpack", arrays="literal")
        news, items = deque(untold), list[Item]()
        begins = 0 if run == 0 else rng.randrange(len(history))
        begins = min([begins, *(i for i, (end, _) in enumerate(history) if skip.lsn <= end)])  # as PostgreSQL sends again
        for _, messages in history[begins:]:
            block, index = [relation(), *messages], 0
            while index < len(block):
                index = decoder.feed(block, index, items)
                if decoder.wanted is not None:
                    decoder.define(decoder.wanted, DESCRIPTION)
            decoder.tell(news, items)
        ends = len(items) if run == 3 else rng.randint(0, len(items))
        for item in items[:ends]:
            stored += [(position, type(item).__name__) for position in positions(item)]
            if isinstance(item, PublishedChange):
                untold = [one for one in untold if one.token != item.token]
            elif isinstance(item, SchemaChange):
                known = {item.table.token: item.table.schema_id}
            skip = stored[-1][0] if positions(item) else skip
    places = [position for position, _ in stored]
    assert places == sorted(set(places)), "in order, and no two at one place"
    rows = sum(kind == "RowRun" for _, kind in stored)
    assert rows == sum(len(messages) - 2 for _, messages in history if len(messages) > 1), "no row is lost or doubled"
    ids = [message_id(position, BRIDGE_TOKEN, "published") for position, kind in stored if kind == "PublishedChange"]
    assert len(set(ids)) == len(ids)
    assert [position_of(one) for one in ids] == [position for position, kind in stored if kind == "PublishedChange"]


# -- what is compared

NAMES = ("a", "b")
CALM = ("x", "y", "z")
"""Tables that nobody changes."""


class Act(NamedTuple):
    """Something that somebody does: with the catalog, with a copy, or with the bridge."""

    kind: str
    token: str = "a"
    amount: int = 0


ACTS = st.builds(
    Act,
    st.sampled_from([
        "drop", "create", "filter", "rename label", "new label", "field", "vacuum full", "statistics", "rewrite", "column made again",
        "column takes a name", "look", "look", "look", "store", "store", "write", "cut while writing", "restart", "power cut",
        "snapshot", "snapshot",
    ]),
    st.sampled_from(NAMES), st.integers(0, 5),
)  # fmt: skip


class World:
    """A catalog, a stream of told versions, KV, and readers who copied a table at some point."""

    def __init__(self) -> None:
        self.facts: dict[str, TableFacts] = {}
        self.counter = 100
        self.stream: list[Difference] = []
        self.kv: dict[str, KnownTable] = {}
        self.is_complete = False
        """Whether the record says that all entries were written once."""
        self.kv_history: list[tuple[dict[str, KnownTable], bool]] = []
        self.underway: deque[Difference] = deque()
        self.readers: list[tuple[str, str, int]] = []
        for token in ("a", *CALM):
            self.create(token)
        self.model = PublicationModel("p")
        self.restart()

    def next(self) -> int:
        self.counter += 1
        return self.counter

    def create(self, token: str) -> None:
        oid = self.next()
        self.facts[token] = TableFacts(
            token,
            oid,
            str(oid),
            oid,
            oid,
            (Enum(7, ("x",)),),
            (Composite(8, ((25, -1),)),),
            oid,
            (("id", 1), ("v", 2), ("w", 3)),
        )

    def catalog(self, act: Act) -> None:
        facts = self.facts.get(act.token)
        if act.kind == "create" or facts is None:
            self.create(act.token)
            return
        number = self.next()
        (enum,), (composite,) = facts.enums, facts.composites
        change: dict[str, object] = {
            "filter": {"definition": str(number)},
            "rename label": {"enums": (Enum(7, (f"x{number}", *enum.labels[1:])),)},
            "new label": {"enums": (Enum(7, (*enum.labels, f"n{number}")),)},
            "field": {"composites": (Composite(8, (*composite.fields, (number, -1))),)},
            "vacuum full": {"filenode": number},
            "statistics": {"attributes_xid": number},
            "column made again": {"columns": (*facts.columns[:-1], (facts.columns[-1][0], number))},
            "column takes a name": {"columns": (facts.columns[0], ("v", number))},
            "rewrite": {"filenode": number, "attributes_xid": number},
        }[act.kind]
        self.facts[act.token] = facts._replace(**change)  # type: ignore[arg-type]

    def look(self) -> None:
        self.model.seen(self.facts, self.next())
        self.underway += [d for d in self.model.compare() if d.change is not None]

    def store(self) -> None:
        if self.underway:
            told = self.underway.popleft()
            self.stream.append(told)
            change = PublishedChange(START, told.token, told.change or "changed", told.version, "", None)
            self.model.stored(change, len(self.stream))

    def write(self) -> None:
        entries = self.model.unwritten()
        self.model.written(entries)
        self._keep(entries, is_complete=True)

    def write_a_part(self, count: int) -> None:
        """The bridge ends amid its writing."""
        self._keep(dict(list(self.model.unwritten().items())[:count]), is_complete=self.is_complete)
        self.restart()

    def _keep(self, entries: dict[str, KnownTable], *, is_complete: bool) -> None:
        self.kv, self.is_complete = {**self.kv, **entries}, is_complete
        self.kv_history.append((self.kv, is_complete))

    def restart(self) -> None:
        self.underway.clear()
        self.model = PublicationModel("p")
        self.model.seen(self.facts, self.next())
        self.model.begin(self.kv, len(self.stream), is_first=not self.is_complete)

    def power_cut(self, lost: int) -> None:
        """NATS loses the ends of both streams, each as much as it likes."""
        del self.stream[max(0, len(self.stream) - lost) :]
        if self.kv_history and lost % 2:
            self.kv_history.pop()
            self.kv, self.is_complete = self.kv_history[-1] if self.kv_history else ({}, False)
        self.readers = [reader for reader in self.readers if reader[2] <= len(self.stream)]
        self.restart()

    def snapshot(self, token: str) -> None:
        known = self.model.version_of(self.facts[token]) if token in self.facts else None
        if known is not None:
            self.readers.append((token, known[0], len(self.stream)))

    def do(self, act: Act) -> None:
        match act.kind:
            case "look":
                self.look()
            case "store":
                self.store()
            case "write":
                self.write()
            case "cut while writing":
                self.write_a_part(act.amount)
            case "restart":
                self.restart()
            case "power cut":
                self.power_cut(act.amount)
            case "snapshot":
                self.snapshot(act.token)
            case "drop":
                self.facts.pop(act.token, None)
            case _:
                self.catalog(act)


@given(st.lists(ACTS, max_size=40))
def test_every_copy_of_another_version_is_told_so(acts: list[Act]) -> None:
    world = World()
    for act in acts:
        world.do(act)
    world.look()
    while world.underway:
        world.store()
    assert not [told for told in world.stream if told.token in CALM], "nobody has changed it"
    world.write()
    world.look()
    assert not world.underway, "what was told is not told again"
    for token, version, since in world.readers:
        heard = [told.version for told in world.stream[since:] if told.token == token]
        now = world.model.known[token].version if token in world.facts else ""
        assert (heard[-1] if heard else version) == now, (token, version, heard, now)
    world.restart()
    world.look()
    assert not world.underway, "nor after a restart"


@given(st.lists(st.sampled_from(["vacuum full", "statistics", "new label"]), max_size=8))
def test_what_changes_no_row_is_no_news_if_a_look_comes_between(kinds: list[str]) -> None:
    world = World()
    world.write()
    for kind in kinds:
        world.catalog(Act(kind))
        world.look()
        assert not world.underway
        world.write()


@given(st.lists(ACTS, max_size=20))
def test_what_kv_keeps_of_a_table_is_read_as_it_was(acts: list[Act]) -> None:
    world = World()
    for act in acts:
        world.do(act)
    for known in world.model.known.values():
        assert KnownTable.decode(known.encode()) == known
    assert KnownTable.decode(b"{}") is None
