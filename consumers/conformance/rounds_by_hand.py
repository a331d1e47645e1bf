"""Histories of snapshots in rounds, written by hand: chunks and events in the order of the rule (docs/consumers.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from actors.certify.history import History, Step
from actors.certify.source import LSN_STEP, Row
from actors.contract import subjects
from consumers.conformance.by_hand import ABSENT, USERS, Writing

ASKER = "{id}"
"""In a subject and in `asked`: the id in the consumer's last request that named rows by their keys."""


class Round:
    """What one transaction of the bridge sees, and the place of that in the stream."""

    def __init__(self, w: Writing) -> None:
        self.snapshot_lsn = w.source.lsn + LSN_STEP // 2
        self.stream_seq = w.source.last_seq[w.source.stream]
        self.rows = [dict(row) for row in w.source.tables["users"].rows.values()]

    def where(self, condition: Callable[[int], bool]) -> list[Row]:
        """The rows of some ids."""
        return [row for row in self.rows if condition(row["id"])]


class Rounds:
    """A snapshot in rounds, or the answer to a request that names rows."""

    def __init__(self, w: Writing, snapshot_id: str, *, mode: str = "ranges") -> None:
        self._w, self._id, self._mode = w, snapshot_id, mode
        self._token = "users" + (subjects.RANGES if mode == "ranges" else f"+{ASKER}")
        self._chunks = self._rows = 0
        self._last: Round | None = None

    def start(self) -> None:
        table = self._w.source.tables["users"]
        self._store(subjects.init_start(self._token), {}, {
            "stream": "CDC", "snapshot_id": self._id, "table": "users", "schema": "public", "mode": self._mode,
            "timestamp": 1_795_244_733, "status": "starting", "format": "map", "compression_enabled": False, "schema_id": 1,
            "relation_id": table.relation_id, "version": table.version, "key": list(table.pk), "rows_expected": 8,
            "system_id": "7300000000000000001", "timeline": 1,
            "columns": [{"name": column.name, "type": column.type, "pk": column.pk} for column in table.columns],
        })  # fmt: skip

    def chunk(self, seen: Round, rows: Sequence[Row]) -> None:
        """Rows as of `seen`."""
        self._rows += len(rows)
        self._last = seen
        subject = subjects.init_chunk(self._token, self._id, self._chunks)
        self._store(subject, {"Snapshot-Id": self._id, "Chunk": str(self._chunks)}, {
            "table": "users", "operation": "snapshot", "snapshot_id": self._id, "chunk": self._chunks,
            "lsn": "0/0", "snapshot_lsn": seen.snapshot_lsn, "stream_seq": seen.stream_seq, "after": None, "through": None,
            "left": [], "row_count": self._rows, "data": list(rows),
        })  # fmt: skip
        self._chunks += 1

    def meta(self) -> None:
        assert self._last is not None, "there is a chunk, if an empty one"
        self._store(subjects.init_meta(self._token), {}, {
            "stream": "CDC", "snapshot_id": self._id, "table": "users", "lsn": "0/0", "snapshot_lsn": self._last.snapshot_lsn,
            "stream_seq": self._last.stream_seq, "timestamp": 1_795_244_733, "batch_count": self._chunks,
            "row_count": self._rows, "compression_enabled": False,
        })  # fmt: skip

    def error(self, error_type: str, words: str) -> None:
        self._store(subjects.init_error(self._token), {}, {
            "stream": "CDC", "snapshot_id": self._id, "table": "users", "error_type": error_type, "error_message": words,
            "timestamp": 1_795_244_733,
        })  # fmt: skip

    def _store(self, subject: str, headers: dict[str, str], body: dict[str, Any]) -> None:
        step: Step = self._w.source.message(subjects.INIT, subject, headers, body)
        self._w.add(step)


def _begin(about: str, *rules: str, name: str, needs: tuple[str, ...] = ()) -> Writing:
    w = Writing(about, *rules, name=name, needs=("rounds", *needs))
    w.source.large = {"users": 1}
    w.source.create("users", *USERS)
    w.add(*w.source.begin())
    w.insert(8)
    w.draft.start()
    w.expect("no copy yet: it asks for a snapshot in rounds", users=ABSENT, asked=("users+ranges",))
    return w


def _first_round(w: Writing, snapshot_id: str) -> Rounds:
    """A snapshot of which the first round has come: the lower half of the table."""
    rounds, first = Rounds(w, snapshot_id), Round(w)
    rounds.start()
    rounds.chunk(first, first.where(lambda key: key <= 4))
    return rounds


