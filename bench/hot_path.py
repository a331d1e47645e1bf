"""Where the CPU time of an event goes between the two sockets: the pipeline's own classes, without servers, tasks and channels.

`python -m bench.hot_path [CASE ...]` prints microseconds per event for decoding, encoding and framing: the least of many
repetitions, by the process's clock, so that other work on the machine matters little. What reading, sending and
acknowledgements cost, `python -m bench` shows.
"""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

from actors.batcher import Batcher, Limits
from actors.contract.bridge_record import BridgeRecord
from actors.contract.compression import Compressor
from actors.contract.event_encoder import event_encoder
from actors.contract.table_schema import Description
from actors.decoder import Decoder
from actors.messages import Batch, Item, RawMessage
from actors.positions import NO_LSN, Position
from actors.process import bound_free_memory, freeze_loaded_objects
from actors.publisher import Publisher
from actors.replication_reader import BLOCK_MESSAGES_MAX
from actors.suspensions import Suspensions
from actors.telemetry.telemetry import Telemetry
from actors.values.formats import Encoding

ROWS = 10_000
ROUNDS = 15
OID = 16_384
COLUMNS = (("id", 20, True), ("name", 25, False), ("email", 25, False), ("age", 23, False), ("price", 1700, False),
           ("created_at", 1184, False))  # fmt: skip

Row = Sequence[bytes | str | None]


class Case(NamedTuple):
    """Changes of one kind, and how they are published."""

    each: int = 1_000
    """Changes per transaction."""
    change: Literal["insert", "update", "update old key", "update full", "delete"] = "insert"
    mode: Literal["fast", "plain", "durable"] = "fast"
    encoding: Encoding = "msgpack"
    pack: int = 1
    zstd: bool = False
    columns: int = len(COLUMNS)
    toast: bool = False
    """The last column is an unchanged TOASTed value."""
    value_bytes: int = 0
    """Length of one more text, if any."""


CASES = {
    "1,000 rows per transaction": Case(),
    "--pack 500": Case(pack=500),
    "--pack 10": Case(pack=10),
    "--publish plain": Case(mode="plain"),
    "--publish durable": Case(mode="durable"),
    "--json": Case(encoding="json"),
    "--json --pack 500": Case(encoding="json", pack=500),
    "1 row per transaction": Case(each=1),
    "4 rows per transaction": Case(each=4),
    "UPDATE": Case(change="update"),
    "UPDATE, key changed": Case(change="update old key"),
    "UPDATE, FULL": Case(change="update full"),
    "UPDATE, unchanged TOAST": Case(change="update", toast=True),
    "DELETE": Case(change="delete"),
    "DELETE --pack 500": Case(change="delete", pack=500),
    "--zstd-events": Case(zstd=True),
    "--zstd-events --pack 500": Case(zstd=True, pack=500),
    "50 columns": Case(columns=50),
    "10 kB rows": Case(value_bytes=10_000),
}


class Cost(NamedTuple):
    """Microseconds of CPU time per event."""

    decoding: float
    encoding: float
    framing: float


def _tuple(values: Row) -> bytes:
    parts = [struct.pack(">H", len(values))]
    for value in values:
        if value is None or isinstance(value, str):
            parts.append(b"n" if value is None else b"u")
        else:
            parts.append(b"t" + struct.pack(">I", len(value)) + value)
    return b"".join(parts)


def _row(i: int, case: Case) -> list[bytes | str | None]:
    row: list[bytes | str | None] = [
        b"%d" % i, b"customer %d" % i, b"customer%d@example.org" % i, b"%d" % (i % 90), b"%.2f" % (i % 100_000 / 100),
        b"2025-12-12 12:00:%02d.%06d+00" % (i % 60, i),
    ]  # fmt: skip
    row += [b"%d" % (i * 7 + n) for n in range(len(COLUMNS), case.columns)]
    if case.value_bytes:
        row.append(b"v" * case.value_bytes)
    if case.toast:
        row[-1] = "unchanged"
    return row


def _columns(case: Case) -> list[tuple[str, int, bool]]:
    more = [(f"c{n}", 23, False) for n in range(len(COLUMNS), case.columns)]
    return [*COLUMNS, *more, *([("value", 25, False)] if case.value_bytes else [])]


