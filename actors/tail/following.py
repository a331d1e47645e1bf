"""Reads the stream's messages in order, each once, over as many connections as it takes, and decodes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import trio

from actors.clients.nats.connection import open_nats
from actors.clients.nats.jetstream import JetStream
from actors.clients.nats.ordered_consumer import Delivered, OrderedConsumer, open_consumer
from actors.contract.message_ids import id_in
from actors.contract.reader_note import ReaderNote
from actors.contract.records import Body, Event
from actors.contract.stream_view import UNKNOWN_MESSAGE, LastMessage, Place
from actors.contract.subjects import (
    CDC_ALL,
    CDC_NOTICES,
    cdc_of_table,
    parse,
)
from actors.errors import ConfigError, Transient
from actors.mirror.source_stream import OutOfDate, SourceStream, no_such_stream
from actors.mirror.stream_places import Beginning, first_seq_from
from actors.mirror.table_choice import choose_tables
from actors.process import most_telling
from actors.settings.config import NatsConfig
from actors.tail.events import events_of
from actors.telemetry.quantities import escaped
from actors.wire.nats import decode_headers

WAIT_S = 0.5
RETRY_S = 1.0
NOTE = ReaderNote("tail")


class Read(NamedTuple):
    """One message of the stream."""

    message: Delivered
    events: Sequence[tuple[Body, Event]]
    """The body of each event, and its record."""
    problem: str = ""
    """Why there are no events, where nobody can read them."""

    @property
    def trouble(self) -> str:
        """The problem and whose it is, for a terminal."""
        return f"message {self.message.seq}, {escaped(self.message.subject)}: {escaped(self.problem)}"


@dataclass(frozen=True, slots=True)
class Reading:
    """What to read, and where to."""

    nats: NatsConfig
    stream: str
    tables: tuple[str, ...]
    """By name or token; empty for all."""
    beginning: Beginning
    show: Callable[[Sequence[Read]], bool]
    """Gets each message once; says whether to read on."""
    tell: Callable[[str], None]
    """Gets what the reader should know beside the messages: outages, and what the stream no longer holds."""
    to_end: bool = False
    """End at the last message that is there."""
    waits: bool = False
    """Wait for NATS and for the stream instead of raising ConfigError when they are not there at first."""


async def follow(reading: Reading) -> None:
    """Read until there is enough. Raises ConfigError for what cannot work from the start; later faults are waited out."""
    follower = _Follower(reading)
    known: set[str] = set()
    while True:
        try:
            async with open_nats(reading.nats, known) as connection:
                await follower.read(SourceStream(JetStream(connection), reading.stream))
                return
        except (Transient, BaseExceptionGroup) as exc:
            fault = most_telling(exc)
            if not isinstance(fault, Transient):
                raise fault from exc
        if not follower.has_begun and not reading.waits:
            raise ConfigError(fault.code, fault.what, said=fault.said, means=fault.means, fix=fault.fix)
        follower.interrupted(fault)
        await trio.sleep(RETRY_S)


class _Follower:
    """Remembers over connections how far the messages were read."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self.has_begun = False
        self._filters: list[str] = []
        self._seq = 0
        self._created = ""
        self._last_message: LastMessage = UNKNOWN_MESSAGE
        self._told = ""
        self._lost_at: float | None = None

    def interrupted(self, fault: Transient) -> None:
        """Say once that the connection is lost, and why."""
        if self._lost_at is None and self.has_begun:
            self._lost_at = trio.current_time()
            self._reading.tell(f"interrupted, trying again until it works: {fault}")

    async def read(self, source: SourceStream) -> None:
        """Read over one connection. Raises SinkUnavailable; returns when there is enough."""
        if not self.has_begun:
            await self._begin(source)
        while True:
            async with open_consumer(source.js, source.name, self._filters, self._seq + 1, NOTE.as_metadata()) as consumer:
                reason = await self._why_out_of_date(source)
                if self._lost_at is not None:
                    self._reading.tell(f"connected again after {trio.current_time() - self._lost_at:.1f} s")
                    self._lost_at = None
                if reason and self._must_move(source, reason):
                    continue
                await self._read_all(source, consumer)
                return

    async def _begin(self, source: SourceStream) -> None:
        reading = self._reading
        is_new = False
        while not await source.look():
            if not reading.waits:
                raise await no_such_stream(source.js, source.name)
            is_new = True
            await trio.sleep(WAIT_S)
        self._filters = await _filters(source, reading.tables)
        first = source.first_seq if is_new else await first_seq_from(source, reading.beginning)
        if reading.beginning.kind != "first" and first < source.first_seq:
            reading.tell(f"the stream's oldest message is {source.first_seq}: nothing before it can be shown")
        elif reading.beginning.kind not in ("now", "first") and first > source.last_seq:
            reading.tell(f"the stream ends before that, at message {source.last_seq}: only new changes are shown")
        self._seq = max(0, min(max(first, source.first_seq), source.last_seq + 1) - 1)
        self._created = source.created
        self.has_begun = True

    async def _why_out_of_date(self, source: SourceStream) -> str:
        """Why the stream does not go on where reading ended; empty when it does."""
        await source.require()
        if self._last_message.seq < source.first_seq:  # it was removed by its age, which is no loss
            self._last_message = UNKNOWN_MESSAGE
        try:
            await source.check_place(Place(self._seq, self._created, self._last_message))
        except OutOfDate as exc:
            return str(exc)
        return ""

    def _must_move(self, source: SourceStream, reason: str) -> bool:
        """Say what is missing. True if reading goes on at another place."""
        before = self._seq
        if source.created != self._created:
            self._seq = max(0, source.first_seq - 1)
        else:
            self._seq = min(max(self._seq, source.first_seq - 1), source.last_seq)
        self._created, self._last_message = source.created, UNKNOWN_MESSAGE
        self._tell_of_missing(reason)
        return self._seq != before

    def _tell_of_missing(self, reason: str) -> None:
        if reason != self._told:
            self._told = reason
            self._reading.tell(f"changes may be missing: {reason}; continuing after message {self._seq}")

    async def _read_all(self, source: SourceStream, consumer: OrderedConsumer) -> None:
        reading = self._reading
        while not (reading.to_end and consumer.is_at_end):
            messages = await consumer.receive(WAIT_S)
            if not messages:
                continue
            await self._check_jumps(source, messages)
            if not reading.show([await _read(source, message) for message in messages]):
                return
            last = messages[-1]
            self._seq, self._last_message = last.seq, _as_last(last)

    async def _check_jumps(self, source: SourceStream, messages: Sequence[Delivered]) -> None:
        """Say that messages were deleted, if that is why sequences are missing. They cannot be had, so read on."""
        try:
            await source.check_jumps(self._seq, messages, self._created)
        except OutOfDate as exc:
            self._created = source.created
            self._tell_of_missing(str(exc))


def _as_last(message: Delivered) -> LastMessage:
    headers = decode_headers(message.headers)
    return LastMessage(message.seq, message_id) if (message_id := id_in(headers)) else UNKNOWN_MESSAGE


async def _read(source: SourceStream, message: Delivered) -> Read:
    return Read(message, *await events_of(source, decode_headers(message.headers), message.payload))


async def _filters(source: SourceStream, tables: Sequence[str]) -> list[str]:
    """The subjects to read. Raises ConfigError for a table that neither the bridge publishes nor the stream has events of."""
    if not tables:
        return [CDC_ALL]
    record = await source.record()
    published = record.tables if record is not None else ()
    try:
        tokens = choose_tables(tables, published)
    except ConfigError:
        subjects = map(parse, await source.js.subjects_of(source.name, CDC_ALL))
        tokens = choose_tables(tables, published, known={found.token for found in subjects if found is not None})
    return [*map(cdc_of_table, tokens), CDC_NOTICES]