def _whole(w: Writing, snapshot_id: str) -> None:
    """A snapshot whose only round has the complete table."""
    rounds, whole = Rounds(w, snapshot_id), Round(w)
    rounds.start()
    rounds.chunk(whole, whole.rows)
    rounds.meta()


def join() -> History:
    w = _begin(
        "Two rounds, between which rows change, move into the other range, come and go.", "rounds.join", "rounds.lenient",
        "rounds.key-change", name="rounds-join",
    )  # fmt: skip
    rounds = Rounds(w, "snap-1-aa")
    rounds.start()
    first = Round(w)
    with w.transaction() as t:
        t.update("users", 1, name="changed after the first round")
        t.update("users", 6, name="not there yet: skip")
        t.delete("users", 7)  # not there either
        t.update("users", 5, id=0, name="comes from the other range")
    rounds.chunk(first, first.where(lambda key: key <= 2))
    rounds.chunk(first, first.where(lambda key: 2 < key <= 4))
    with w.transaction() as t:
        t.update("users", 2, id=20, name="goes to the other range")
        t.insert("users", id=30, name="new", note="in the other range")
        t.delete("users", 3)
    second = Round(w)
    with w.transaction() as t:
        t.update("users", 8, name="after the second round")
        t.delete("users", 30)
    w.expect("the copy waits for the next chunk", users=ABSENT)
    rounds.chunk(second, second.where(lambda key: key > 4))
    rounds.meta()
    w.live("chunks and events are the table")
    with w.transaction() as t:
        t.update("users", 0, note="goes on")
    w.live("the copy follows the stream")
    return w.draft.done()


def incomplete() -> History:
    w = _begin(
        "A row comes from the other range without its large value; it is asked for by its key.", "rounds.incomplete",
        "rounds.by-key", name="rounds-incomplete",
    )  # fmt: skip
    rounds = _first_round(w, "snap-1-bb")
    with w.transaction() as t:
        t.update("users", 6, id=-6, unchanged=("note",))
        t.update("users", 7, id=-7, unchanged=("note",))
        t.insert("users", id=-8, name="moved into the filter", note="large", unchanged=("note",))
    second = Round(w)
    rounds.chunk(second, second.where(lambda key: key > 4))
    rounds.meta()
    w.expect("it asks for the rows that lack values", users=ABSENT, asked=(f"users+{ASKER}",))
    with w.transaction() as t:
        t.delete("users", -7)
        t.update("users", -6, name="changed before the answer", unchanged=("note",))
        t.update("users", 2, name="another row, changed before the answer")
    answer, place = Rounds(w, "snap-1-cc", mode="keys"), Round(w)
    answer.start()
    answer.chunk(place, place.where(lambda key: key in (-6, -7, -8)))
    with w.transaction() as t:
        t.update("users", -8, name="changed after the answer", unchanged=("note",))
    answer.meta()
    w.live("the answer has their values, and the row that it lacks does not exist")
    return w.draft.done()


def filled_by_a_chunk() -> History:
    w = _begin("A row that lacks a value gets it from a later chunk.", "rounds.incomplete", "truncate", name="rounds-filled")
    rounds = _first_round(w, "snap-1-dd")
    with w.transaction() as t:
        t.truncate("users")
        t.insert("users", id=100, name="after TRUNCATE", note="large", unchanged=("note",))
    second = Round(w)
    rounds.chunk(second, second.where(lambda key: key > 4))
    rounds.meta()
    w.live("there is nothing to ask for")
    return w.draft.done()


def ended() -> History:
    w = _begin("A snapshot ends with an error between two rounds.", "rounds.error", name="rounds-ended")
    rounds = _first_round(w, "snap-1-ee")
    rounds.error("gap", "changes were lost between two rounds")
    w.expect("it asks again", users=ABSENT, asked=("users+ranges",))
    with w.transaction() as t:
        t.delete("users", 1)
    _whole(w, "snap-1-ff")
    w.live("of the snapshot that ended nothing is left")
    return w.draft.done()


def no_key() -> History:
    w = _begin("The bridge cannot read the table in rounds.", "rounds.no-key", name="rounds-no-key")
    Rounds(w, "snap-1-ab").error("no_key", "the table has no key by which events name its rows")
    w.expect("it asks for the complete table", users=ABSENT, asked=("users",))
    w.add(*w.source.copy("users"))
    w.live("the snapshot is the copy")
    return w.draft.done()


