"""Makes the rows of a replica right that differ from the source, and no others (`verify --repair`).

The mirror holds still while the bridge is asked for the rows by their keys. It then continues up to the LSN of the answer, at
which replica and answer are of one state: rows of these keys are replaced by those of the answer, and the mirror goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import trio

from actors.clients.nats.connection import open_nats
from actors.clients.nats.jetstream import JetStream
from actors.contract.bridge_record import BridgeRecord
from actors.contract.records import RangesChunk, RangesStart
from actors.contract.rules import Identity
from actors.contract.subjects import BRIDGES
from actors.mirror.gathered import SnapshotRefused
from actors.mirror.named_rows import KEYS_MAX, ask_by_key, request_body
from actors.mirror.source_stream import SourceStream
from actors.mirror.state import LIVE, TableRecord, load_tables
from actors.mirror.stores.dialect import Params, Statement
from actors.mirror.stores.lenient_statements import joined
from actors.mirror.stores.open import open_store
from actors.mirror.stores.row_statements import RowStatements
from actors.mirror.stores.shapes import TableShape
from actors.mirror.stores.store import Store
from actors.positions import Lsn
from actors.telemetry.quantities import counted
from actors.values.canonical import Canonical
from actors.verification.comparison import TableReport
from actors.verification.hold_row import HoldRow, VerifyFailed
from actors.verification.proof import Request, Result, verify
from actors.verification.source import open_source, write_to_wal
from actors.wire.sql_names import quoted

KEYS_A_PASS = 256
"""Differing keys that one comparison lists: of all rows that may differ, so many parts are held in memory."""
PASSES_MAX = 20
ATTEMPTS_MAX = 3
"""How often rows are asked for whose answer is from before what the mirror has applied."""


@dataclass(slots=True)
class Repaired:
    """What was done, and what could not be."""

    rows: dict[str, int] = field(default_factory=dict)
    """Table token -> keys whose rows were made right."""
    refused: dict[str, str] = field(default_factory=dict)
    """Table token -> why its rows cannot be made right one by one."""


async def verify_and_repair(request: Request) -> tuple[Result, Repaired]:
    """Compare, make right what differs, and compare again until nothing does or nothing more can be done.

    Raises what `verify` raises.
    """
    done = Repaired()
    for _ in range(PASSES_MAX):
        result = await verify(replace(request, keys_max=max(request.keys_max, KEYS_A_PASS)))
        todo = [report for report in result.reports if not report.is_equal and report.table not in done.refused]
        before = sum(done.rows.values())
        for report in todo:
            await _repair(request, report, done)
        if sum(done.rows.values()) == before:
            break
        request.tell(f"made right so far: {counted(sum(done.rows.values()), 'row')}; comparing again")
    for report in result.reports:
        del report.keys[request.keys_max :]
    return result, done


async def _repair(request: Request, report: TableReport, done: Repaired) -> None:
    token = report.table
    if report.problem or not report.keys:
        done.refused[token] = report.problem or "its rows cannot be told apart"
        return
    store = await open_store(request.to, create=False)
    try:
        record = (await load_tables(store)).get(token)
        if record is None or record.state != LIVE or not record.keyed or not any(c.pk for c in record.told_columns):
            done.refused[token] = "it has no primary key by which the bridge could be asked for rows"
            return
        keys: list[dict[str, Any]] = [one["key"] for one in report.keys]  # type: ignore[misc]
        for first in range(0, len(keys), KEYS_MAX):
            some = keys[first : first + KEYS_MAX]
            for attempt in range(1, ATTEMPTS_MAX + 1):
                try:
                    await _Repair(request, store, record).run(some)
                    break
                except VerifyFailed as exc:
                    if exc.code != "WB513" or attempt == ATTEMPTS_MAX:  # the answer was from before what is applied
                        raise
            done.rows[token] = done.rows.get(token, 0) + len(some)
    except SnapshotRefused as exc:
        done.refused[token] = str(exc)
    finally:
        await store.close()


class _Repair:
    """One request's rows of one table."""

    def __init__(self, request: Request, store: Store, record: TableRecord) -> None:
        self._request, self._store, self._record = request, store, record

    async def run(self, keys: Sequence[Mapping[str, Any]]) -> None:
        """Make the rows of these keys right. Raises SnapshotRefused, VerifyFailed and what stores and servers raise."""
        try:
            await self._run(keys)
        except BaseExceptionGroup as group:
            only: BaseException = group
            while isinstance(only, BaseExceptionGroup) and len(only.exceptions) == 1:
                only = only.exceptions[0]
            raise only from None

    async def _run(self, keys: Sequence[Mapping[str, Any]]) -> None:
        request, record = self._request, self._record
        hold = HoldRow(self._store, request.to, request.timeout_s, request.tell)
        async with hold.present():
            await hold.wait_held()
            answer = await self._ask(keys)
            await hold.set_lsn(Lsn(answer.chunks[-1].snapshot_lsn))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write_to_wal, request.config.postgres)
                await hold.wait_reached(request.timeout_s)
                nursery.cancel_scope.cancel()
            now = (await hold.tables()).get(record.token)
            if now is None or now.state != LIVE or now.columns != record.columns:
                raise SnapshotRefused("the mirror copies it again meanwhile")
            writer = await open_store(request.to, create=False)  # the row's own connection shows signs of life
            try:
                await self._write(writer, keys, answer)
            finally:
                await writer.close()

    async def _ask(self, keys: Sequence[Mapping[str, Any]]) -> _Answer:
        request, record = self._request, self._record
        columns = {column.name for column in record.told_columns}
        pk = {column.name for column in record.told_columns if column.pk}
        order: list[str] = []

        def check(start: RangesStart) -> None:
            if {column.name for column in start.columns} != columns or set(start.key) != pk:
                raise SnapshotRefused("its events name rows by another key than its primary key, or its columns changed")
            order[:] = start.key

        async def ask(named: Sequence[Sequence[Any]]) -> list[RangesChunk]:
            with trio.move_on_after(request.timeout_s):
                chunks = await ask_by_key(
                    source, record.token, request_body(named),
                    check=check, since_seq=0, too_old=trio.lowlevel.checkpoint, look=_nothing,
                )  # fmt: skip
                if chunks is None:
                    raise SnapshotRefused("one of its rows is too large for a message")
                return chunks
            raise SnapshotRefused(f"the bridge has not answered within {request.timeout_s:g} s")

        async with open_nats(request.config.nats, set()) as connection:
            js, stream = JetStream(connection), request.config.publish.stream
            entry = await js.kv_get(BRIDGES, stream)
            publication = "" if entry is None else BridgeRecord.decode(entry.data, stream).publication
            source = SourceStream(js, stream)
            if len(pk) > 1:
                await ask(())  # only the bridge knows the order of the key's columns
            else:
                order[:] = pk
            return _Answer(tuple(order), await ask([[key[name] for name in order] for key in keys]), publication)
        raise AssertionError("the body returns or raises")

    async def _write(self, writer: Store, keys: Sequence[Mapping[str, Any]], answer: _Answer) -> None:
        """Replace the rows, in one local transaction."""
        record, dialect, order = self._record, writer.dialect, answer.key
        columns = record.told_columns
        shape = TableShape(
            record.token, record.source_schema, record.source_table, record.local, columns, await writer.local_types(columns),
            record.relation_id,
        )  # fmt: skip
        statements = RowStatements(dialect, shape)
        wanted = {tuple(key[name] for name in order) for key in keys}
        local, listed = dialect.table(record.local), ", ".join(map(quoted, order))
        canonical = await self._canonical(answer)
        held: list[Sequence[Any]] = []
        async for block in writer.rows(f"SELECT {listed} FROM {local}"):
            held += [
                row for row in block
                if tuple(None if v is None else c(v) for c, v in zip(canonical, row, strict=True)) in wanted
            ]  # fmt: skip
        rows = [row for chunk in answer.chunks for row in chunk.rows]
        made: list[Statement] = []
        if held:
            where = " AND ".join(f"{quoted(name)} = {dialect.parameter(i)}" for i, name in enumerate(order, 1))
            made.append(Statement(f"DELETE FROM {local} WHERE {where}", held, token=record.token))
        # a row may have come since the comparison
        made += [_statement(*statements.delete(Identity(shape.pk, row, False)), record.token) for row in rows]
        made += [_statement(*statements.insert(row), record.token) for row in rows]
        await writer.run(joined(made), commit=True)

    async def _canonical(self, answer: _Answer) -> list[Canonical]:
        """What makes values of the key's columns comparable."""
        async with open_source(self._request.config.postgres, answer.publication) as source:
            await source.look()
            table = source.tables.get(self._record.token)
            if table is None:
                raise SnapshotRefused("it is no longer in the publication")
            relation, canonical, _ = await source.describe(table)
        found = {column.name: one for column, one in zip(relation.columns, canonical, strict=True)}
        return [found[name] for name in answer.key]


@dataclass(frozen=True, slots=True)
class _Answer:
    key: tuple[str, ...]
    """The key's columns, in the order of requests."""
    chunks: list[RangesChunk]
    publication: str


def _statement(sql: str, params: Params, token: str) -> Statement:
    return Statement(sql, [params], token=token)


def _nothing() -> None:
    """Nobody gives up before the timeout."""
