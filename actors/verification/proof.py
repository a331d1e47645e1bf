"""The proof that a replica equals its source at one LSN.

The running mirror holds still where the source's exported snapshot is (see actors/mirror/holding.py): the replica contains
everything that committed below the snapshot's LSN, and nothing else. Both sides are then read at leisure.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import trio

from actors.clients.nats.connection import open_nats
from actors.clients.nats.jetstream import JetStream
from actors.contract.bridge_record import BridgeRecord
from actors.contract.stream_view import StreamView
from actors.contract.subjects import BRIDGES
from actors.errors import ConfigError
from actors.mirror.replica import NOT_PUBLISHED
from actors.mirror.state import LIVE, REFUSED, STALE, UNPUBLISHED, WAITING, TableRecord, keeps_everything, load_tables
from actors.mirror.stores.open import open_store
from actors.mirror.stores.store import Store
from actors.mirror.table_choice import choose_tables
from actors.pause import paused_words
from actors.positions import Lsn, format_lsn
from actors.settings.config import Config
from actors.verification.comparison import LOOKED_AT_MAX, Rows, Side, TableReport, differences, differing_buckets
from actors.verification.hold_row import HoldRow, VerifyFailed
from actors.verification.source import Source, open_source, write_to_wal
from actors.wire.sql_names import quoted

TELL_AFTER_S = 1.0
"""After this long, tell the user what verify is waiting for."""
COPY_LOOK_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Request:
    """The parameters of a verification."""

    config: Config
    to: str
    """The replica's URL."""
    tables: tuple[str, ...]
    """Tokens or names; empty for all of the replica's tables."""
    keys_max: int
    """Keys to list of rows that differ."""
    timeout_s: float
    tell: Callable[[str], None]
    """Shows the user a sentence about what verify is waiting for."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a verification has found."""

    lsn: Lsn
    reports: list[TableReport]
    not_mirrored: list[str]
    """Tokens of published tables that the replica does not have, and need not have: the mirror keeps chosen tables."""
    deleted: int = 0
    """Number of messages that were deleted in the middle of the stream."""


async def verify(request: Request) -> Result:
    """Compare the tables. Raises Fatal when they cannot be compared, or Transient."""
    store = await open_store(request.to, create=False)
    try:
        async with open_nats(request.config.nats, set()) as connection:
            js, stream = JetStream(connection), request.config.publish.stream
            entry = await js.kv_get(BRIDGES, stream)
            info = None if entry is None else await js.stream_info(stream)
        if entry is None:
            raise ConfigError("WB510", f"no bridge has written stream {stream}", fix="give its name with --stream")
        record = BridgeRecord.decode(entry.data, stream)
        tables = await load_tables(store)
        if not tables and not request.tables:
            raise ConfigError("WB511", "the replica has no tables", fix="walbridge mirror --to URL   # creates them")
        if record.paused_at:
            raise VerifyFailed(
                "WB514", f"the mirror cannot reach the source's LSN: the bridge is {paused_words(record.paused_at)}",
                fix="walbridge resume   # then verify again",
            )  # fmt: skip
        chosen = choose_tables(request.tables, record.tables, known=tables)
        keeps_all = await keeps_everything(store)
        async with open_source(request.config.postgres, record.publication) as source:
            await source.check_wrote(record, stream)
            result = await _Verification(request, store, source, chosen, keeps_all=keeps_all).run()
        return result if info is None else replace(result, deleted=StreamView.of(info).deleted_count)
    finally:
        await store.close()


