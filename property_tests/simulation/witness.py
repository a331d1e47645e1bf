"""Writes down what WAL and stream hold, checks each confirmation as it comes, and hands everything to the judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import msgpack
import orjson
import trio

from actors.contract.message_ids import id_in
from actors.positions import format_lsn
from actors.wire.nats import decode_headers
from property_tests.simulation.nats.jetstream import JetStream
from property_tests.simulation.nats.store import Message, Stream
from property_tests.simulation.postgres.changes import Commit, messages_of
from property_tests.simulation.postgres.server import Postgres
from property_tests.simulation.postgres.slot import Slot
from property_tests.simulation.trace import Trace
from tests.evidence import Cause, Evidence, GapSeen, Place, Stored, judge, not_stored_below, place_of
from tests.oracle import changes_in, place

IN_FLIGHT_S = 0.1
"""How long a confirmation may have been under way: it was sent before a power cut took what it rests on."""
NO_ROWS = ("SCHEMA", "GAP", "PUBLISHED")


class Witness:
    """Of one run."""

    def __init__(self, postgres: Postgres, jetstream: JetStream, trace: Trace) -> None:
        self.evidence = Evidence(causes=[])
        self.early: list[str] = []
        self.counts: Counter[str] = Counter()
        """Confirmations that were checked, and missing events by what told of them."""
        self.hold_s = 0.0
        """What is younger may be lost in a power cut, and the bridge has promised not to confirm it."""
        self._postgres, self._jetstream, self._trace = postgres, jetstream, trace
        self._bodies: dict[tuple[int, float], list[dict[str, Any]]] = {}
        self._eras: list[tuple[int, Place]] = []
        postgres.on_commit, postgres.on_confirmed, postgres.on_slot = self._committed, self._confirmed, self._slot_made
        jetstream.stored = self._stored
        self.on_next_change: Callable[[], None] = lambda: None
        """Called once, when a message of the stream of changes is stored."""
        self.on_next_gap: Callable[[], None] = lambda: None
        """Called once, when a gap event is stored."""
        self._removed_gaps: list[GapSeen] = []
        self._is_unseen = self._is_untold = False
        self._reached = 0

    # -- what happens

    def cause(self, reason: str, *, is_vague: bool = False) -> None:
        """Note what a gap event may tell of."""
        self._trace("world", f"cause of a gap: {reason}")
        assert self.evidence.causes is not None
        self.evidence.causes.append(Cause(trio.current_time(), reason, is_vague))

    def abandoned(self, era: int, from_lsn: int) -> int:
        """The history of an era from an LSN on is no more; return how many events that takes."""
        gone = {one for of, one in self._eras if of <= era and one[0] >= from_lsn}
        self.evidence.void |= gone
        return len(gone)

    def restored(self, *, has_slot: bool) -> None:
        """The server is an older copy of itself.

        A bridge sees that by a WAL that ends early, or by what the slot sends again in the place of the last stored change; a
        gap event as the last message has no such place.
        """
        last = self.messages[-1:]
        self._is_unseen, self._is_untold = True, not has_slot or not all(map(self._rows, last))
        self._reached = max((event.place[0] for event in self.stored()), default=0)

    def slot_lost(self) -> None:
        """The slot is not, or no longer, where it was: what it would have sent again is not seen."""
        self._is_untold |= self._is_unseen

    def slot_moved(self, confirmed: int) -> None:
        """Somebody has moved the slot; if nobody has read it yet, what came before belongs to snapshots."""
        self.slot_lost()
        self._begin_at(confirmed)

    def _begin_at(self, lsn: int) -> None:
        stream, records = self._jetstream.streams.get("CDC"), self._jetstream.streams.get("KV_bridges")
        is_new = stream is None or not stream.last_seq
        if is_new and (records is None or records.last_on("$KV.bridges.CDC") is None):
            self.evidence.expected = [one for one in self.evidence.expected if one.lsn >= lsn]

    def _check_known(self) -> None:
        """Note what nobody can know, if a bridge goes on from here with a slot that sends nothing of before."""
        wal_end, evidence = self._postgres.wal_end, self.evidence
        if self._is_untold and wal_end > self._reached:
            evidence.unknowable |= evidence.void | {place_of(one) for one in evidence.expected if one.lsn < wal_end}
        self._is_unseen = self._is_untold = False

    def removed(self, messages: list[Message]) -> None:
        """Somebody removes messages from the stream."""
        for message in messages:
            self.evidence.removed |= {place(event) for event in self._rows(message)}
        gone = _gaps_in(self, messages)
        self._removed_gaps += gone
        if gone:
            self.cause("somebody removed a gap event", is_vague=True)

    def _committed(self, commit: Commit) -> None:
        expected = list(changes_in(message for _, message in messages_of(commit, {})))
        self.evidence.expected += expected
        self._eras += [(commit.era, place_of(one)) for one in expected]
        self._trace("postgres", f"commit {format_lsn(commit.lsn)} xid {commit.xid} {[one[1:4] for one in expected]}")

    def _slot_made(self, slot: Slot) -> None:
        self._trace("postgres", f"slot {slot.name} at {format_lsn(slot.confirmed)}")
        if not slot.temporary:
            self._check_known()
            self._begin_at(slot.confirmed)  # what was committed before belongs to snapshots

    def _stored(self, stream: Stream, message: Message) -> None:
        if stream.name == "CDC":
            stored, self.on_next_change = self.on_next_change, lambda: None
            stored()
        if ".gap" in message.subject:
            interrupt, self.on_next_gap = self.on_next_gap, lambda: None
            interrupt()
        self._trace("nats", f"{stream.name} {message.seq} {message.subject} {len(message.data)}")

    def _confirmed(self, slot: Slot) -> None:
        self._trace("postgres", f"confirmed {format_lsn(slot.confirmed)}")
        self.counts["confirmations"] += 1
        self._check_known()
        if slot.confirmed > self._postgres.wal_end:
            self.early.append(f"confirmed beyond the WAL: {format_lsn(slot.confirmed)}")
        until = trio.current_time() - self.hold_s
        stored = {event.place for event in self.stored(until)}
        self.evidence.gaps = self._gaps()
        missing = not_stored_below(self.evidence, slot.confirmed, stored)
        causes = self.evidence.causes or ()
        if missing and not any(trio.current_time() - cause.at_s < IN_FLIGHT_S for cause in causes):
            self.early.append(
                f"confirmed {format_lsn(slot.confirmed)} too early at {trio.current_time():.3f} s, {len(missing)} events are not "
                f"stored, the first {missing[0]}"
            )

    # -- what there is

    def events(self, message: Message) -> list[dict[str, Any]]:
        """The events in a message."""
        key = (message.seq, message.at)
        if key not in self._bodies:
            data = message.data
            body = orjson.loads(data) if data[:1] in (b"{", b"[") else msgpack.unpackb(data)
            self._bodies[key] = body if isinstance(body, list) else [body]
        return self._bodies[key]

    def _rows(self, message: Message) -> list[dict[str, Any]]:
        return [event for event in self.events(message) if event["operation"] not in NO_ROWS]

    @property
    def messages(self) -> list[Message]:
        """Of the stream of changes."""
        stream = self._jetstream.streams.get("CDC")
        return list(stream.messages.values()) if stream is not None else []

    def lsn_at(self, seq: int) -> int:
        """The newest LSN of an event up to a sequence."""
        return max((event["lsn"] for m in self.messages if m.seq <= seq for event in self._rows(m)), default=0)

    def stored(self, until: float = float("inf")) -> list[Stored]:
        """Row events of the stream that were stored by then."""
        return [
            Stored(message.seq, place(event), event["data"], tuple(event.get("omitted", ())))
            for message in self.messages if message.at <= until for event in self._rows(message)
        ]  # fmt: skip

    def _gaps(self) -> list[GapSeen]:
        """Gap events that were told, those included that somebody removed since."""
        return sorted([*self._removed_gaps, *_gaps_in(self, self.messages)])

    def verdict(self) -> list[str]:
        """What is wrong with the stream and was wrong with confirmations."""
        self.evidence.stored, self.evidence.gaps = self.stored(), self._gaps()
        verdict = judge(self.evidence)
        self.counts.update({f"missing: {reason}": count for reason, count in verdict.excused.items()})
        return [*self.early[:3], *verdict.faults, *self._doubled_ids()[:1]]

    def _doubled_ids(self) -> list[str]:
        """Ids of messages that come twice without a gap event in between, after which changes may come again."""
        found: list[str] = []
        seen: set[str] = set()
        for message in self.messages:
            one = id_in(decode_headers(message.headers)) or ""
            found += [f"a message id came twice: {one}"] if one in seen else []
            seen = {one} if ".gap" in message.subject else seen | {one}
        return found


def _gaps_in(witness: Witness, messages: list[Message]) -> list[GapSeen]:
    return [
        GapSeen(message.seq, event["from_lsn"], event["to_lsn"], tuple(event["tables"]), message.at)
        for message in messages if ".gap" in message.subject for event in witness.events(message)
    ]  # fmt: skip
