"""`walbridge verify`: a replica equals its source at one LSN, or what differs.

The running mirror stands still (see actors/mirror/holding.py) where the source's exported snapshot is: everything that
committed below the snapshot's LSN is applied, and nothing else. Both sides are then read at leisure.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import orjson
import trio
from cyclopts.validators import Number

from actors.clients.nats.connection import open_nats
from actors.clients.nats.jetstream import JetStream
from actors.clients.postgres.catalog import (
    PublishedTable,
    describe_columns,
    describe_relation,
    published_relation,
    published_tables,
)
from actors.clients.postgres.connection import PgConnection
from actors.clients.postgres.slots import export_snapshot
from actors.commands.comparison import LOOKED_AT_MAX, Rows, Side, TableReport, differences, differing_buckets
from actors.commands.mirror import names_of, secrets_of
from actors.contract.bridge_record import BridgeRecord
from actors.contract.subjects import BRIDGES
from actors.contract.table_schema import matching_catalog
from actors.contract.table_token import table_token
from actors.errors import ConfigError, Fatal, WalbridgeError
from actors.mirror.run import choose_tables
from actors.mirror.state import LIVE, REFUSED, STALE, WAITING, TableRecord, load_tables, verified
from actors.mirror.stores.dialect import Statement
from actors.mirror.stores.open import open_store
from actors.mirror.stores.store import ReplicaUnavailable, Store
from actors.positions import Lsn, format_lsn
from actors.process import most_telling
from actors.settings.config import Config, PostgresConfig
from actors.settings.flags import EnvFile, Flags, option, takes_settings
from actors.settings.resolve import resolve
from actors.settings.setting import OTHER, REPLICA
from actors.telemetry.log import set_up_logging
from actors.values.canonical import Canonical, canonical_for
from actors.wire.pgoutput import Relation
from actors.wire.sql_names import quoted

HELD_WITHIN_S = 20.0
SAY_AFTER_S = 1.0
"""Who waits longer is told for what."""
LOOK_EVERY_S = 0.1
COPY_LOOK_EVERY_S = 1.0
ENDING_S = 10.0
ALIVE_EVERY_S = 2.0
BLOCK_ROWS = 1_000


class VerifyFailed(Fatal):
    """It could not be compared."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for."""

    config: Config
    to: str
    tables: tuple[str, ...]
    keys_max: int
    timeout_s: float


@takes_settings("nats_context", stream="the bridge's stream")
def verify(
    flags: Flags,
    *,
    to: Annotated[str, option(REPLICA, "the replica, as given to mirror, which must be running")],
    tables: Annotated[str, option(REPLICA, "tables, separated by commas [all of the replica]")] = "",
    limit: Annotated[int, option(REPLICA, "keys to show of rows that differ [20]", validator=Number(gte=0))] = 20,
    timeout: Annotated[
        int, option(REPLICA, "seconds until the mirror must have reached the LSN [120]", validator=Number(gte=1))
    ] = 120,
    json: Annotated[bool, option(OTHER, "the report as JSON")] = False,
    env_file: EnvFile = None,
) -> int:
    """Prove that a replica equals its source at one LSN."""
    return run_verify(to, tables, flags, env_file, keys_max=limit, timeout_s=float(timeout), as_json=json)


def run_verify(
    to: str, tables: str, flags: Mapping[str, object], env_file: Path | None, *, keys_max: int, timeout_s: float, as_json: bool
) -> int:
    """Compare, print the report, return the exit code. Raises Fatal when it cannot be compared."""
    config = resolve(flags, os.environ, env_file)
    set_up_logging("WARNING", config.log.format, config.secrets + secrets_of(to))
    request = Request(config, to, names_of(tables), keys_max, timeout_s)
    try:
        lsn, reports = trio.run(_verify, request)
    except BaseExceptionGroup as group:
        leaf = most_telling(group)
        if not isinstance(leaf, WalbridgeError) or isinstance(leaf, Fatal):
            raise leaf from group
        raise VerifyFailed(leaf.code, leaf.what, said=leaf.said, means=leaf.means, fix=leaf.fix) from group
    except WalbridgeError as exc:
        if isinstance(exc, Fatal):
            raise
        raise VerifyFailed(exc.code, exc.what, said=exc.said, means=exc.means, fix=exc.fix) from exc
    equal = bool(reports) and all(report.is_equal for report in reports)
    if as_json:
        body = {"equal": equal, "lsn": format_lsn(lsn), "tables": [asdict(r) | {"equal": r.is_equal} for r in reports]}
        print(orjson.dumps(body).decode())
    else:
        show(lsn, reports)
    return 0 if equal else 1