def resumed() -> History:
    w = _begin("The consumer is stopped between two rounds.", "rounds.resume", "rounds.join", name="rounds-resumed")
    rounds = _first_round(w, "snap-1-ac")
    with w.transaction() as t:
        t.update("users", 1, name="changed before the stop")
        t.update("users", 2, id=20, name="goes to the other range")
    second = Round(w)
    rounds.chunk(second, second.where(lambda key: 4 < key <= 6))
    w.expect("two chunks are taken", users=ABSENT)
    w.draft.stop()
    with w.transaction() as t:
        t.update("users", 1, name="changed while it was away")
        t.delete("users", 6)
        t.update("users", 7, id=-7, name="comes from the other range")
    third = Round(w)
    rounds.chunk(third, third.where(lambda key: key > 6))
    w.draft.start()
    w.expect("it goes on where it was", users=ABSENT)
    rounds.meta()
    w.live("chunks and events of both times are the table")
    return w.draft.done()


def gap_between_rounds() -> History:
    w = _begin("Changes are lost between two rounds.", "rounds.error", "gap.tables", name="rounds-gap")
    rounds = _first_round(w, "snap-1-ad")
    w.source.tables["users"].lost = True
    with w.transaction() as t:
        t.update("users", 1, name="lost")
        t.delete("users", 2)
    w.add(w.source.gap("users"))
    rounds.error("gap", "changes were lost between two rounds")
    w.expect("it asks again", users=ABSENT, asked=("users+ranges",))
    w.source.tables["users"].lost = False
    _whole(w, "snap-1-ae")
    w.live("nothing of the first copy is left")
    return w.draft.done()


def unreadable() -> History:
    w = _begin(
        "A value is too large for any message: no answer can carry its row.", "rounds.incomplete", "rounds.unreadable",
        name="rounds-unreadable",
    )  # fmt: skip
    rounds = _first_round(w, "snap-1-af")
    with w.transaction() as t:
        t.update("users", 1, note="too large for a message", omitted=("note",))
    second = Round(w)
    rounds.chunk(second, second.where(lambda key: key > 4))
    rounds.meta()
    w.expect("it asks for the row that lacks a value", users=ABSENT, asked=(f"users+{ASKER}",))
    Rounds(w, "", mode="keys").error("row_too_large", "a row does not fit into a message")
    expected = w.source.live("users")
    for row in expected["rows"]:
        row[2] = None if row[0] == 1 else row[2]
    w.expect("the value is unknown, which is null; the rest of the table is there", users=expected)
    return w.draft.done()


def published_differently() -> History:
    w = _begin(
        "The table is published differently between two rounds; another snapshot begins by itself.", "publication.changed",
        "rounds.changed", name="rounds-changed",
    )  # fmt: skip
    rounds = _first_round(w, "snap-1-ag")
    rounds.error("table_changed", "its published version is another one")
    again = Rounds(w, "snap-1-ah")
    again.start()
    with w.transaction() as t:
        t.delete("users", 3)
    one = Round(w)
    again.chunk(one, one.where(lambda key: key <= 5))
    other = Round(w)
    again.chunk(other, other.where(lambda key: key > 5))
    again.meta()
    w.live("the snapshot that began by itself is the copy")
    return w.draft.done()


def parallel() -> History:
    w = _begin(
        "Ranges of a round are read at once, and their chunks come in any order.", "rounds.join", "rounds.lenient",
        "rounds.key-change", name="rounds-parallel",
    )  # fmt: skip
    rounds = Rounds(w, "snap-1-ai")
    rounds.start()
    first = Round(w)
    for key in (5, 1, 6):  # of two ranges, by turns
        rounds.chunk(first, [row for row in first.rows if row["id"] == key])
    with w.transaction() as t:
        t.update("users", 2, id=-2, name="from a range that has not come")
        t.update("users", 5, id=50, name="from a range that has")
        t.delete("users", 7)
        t.update("users", 8, name="not there yet")
    second = Round(w)
    with w.transaction() as t:
        t.update("users", 8, name="after the second round")
        t.delete("users", -2)
    rounds.chunk(second, second.where(lambda key: key > 6))
    rounds.chunk(second, second.where(lambda key: key < 5 and key != 1))
    rounds.meta()
    w.live("in whatever order its ranges came, it is the table")
    return w.draft.done()


