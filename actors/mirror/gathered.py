"""A gathered snapshot, the staging table that holds it, and why one could not be gathered."""

from __future__ import annotations

from dataclasses import dataclass

from actors.clients.nats.ordered_consumer import Delivered
from actors.contract.decoding import decode_message
from actors.contract.records import RangesStart, Record, SnapshotStart
from actors.contract.subjects import split_suffix
from actors.errors import MalformedMessage
from actors.mirror.replica import Replica
from actors.mirror.source_stream import SourceStream
from actors.mirror.state import UNPUBLISHED, WAITING
from actors.mirror.stores.dialect import Statement
from actors.mirror.stores.shapes import TableShape
from actors.mirror.track import NEEDED_AS_BEFORE, Told
from actors.telemetry.log import get_logger
from actors.wire.nats import decode_headers

log = get_logger("mirror")


class SnapshotUnusable(Exception):
    """A snapshot does not lead to the live tables' checkpoint: another one is needed."""

    def __init__(self, reason: str, needed_seq: int = NEEDED_AS_BEFORE, *, init_seq: int = 0, told: Told | None = None) -> None:
        """`init_seq`: INIT sequence of the snapshot's start, if it must not be read again.

        `told`: how the table is published, if the stream tells that after the snapshot.
        """
        super().__init__(reason)
        self.needed_seq, self.init_seq, self.told = needed_seq, init_seq, told


class SnapshotRefused(Exception):
    """The bridge could not take the snapshot."""


class NotPublished(Exception):
    """The bridge does not publish the table any more."""


class CannotMirror(Exception):
    """The replica cannot hold this table at all."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """A complete snapshot in its staging table."""

    start: SnapshotStart
    created: str
    """When the stream was created that the snapshot's `stream_seq` is a sequence of."""
    init_seq: int
    """INIT sequence of the snapshot's start."""
    staging: TableShape
    rows: int


def check_published(replica: Replica, token: str) -> None:
    """Raise NotPublished when the table has been found to be no longer published, by whichever task."""
    if replica.tables[token].state == UNPUBLISHED:
        raise NotPublished


async def make_staging(replica: Replica, start: SnapshotStart | RangesStart) -> TableShape:
    """Create the staging table, empty. Raises CannotMirror."""
    token = split_suffix(start.token)[0]
    record, dialect = replica.tables[token], replica.dialect
    obstacle = dialect.obstacle([column.name for column in start.columns])
    if obstacle:
        raise CannotMirror(obstacle)
    if record.state == WAITING and await replica.exists(record.local):
        raise CannotMirror(
            f"there is a table {dialect.table(record.local)} already, which is not this mirror's: drop or rename it"
        )
    shape = await staging_shape(replica, start)
    before = await replica.make_schema(shape.local)
    statements = [*before, dialect.drop_table(shape.local), dialect.create_table(shape)]
    await replica.run([Statement(sql, [()], token=token) for sql in statements])
    return shape


async def staging_shape(replica: Replica, start: SnapshotStart | RangesStart) -> TableShape:
    """The shape of the staging table."""
    token = split_suffix(start.token)[0]
    record = replica.tables[token]
    local, types = replica.dialect.staging_name(record.local, token), await replica.local_types(start.columns)
    return TableShape(token, start.schema, start.table, local, start.columns, types, start.relation_id, bool(record.keyed))


async def decode_answer(source: SourceStream, message: Delivered) -> Record | None:
    """Decode a message of INIT; None for one that cannot be read: foreign; had a bridge written it, a chunk will be missing."""
    try:
        body = await source.unpacked(message)
        names = ("Snapshot-Id", "Chunk")  # not those of compression: the body is unpacked already
        headers = {name: value for name, value in decode_headers(message.headers).items() if name in names}
        return decode_message(message.subject, headers, body)[0]
    except MalformedMessage as exc:
        log.warning("skipping a message that cannot be read", subject=message.subject, seq=message.seq, reason=exc.what)
        return None
