"""The course of a snapshot in rounds: what is stored, what is left, and how it goes on after whatever interrupted it.

Everything that it needs is in stream INIT: the start says what the snapshot is of, the last chunk what is left. A bridge that
continues it keeps nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from actors.clients.nats.jetstream import JetStream, JetStreamError, StoredMessage
from actors.clients.nats.snapshot_answers import newest_answer
from actors.contract.compression import Compressor, Decompressors
from actors.contract.decoding import decode_message
from actors.contract.event_encoder import EventEncoder
from actors.contract.records import RangesChunk, RangesStart, Record, RowRange, SnapshotError, SnapshotMeta
from actors.contract.round_encoder import ChunkMessages, ChunkPlace
from actors.contract.snapshot_encoder import Message
from actors.contract.subjects import DICTIONARIES, INIT, init_chunks, init_error, init_meta, init_start
from actors.errors import MalformedMessage, SinkUnavailable
from actors.positions import Lsn
from actors.snapshots.chunks import RowTooLarge, headers_size
from actors.snapshots.failures import start_lost
from actors.snapshots.lanes import Cut
from actors.snapshots.setup import GATHER_BYTES_MAX, compressed
from actors.values.row_blocks import RowBlocks
from actors.wire.jetstream import WRONG_LAST_SEQUENCE

_RESERVE_BYTES = 256
"""For numbers that grow."""
_LEFT_SHARE = 8
"""What is left takes at most this part of a chunk."""


class TakenOver(SinkUnavailable):
    """Another bridge has gone on with the snapshot: this one must look again."""

    retry_s = 2.0


@dataclass(slots=True)
class Course:
    """A snapshot whose start is stored. For one task."""

    start: RangesStart
    start_seq: int
    """Sequence of the start in INIT."""
    chunks: int = 0
    rows: int = 0
    bytes: int = 0
    """Sent by this process."""
    place: ChunkPlace | None = None
    """Of the last chunk; None before the first."""
    left: dict[int, RowRange] = field(default_factory=lambda: {0: RowRange()})
    """The ranges that no chunk has, by a number of their own, in the order in which they are read."""
    _numbers: int = 1

    def replace(self, number: int, ranges: Sequence[RowRange]) -> None:
        """Cut a range into several."""
        found: dict[int, RowRange] = {}
        for one, span in self.left.items():
            if one != number:
                found[one] = span
                continue
            for part in ranges:
                found[self._numbers] = part
                self._numbers += 1
        self.left = found

    def cover(self, number: int, cut: Cut) -> RowRange:
        """Note that a chunk has these rows of a range; return what it covers."""
        span = self.left[number]
        if cut.is_last:
            del self.left[number]
            return span
        through = cut.pieces[-1].last_key
        self.left[number] = RowRange(through, span.through)
        return RowRange(span.after, through)


class ChunkStore:
    """Stores the chunks of one course, each once the one before it is stored."""

    def __init__(
        self,
        js: JetStream,
        course: Course,
        encoder: EventEncoder,
        blocks: RowBlocks,
        compressor: Compressor | None,
        bytes_max: int,
    ) -> None:
        self._js, self._course, self._blocks, self._compressor = js, course, blocks, compressor
        self._messages = messages_of(course.start, encoder)
        self._bytes_max = bytes_max
        self._ratio = 1.0

    def fits(self, ranges: Sequence[RowRange]) -> bool:
        """Whether so many ranges may be left: each chunk names them all."""
        # a text may grow to a multiple of its size in JSON
        size = sum(6 * len(text) + 8 for span in ranges for bound in span for text in bound or ())
        return size <= self._bytes_max // _LEFT_SHARE

    def room(self) -> int:
        """How many bytes of rows a chunk may gather: with compression as much as the last chunk's ratio suggests."""
        empty = self._messages.chunk(
            10**9, (), ChunkPlace(Lsn(1 << 62), 1 << 62), self._widest(), [*self._course.left.values()], 1 << 62
        )
        room = max(1, self._bytes_max - _size(empty) - _RESERVE_BYTES)
        return min(max(room, GATHER_BYTES_MAX), int(room * self._ratio)) if self._compressor is not None else room

    def _widest(self) -> RowRange:
        bounds = [bound for span in self._course.left.values() for bound in span if bound is not None]
        widest = max(bounds, key=lambda bound: sum(map(len, bound)), default=None)
        return RowRange(widest, widest)

    async def store(self, number: int, cut: Cut, place: ChunkPlace) -> int:
        """Store the rows of a cut in as many chunks as they need; return the bytes sent.

        Raises RowTooLarge; TakenOver when another bridge has stored a chunk of that number; SinkUnavailable.
        """
        course, waiting, sent = self._course, [cut], 0
        while waiting:
            one = waiting.pop(0)
            before = course.left[number]
            covered = course.cover(number, one)
            rows = course.rows + one.rows
            pieces = [keyed.piece for keyed in one.pieces]
            made = self._messages.chunk(course.chunks, pieces, place, covered, [*course.left.values()], rows)
            message = compressed(made, self._compressor)
            size = _size(message)
            self._ratio = max(1.0, 0.9 * len(made.body) / max(1, len(message.body)))
            if size > self._bytes_max:
                if not one.is_last:
                    course.left[number] = before
                else:  # in the place where it was
                    course.left = {number: before, **course.left}
                halves = one.halves(self._blocks.split)
                if halves is None:
                    key = ", ".join(
                        f"{name}={text[:100]}" for name, text in zip(course.start.key, one.pieces[0].last_key, strict=True)
                    )
                    raise RowTooLarge(len(message.body), self._bytes_max, key)
                waiting[:0] = halves
                continue
            await self._publish(message)
            course.chunks, course.rows, course.place = course.chunks + 1, rows, place
            course.bytes += size
            sent += size
        return sent

    async def _publish(self, message: Message) -> None:
        try:
            await self._js.publish(message.subject, message.body, message.headers)
        except JetStreamError as exc:
            if exc.err_code not in WRONG_LAST_SEQUENCE:
                raise
            raise TakenOver(
                "WB220",
                f"another bridge has stored {message.subject}",
                said=exc.said,
                means="it has continued this snapshot",
            ) from exc


