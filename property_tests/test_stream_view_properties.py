"""A reader continues from its place exactly when the stream still holds all that comes next, whatever was done to the stream."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from actors.contract.rules import is_out_of_date
from actors.contract.stream_view import FoundMessage, LastMessage, Place, StreamView, why_out_of_date


@dataclass
class Stream:
    """What JetStream keeps, and what it answers."""

    first: int = 1
    last: int = 0
    messages: dict[int, str] = field(default_factory=dict)
    """Message ids by sequence."""
    copies: list[Stream] = field(default_factory=list)
    """The store as it was copied aside."""

    def append(self, message_id: str) -> None:
        self.last += 1
        self.messages[self.last] = message_id

    def delete(self, seq: int) -> None:
        self.messages.pop(seq, None)
        self.first = min(self.messages, default=self.last + 1)

    def remove_until(self, seq: int) -> None:
        for held in [held for held in self.messages if held < seq]:
            self.delete(held)

    def copy(self) -> Stream:
        return Stream(self.first, self.last, dict(self.messages))

    def restore(self, older: Stream) -> None:
        self.first, self.last, self.messages = older.first, older.last, dict(older.messages)

    def info(self, *, details: bool) -> dict[str, Any]:
        deleted = [seq for seq in range(self.first, self.last + 1) if seq not in self.messages]
        state: dict[str, Any] = {"first_seq": self.first, "last_seq": self.last}
        if deleted:
            state |= {"num_deleted": len(deleted)} | ({"deleted": deleted} if details else {})
        return {"created": "now", "state": state}


class Looker:
    """A reader that asks for the deleted sequences only when an earlier answer does not explain their number."""

    def __init__(self) -> None:
        self.view = StreamView()
        self.asked = 0

    def look(self, stream: Stream) -> StreamView:
        view = StreamView.of(stream.info(details=False))
        explained = view.explained_by(self.view)
        if explained is None:
            self.asked += 1
            explained = StreamView.of(stream.info(details=True))
        self.view = explained
        return explained


STEPS = st.lists(
    st.tuples(st.sampled_from(["append", "append", "delete", "age", "look", "copy"]), st.integers(0, 40)), max_size=40
)


def run(stream: Stream, steps: list[tuple[str, int]], looker: Looker, serial: str) -> None:
    for number, (step, at) in enumerate(steps):
        if step == "append":
            stream.append(f"{serial}-{number}")
        elif step == "delete":
            stream.delete(stream.first + at % (stream.last + 1))
        elif step == "age":
            stream.remove_until(stream.first + at % 4)
        elif step == "copy":
            stream.copies.append(stream.copy())
        else:
            looker.look(stream)


@given(STEPS, STEPS)
@settings(max_examples=400)
def test_deleted_sequences_are_known_although_they_are_seldom_asked_for(
    before: list[tuple[str, int]], after: list[tuple[str, int]]
) -> None:
    stream, looker = Stream(), Looker()
    run(stream, [*before, ("look", 0), *after], looker, "a")
    view, truth = looker.look(stream), StreamView.of(stream.info(details=True))
    assert list(view.deleted or ()) == list(truth.deleted or ())
    asked = looker.asked
    stream.append("more")
    looker.look(stream)
    assert looker.asked == asked, "nothing was deleted since"


@given(STEPS, STEPS, STEPS, st.integers(0, 60))
@settings(max_examples=600)
def test_a_reader_continues_only_over_what_it_lacks_nothing_of(
    before: list[tuple[str, int]], between: list[tuple[str, int]], after: list[tuple[str, int]], back: int
) -> None:
    stream, looker = Stream(), Looker()
    run(stream, before, looker, "a")
    read = dict(stream.messages)
    message_id = stream.messages.get(stream.last, "")
    place = Place(stream.last, "now", LastMessage(stream.last if message_id else 0, message_id))
    run(stream, between, looker, "b")
    if stream.copies and back % 2:  # a power cut; the reader connects again
        stream.restore(stream.copies[back % len(stream.copies)])
        looker = Looker()
        run(stream, after, looker, "c")
    else:
        run(stream, [step for step in after if step[0] != "copy"], looker, "c")
    view = looker.look(stream)
    found = stream.messages.get(place.needs_message)
    at_place = None if found is None else FoundMessage(found, "")
    reason = why_out_of_date(place, view, at_place)
    comes_next = range(place.seq + 1, stream.last + 1)
    is_whole = stream.last >= place.seq and all(seq in stream.messages for seq in comes_next)
    if reason == "":
        assert is_whole
        kept = [seq for seq in stream.messages if seq <= place.seq]
        assert not message_id or all(stream.messages[seq] == read[seq] for seq in kept if seq in read), "of another history"
    elif message_id and found == message_id:
        assert not is_whole, reason
    told = is_out_of_date(place.seq, "now", stream.info(details=True), message_id=place.last_message.message_id, found_id=found)
    assert told == reason, "the library says the same"