def show(lsn: Lsn, reports: Sequence[TableReport]) -> None:
    """A line a table, and a line a row that differs."""
    print(f"compared at LSN {format_lsn(lsn)}")
    width = max(len(report.table) for report in reports)
    for report in reports:
        if report.problem:
            print(f"{report.table:<{width}}  not compared: {report.problem}")
            continue
        verdict = "equal" if report.is_equal else "DIFFERENT"
        counts = f"{report.source_rows:>12,} {'row ' if report.source_rows == 1 else 'rows'}" + (
            "" if report.is_equal else f" in the source, {report.replica_rows:,} in the replica"
        )
        print(f"{report.table:<{width}} {counts}   {verdict}")
        for one in report.keys:
            print(f"  {one['row']}: {one['difference']}")
        if more := report.mismatched_keys - len(report.keys):
            print(f"  ... and {'' if report.all_counted else 'at least '}{more:,} more (--limit shows more)")
    different = [report.table for report in reports if not report.is_equal and not report.problem]
    if different:
        print(f"fix: start the mirror once with --again {','.join(different)}; nobody else may write to a replica")


async def _verify(request: Request) -> tuple[Lsn, list[TableReport]]:
    store = await open_store(request.to, create=False)
    try:
        async with open_nats(request.config.nats, set()) as connection:
            js, stream = JetStream(connection), request.config.publish.stream
            entry = await js.kv_get(BRIDGES, stream)
        if entry is None:
            raise ConfigError("WB510", f"no bridge has written stream {stream}", fix="give its name with --stream")
        record = BridgeRecord.decode(entry.data, stream)
        tables = await load_tables(store)
        chosen = choose_tables(request.tables, record) if request.tables else tuple(tables)
        if not chosen:
            raise ConfigError("WB511", "the replica has no tables", fix="walbridge mirror --to ... makes them")
        return await _compare_with_patience(request, store, record.publication, chosen)
    finally:
        await store.close()


async def _compare_with_patience(
    request: Request, store: Store, publication: str, chosen: tuple[str, ...]
) -> tuple[Lsn, list[TableReport]]:
    """Wait for copies that are being made, up to the request's timeout; those that are not there then are differences."""
    deadline, told = trio.current_time() + request.timeout_s, ""
    while True:
        left_s = deadline - trio.current_time()
        records = await load_tables(store)
        missing = [] if left_s <= 0 else _missing(records, chosen)  # a mirror without a table cannot answer
        if not missing and all(record.state != LIVE for record in records.values()):
            raise _nothing_to_compare(records, request.timeout_s)
        found = missing or await _compare_held(request, store, publication, chosen, is_last=left_s <= 0)
        if not isinstance(found, list):
            return found
        reasons = [f"{token} ({reason})" if (reason := records[token].reason) else token for token in found]
        if ", ".join(reasons) != told:
            told = ", ".join(reasons)
            _say(f"waiting until a copy is made of {told}; {left_s:.0f} s at most")
        await trio.sleep(COPY_LOOK_EVERY_S)


def _nothing_to_compare(records: dict[str, TableRecord], waited_s: float) -> VerifyFailed:
    """No table is live, so that no mirror could ever answer: why."""
    refused = [record for record in records.values() if record.state == REFUSED]
    said = "; ".join(f"{record.token}: {record.reason}" for record in records.values() if record.reason)
    if refused:
        return VerifyFailed(
            "WB512", f"the mirror could not make its first copy of {', '.join(record.token for record in refused)}", said=said,
            means="no table of the replica can be compared",
            fix="mend what it says, start walbridge mirror again with the same --to, then run verify again",
        )  # fmt: skip
    return VerifyFailed(
        "WB512", f"no table of the replica had its copy within {waited_s:g} s: {', '.join(records)}", said=said,
        means="no table of the replica can be compared",
        fix=("mend what it says; the mirror tries again every half minute" if said else
             "see that both run: walbridge run, which makes the snapshots, and walbridge mirror with the same --to"),
    )  # fmt: skip


def _say(words: str) -> None:
    print(f"walbridge verify: {words}", file=sys.stderr, flush=True)


@asynccontextmanager
async def _said_when_long(words: str) -> AsyncGenerator[None]:
    """Say what is waited for, if the body takes longer than a second."""

    async def say() -> None:
        await trio.sleep(SAY_AFTER_S)
        _say(words)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(say)
        yield
        nursery.cancel_scope.cancel()


