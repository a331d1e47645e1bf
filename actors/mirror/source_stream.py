"""The CDC stream of one bridge: its state, its stored messages, and their events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from actors.clients.nats.connection import SinkRefused
from actors.clients.nats.jetstream import JetStream, StoredMessage, where_it_exists
from actors.clients.nats.ordered_consumer import Delivered
from actors.contract.bridge_record import BridgeRecord
from actors.contract.compression import ENCODING_HEADER, Decompressors
from actors.contract.decoding import decode_events
from actors.contract.message_ids import has_id_of, id_in
from actors.contract.message_ids import position_of as position_of_id
from actors.contract.records import Event
from actors.contract.stream_view import (
    DELETED_MAX,
    UNKNOWN_MESSAGE,
    FoundMessage,
    LastMessage,
    Place,
    StreamView,
    why_out_of_date,
)
from actors.contract.subjects import BRIDGE_RECORDS, BRIDGES, DICTIONARIES
from actors.errors import ConfigError, Fatal, MalformedMessage, SinkUnavailable
from actors.positions import Position
from actors.telemetry.log import get_logger
from actors.wire.jetstream import MSG_ID_HEADER, OWN_MSG_ID_HEADER
from actors.wire.nats import decode_headers

log = get_logger("mirror")

_ENCODING = ENCODING_HEADER.encode()
_MESSAGE_ID, _OWN_MESSAGE_ID = MSG_ID_HEADER.encode(), OWN_MSG_ID_HEADER.encode()


class OutOfDate(Exception):
    """The stream no longer holds what comes next, or it is a different stream."""


class DictionaryMissing(SinkUnavailable):
    """A message needs a compression dictionary that KV `dictionaries` does not hold."""


class SourceStream:
    """One bridge's stream, as its readers see it."""

    def __init__(self, js: JetStream, name: str) -> None:
        self.js, self.name = js, name
        self._view = StreamView()
        self._decompressors = Decompressors()

    # -- its state, as of the last look

    @property
    def created(self) -> str:
        """When the stream was created, as JetStream writes it."""
        return self._view.created

    @property
    def first_seq(self) -> int:
        """The sequence of the stream's oldest message."""
        return self._view.first_seq

    @property
    def last_seq(self) -> int:
        """The sequence of the stream's last message."""
        return self._view.last_seq

    def why_out_of_date(self, seq: int, created: str = "") -> str:
        """Why a reader of everything up to `seq` cannot continue (see `why_out_of_date`); empty when it can."""
        return why_out_of_date(Place(seq, created), self._view)

    async def look(self) -> bool:
        """Ask for the stream's state; False when there is no stream."""
        info = await self.js.stream_info(self.name)
        if info is None:
            return False
        view = StreamView.of(info)
        explained = view.explained_by(self._view)
        if explained is None and view.deleted_count <= DELETED_MAX:
            info = await self.js.stream_info(self.name, deleted_details=True)
            if info is None:
                return False
            explained = StreamView.of(info)
        self._view = view if explained is None else explained
        return True

    async def require(self) -> None:
        """Ask for the stream's state. Raises SinkUnavailable when there is no stream."""
        if not await self.look():
            raise SinkUnavailable(
                "WB215", f"stream {self.name} is gone", means="waiting until a bridge has created it again",
                fix="start the bridge: walbridge run",
            )  # fmt: skip

    async def check_holds(self, seq: int, created: str) -> None:
        """Raise OutOfDate unless this is the stream created at `created` and it still holds everything after `seq`."""
        await self.check_place(Place(seq, created))

    async def check_place(self, place: Place) -> None:
        """Raise OutOfDate unless a reader can continue from `place`. A message to compare is needed once per connection."""
        await self.require()
        reason = why_out_of_date(place, self._view, await self._found(place))
        if reason:
            raise OutOfDate(reason)

    async def has_kept(self, stream_seq: int, stored_at: str) -> bool:
        """Whether the stream has what it had when a snapshot with this `stream_seq` began, at the time `stored_at`.

        For snapshots of earlier connections. The stream must have been looked at.
        """
        place = Place(stream_seq, stored_by=stored_at)
        return why_out_of_date(place, self._view, await self._found(place)) == ""

    async def _found(self, place: Place) -> FoundMessage | None:
        if not place.needs_message:
            return None
        message = await self.js.get_message(self.name, seq=place.needs_message)
        return None if message is None else FoundMessage(id_in(message.headers) or "", message.time)

    async def check_jumps(self, seen: int, messages: Sequence[Delivered], created: str) -> None:
        """Check, if sequences are missing, that other subjects have them, and not that the stream has deleted them."""
        if messages[-1].seq - seen != len(messages):
            await self.check_holds(seen, created)

    async def record(self) -> BridgeRecord | None:
        """Read the bridge's record; None when there is none."""
        entry = await self.js.kv_get(BRIDGES, self.name)
        return None if entry is None else BridgeRecord.decode(entry.data, self.name)

    # -- stored messages that a bridge wrote

    async def next_of_a_bridge(self, after: int, pattern: str) -> tuple[int, Position] | None:
        """The next message after `after` that a bridge wrote; foreign messages are skipped. Its sequence and position."""
        while (message := await self.js.get_message(self.name, seq=after + 1, next_by_subj=pattern)) is not None:
            position = bridge_position(message.headers)
            if position is not None:
                return message.seq, position
            after = message.seq
        return None

    async def message_of_a_bridge(self, seq: int) -> StoredMessage | None:
        """The message at `seq`, or the one before the foreign messages there. None when a message is missing."""
        while seq > 0:  # JetStream refuses to look for sequence 0
            message = await self.js.get_message(self.name, seq=seq)
            if message is None or bridge_position(message.headers) is not None:
                return message
            seq -= 1
        return None

    async def last_message_at(self, seq: int, known: LastMessage) -> LastMessage:
        """What the stream has at `seq` for a later comparison; `known`, of an earlier place, if `seq` itself was deleted."""
        message = await self.message_of_a_bridge(seq)
        if message is not None:
            return LastMessage(message.seq, id_in(message.headers) or "")
        return known if known.seq >= self._view.first_seq else UNKNOWN_MESSAGE

    async def ends_its_transaction(self, message: StoredMessage) -> bool:
        """Whether a stored message contains the last event of its transaction."""
        body = await self.unpack(message.headers, message.data)
        return any(event.last for event in decode_events(body))

    # -- events

    async def decode(self, message: Delivered) -> list[Event]:
        """The events of one message; none if no bridge wrote it. Raises Fatal when a bridge's message cannot be read."""
        headers = message.headers
        if _MESSAGE_ID in headers or _OWN_MESSAGE_ID in headers:
            try:
                events = decode_events(message.payload if _ENCODING not in headers else await self.unpacked(message))
                if events and has_id_of(headers, events[-1].lsn, events[-1].seq):
                    return events
                said = "its id is not that of its last event"
            except MalformedMessage as exc:
                said = exc.what
            if bridge_position(decode_headers(headers)) is not None:  # else the id is somebody else's, whatever the body is
                raise Fatal(
                    "WB515", f"message {message.seq} of stream {self.name} cannot be read", said=said,
                    means="the mirror stops before it, because nothing after it would be certain",
                    fix=f"install the bridge's version of Walbridge here too; else report it with: "
                    f"nats stream get {self.name} {message.seq}",
                )  # fmt: skip
        log.warning(
            "skipping a message that is no bridge's", stream=self.name, seq=message.seq, subject=message.subject,
            fix="let only the bridge publish on cdc.>: walbridge export nats-permissions",
        )  # fmt: skip
        return []

    async def unpacked(self, message: Delivered) -> bytes:
        """A message's body as it was before compression. A dictionary is fetched when a message names it first."""
        return await self.unpack(decode_headers(message.headers), message.payload)

    async def unpack(self, headers: Mapping[str, str], body: bytes) -> bytes:
        """A body as it was before compression."""
        await self._prepare(headers)
        return self._decompressors.unpack(headers, body)

    async def _prepare(self, headers: Mapping[str, str]) -> None:
        missing = self._decompressors.missing(headers)
        if missing is not None:
            entry = await where_it_exists(self.js.kv_get(DICTIONARIES, missing))
            if entry is None:
                raise DictionaryMissing(
                    "WB216", f"dictionary {missing} is not in KV {DICTIONARIES}", means="a message cannot be read without it",
                    fix=f"nats kv put {DICTIONARIES} {missing} < the.zstd.dict   # if a copy exists; else mirror from scratch",
                )  # fmt: skip
            self._decompressors.add(missing, entry.data)


def bridge_position(headers: Mapping[str, str]) -> Position | None:
    """The position in a message's id; None when no bridge wrote the message."""
    try:
        return position_of_id(id_in(headers) or "")
    except ValueError:
        return None


async def streams_of_bridges(js: JetStream) -> list[str]:
    """The streams of the bridges in this account, in order; none for a user who may not know."""
    try:
        return sorted(await js.keys_of(BRIDGES, BRIDGE_RECORDS))
    except SinkRefused:
        return []


async def no_such_stream(js: JetStream, name: str) -> ConfigError:
    """The error for a stream that does not exist, with the names of those that bridges have made."""
    others = [one for one in await streams_of_bridges(js) if one != name]
    fix = f"give one of these with --stream: {', '.join(others)}" if others else "start the bridge: walbridge run"
    return ConfigError("WB215", f"there is no stream {name} in this account of NATS", fix=fix)