async def finish(js: JetStream, course: Course, encoder: EventEncoder) -> None:
    """Store the meta, if the start is still in the stream. Raises SnapshotFailed if not."""
    assert course.place is not None, "every snapshot has a chunk"
    await check_start(js, course)
    meta = messages_of(course.start, encoder).meta(course.chunks, course.rows, course.place)
    await js.publish(meta.subject, meta.body)


def messages_of(start: RangesStart, encoder: EventEncoder) -> ChunkMessages:
    """What makes the chunks and the meta of a snapshot."""
    columns = [column.name for column in start.columns]
    return ChunkMessages(start.token, start.table, start.stream, start.snapshot_id, columns, encoder)


async def check_start(js: JetStream, course: Course) -> None:
    """Raise SnapshotFailed if INIT has lost the start: a reader that comes now would not find it."""
    if await js.get_message(INIT, seq=course.start_seq) is None:
        raise start_lost(await js.stream_info(INIT), course.bytes)


async def unfinished(js: JetStream, token: str, stream: str) -> Course | None:
    """Return the newest snapshot of a token with a suffix by the bridge of `stream`, if it has neither meta nor error.

    None also where a chunk cannot be read.
    """
    message = await newest_answer(js, init_start(token), stream)
    if message is None:
        return None
    start = _record_in(message)
    if not isinstance(start, RangesStart):
        return None
    for subject in (init_meta(token), init_error(token)):
        end = _record_in(await newest_answer(js, subject, stream))
        if isinstance(end, SnapshotMeta | SnapshotError) and end.snapshot_id == start.snapshot_id:
            return None
    course = Course(start, message.seq)
    last = await js.get_message(INIT, last_by_subj=init_chunks(token, start.snapshot_id))
    if last is None:
        return course
    decompressors = Decompressors()
    dictionary = decompressors.missing(last.headers)
    entry = await js.kv_get(DICTIONARIES, dictionary) if dictionary else None
    if dictionary and entry is not None:
        decompressors.add(dictionary, entry.data)
    chunk = _record_in(last, decompressors)
    if not isinstance(chunk, RangesChunk):
        return None
    course.chunks, course.rows = chunk.chunk + 1, chunk.row_count
    course.place = ChunkPlace(Lsn(chunk.snapshot_lsn), chunk.stream_seq)
    course.left = dict(enumerate(chunk.left))
    course._numbers = len(course.left)
    return course


def _record_in(message: StoredMessage | None, decompressors: Decompressors | None = None) -> Record | None:
    if message is None:
        return None
    try:
        return decode_message(message.subject, message.headers, message.data, decompressors or Decompressors())[0]
    except MalformedMessage:
        return None


def _size(message: Message) -> int:
    return len(message.body) + headers_size(message.headers)