async def _compare_held(
    request: Request, store: Store, publication: str, chosen: tuple[str, ...], *, is_last: bool
) -> tuple[Lsn, list[TableReport]] | list[str]:
    """Compare at one LSN; or, unless `is_last`, the tables of which a copy is being made: not while the mirror stays for us."""
    hold = HoldRow(store, request.to)
    async with hold.left(), _open_source(request.config.postgres, publication, chosen) as source:
        async with _said_when_long(f"waiting for the mirror to answer; {HELD_WITHIN_S:g} s at most"):
            await hold.wait("held", HELD_WITHIN_S)
        if not is_last and (missing := _missing(await hold.tables(), chosen)):
            return missing
        at_most = f"{request.timeout_s:g} s at most"
        async with _said_when_long(f"waiting for a snapshot of the source, which open transactions hold up; {at_most}"):
            lsn = await source.take_snapshot(request.timeout_s)
        await hold.set_lsn(lsn)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_nudge, request.config.postgres)
            async with _said_when_long(f"waiting for the mirror to come to LSN {format_lsn(lsn)}; {at_most}"):
                await hold.wait("reached", request.timeout_s)
            nursery.cancel_scope.cancel()
        records = await hold.tables()
        if not is_last and (missing := _missing(records, chosen)):
            return missing
        reader = await open_store(request.to, create=False)  # the other connection shows that we live
        try:
            reports = [await _compare(token, source, reader, records.get(token), request.keys_max) for token in chosen]
        finally:
            await reader.close()
        await hold.leave_reports(reports)
    return lsn, reports


def _missing(records: dict[str, TableRecord], chosen: tuple[str, ...]) -> list[str]:
    return [token for token in chosen if token in records and records[token].state in (WAITING, STALE)]


async def _nudge(config: PostgresConfig) -> None:
    """Write to the WAL, so that the bridge soon reads past the LSN."""
    connection = await PgConnection.connect(config, application_name="walbridge verify")
    try:
        while True:
            await connection.query("SELECT pg_logical_emit_message(false, 'walbridge', 'verify')")
            await trio.sleep(1)
    finally:
        connection.close()


class HoldRow:
    """Our row in the replica. Its connection is shared with a task that shows that we live."""

    def __init__(self, store: Store, url: str) -> None:
        self._store, self._url, self._id = store, url, secrets.token_hex(8)
        self._own = store.dialect.own("verify")
        self._lock = trio.Lock()
        self._alive = 0

    @asynccontextmanager
    async def left(self) -> AsyncGenerator[None]:
        """Leave it for as long as the body runs."""
        mark = self._store.dialect.parameter
        row = (self._id, "asked", 0, 0)
        await self._run(
            f"INSERT INTO {self._own} (id, state, lsn, alive) VALUES ({mark(1)}, {mark(2)}, {mark(3)}, {mark(4)})", row
        )
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._show_life)
                yield
                nursery.cancel_scope.cancel()
        finally:
            with trio.move_on_after(ENDING_S) as ending:
                ending.shield = True
                try:
                    await self._take_back()
                except WalbridgeError as exc:
                    _say(f"the mirror goes on in half a minute: {exc}")

    async def _take_back(self) -> None:
        statement = f"DELETE FROM {self._own} WHERE id = {self._store.dialect.parameter(1)}", (self._id,)
        try:
            await self._run(*statement)
        except ReplicaUnavailable:  # cut off amid a statement, the connection has ended; the row would stay
            self._store = await open_store(self._url, create=False)
            try:
                await self._run(*statement)
            finally:
                await self._store.close()

    async def _show_life(self) -> None:
        mark = self._store.dialect.parameter
        while True:
            await trio.sleep(ALIVE_EVERY_S)
            self._alive += 1
            await self._run(f"UPDATE {self._own} SET alive = {mark(1)} WHERE id = {mark(2)}", (self._alive, self._id))

    async def set_lsn(self, lsn: Lsn) -> None:
        """The place to come to."""
        mark = self._store.dialect.parameter
        await self._run(f"UPDATE {self._own} SET lsn = {mark(1)} WHERE id = {mark(2)}", (int(lsn), self._id))

    async def wait(self, state: str, within_s: float) -> None:
        """Until the mirror says so. Raises VerifyFailed."""
        mark = self._store.dialect.parameter
        with trio.move_on_after(within_s):
            while True:
                async with self._lock:
                    rows = await self._store.query(f"SELECT state FROM {self._own} WHERE id = {mark(1)}", (self._id,))
                found = rows[0][0] if rows else "gone"
                if found == state:
                    return
                if found in ("missed", "gone"):
                    raise VerifyFailed("WB513", "the mirror was beyond the LSN already", fix="run verify again")
                await trio.sleep(LOOK_EVERY_S)
        if state == "held":
            raise VerifyFailed(
                "WB512", f"no mirror of this replica has answered within {within_s:g} s",
                means="only a running mirror can bring the replica to one LSN",
                fix="start walbridge mirror with the same --to, then run verify again",
            )  # fmt: skip
        raise VerifyFailed(
            "WB514", f"the mirror has not come to the LSN within {within_s:g} s",
            means="it, or the bridge, is behind or not running", fix="walbridge health; or a longer --timeout",
        )  # fmt: skip

    async def leave_reports(self, reports: Sequence[TableReport]) -> None:
        """For the mirror's metrics. A table that could not be compared stays as it was found before."""
        now = int(time.time())
        for report in reports:
            if report.is_equal or report.mismatched_keys:
                statement = verified(self._store.dialect, report.table, now, report.mismatched_keys)
                await self._run(statement.sql, statement.params[0])

    async def tables(self) -> dict[str, TableRecord]:
        async with self._lock:
            return await load_tables(self._store)

    async def _run(self, sql: str, params: Sequence[Any]) -> None:
        async with self._lock:
            try:
                await self._store.run([Statement(sql, [params])], commit=True)
            except ReplicaUnavailable:
                await self._store.rollback()
                raise


