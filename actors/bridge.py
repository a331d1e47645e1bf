"""The bridge: what lives as long as the process, and the supervisor that runs the pipeline again after a passing fault."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import trio

from actors.batcher import suspension_problem
from actors.clients.nats.connection import SinkRefused, open_nats
from actors.clients.nats.dictionaries import publish_dictionaries, read_dictionaries
from actors.clients.nats.jetstream import JetStream
from actors.clients.postgres.connection import PgConnection, SourceRefused
from actors.clients.postgres.replication import open_replication_stream
from actors.contract.compression import Compressor
from actors.contract.event_encoder import event_encoder
from actors.contract.subjects import request
from actors.contract.table_token import table_token
from actors.errors import ConfigError, SinkFenced, SinkUnavailable, SourceUnavailable, Transient
from actors.feedback import Feedback
from actors.http_server import serve_http
from actors.pipeline import run_pipeline
from actors.positions import format_lsn
from actors.process import causes, freeze_loaded_objects, most_telling, stop_on_signal
from actors.schema_publisher import SchemaPublisher
from actors.settings.config import Config
from actors.snapshots.transaction_log import TransactionLog
from actors.startup.postgres_preflight import check_postgres
from actors.startup.start_plan import StartPlan, find_start
from actors.startup.streams import prepare_streams
from actors.status_reporter import LiveStream
from actors.stream_monitor import watch_stream
from actors.telemetry.log import get_logger, print_metrics_line
from actors.telemetry.telemetry import Problem, Telemetry
from actors.wal_monitor import watch_slot
from actors.wire.nats import encode_pub

log = get_logger("bridge")

METRICS_EVERY_S = 15.0


Beside = Callable[[Config], Awaitable[None]]


def run(config: Config, beside: Beside | None = None) -> int:
    """Run the bridge until it is told to stop; returns the exit code. Raises Fatal with what to do.

    `beside` runs as long as the bridge does, and ends with it.
    """
    freeze_loaded_objects()
    return trio.run(_run, config, beside)


async def _run(config: Config, beside: Beside | None) -> int:
    telemetry, stop = Telemetry(), trio.Event()
    supervisor = Supervisor(config, telemetry, stop)
    try:
        async with trio.open_nursery() as outer:  # lives through the drain: health still answers
            await outer.start(stop_on_signal, stop, outer.cancel_scope)
            serve = partial(
                serve_http, config, telemetry,
                stop=stop, stream_info=supervisor.stream_info, request_snapshot=supervisor.request_snapshot,
            )  # fmt: skip
            await outer.start(serve)
            outer.start_soon(_log_metrics, telemetry)
            if config.heartbeat_url:
                from actors.heartbeat import beat  # noqa: PLC0415  (an HTTP client, for those who want it)

                outer.start_soon(beat, config.heartbeat_url, telemetry)
            if beside is not None:
                outer.start_soon(beside, config)
            outer.start_soon(watch_slot, supervisor.postgres, config.source.slot, telemetry)
            outer.start_soon(
                watch_stream, supervisor.stream_info, supervisor.stream_consumers, config.publish.stream, telemetry
            )
            code = await supervisor.run()
            log.info(
                "stopped" if code == 0 else "stopped without draining",
                events=telemetry.events_published, transactions=telemetry.transactions,
                confirmed_lsn=format_lsn(telemetry.confirmed_lsn), stream_seq=telemetry.stored_seq,
                uptime_s=telemetry.uptime_s,
            )  # fmt: skip
            outer.cancel_scope.cancel()
            return code
    except BaseExceptionGroup as group:
        raise most_telling(group) from group
    return 1  # a second signal


class Supervisor:
    """Runs the pipeline, and after a passing fault again from the stream's tail. The only place where anything is retried.

    While NATS is away the replication stream is kept, unread: PostgreSQL hears from us, and no memory fills.
    """

    def __init__(self, config: Config, telemetry: Telemetry, stop: trio.Event) -> None:
        self.postgres = config.postgres
        self._known_servers: set[str] = set()
        self._config, self._telemetry, self._stop = config, telemetry, stop
        self._live: LiveStream | None = None
        self._js: JetStream | None = None
        self._opening: trio.CancelScope | None = None
        self._down_since: float | None = None
        self._preflight: tuple[Problem, ...] = ()
        self._has_streamed = False
        self._transactions = TransactionLog()

    async def run(self) -> int:
        """Until stopped or a Fatal error; 0 when drained, 1 when it was stopped while it could not stream."""
        async with trio.open_nursery() as statuses:
            statuses.start_soon(self._interrupt_opening)
            try:
                while True:
                    fault = await self._run_once(statuses)
                    if fault is None:
                        return 0
                    if await self._stopped_while_waiting(fault):
                        log.warning("stopped while waiting; nothing is lost, the slot keeps it", waiting_for=str(fault))
                        return 1
            finally:
                with trio.move_on_after(2) as closing:
                    closing.shield = True
                    await self._close_stream()
                statuses.cancel_scope.cancel()

    async def stream_info(self, name: str) -> dict[str, Any] | None:
        """JetStream's words on a stream, None when there is none. Raises SinkUnavailable while NATS is away."""
        if self._js is None:
            raise SinkUnavailable("WB200", "not connected to NATS")
        return await self._js.stream_info(name)

    async def stream_consumers(self, name: str) -> list[dict[str, Any]]:
        """The stream's consumers. Raises SinkUnavailable while NATS is away, SinkRefused when they may not be listed."""
        if self._js is None:
            raise SinkUnavailable("WB200", "not connected to NATS")
        return await self._js.consumers(name)

    async def request_snapshot(self, token: str) -> None:
        """Ask for a table, as anybody may. Raises SinkUnavailable while NATS is away."""
        if self._js is None:
            raise SinkUnavailable("WB200", "not connected to NATS")
        await self._js.connection.send(encode_pub(request(token).encode(), b"", b""))

    async def _run_once(self, statuses: trio.Nursery) -> Transient | None:
        """One run; None when it was stopped and drained, else the passing fault that ended it."""
        telemetry = self._telemetry
        try:
            with trio.CancelScope() as opening:
                self._opening = opening
                await self._open_and_run(statuses)
        except BaseExceptionGroup as group:
            leaves = causes(group)
            faults = [leaf for leaf in leaves if isinstance(leaf, Transient)]
            if len(faults) < len(leaves):
                raise most_telling(group) from group
            # PostgreSQL's end explains NATS's, not the other way round
            return next((f for f in faults if isinstance(f, SourceUnavailable)), faults[0])
        except Transient as fault:
            return fault
        finally:
            self._js, self._opening, telemetry.nats_connected = None, None, False
        if opening.cancelled_caught:
            return Transient("WB311", "stopped before streaming began")
        return None

    async def _open_and_run(self, statuses: trio.Nursery) -> None:
        config, telemetry = self._config, self._telemetry
        source, publishing = config.source, config.publish
        connection = await PgConnection.connect(self.postgres, application_name="walbridge catalog")
        with closing(connection):
            found = await check_postgres(
                connection, slot=source.slot, publication=source.publication, temporary=source.temporary
            )
            self._take_problems(found)
            async with open_nats(config.nats, self._known_servers) as nats:
                js = JetStream(nats)
                setup = await prepare_streams(
                    js, stream=publishing.stream, mode=publishing.mode, replicas=config.nats.replicas,
                    fmt=config.snapshots.format, zstd=config.snapshots.zstd or config.snapshots.zstd_events,
                )  # fmt: skip
                self._js, telemetry.nats_connected, telemetry.publish_mode = js, True, setup.mode
                await self._close_stream()  # the one that was kept while NATS was away: a slot has one reader
                compressors = await self._compressors(js)
                encoder = event_encoder(
                    publishing.encoding, setup.publish_prefix, compressors if config.snapshots.zstd_events else None
                )
                schemas = SchemaPublisher(connection, js, encoder)
                opening = await find_start(config, self.postgres, connection, js, setup)
                try:
                    await self._publish_schemas(opening, schemas)
                except BaseException:
                    opening.close()
                    raise
                live = self._live = await self._start_stream(opening, statuses)
                await self._take_over(opening)
                self._opening = None
                self._streaming(opening, setup.mode)
                await run_pipeline(
                    config, setup, opening, live, nats, schemas, encoder, compressors, self._transactions, telemetry,
                    stop=self._stop,
                )  # fmt: skip

    async def _compressors(self, js: JetStream) -> dict[str, Compressor]:
        snapshots = self._config.snapshots
        if not (snapshots.zstd or snapshots.zstd_events):
            return {}
        return await publish_dictionaries(js, read_dictionaries(snapshots.dictionaries))

    async def _publish_schemas(self, opening: StartPlan, schemas: SchemaPublisher) -> None:
        start, store = opening.start, opening.store
        current = await schemas.publish_current(opening.tables)
        if not store.record.schemas:
            store.record = replace(store.record, schemas=current, position=start.skip, last_seq=start.last_seq)

    async def _take_over(self, opening: StartPlan) -> None:
        """Tie the stream to this slot and cluster, unless a gap event must be stored first.

        Only who reads the slot writes the record: a bridge that waits for the slot must not disturb the one that has it.
        """
        telemetry = self._telemetry
        for token, suspended in opening.store.record.suspended.items():
            if not suspended.until:
                telemetry.suspended_tables[token] = suspension_problem(token, "a row was too large for the stream")
        if opening.start.gap is None:
            await opening.store.update()
        else:
            telemetry.gaps += 1

    async def _start_stream(self, opening: StartPlan, statuses: trio.Nursery) -> LiveStream:
        source = self._config.source
        stream = await open_replication_stream(
            self.postgres,
            slot=source.slot,
            publication=source.publication,
            start_lsn=opening.start.start_lsn,
            connection=opening.slot_connection,
        )
        live = LiveStream(stream, Feedback(opening.store.record.confirmed_lsn))
        statuses.start_soon(live.run_status)
        self._telemetry.postgres_connected = True
        return live

    async def _close_stream(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            await live.close()
        self._telemetry.postgres_connected = False

    def _streaming(self, opening: StartPlan, mode: str) -> None:
        telemetry = self._telemetry
        telemetry.state, telemetry.not_ready_reason, telemetry.fault = "streaming", "", None
        telemetry.tables = tuple(table_token(table.schema, table.name) for table in opening.tables)
        self._has_streamed = True
        away = ""
        if self._down_since is not None:
            away, self._down_since = f" after {time.monotonic() - self._down_since:.1f} s", None
        log.info(
            f"streaming{away}",
            slot=self._config.source.slot, publication=self._config.source.publication,
            stream=self._config.publish.stream, mode=mode, from_lsn=format_lsn(opening.start.skip.lsn),
            stream_seq=opening.start.last_seq, tables=len(opening.tables),
        )  # fmt: skip

    def _take_problems(self, warnings: Sequence[Problem]) -> None:
        known = self._telemetry.problems
        for problem in warnings:
            if problem.what not in known:
                log.warning(problem.what, code=problem.code, fix=problem.fix)
        gone = {problem.what for problem in self._preflight} - {problem.what for problem in warnings}
        for what in gone:
            known.pop(what, None)
        known.update((problem.what, problem) for problem in warnings)
        self._preflight = tuple(warnings)

    async def _stopped_while_waiting(self, fault: Transient) -> bool:
        """Say what is waited for and wait, with jitter; True when the bridge was told to stop."""
        telemetry = self._telemetry
        if isinstance(fault, SinkRefused | SourceRefused) and not self._has_streamed:
            # wrong from the start: waiting would not mend it
            raise ConfigError(fault.code, fault.what, said=fault.said, means=fault.means, fix=fault.fix)
        telemetry.errors_by_code[fault.code] = telemetry.errors_by_code.get(fault.code, 0) + 1
        if not telemetry.stalled_commit_at:  # what commits from now on is not even read: it waits since now
            waiting = telemetry.waiting_commit_times
            telemetry.stalled_commit_at = waiting[0][1] if waiting else time.time()
        from_source = isinstance(fault, SourceUnavailable)
        if from_source:
            telemetry.reconnects += 1
            telemetry.state = "waiting_postgres"
            await self._close_stream()
        else:
            telemetry.nats_reconnects += 1
            telemetry.fenced += isinstance(fault, SinkFenced)
            telemetry.state = "waiting_nats"
            if self._config.source.temporary:
                await self._close_stream()  # it could not be read on: only the connection that made its slot can
        telemetry.not_ready_reason = str(fault)
        telemetry.note_fault(Problem(fault.code, fault.what, fault.said, fault.means, fault.fix))
        if self._down_since is None:
            self._down_since = time.monotonic()
        delay_s = fault.retry_s * random.uniform(0.75, 1.25)
        log.warning(f"waiting for {'PostgreSQL' if from_source else 'NATS'}", reason=str(fault), next_try_s=round(delay_s, 1))
        with trio.move_on_after(delay_s):
            await self._stop.wait()
        return self._stop.is_set()

    async def _interrupt_opening(self) -> None:
        await self._stop.wait()
        if self._opening is not None:
            self._opening.cancel()


async def _log_metrics(telemetry: Telemetry) -> None:
    """The seed's METRICS line, every 15 s."""
    next_due = trio.current_time()
    while True:
        next_due += METRICS_EVERY_S
        await trio.sleep_until(next_due)
        print_metrics_line(telemetry)
