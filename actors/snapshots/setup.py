"""What all snapshots of one run share, and what one of them is of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import trio

from actors.contract.compression import Compressor
from actors.contract.event_encoder import EventEncoder
from actors.contract.snapshot_encoder import Message
from actors.pace import Pace
from actors.positions import Lsn
from actors.settings.config import Config
from actors.snapshots.failures import SnapshotFailed
from actors.snapshots.table_reader import OpenTable, VersionOf
from actors.snapshots.transaction_log import TransactionLog
from actors.startup.streams import StreamSetup
from actors.values.formats import SnapshotFormat
from actors.values.row_blocks import RowBlocks
from actors.values.text_values import JSON_OIDS, TEXT, Converter, base_type, converter_for

GATHER_BYTES_MAX = 8 * 1024 * 1024
"""Bytes that a chunk may hold before compression."""
STEP_ASIDE_S = 0.001
"""Pause between two blocks while events are under way, so that a snapshot does not add to their latency."""


@dataclass(frozen=True, slots=True)
class SnapshotSetup:
    """What all snapshots of one run share."""

    config: Config
    stream: StreamSetup
    encoder: EventEncoder
    """The snapshotter's own: two tasks cannot share an encoder."""
    transactions: TransactionLog
    compressors: Mapping[str, Compressor]
    """By table token, for tables with a dictionary; other tables get a compressor without one."""
    events_underway: Callable[[], bool]
    """Returns whether events are between PostgreSQL and JetStream's acknowledgement: events go first."""
    version_of: VersionOf
    stored_lsn: Callable[[], Lsn]
    """Returns the LSN below which the stream has every event."""
    pace: Pace
    """That of all snapshots together."""

    def compressor(self, token: str) -> Compressor | None:
        """The compressor of a table's chunks; None without `--zstd`."""
        if not self.config.snapshots.zstd:
            return None
        return self.compressors.get(token) or Compressor()

    def blocks_of(self, table: OpenTable, fmt: SnapshotFormat) -> RowBlocks:
        """Return what converts and encodes a table's rows."""
        types, publish = table.description.types, self.config.publish
        found: list[tuple[str, Converter]] = []
        for column in table.relation.columns:
            base = base_type(column.type_oid, types)
            as_text = fmt == "array" and base is not None and base.oid in JSON_OIDS
            convert = converter_for(column.type_oid, types, publish.encoding, publish.arrays)
            found.append((column.name, TEXT if as_text else convert))
        return RowBlocks(found, publish.encoding, fmt, table.to_utf8)


def compressed(message: Message, compressor: Compressor | None) -> Message:
    """Return a chunk as it is sent."""
    if compressor is None:
        return message
    return message._replace(body=compressor.compress(message.body), headers=message.headers | compressor.headers)


@dataclass(slots=True)
class Cancelling:
    """Whether a running snapshot was cancelled. It ends by itself: nothing may be cut off in the middle of a send."""

    is_asked: trio.Event = field(default_factory=trio.Event)

    def check(self) -> None:
        """Raise SnapshotFailed if it was."""
        if self.is_asked.is_set():
            raise self.failure()

    @staticmethod
    def failure() -> SnapshotFailed:
        """The failure of a snapshot that was cancelled."""
        return SnapshotFailed("cancelled", "somebody has cancelled this snapshot")
