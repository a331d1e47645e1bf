"""Asks the bridge for rows by their keys, as of one place in the stream (`snapshot.request.{table}+{id}`)."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgpack
import trio

from actors.clients.nats.ordered_consumer import OrderedConsumer, open_consumer
from actors.contract.records import RangesChunk, RangesStart, SnapshotError, SnapshotMeta
from actors.contract.subjects import INIT, keys_suffix, request, snapshot_of_table
from actors.mirror.gathered import SnapshotRefused, decode_answer
from actors.mirror.source_stream import SourceStream
from actors.telemetry.log import get_logger
from actors.wire.nats import encode_pub

log = get_logger("mirror")

ASK_AGAIN_S = 30.0
LOOK_S = 2.0
KEYS_MAX = 1_000
BODY_BYTES_MAX = 256 * 1024
"""Of a request that names rows: below any limit of a message."""
PASSING = ("postgres_unavailable", "no_watermark", "table_changed", "start_lost", "nats_error")
"""Errors after which the same rows are asked for once more."""
UNREADABLE = ("row_too_large", "unreadable_value")
"""Errors of one row among those that were asked for."""


def request_body(keys: Sequence[Sequence[Any]]) -> bytes:
    """The body of a request; each key has its values in the order of the key's columns."""
    pack: Any = msgpack.packb
    body: bytes = pack({"keys": [list(key) for key in keys]}, unicode_errors="surrogateescape")
    return body


async def ask_by_key(
    source: SourceStream, token: str, body: bytes, *,
    check: Callable[[RangesStart], None], since_seq: int, too_old: Callable[[], Awaitable[None]], look: Callable[[], None],
) -> list[RangesChunk] | None:  # fmt: skip
    """Return the answer to a request, asking again until there is one; None if one of the rows cannot be sent.

    `check` raises when the start of an answer does not fit. An answer from before `since_seq` is not taken: `too_old` is
    awaited, and the next one is. `look` is called at least every two seconds, and raises to give up. Raises SnapshotRefused.
    """
    async with _answers(source, token, body) as (consumer, ask):
        answer: RangesStart | None = None
        chunks: list[RangesChunk] = []
        heard_at = trio.current_time()
        while True:
            messages = await consumer.receive(LOOK_S)
            look()
            if messages:
                heard_at = trio.current_time()
            elif trio.current_time() - heard_at >= ASK_AGAIN_S:
                heard_at = trio.current_time()
                await ask()
            for record in [await decode_answer(source, message) for message in messages]:
                if isinstance(record, RangesStart) and record.stream == source.name:
                    answer, chunks = record, []
                    check(record)
                elif isinstance(record, SnapshotError) and record.stream == source.name:
                    if record.snapshot_id and answer is not None and record.snapshot_id != answer.snapshot_id:
                        continue  # an attempt that is over
                    if record.error_type in UNREADABLE:
                        return None
                    if record.error_type not in PASSING:
                        raise SnapshotRefused(f"{record.error_type}: {record.error_message}")
                    log.warning(
                        "rows that were asked for by key were not sent; asking again", table=token, kind=record.error_type,
                        reason=record.error_message, next_try_s=ASK_AGAIN_S,
                    )  # fmt: skip
                elif answer is None or getattr(record, "snapshot_id", "") != answer.snapshot_id:
                    pass  # somebody else's
                elif isinstance(record, RangesChunk):
                    chunks.append(record)
                elif isinstance(record, SnapshotMeta) and record.stream == source.name:
                    if record.batch_count != len(chunks):
                        answer = None
                    elif record.stream_seq >= since_seq:
                        return chunks
                    else:  # events that are applied already would be undone
                        await too_old()
                        answer = None


@asynccontextmanager
async def _answers(
    source: SourceStream, token: str, body: bytes
) -> AsyncGenerator[tuple[OrderedConsumer, Callable[[], Awaitable[None]]]]:
    part = token + keys_suffix(f"mirror-{secrets.token_hex(6)}")
    info = await source.js.stream_info(INIT)
    last = int(info["state"]["last_seq"]) if info is not None else 0

    async def ask() -> None:
        await source.js.connection.send(encode_pub(request(part, source.name).encode(), b"", body, None))

    async with open_consumer(source.js, INIT, [*snapshot_of_table(part)], last + 1) as consumer:
        await ask()
        yield consumer, ask