class _Verification:
    """One verification of chosen tables, or without any of all that the replica has or should have."""

    def __init__(self, request: Request, store: Store, source: Source, chosen: tuple[str, ...], *, keeps_all: bool) -> None:
        """`keeps_all`: the mirror takes up every table that is published."""
        self._request, self._store, self._source, self._chosen = request, store, source, chosen
        self._keeps_all = keeps_all
        self._published: frozenset[str] = frozenset()

    async def run(self) -> Result:
        """Compare once no copy is being made, or at the timeout, when a missing table is a difference."""
        request = self._request
        deadline, told = trio.current_time() + request.timeout_s, ""
        while True:
            left_s = deadline - trio.current_time()
            records = await load_tables(self._store)
            await self._source.look()
            self._published = frozenset(self._source.tables)
            missing = [] if left_s <= 0 else self._being_copied(records)  # a mirror without a live table cannot answer
            if not missing and all(record.state != LIVE for record in records.values()):
                raise _nothing_to_compare(records, request.timeout_s)
            found = missing or await self._compare_held(is_last=left_s <= 0)
            if not isinstance(found, list):
                return found
            reasons = [f"{token} ({_reason(records, token)})" if _reason(records, token) else token for token in found]
            if ", ".join(reasons) != told:
                told = ", ".join(reasons)
                request.tell(f"waiting until a copy is made of {told}; {left_s:.0f} s at most")
            await trio.sleep(COPY_LOOK_EVERY_S)

    def _compared(self, records: Mapping[str, TableRecord]) -> tuple[str, ...]:
        if self._chosen:
            return self._chosen
        return tuple(sorted(records.keys() | self._published) if self._keeps_all else records)

    def _being_copied(self, records: Mapping[str, TableRecord]) -> list[str]:
        """The tables that the mirror is copying, or will copy once it has heard that they are published."""
        states = {token: records[token].state for token in records}
        missing = WAITING if self._keeps_all else REFUSED
        return [
            token for token in self._compared(records)
            if token in self._published and states.get(token, missing) in (WAITING, STALE, UNPUBLISHED)
        ]  # fmt: skip

    async def _compare_held(self, *, is_last: bool) -> Result | list[str]:
        """Compare at one LSN. Unless `is_last`, return the tables that are being copied, without keeping the mirror still."""
        request, source = self._request, self._source
        postgres, at_most = request.config.postgres, f"{request.timeout_s:g} s at most"
        hold = HoldRow(self._store, request.to, request.timeout_s, request.tell)
        async with hold.present():
            async with self._told_when_long(f"waiting for the mirror to answer; {hold.answer_within_s:g} s at most"):
                await hold.wait_held()
            records = await hold.tables()
            if not is_last and (missing := self._being_copied(records)):
                return missing
            async with self._told_when_long(f"waiting for a snapshot of the source, which {source.delayed_by}; {at_most}"):
                lsn = await source.take_snapshot(self._compared(records), request.timeout_s)
            await hold.set_lsn(lsn)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write_to_wal, postgres)
                async with self._told_when_long(f"waiting for the mirror to come to LSN {format_lsn(lsn)}; {at_most}"):
                    await hold.wait_reached(request.timeout_s)
                nursery.cancel_scope.cancel()
            records = await hold.tables()
            if not is_last and (missing := self._being_copied(records)):
                return missing
            reader = await open_store(request.to, create=False)  # the row's own connection shows signs of life
            try:
                reports = [await _compare(t, source, reader, records.get(t), request.keys_max) for t in self._compared(records)]
            finally:
                await reader.close()
            await hold.store_verdicts(reports)
        left_out = [] if self._chosen or self._keeps_all else sorted(self._published - records.keys())
        return Result(lsn, reports, left_out)

    @asynccontextmanager
    async def _told_when_long(self, words: str) -> AsyncGenerator[None]:
        """Tell the user what is waited for if the body takes long."""

        async def tell() -> None:
            await trio.sleep(TELL_AFTER_S)
            self._request.tell(words)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell)
            yield
            nursery.cancel_scope.cancel()


def _reason(records: Mapping[str, TableRecord], token: str) -> str:
    return records[token].reason if token in records else "published, but not yet in the replica"


