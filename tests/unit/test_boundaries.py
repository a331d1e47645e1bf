"""Boundaries: a transaction counts as whole exactly when nothing of it can follow, whatever lies between its messages."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.contract.decoding import decode_events
from actors.contract.subjects import CDC_NOTICES
from actors.mirror.boundaries import Boundaries, Incomplete, Next
from actors.mirror.stores.dialect import SqliteDialect
from actors.mirror.track import Cursor, Track
from actors.positions import START
from tests.unit.fake_stream import FOREIGN, FakeJetStream, event, source_of

Message = tuple[str, str, bytes]


class Made(NamedTuple):
    """A message of a history, and what a test knows about it."""

    message: Message
    lsn: int
    """0 for foreign messages."""
    table: str
    is_cut_off: bool
    """A gap comes before the end of its transaction."""


@st.composite
def histories(draw: st.DrawFn) -> list[Made]:
    """Transactions over three tables; foreign messages anywhere; now and then a gap, which may cut one off."""
    made: list[Made] = []
    for lsn in range(16, 16 + 16 * draw(st.integers(1, 5)), 16):
        tables = draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=4))
        gap = draw(st.sampled_from(["", "", "", "after", "within"]))
        for seq, table in enumerate(tables):
            if draw(st.integers(0, 4)) == 0:
                made.append(Made(FOREIGN, 0, "", False))
            is_last = seq == len(tables) - 1 and gap != "within"
            made.append(Made(event(table, lsn, seq, last=is_last), lsn, table, gap == "within"))
        if gap:
            made.append(Made(event("a", lsn + 8, 0, operation="gap"), lsn + 8, "gap", False))
    return made


def boundaries(history: list[Made], visible: int, tables: frozenset[str]) -> Boundaries:
    js = FakeJetStream({"CDC": [made.message for made in history[:visible]]})
    return Boundaries(source_of(js), [CDC_NOTICES, *(f"cdc.{table}.>" for table in sorted(tables))])


@given(histories(), st.sets(st.sampled_from("abc"), min_size=1).map(frozenset), st.data())
@settings(max_examples=100)
def test_what_is_whole_can_get_no_more_and_what_is_complete_becomes_whole(
    history: list[Made], tables: frozenset[str], data: st.DataObject
) -> None:
    read = [seq for seq, made in enumerate(history, 1) if made.table in tables]
    if not read:
        return
    seq = data.draw(st.sampled_from(read))
    visible = data.draw(st.integers(seq, len(history)))
    made = history[seq - 1]
    of_it = [at for at, one in enumerate(history, 1) if one.lsn == made.lsn]
    rest = [at for at in of_it if at > seq and history[at - 1].table in tables]
    following = next((one for one in history[max(of_it) : visible] if one.table in {*tables, "gap"}), None)

    found = trio.run(boundaries(history, visible, tables).is_whole, made.lsn, seq)
    if found:
        assert not rest
        assert not made.is_cut_off
    elif not rest and not made.is_cut_off and visible >= max(of_it):
        assert following is not None, "it is complete, and nothing that the reader waits for follows"
        assert following.table == "gap", "only the gap itself decides"


@given(histories(), st.data())
@settings(max_examples=100)
def test_a_gap_closes_a_transaction_only_after_its_end(history: list[Made], data: st.DataObject) -> None:
    """A reader of all subjects: it closes each transaction before the next message, or learns that it was cut off."""

    async def read() -> None:
        track = Track(SqliteDialect(), Cursor(0, START), {})
        all_of_it = boundaries(history, len(history), frozenset("abc"))
        cut_off = gap_seq = None
        for seq, made in enumerate(history, 1):
            if not made.lsn:
                continue
            events = decode_events(made.message[2])
            try:
                await all_of_it.close_before(track, seq, events)
            except Incomplete as exc:
                cut_off, gap_seq = exc.lsn, exc.seq
                track.close()
            assert made.table == "gap" or gap_seq != seq
            assert track.open_lsn in (None, made.lsn)
            if made.table == "gap":
                before = [one for one in history[: seq - 1] if one.lsn]
                assert ((cut_off, gap_seq) == (before[-1].lsn, seq)) == before[-1].is_cut_off
            track.take(seq, events)

    trio.run(read)


@given(histories(), st.sets(st.sampled_from("abc"), min_size=1).map(frozenset), st.data())
@settings(max_examples=100)
def test_the_next_message_is_the_first_on_the_subjects(
    history: list[Made], tables: frozenset[str], data: st.DataObject
) -> None:
    seq = data.draw(st.integers(0, len(history)))
    wanted = next(
        (
            Next(at, one.lsn, one.table == "gap")
            for at, one in enumerate(history, 1)
            if at > seq and one.table in {*tables, "gap"}
        ),
        None,
    )
    found = boundaries(history, len(history), tables)
    assert trio.run(found.next_after, seq) == wanted

    async def end() -> int | None:
        await found._source.look()
        return await found.end_without_more(seq)

    assert trio.run(end) == (len(history) if wanted is None else None)


STORED = [
    event("a", 16, 0),
    event("b", 16, 1),
    event("c", 16, 2, last=True),
    event("a", 32, 0, last=True),
    event("a", 48, 0),
    FOREIGN,
]


@pytest.mark.parametrize(
    ("seq", "tables", "expected"),
    [
        (3, "abc", (True, 16)),
        (2, "ab", (True, 16)),  # its last event is another table's
        (2, "abc", (False, 16)),
        (4, "abc", (True, 32)),
        (5, "abc", (False, 48)),  # it may go on
        (6, "abc", (False, 48)),  # also after a foreign message
    ],
)
def test_the_transaction_at_a_sequence(seq: int, tables: str, expected: tuple[bool, int]) -> None:
    js = FakeJetStream({"CDC": [*STORED]})
    found = Boundaries(source_of(js), [CDC_NOTICES, *(f"cdc.{table}.>" for table in tables)])
    assert trio.run(found.is_whole_at, seq) == expected


def test_a_deleted_message_is_nothing_to_wait_for() -> None:
    js = FakeJetStream({"CDC": [event("a", 16, 0), None]})
    assert trio.run(Boundaries(source_of(js), ["cdc.>"]).is_whole_at, 2) == (True, None)
    assert trio.run(Boundaries(source_of(js), ["cdc.>"]).is_whole, 16, 1) is True
    assert trio.run(Boundaries(source_of(FakeJetStream({"CDC": []})), ["cdc.>"]).is_whole_at, 0) == (True, None)


def test_a_gap_that_is_the_last_message_has_nothing_to_wait_for() -> None:
    """An idle source after a gap: no later transaction will show that the gap is over."""
    js = FakeJetStream({"CDC": [event("a", 16, 0, last=True), event("a", 48, 0, operation="gap")]})
    found = Boundaries(source_of(js), [CDC_NOTICES, "cdc.a.>"])
    assert trio.run(found.is_whole_at, 2) == (True, 48)


def test_a_gap_at_the_lsn_of_a_transaction_that_it_cuts_off_is_not_part_of_it() -> None:
    history = [event("a", 16, 0), event("a", 16, 0, operation="gap")]
    found = Boundaries(source_of(FakeJetStream({"CDC": history})), [CDC_NOTICES, "cdc.a.>"])

    async def read() -> None:
        track = Track(SqliteDialect(), Cursor(0, START), {})
        track.take(1, decode_events(history[0][2]))
        with pytest.raises(Incomplete):
            await found.close_before(track, 2, decode_events(history[1][2]))

    trio.run(read)
