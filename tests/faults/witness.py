"""Watches slot, WAL and stream while they change, and writes down what it sees."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import nats
import nats.errors
import psycopg
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from actors.embedded.postgres import PostgresServer
from tests.evidence import Evidence, GapSeen, Hole, Place, Sample, Stored, place_of, shortened
from tests.oracle import WalOracle, place
from tests.servers import Database, decode_body

T = TypeVar("T")
_LOOK_S, _WAL_S, _HANG_S, _BATCH = 0.5, 4.0, 60.0, 2000


def once(url: str | list[str], action: Callable[[Client], Awaitable[T]]) -> T:
    """Do something over a connection that gives up at once when the servers are away. Raises what nats-py raises."""

    async def run() -> T:
        client = await nats.connect(url, allow_reconnect=False, connect_timeout=3)
        try:
            return await action(client)
        finally:
            await client.close()

    return asyncio.run(run())


class OwnSession(Database):
    """One more session of a database, for a thread of its own."""

    def __init__(self, database: Database) -> None:
        """Connect; the database exists."""
        self.server, self.name = database.server, database.name
        self._connection = self.connect()


class Witness:
    """Collects evidence in a thread that ends with the process; everything else waits for its lock."""

    def __init__(self, database: Database, nats_url: str | list[str], *, failover: bool = False) -> None:
        """Make the slot of the witness: what is committed from now on must be stored. `database` is its own.

        `failover` has standbys keep the slot as well.
        """
        self._database, self._url = database, nats_url
        self._wal = WalOracle(database, slot="witness", failover=failover)
        self.evidence = Evidence()
        self._lock = threading.RLock()
        self._last_seq = 0
        self._base = 0
        """The sequence of an earlier stream of the name, which those of this one follow."""
        self._seen: dict[Place, int] = {}  # -> stream sequence
        self.alive_at = time.monotonic()
        self.omitted: set[str] = set()
        """Tables with a row in the stream that lacks a value; whoever has them copied again takes them out."""
        threading.Thread(target=self._run, daemon=True).start()

    @contextmanager
    def held_still(self) -> Iterator[None]:
        """It does not look meanwhile."""
        with self._lock:
            yield

    @contextmanager
    def caught_up(self) -> Iterator[None]:
        """Hold the witness still after it has seen the whole stream: what is removed meanwhile was seen."""
        with self._lock:
            while not self._look():
                pass
            yield

    @contextmanager
    def cut_short(self) -> Iterator[None]:
        """While the stream becomes an older copy of itself: what is not in there any more counts as never stored.

        Nothing may be published before this ends. Samples that rest on what is gone are left out.
        """
        with self._lock:
            yield
            last = once(self._url, _info)["state"]["last_seq"] + self._base
            evidence = self.evidence
            evidence.stored = [event for event in evidence.stored if event.stream_seq <= last]
            evidence.gaps = [gap for gap in evidence.gaps if gap.stream_seq <= last]
            evidence.holes = [hole for hole in evidence.holes if hole.before <= last]
            evidence.samples = [sample for sample in evidence.samples if sample.last_seq <= last]
            self._seen = {one: seq for one, seq in self._seen.items() if seq <= last}
            self._last_seq = min(self._last_seq, last)  # the copy may hold messages that nobody has read yet

    @contextmanager
    def made_anew(self) -> Iterator[None]:
        """While the stream is deleted, which the witness has read to its end; nothing may be published before this ends."""
        with self.caught_up():
            yield
            self._base = self._last_seq

    def failed_over(self, server: PostgresServer, switch_lsn: int) -> None:
        """Another server goes on from an LSN; what the first one had beyond was never committed.

        The caller lets `finish` read all of that before, and nothing be written in between.
        """
        with self._lock:
            self._database.server = server
            self._database.close()
            evidence = self.evidence
            evidence.void |= {place_of(change) for change in evidence.expected if change.lsn >= switch_lsn}
            evidence.expected = [change for change in evidence.expected if change.lsn < switch_lsn]
            evidence.samples.clear()

    def pass_over(self) -> None:
        """Leave out what was committed since `finish`: nobody can read it."""
        with self._lock:
            self._wal.pass_over()

    def finish(self) -> Evidence:
        """Read both sides to their ends. Raises AssertionError when the stream cannot be read to its end."""
        with self._lock:
            if time.monotonic() > self.alive_at + _HANG_S:
                raise AssertionError("the witness has ended: stderr says why")
            self._read_wal()
            deadline = time.monotonic() + _HANG_S
            while not self._look():
                if time.monotonic() > deadline:
                    raise AssertionError(f"the stream cannot be read beyond {self._last_seq}")
        return self.evidence

    def _run(self) -> None:
        read_at = time.monotonic()
        while True:
            try:
                with self._lock:
                    self.alive_at = time.monotonic()
                    self._look()
                    if time.monotonic() > read_at + _WAL_S:
                        self._read_wal()
                        read_at = self.alive_at = time.monotonic()
            except (psycopg.Error, nats.errors.Error, OSError):
                pass  # a server is down
            time.sleep(_LOOK_S)

    def _read_wal(self) -> None:
        known = self.evidence.expected[-1].lsn if self.evidence.expected else self.evidence.settled_lsn
        self.evidence.expected += [
            change._replace(data=shortened(change.data)) for change in self._wal.taken() if change.lsn > known
        ]

    def _look(self) -> bool:
        """Look once; return whether the stream was read to its end."""
        confirmed = self._confirmed()
        info, messages, to_the_end = once(self._url, self._tail)
        last_seq = info["state"]["last_seq"] + self._base
        if confirmed:
            self.evidence.samples.append(Sample(confirmed, last_seq))
        if last_seq < self._last_seq:
            self.evidence.seen.append(f"the stream ends at {last_seq}, and ended at {self._last_seq}")
        for seq, body in messages:
            if seq > self._last_seq + 1:
                self.evidence.holes.append(Hole(self._last_seq, seq))
            self._last_seq = seq
            self._take(seq, decode_body(body))
        return to_the_end

    def _confirmed(self) -> int:
        try:
            rows = self._database.execute(
                "SELECT (confirmed_flush_lsn - '0/0')::bigint FROM pg_replication_slots WHERE slot_name = 'cdc_slot'"
            )
        except psycopg.Error:
            return 0
        return int(rows[0][0] or 0) if rows else 0

    def _take(self, seq: int, events: list[dict[str, Any]]) -> None:
        evidence = self.evidence
        rows = [event for event in events if event["operation"] not in ("SCHEMA", "GAP", "PUBLISHED")]
        places = {place(event) for event in rows}
        if earlier := {self._seen[one] for one in places if one in self._seen}:
            state = once(self._url, _info)["state"]
            gone = state.get("deleted") or ()
            held = [old for old in earlier if old >= state["first_seq"] + self._base and old - self._base not in gone]
            if held:
                evidence.seen.append(f"doubled: {sorted(places)[0]} at {held} and {seq}")
            else:  # somebody removed the end of the stream, and the bridge sends it again
                evidence.copies += len(places)
                evidence.forget_from(places)
        self._seen |= dict.fromkeys(places, seq)
        for event in events:
            if event["operation"] == "GAP":
                evidence.gaps.append(GapSeen(seq, event["from_lsn"], event["to_lsn"], tuple(event["tables"])))
        for event in rows:
            if event["lsn"] <= evidence.settled_lsn:
                continue
            omitted = tuple(event.get("omitted", ()))
            evidence.stored.append(Stored(seq, place(event), shortened(event["data"]), omitted))
            if omitted:
                self.omitted.add(evidence.stored[-1].place[3])

    async def _tail(self, client: Client) -> tuple[dict[str, Any], list[tuple[int, bytes]], bool]:
        info = await _info(client)
        found: list[tuple[int, bytes]] = []
        if info["state"]["last_seq"] + self._base <= self._last_seq:
            return info, found, True
        consumer = await client.jetstream().add_consumer("CDC", ConsumerConfig(
            ack_policy=AckPolicy.NONE, deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=self._last_seq + 1 - self._base, mem_storage=True, inactive_threshold=10.0))  # fmt: skip
        inbox = client.new_inbox()
        subscription = await client.subscribe(inbox, pending_msgs_limit=0, pending_bytes_limit=0)
        request = json.dumps({"batch": _BATCH, "no_wait": True}).encode()
        while True:
            await client.publish(f"$JS.API.CONSUMER.MSG.NEXT.CDC.{consumer.name}", request, reply=inbox)
            for _ in range(_BATCH):
                try:
                    message = await subscription.next_msg(timeout=5)
                except nats.errors.TimeoutError:
                    return info, found, False
                if not message.reply:  # a status: nothing more
                    return info, found, True
                found.append((int(message.reply.split(".")[-4]) + self._base, message.data))


async def _info(client: Client) -> dict[str, Any]:
    reply = await client.request("$JS.API.STREAM.INFO.CDC", b'{"deleted_details": true}', timeout=5)
    info: dict[str, Any] = json.loads(reply.data)
    if "state" not in info:
        raise OSError(str(info))
    return info
