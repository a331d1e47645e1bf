"""Takes one snapshot of one table: watermark, start, chunks, meta (contract, section 5)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import aclosing
from functools import partial

import trio

from actors.clients.nats.jetstream import JetStream
from actors.clients.nats.publish_window import PublishWindow
from actors.clients.postgres.publications import PublishedTable
from actors.contract.compression import Compressor
from actors.contract.snapshot_encoder import Message, SnapshotHead, SnapshotMessages, new_snapshot_id
from actors.contract.subjects import INIT
from actors.positions import format_lsn
from actors.snapshots.chunks import ChunkCutter
from actors.snapshots.failures import start_lost
from actors.snapshots.large_rows import refuse_large_rows
from actors.snapshots.progress import SnapshotBoard
from actors.snapshots.requests import Asked, SnapshotRequests
from actors.snapshots.setup import GATHER_BYTES_MAX, STEP_ASIDE_S, Cancelling, SnapshotSetup, compressed
from actors.snapshots.stream_place import place_of
from actors.snapshots.table_reader import OpenTable, open_table
from actors.snapshots.watermark import wait_for_lsn
from actors.telemetry.log import get_logger
from actors.telemetry.telemetry import SnapshotProgress

log = get_logger("snapshotter")


class SnapshotTaker:
    """Takes one snapshot in one transaction, on PostgreSQL connections of its own."""

    def __init__(
        self, setup: SnapshotSetup, js: JetStream, requests: SnapshotRequests, board: SnapshotBoard,
        cancelling: Cancelling,
    ) -> None:  # fmt: skip
        self._setup, self._js, self._requests, self._board = setup, js, requests, board
        self._pace, self._cancelling = setup.pace, cancelling

    async def take(self, token: str, published: PublishedTable, progress: SnapshotProgress, served: Sequence[Asked]) -> None:
        """Take a snapshot and publish it completely. It serves the requests `served`.

        Raises NoWatermark or TableChanged when another attempt may succeed, SourceUnavailable when PostgreSQL is away,
        SinkUnavailable when NATS is away, and errors that `failure_of` describes when this snapshot cannot be taken.
        """
        config, js, stream = self._setup.config, self._js, self._setup.stream
        info = await js.stream_info(stream.stream)
        stream_seq = int(info["state"]["last_seq"]) if info is not None else 0
        payload_max = stream.init_payload_max
        async with open_table(config, published, self._setup.version_of, payload_max=payload_max) as table:
            lsn = await wait_for_lsn(table.watermark, self._setup.transactions)
            if table.watermark.lsn is None:
                log.info("watermark found without a slot: writing transactions delay slots", snapshot_lsn=format_lsn(lsn))
                stream_seq = min(stream_seq, (await place_of(js, stream.stream, lsn, None)).stream_seq)
            compressor = self._setup.compressor(token)
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
            await refuse_large_rows(table, payload_max, is_compressed=compressor is not None)
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

    async def _send_rows(
        self, table: OpenTable, messages: SnapshotMessages, compressor: Compressor | None, progress: SnapshotProgress
    ) -> None:
        config, limit = self._setup.config, self._setup.stream.init_payload_max
        blocks = self._setup.blocks_of(table, config.snapshots.format)
        cutter = ChunkCutter(
            messages.chunk, partial(compressed, compressor=compressor), blocks.split, bytes_max=limit,
            gather_bytes_max=limit if compressor is None else max(limit, GATHER_BYTES_MAX),
        )  # fmt: skip
        window = PublishWindow(self._js.connection)

        async def send(made: list[Message]) -> None:
            for message in made:
                await window.send(message.subject, message.body, message.headers)
            size_bytes = sum(len(message.body) for message in made)
            self._pace.sent(size_bytes)
            self._board.sent(progress, chunks=cutter.chunks, rows=cutter.rows, new_bytes=size_bytes)

        async with aclosing(table.blocks()) as results:
            async for result in results:
                self._cancelling.check()
                if self._setup.events_underway():
                    await trio.sleep(STEP_ASIDE_S)
                made = cutter.add(blocks.piece(result))
                if made:
                    await send(made)
                    await self._pace.wait()  # not after the last chunk: a small table waits for no other's bytes
        await send(cutter.finish())
        await window.drain()
