"""Faults planted into the Python mirror, each with a rule whose histories must find it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

from actors.contract import compression, decoding, stream_view
from actors.contract.records import Event, Gap, Insert, Update
from actors.contract.rules import identity_of, is_certain, written_columns
from actors.mirror import boundaries, gathering, source_stream, track
from actors.mirror.source_stream import SourceStream
from actors.mirror.track import Track


class Fault(NamedTuple):
    """A fault: what is replaced by what."""

    rule: str
    where: Any
    name: str
    instead: Any


def _nothing(*_: object, **__: object) -> None:
    return None


async def _later(*_: object, **__: object) -> None:
    return None


async def _always(*_: object, **__: object) -> bool:
    return True


def _with_nulls(change: Insert | Update) -> dict[str, Any]:
    return {**change.row, **dict.fromkeys((*change.omitted, *change.unchanged))}


def _keeps_omitted(change: Insert | Update) -> dict[str, Any]:
    return dict(change.row)


def _fills_inserts(change: Insert | Update) -> dict[str, Any]:
    return written_columns(change._replace(unchanged=()))


def _by_new_key(change: Any, pk: Any, count: int) -> Any:
    return identity_of(change._replace(old=None) if isinstance(change, Update) else change, pk, count)


def _events_of_any(plain: Callable[[bytes], list[Event]]) -> Callable[..., Any]:
    async def decode(self: SourceStream, message: Any) -> list[Event]:
        try:
            return plain(await self.unpacked(message))
        except Exception:
            return []

    return decode


def _first_only(body: bytes) -> list[Event]:
    decoded = decoding.decode_body(body)
    return [decoding.decode_event(decoded[0] if isinstance(decoded, list) else decoded)]


def _same_oid(original: Callable[..., None]) -> Callable[..., None]:
    def reshape(self: Track, table: Any, change: Any) -> None:
        original(self, table, change._replace(relation_id=table.shape.relation_id))

    return reshape


def _gap_of_all(self: Track, gap: Gap) -> None:
    _GAP(self, gap._replace(tables=()))


def _by_lsn(self: Track, event: Any) -> None:
    if event.lsn >= max((table.snapshot_lsn for table in self.tables.values()), default=0) + 0x10000:
        _PUBLISHED(self, event)


async def _chunk(self: Any, chunk: Any, _start: object, table: Any) -> None:
    await self._add(table, chunk.rows)
    self._chunks, self._rows = self._chunks + 1, self._rows + len(chunk.rows)


async def _passes_no_chunk(self: Any, message: Any, record: Any) -> Any:
    if hasattr(record, "batch_count"):
        record = record._replace(batch_count=self._chunks, row_count=self._rows)
    return await _TAKE(self, message, record)


def _looser(self: Any, headers: Mapping[str, str], body: bytes) -> bytes:
    if "Content-Encoding" not in headers:
        return body
    found: bytes = self._by_id[headers.get("Dictionary-Id", "")].decompress(body, allow_extra_data=True)
    return found


_GAP, _PUBLISHED, _RESHAPE = Track._gap, Track._published, Track._reshape
_TAKE = gathering._SnapshotReader.take

FAULTS: dict[str, Fault] = {
    "unchanged columns become null": Fault("update.unchanged", track, "written_columns", _with_nulls),
    "omitted columns keep old values": Fault("update.omitted", track, "written_columns", _keeps_omitted),
    "incomplete rows are inserted": Fault("insert.incomplete", track, "written_columns", _fills_inserts),
    "rows are looked for by the new key": Fault("update.old-key", track, "identity_of", _by_new_key),
    "every event counts": Fault("snapshot.skip-lsn", track, "counts", lambda *_: True),
    "gaps are skipped": Fault("gap.tables", Track, "_gap", _nothing),
    "a gap of one table takes all": Fault("gap.tables", Track, "_gap", _gap_of_all),
    "a half transaction is applied": Fault("gap.cuts-off", boundaries.Boundaries, "close_before", _later),
    "transactions are shown in parts": Fault("transaction.whole", boundaries.Boundaries, "is_whole", _always),
    "shapes need no new copy": Fault("schema.type", track, "is_certain", lambda *_: True),
    "a moved column is the same": Fault(
        "schema.moved",
        track,
        "is_certain",
        lambda held, told: is_certain(sorted(held), sorted(told)) or sorted(held) == sorted(told),
    ),  # fmt: skip
    "another table is the same": Fault("schema.other-table", Track, "_reshape", _same_oid(_RESHAPE)),
    "publication events are skipped": Fault("publication.changed", Track, "_published", _nothing),
    "publication events count by LSN": Fault("publication.changed", Track, "_published", _by_lsn),
    "every publication event counts": Fault("publication.same", track, "is_other_version", lambda *_: True),
    "only the first event of a message": Fault("message.packed", source_stream, "decode_events", _first_only),
    "foreign messages are applied": Fault("message.foreign", SourceStream, "decode", _events_of_any(decoding.decode_events)),
    "unreadable messages are skipped": Fault(
        "message.unreadable", SourceStream, "decode", _events_of_any(decoding.decode_events)
    ),
    "the other id is unknown": Fault("message.own-id", source_stream, "_OWN_MESSAGE_ID", b"Nats-Msg-Id"),
    "frames may have more": Fault("message.one-frame", compression.Decompressors, "unpack", _looser),
    "snapshots of all bridges are taken": Fault("snapshot.stream", decoding, "stream_of", lambda _: "CDC"),
    "chunks may be missing": Fault("snapshot.complete", gathering._SnapshotReader, "_chunk", _chunk),
    "history is not looked at": Fault("history.lost", source_stream, "why_out_of_date", lambda *_: ""),
    "deleted messages are not noticed": Fault("history.deleted", stream_view.StreamView, "has_deleted_after", lambda *_: False),
    "all deleted messages count": Fault(
        "history.deleted-before", stream_view.StreamView, "has_deleted_after", lambda self, _: self.deleted_count > 0
    ),
    "the message at the place is not compared": Fault("history.cut", stream_view, "_why_another", lambda *_: ""),
}


@contextmanager
def planted(name: str) -> Generator[None]:
    """Let the mirror have a fault."""
    fault = FAULTS[name]
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(fault.where, fault.name, fault.instead))
        if name == "chunks may be missing":
            stack.enter_context(mock.patch.object(gathering._SnapshotReader, "take", _passes_no_chunk))
        yield