class _Source:
    """The source's tables in one transaction that sees them as of one LSN."""

    def __init__(self, config: PostgresConfig, connection: PgConnection, tables: dict[str, PublishedTable]) -> None:
        self._config, self._connection = config, connection
        self.tables = tables

    async def take_snapshot(self, timeout_s: float) -> Lsn:
        """Lock the tables against changes of their shape and import the snapshot of a temporary slot."""
        names = ", ".join(table.own for table in self.tables.values())
        await self._connection.query(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL row_security = off; SET LOCAL lock_timeout = '30s'"
            + (f"; LOCK TABLE {names} IN ACCESS SHARE MODE" if names else "")
        )
        replication = await PgConnection.connect(self._config, replication=True, application_name="walbridge verify")
        try:
            lsn, snapshot = await export_snapshot(replication, f"snap_{secrets.token_hex(6)}", timeout_s=timeout_s)
            await self._connection.query(f"SET TRANSACTION SNAPSHOT '{snapshot}'")
        finally:
            replication.close()
        return lsn

    async def describe(self, table: PublishedTable) -> tuple[Relation, list[Canonical], frozenset[str]]:
        """A table's columns, what makes their values comparable, and the primary key."""
        connection = self._connection
        relation = published_relation(table, await describe_columns(connection, table.relation_oid))
        description = await describe_relation(connection, relation)
        catalog = matching_catalog(relation, description.catalog) or {}
        pk = frozenset(name for name, column in catalog.items() if column.is_pk)
        return relation, [canonical_for(column.type_oid, description.types) for column in relation.columns], pk

    async def blocks(self, table: PublishedTable, columns: Sequence[str]) -> AsyncGenerator[list[tuple[Any, ...]]]:
        """All rows, some at a time, every value as PostgreSQL's text."""
        names = ", ".join(map(quoted, columns))
        async for result in self._connection.blocks(f"SELECT {names} FROM {table.own}{table.where}", BLOCK_ROWS):
            yield [
                tuple(
                    None if (value := result.get_value(row, i)) is None else value.decode("utf-8", "surrogateescape")
                    for i in range(result.nfields)
                )
                for row in range(result.ntuples)
            ]


@asynccontextmanager
async def _open_source(config: PostgresConfig, publication: str, chosen: tuple[str, ...]) -> AsyncGenerator[_Source]:
    connection = await PgConnection.connect(config, application_name="walbridge verify")
    try:
        published = {table_token(t.schema, t.name): t for t in await published_tables(connection, publication)}
        yield _Source(config, connection, {token: published[token] for token in chosen if token in published})
    finally:
        connection.close()


def _not_live(record: TableRecord | None) -> str:
    if record is None:
        return "not mirrored"
    words = {REFUSED: "it could not be copied", WAITING: "no copy of it yet", STALE: "it must be copied anew"}[record.state]
    return f"{words}: {record.reason}" if record.reason else words


async def _compare(token: str, source: _Source, replica: Store, record: TableRecord | None, keys_max: int) -> TableReport:
    report = TableReport(token)
    table = source.tables.get(token)
    if table is None:
        report.problem = "not in the publication any more"
    elif record is None or record.state != LIVE:
        report.problem = _not_live(record)
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
    async for block in replica.rows(select):  # the mirror stands still: no transaction is needed to see one state
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