def _change(i: int, case: Case) -> bytes:
    row, oid = _row(i, case), struct.pack(">I", OID)
    key: list[bytes | str | None] = [row[0], *[None] * (len(row) - 1)]
    match case.change:
        case "insert":
            return b"I" + oid + b"N" + _tuple(row)
        case "update":
            return b"U" + oid + b"N" + _tuple(row)
        case "update old key":
            return b"U" + oid + b"K" + _tuple(key) + b"N" + _tuple(row)
        case "update full":
            return b"U" + oid + b"O" + _tuple(row) + b"N" + _tuple(row)
        case "delete":
            return b"D" + oid + b"K" + _tuple(key)


def relation_message(case: Case) -> bytes:
    """Return the Relation message of the case's table."""
    columns = _columns(case)
    identity = b"f" if case.change == "update full" else b"d"
    parts = [b"R", struct.pack(">I", OID), b"public\0bench\0", identity, struct.pack(">H", len(columns))]
    parts += [struct.pack(">B", is_key) + name.encode() + b"\0" + struct.pack(">Ii", oid, -1) for name, oid, is_key in columns]
    return b"".join(parts)


def blocks_of(case: Case, rows: int = ROWS) -> list[list[RawMessage]]:
    """Return what PostgreSQL would send, in blocks as they are read."""
    messages: list[RawMessage] = []

    def send(payload: bytes) -> None:
        messages.append(b"w" + struct.pack(">QQq", at, at, 0) + payload)

    at = 0x1_0000_0000
    send(relation_message(case))
    for first in range(0, rows, case.each):
        commit = at + 200 * case.each
        send(b"B" + struct.pack(">QqI", commit, 818_000_000_000_000 + first, 700 + first))
        for i in range(first, first + case.each):
            at += 200
            send(_change(100_000 + i, case))
        at = commit + 48
        send(b"C\0" + struct.pack(">QQq", commit, at, 818_000_000_000_000 + first))
    return [messages[i : i + BLOCK_MESSAGES_MAX] for i in range(0, len(messages), BLOCK_MESSAGES_MAX)]


def measure(case: Case, rows: int = ROWS, rounds: int = ROUNDS) -> Cost:
    """Return the least that each stage took for `rows` changes, per change."""
    blocks = blocks_of(case, rows)
    least = [float("inf")] * 3
    for _ in range(rounds):
        spent = [0.0] * 3
        decoder = Decoder(Position(NO_LSN, 0), {"bench": 0}, encoding=case.encoding, arrays="literal")
        compressors = {"bench": Compressor("bench")} if case.zstd else None
        store: Any = SimpleNamespace(record=BridgeRecord("slot", "pub", "1", 1))
        suspensions = Suspensions(store, Telemetry())
        batcher = Batcher(event_encoder(case.encoding, b"", compressors), Limits(pack=case.pack), "slot", suspensions)
        publisher = Publisher(case.mode, b"_INBOX.0123456789abcdef", 0)
        for block in blocks:
            times = [time.process_time()]
            items = _decoded(decoder, block)
            times.append(time.process_time())
            batches = _cut(batcher, items)
            times.append(time.process_time())
            for batch in batches:
                publisher.frames(batch)
            times.append(time.process_time())
            spent = [total + after - before for total, before, after in zip(spent, times, times[1:], strict=False)]
        least = list(map(min, least, spent))
    return Cost(*(spent / rows * 1e6 for spent in least))


def _decoded(decoder: Decoder, block: list[RawMessage]) -> list[Item]:
    items: list[Item] = []
    index = 0
    while index < len(block):
        index = decoder.feed(block, index, items)
        if decoder.wanted is not None:
            decoder.define(decoder.wanted, Description({}, ("text",) * len(decoder.wanted.columns), ()))
    return items


def _cut(batcher: Batcher, items: list[Item]) -> list[Batch]:
    batches = list(batcher.feed(items))
    rest = batcher.flush()
    return batches if rest is None else [*batches, rest]


def main(names: Sequence[str]) -> None:
    bound_free_memory()
    freeze_loaded_objects()
    print(f"{'CPU time per event, us':<30}{'decoding':>10}{'encoding':>10}{'framing':>10}{'all':>10}")
    for name in names or CASES:
        cost = measure(CASES[name])
        print(f"{name:<30}{cost.decoding:>10.2f}{cost.encoding:>10.2f}{cost.framing:>10.2f}{sum(cost):>10.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