def omitted() -> History:
    w = _begin(
        "Events leave out large columns of rows that are there and of a new one; one event has its value later.",
        "rounds.incomplete", "rounds.by-key", name="rounds-omitted",
    )  # fmt: skip
    rounds = _first_round(w, "snap-1-aj")
    with w.transaction() as t:
        t.update("users", 1, note="large", omitted=("note",))
        t.insert("users", id=20, name="new", note="large too", omitted=("note",))
        t.update("users", 2, note="large for a moment", omitted=("note",))
        t.update("users", 6, note="a later chunk has it", omitted=("note",))
    with w.transaction() as t:
        t.update("users", 2, note="small again")
    second = Round(w)
    rounds.chunk(second, second.where(lambda key: 4 < key <= 8))
    rounds.meta()
    w.expect("it asks for the rows that lack values", users=ABSENT, asked=(f"users+{ASKER}",))
    answer, place = Rounds(w, "snap-1-ak", mode="keys"), Round(w)
    answer.start()
    # row 2 too: a consumer may ask for more rows than it must
    answer.chunk(place, place.where(lambda key: key in (1, 2, 20)))
    answer.meta()
    w.live("the answer has the values")
    return w.draft.done()


def _misplaced(name: str, about: str, needs: tuple[str, ...], spoil: Callable[[Writing, Round], None]) -> History:
    w = _begin(about, "rounds.place", name=name, needs=needs)
    rounds = Rounds(w, "snap-1-al")
    rounds.start()
    seen = Round(w)
    spoil(w, seen)
    rounds.chunk(seen, seen.rows)
    rounds.meta()
    w.expect("the chunk has no place in this stream: it asks again", users=ABSENT, asked=("users+ranges",))
    _whole(w, "snap-1-am")
    w.live("the next snapshot is the copy")
    return w.draft.done()


def grown_again() -> History:
    def cut(w: Writing, seen: Round) -> None:
        w.source.last_seq["CDC"] -= 1
        w.add({"step": "cut", "stream": "CDC", "last_seq": w.source.last_seq["CDC"]})
        with w.transaction() as t:
            t.update("users", 1, name="stored instead, after what the round has seen")

    about = "The stream is cut short after a round's place was found, and grows again with a later transaction at that place."
    return _misplaced("rounds-grown-again", about, ("cut",), cut)


def too_early() -> History:
    def before(_: Writing, seen: Round) -> None:
        seen.stream_seq -= 1

    about = "The message after a chunk's place has a lower LSN than the chunk, so that it is in the chunk already."
    return _misplaced("rounds-too-early", about, (), before)


def answer_too_early() -> History:
    w = _begin(
        "The message after the place of an answer by key has a lower LSN than the answer.", "rounds.place", "rounds.by-key",
        name="rounds-answer-too-early",
    )  # fmt: skip
    rounds = _first_round(w, "snap-1-ao")
    with w.transaction() as t:
        t.update("users", 6, id=-6, unchanged=("note",))
    second = Round(w)
    rounds.chunk(second, second.where(lambda key: key > 4))
    rounds.meta()
    w.expect("it asks for the row that lacks a value", users=ABSENT, asked=(f"users+{ASKER}",))
    with w.transaction() as t:
        t.update("users", -6, name="in the answer already", unchanged=("note",))
    answer, place = Rounds(w, "snap-1-ap", mode="keys"), Round(w)
    place.stream_seq -= 1
    answer.start()
    answer.chunk(place, place.where(lambda key: key == -6))
    answer.meta()
    w.expect("the answer has no place in this stream: it asks again", users=ABSENT, asked=("users+ranges",))
    _whole(w, "snap-1-aq")
    w.live("the next snapshot is the copy")
    return w.draft.done()


def after_a_gap() -> History:
    w = _begin(
        "The last message before the first round is a gap event with LSNs of a cluster that is gone.", "rounds.place",
        "gap.lower-lsns", name="rounds-after-a-gap",
    )  # fmt: skip
    w.add(w.source.gap("users", reason="another database cluster"))
    w.source.lsn = 0x1000  # the new cluster's
    rounds = _first_round(w, "snap-1-an")
    with w.transaction() as t:
        t.update("users", 1, name="in the new cluster")
    second = Round(w)
    rounds.chunk(second, second.where(lambda key: key > 4))
    rounds.meta()
    w.live("a gap's LSN says nothing about a chunk's place")
    return w.draft.done()


WRITERS: tuple[Callable[[], History], ...] = (
    join, incomplete, filled_by_a_chunk, ended, no_key, resumed, gap_between_rounds, unreadable, published_differently,
    parallel, omitted, grown_again, too_early, answer_too_early, after_a_gap,
)  # fmt: skip


def histories() -> Iterator[History]:
    """All of them."""
    for write in WRITERS:
        yield write()
