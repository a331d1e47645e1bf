"""The CDC stream of one bridge: what its readers must know of it, and its messages' events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from actors.clients.nats.dictionaries import BUCKET as DICTIONARIES
from actors.clients.nats.jetstream import JetStream, StoredMessage
from actors.clients.nats.ordered_consumer import Delivered
from actors.contract.bridge_record import BUCKET as RECORDS
from actors.contract.bridge_record import BridgeRecord
from actors.contract.compression import ENCODING_HEADER, Decompressors
from actors.contract.decoding import decode_events
from actors.contract.message_ids import position_of as position_of_id
from actors.contract.records import Event
from actors.errors import Fatal, MalformedMessage, SinkUnavailable
from actors.telemetry.log import get_logger
from actors.wire.nats import decode_headers

log = get_logger("mirror")

GAPS = "cdc._bridge.>"
EVERYTHING = "cdc.>"
_ENCODING = ENCODING_HEADER.encode()
_MESSAGE_ID = b"Nats-Msg-Id"


class OutOfDate(Exception):
    """The stream does not hold what comes next, or is another one."""


class SourceStream:
    """One bridge's stream, as its readers see it."""

    def __init__(self, js: JetStream, name: str) -> None:
        self.js, self.name = js, name
        self.created = ""
        self.first_seq = self.last_seq = 0
        self._decompressors = Decompressors()

    async def look(self) -> bool:
        """Ask for the stream's state; False when there is none."""
        info: dict[str, Any] | None = await self.js.stream_info(self.name)
        if info is None:
            return False
        self.created = str(info["created"])
        self.first_seq, self.last_seq = int(info["state"]["first_seq"]), int(info["state"]["last_seq"])
        return True

    async def check_holds(self, seq: int, created: str) -> None:
        """Raise OutOfDate unless this is the stream made at `created`, and it still holds everything behind `seq`."""
        if not await self.look():
            raise self._gone()
        if self.created != created:
            raise OutOfDate("the stream was made anew")
        if self.last_seq < seq:
            raise OutOfDate("the stream was cut short")
        if self.first_seq > seq + 1:
            raise OutOfDate("the stream no longer holds what comes next")

    def _gone(self) -> SinkUnavailable:
        return SinkUnavailable("WB215", f"stream {self.name} is gone", means="waiting until a bridge has made it again",
                               fix="start the bridge: walbridge run")  # fmt: skip

    async def check_jumps(self, seen: int, messages: Sequence[Delivered], created: str) -> None:
        """Messages whose sequences are not consecutive: others of no interest lie between, unless they were thrown away."""
        if messages[-1].seq - seen != len(messages):
            await self.check_holds(seen, created)

    async def record(self) -> BridgeRecord | None:
        """What the bridge has written of itself; None when there is none."""
        entry = await self.js.kv_get(RECORDS, self.name)
        return None if entry is None else BridgeRecord.decode(entry.data, self.name)

    async def _message(self, seq: int) -> StoredMessage | None:
        """None for one that is not there, also for that before the first: JetStream refuses to look for it."""
        return await self.js.get_message(self.name, seq=seq) if seq > 0 else None

    async def next_message(self, after: int, filters: Sequence[str]) -> tuple[int, int] | None:
        """Sequence and commit LSN of the next message on one of these subjects behind `after`; None when there is none."""
        found = [await self._next_of_a_bridge(after, pattern) for pattern in filters]
        return min((one for one in found if one is not None), default=None)

    async def _next_of_a_bridge(self, after: int, pattern: str) -> tuple[int, int] | None:
        """Behind what somebody else may have put there."""
        while (message := await self.js.get_message(self.name, seq=after + 1, next_by_subj=pattern)) is not None:
            lsn = _commit_lsn(message.headers)
            if lsn is not None:
                return message.seq, lsn
            after = message.seq
        return None

    async def _message_of_a_bridge(self, seq: int) -> StoredMessage | None:
        """The message at `seq`, or before what somebody else has put there."""
        while (message := await self._message(seq)) is not None and _commit_lsn(message.headers) is None:
            seq -= 1
        return message

    async def lsn_at(self, seq: int) -> int | None:
        """The commit LSN of the message at `seq`; None when there is none."""
        message = await self._message_of_a_bridge(seq)
        return None if message is None else _commit_lsn(message.headers)

    async def is_over(self, lsn: int, before_seq: int | None = None) -> bool:
        """Whether the transaction of `lsn` has ended by the stream's end, or by `before_seq`.

        Its last event says so, and may be on a subject that is not read.
        """
        if not await self.look():
            raise self._gone()
        message = await self._message_of_a_bridge(self.last_seq if before_seq is None else before_seq - 1)
        if message is None:  # deleted by hand, or none came ever: there is nothing to wait for
            return True
        if _commit_lsn(message.headers) != lsn:
            return True
        await self._prepare(message.headers)
        body = self._decompressors.unpack(message.headers, message.data)
        return any(event.last for event in decode_events(body))

    async def has_more(self, lsn: int, seq: int, filters: Sequence[str]) -> bool:
        """Whether the transaction of `lsn`, which is over and has the message at `seq`, has more on these subjects behind it.

        JetStream looks for one filter a request. The messages of a transaction are next to each other: mostly the next one of
        all answers for every filter.
        """
        message = await self.js.get_message(self.name, seq=seq + 1, next_by_subj=EVERYTHING)
        if message is None or _commit_lsn(message.headers) not in (lsn, None):  # None: nobody's, it proves nothing
            return False
        following = await self.next_message(seq, filters)
        return following is not None and following[1] == lsn

    async def is_boundary(self, seq: int, filters: Sequence[str]) -> bool:
        """Whether no transaction that has messages up to `seq` has more of them, on these subjects, behind it.

        The messages of a transaction are next to each other.
        """
        lsn = await self.lsn_at(seq)
        if lsn is None:
            return True
        over = await self.is_over(lsn)  # before: then all of it is in the stream
        following = await self.next_message(seq, filters)
        return over if following is None else following[1] != lsn

    async def decode(self, message: Delivered) -> list[Event]:
        """The events of one message; none in what no bridge has put there. Raises Fatal for what cannot be read."""
        headers = message.headers
        try:
            if _MESSAGE_ID in headers:
                return decode_events(message.payload if _ENCODING not in headers else await self.unpacked(message))
        except MalformedMessage as exc:
            if _commit_lsn(decode_headers(headers)) is not None:  # else it is somebody's own id
                raise Fatal(
                    "WB515", f"message {message.seq} of stream {self.name} cannot be read", said=exc.what,
                    means="the mirror stops before it: nothing behind it would be certain",
                    fix=f"take the bridge's version of Walbridge here too; else report it with: "
                    f"nats stream get {self.name} {message.seq}",
                ) from exc  # fmt: skip
        log.warning(
            "a message is no bridge's: passed over", stream=self.name, seq=message.seq, subject=message.subject,
            fix="let only the bridge publish on cdc.>: walbridge export nats-permissions",
        )  # fmt: skip
        return []

    async def unpacked(self, message: Delivered) -> bytes:
        """A message's body as it was before compression; a dictionary is fetched when it is named first."""
        headers = decode_headers(message.headers)
        await self._prepare(headers)
        return self._decompressors.unpack(headers, message.payload)

    async def _prepare(self, headers: dict[str, str]) -> None:
        missing = self._decompressors.missing(headers)
        if missing is not None:
            entry = await self.js.kv_get(DICTIONARIES, missing)
            if entry is None:
                raise SinkUnavailable(
                    "WB216", f"dictionary {missing} is not in KV {DICTIONARIES}", means="a message cannot be read without it",
                    fix=f"nats kv put {DICTIONARIES} {missing} < the.zstd.dict   # if a copy is left; else mirror anew",
                )  # fmt: skip
            self._decompressors.add(missing, entry.data)


def _commit_lsn(headers: Mapping[str, str]) -> int | None:
    """None when it is nobody's transaction."""
    try:
        return position_of_id(headers["Nats-Msg-Id"]).lsn
    except (KeyError, ValueError):
        return None