def _nothing_to_compare(records: dict[str, TableRecord], waited_s: float) -> VerifyFailed:
    """The error, with the reasons, when no table is live, so that no mirror could ever answer."""
    refused = [record for record in records.values() if record.state == REFUSED]
    said = "; ".join(f"{record.token}: {record.reason}" for record in records.values() if record.reason)
    if records and all(record.state == UNPUBLISHED for record in records.values()):
        return VerifyFailed(
            "WB512", f"no table of the replica is published any more: {', '.join(records)}", said=said,
            means="the replica has their last rows, which nothing can be compared with",
            fix="publish them again: ALTER PUBLICATION ... ADD TABLE ...",
        )  # fmt: skip
    if refused:
        return VerifyFailed(
            "WB512", f"the mirror could not make its first copy of {', '.join(record.token for record in refused)}", said=said,
            means="no table of the replica can be compared",
            fix="fix the cause, start walbridge mirror again with the same --to, then run verify again",
        )  # fmt: skip
    return VerifyFailed(
        "WB512", f"no table of the replica had its copy within {waited_s:g} s: {', '.join(records)}", said=said,
        means="no table of the replica can be compared",
        fix=("fix the cause; the mirror tries again every half minute" if said else
             "check that both run: walbridge run, which takes the snapshots, and walbridge mirror with the same --to"),
    )  # fmt: skip


def _why_not_live(record: TableRecord | None) -> str:
    if record is None:
        return "published, but not in the replica"
    words = {
        REFUSED: "it could not be copied", WAITING: "no copy of it yet", STALE: "it must be copied again",
        UNPUBLISHED: f"the mirror has not heard yet that it is published again ({NOT_PUBLISHED})",
    }[record.state]  # fmt: skip
    return f"{words}: {record.reason}" if record.reason else words


async def _compare(token: str, source: Source, replica: Store, record: TableRecord | None, keys_max: int) -> TableReport:
    """Compare one table by hashes, and where they differ row by row."""
    report = TableReport(token)
    table = source.tables.get(token)
    if table is None:
        report.problem = f"no longer in the publication ({NOT_PUBLISHED})" if record else "not in the publication"
    elif record is None or record.state != LIVE:
        report.problem = _why_not_live(record)
    if report.problem or table is None or record is None:
        return report
    relation, canonical, pk = await source.describe(table)
    columns = [column.name for column in relation.columns]
    held = [column.name for column in record.told_columns]
    if sorted(columns) != sorted(held):
        report.problem = f"columns differ: {', '.join(columns)} in the source, {', '.join(held)} in the replica"
        report.mismatched_keys = 1
        return report
    key = [i for i, name in enumerate(columns) if name in pk] or list(range(len(columns)))
    sides = Side(canonical, key), Side(canonical, key)
    select = f"SELECT {', '.join(map(quoted, columns))} FROM {replica.dialect.table(record.local)}"
    async for block in source.blocks(table, columns):
        sides[0].add(block)
        await trio.lowlevel.checkpoint()
    async for block in replica.rows(select):  # the mirror holds still, so one state is read without a transaction
        sides[1].add(block)
    report.source_rows, report.replica_rows = sides[0].rows, sides[1].rows
    report.source_hash, report.replica_hash = sides[0].hash(), sides[1].hash()
    if not report.is_equal:
        differing = differing_buckets(*sides)
        buckets = frozenset(differing[: max(LOOKED_AT_MAX, keys_max)])
        picked: tuple[Rows, Rows] = ({}, {})
        async for block in source.blocks(table, columns):
            sides[0].pick(block, buckets, picked[0])
        async for block in replica.rows(select):
            sides[1].pick(block, buckets, picked[1])
        types = [column.type_oid for column in relation.columns]
        report.keys, found = differences(*picked, columns, types, key, keys_max)
        report.all_counted = len(buckets) == len(differing)
        report.mismatched_keys = max(1, found + len(differing) - len(buckets))
    return report
