"""Takes one snapshot of one table: watermark, start, chunks, meta (contract, section 5)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import trio

from actors.clients.nats.jetstream import JetStream
from actors.clients.nats.publish_window import PublishWindow
from actors.clients.postgres.publications import PublishedTable
from actors.contract.compression import Compressor
from actors.contract.event_encoder import EventEncoder
from actors.contract.message_ids import id_in, position_of
from actors.contract.snapshot_encoder import Message, SnapshotHead, SnapshotMessages, new_snapshot_id
from actors.contract.subjects import INIT
from actors.positions import Lsn, format_lsn
from actors.settings.config import Config
from actors.snapshots.chunks import ChunkCutter
from actors.snapshots.failures import start_lost
from actors.snapshots.large_rows import refuse_large_rows
from actors.snapshots.progress import SnapshotBoard
from actors.snapshots.requests import Asked, SnapshotRequests
from actors.snapshots.table_reader import OpenTable, VersionOf, open_table
from actors.snapshots.transaction_log import TransactionLog
from actors.snapshots.watermark import Stored, sequence_before, wait_for_lsn
from actors.startup.streams import StreamSetup
from actors.telemetry.log import get_logger
from actors.telemetry.telemetry import SnapshotProgress
from actors.values.row_blocks import RowBlocks
from actors.values.text_values import JSON_OIDS, TEXT, Converter, base_type, converter_for

log = get_logger("snapshotter")

GATHER_BYTES_MAX = 8 * 1024 * 1024
"""Bytes that a chunk may hold before compression."""
COMPRESSION_RATIO_MAX = 64
"""Rows that would have to be compressed by more than this are not even tried."""
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


class SnapshotTaker:
    """Takes snapshots, one after another, each on PostgreSQL connections of its own."""

    def __init__(self, setup: SnapshotSetup, js: JetStream, requests: SnapshotRequests, board: SnapshotBoard) -> None:
        self._setup, self._js, self._requests, self._board = setup, js, requests, board

    async def take(self, token: str, published: PublishedTable, progress: SnapshotProgress, served: Sequence[Asked]) -> None:
        """Take a snapshot and publish it completely. It serves the requests `served`.

        Raises NoWatermark or TableChanged when another attempt may succeed, SourceUnavailable when PostgreSQL is away,
        SinkUnavailable when NATS is away, and errors that `failure_of` describes when this snapshot cannot be taken.
        """
        config, js, stream = self._setup.config, self._js, self._setup.stream
        info = await js.stream_info(stream.stream)
        stream_seq = int(info["state"]["last_seq"]) if info is not None else 0
        publication, payload_max = config.source.publication, stream.init_payload_max
        version_of = self._setup.version_of
        async with open_table(config.postgres, publication, published, version_of, payload_max=payload_max) as table:
            lsn = await wait_for_lsn(table.watermark, self._setup.transactions)
            if table.watermark.lsn is None:
                log.info("watermark found without a slot: writing transactions delay slots", snapshot_lsn=format_lsn(lsn))
                stream_seq = min(stream_seq, await self._seq_before(lsn))
            compressor = self._compressor(token)
            head = SnapshotHead(
                new_snapshot_id(time.time()), token, table.relation, table.description.data_types, table.pk, lsn, stream_seq,
                compressor is not None, compressor.dictionary_id if compressor else None, table.description.base_types,
                stream.stream, table.version, table.description.types,
            )  # fmt: skip
            self._board.begins(progress, head.snapshot_id, table.rows_expected)
            self._requests.leave(*served)
            messages = SnapshotMessages(head, self._setup.encoder, config.snapshots.format)
            starts = [await js.publish(m.subject, m.body, m.headers or None) for m in messages.start()]
            # only now: a bridge killed in between finds the request again, or a start without an end
            await self._requests.answered(*served)
            log.info("snapshot begins", table=token, snapshot_id=head.snapshot_id, snapshot_lsn=format_lsn(lsn))
            if table.has_toast:
                # a row that is too large may still fit compressed
                await refuse_large_rows(table, payload_max * (1 if compressor is None else COMPRESSION_RATIO_MAX))
            await self._send_rows(table, messages, compressor, progress)
        if await js.get_message(INIT, seq=starts[0]) is None:
            raise start_lost(await js.stream_info(INIT), progress.bytes)
        meta = messages.meta(progress.chunks, progress.rows)
        await js.publish(meta.subject, meta.body)
        self._board.done(progress)
        log.info(
            "snapshot done", table=token, snapshot_id=head.snapshot_id, rows=progress.rows, chunks=progress.chunks,
            bytes=progress.bytes, seconds=round(progress.seconds, 3),
        )  # fmt: skip

    async def _seq_before(self, lsn: Lsn) -> int:
        """Return the CDC stream's last sequence before the first event of `lsn` or later."""
        stream = self._setup.stream.stream

        async def look_up(seq: int) -> Stored | None:
            message = await self._js.get_message(stream, seq=seq, next_by_subj=">")
            return None if message is None else Stored(message.seq, position_of(id_in(message.headers) or "").lsn)

        info = await self._js.stream_info(stream)
        state = info["state"] if info is not None else {"first_seq": 1, "last_seq": 0}
        return await sequence_before(lsn, int(state["first_seq"]), int(state["last_seq"]), look_up)

    def _compressor(self, token: str) -> Compressor | None:
        if not self._setup.config.snapshots.zstd:
            return None
        return self._setup.compressors.get(token) or Compressor()

    async def _send_rows(
        self, table: OpenTable, messages: SnapshotMessages, compressor: Compressor | None, progress: SnapshotProgress
    ) -> None:
        config, limit = self._setup.config, self._setup.stream.init_payload_max
        blocks = RowBlocks(self._converters(table), config.publish.encoding, config.snapshots.format, table.to_utf8)

        def compressed(message: Message) -> Message:
            if compressor is None:
                return message
            return message._replace(body=compressor.compress(message.body), headers=message.headers | compressor.headers)

        cutter = ChunkCutter(
            messages.chunk, compressed, blocks.split, bytes_max=limit,
            gather_bytes_max=limit if compressor is None else max(limit, GATHER_BYTES_MAX),
        )  # fmt: skip
        window = PublishWindow(self._js.connection)

        async def send(made: list[Message]) -> None:
            for message in made:
                await window.send(message.subject, message.body, message.headers)
            size_bytes = sum(len(message.body) for message in made)
            self._board.sent(progress, chunks=cutter.chunks, rows=cutter.rows, new_bytes=size_bytes)

        async with aclosing(table.blocks()) as results:
            async for result in results:
                if self._setup.events_underway():
                    await trio.sleep(STEP_ASIDE_S)
                made = cutter.add(blocks.piece(result))
                if made:
                    await send(made)
        await send(cutter.finish())
        await window.drain()

    def _converters(self, table: OpenTable) -> list[tuple[str, Converter]]:
        config, types = self._setup.config, table.description.types
        found: list[tuple[str, Converter]] = []
        for column in table.relation.columns:
            base = base_type(column.type_oid, types)
            as_text = config.snapshots.format == "array" and base is not None and base.oid in JSON_OIDS
            convert = converter_for(column.type_oid, types, config.publish.encoding, config.publish.arrays)
            found.append((column.name, TEXT if as_text else convert))
        return found
