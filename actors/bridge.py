"""The bridge: tasks that live as long as the process, and the supervisor that restarts the pipeline after a transient fault."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial

import trio
from trio_util import wait_any

from actors import __version__
from actors.clients.nats.connection import SinkRefused, open_nats
from actors.clients.nats.jetstream import JetStream
from actors.clients.nats.link import JetStreamLink
from actors.clients.nats.record_store import RecordStore
from actors.clients.postgres.connection import PgConnection, SourceRefused
from actors.clients.postgres.replication import open_replication_stream
from actors.contract.subjects import REQUEST_ALL
from actors.errors import ConfigError, HistoryDiverged, SinkFenced, SinkUnavailable, SourceUnavailable, Transient
from actors.feedback import Feedback
from actors.http_server import serve_http
from actors.messages import Gap
from actors.pace import Pace
from actors.pause import Pause
from actors.pipeline import DrainTimeout, run_pipeline
from actors.positions import format_lsn
from actors.process import allow_many_files, bound_free_memory, causes, freeze_loaded_objects, most_telling, stop_on_signal
from actors.publication_model import PublicationModel
from actors.publication_monitor import find_problems
from actors.session import Session, open_session
from actors.settings.config import Config
from actors.snapshots.transaction_log import TransactionLog
from actors.startup.batch_limit import BatchLimit
from actors.startup.other_bridges import check_slot_feeds_no_other, read_other_bridges, same_tables_elsewhere
from actors.startup.pause_record import PauseRecord
from actors.startup.postgres_preflight import check_postgres
from actors.startup.remembered_ids import RememberedIds
from actors.startup.start_plan import StartPlan, take_over
from actors.startup.stream_rules import roles_of
from actors.startup.streams import prepare_streams
from actors.status_reporter import LiveStream
from actors.stream_monitor import watch_streams
from actors.tail.lookup import StreamLookup
from actors.telemetry.figures import confirmed_lsn
from actors.telemetry.log import get_logger, print_metrics_line
from actors.telemetry.problems import ProblemBoard, gap_problem
from actors.telemetry.telemetry import Problem, Telemetry
from actors.wal_monitor import watch_slot
from actors.web.serving import page_url
from actors.wire.sql_names import quoted

log = get_logger("bridge")

METRICS_EVERY_S = 15.0
FIRST_RETRY_S = 0.25
LAST_WORD_S = 0.2
"""How long an open page has to hear that the bridge has stopped."""
LOOK_WITHIN_S = 5.0
STREAMED_LONG_S = 10.0
"""A run that streamed for longer was a success: the pauses after it begin again with the shortest."""
RECORD_WITHIN_S = 2.0
"""A bridge that is to stream again, or to stop, does not wait longer until the record says what its operator said."""


Beside = Callable[[Config], Awaitable[None]]


def run(config: Config, beside: Beside | None = None) -> int:
    """Run the bridge until a signal or `POST /shutdown` stops it; return the exit code. Raises Fatal with what to do.

    `beside` runs as long as the bridge does, and is cancelled with it.
    """
    allow_many_files()
    bound_free_memory()
    freeze_loaded_objects()
    return trio.run(_run, config, beside)


async def _run(config: Config, beside: Beside | None) -> int:
    telemetry, stop = Telemetry(), trio.Event()
    pause, pace = Pause(telemetry), Pace(telemetry, config.snapshots.rate_mb_s)
    telemetry.journal.note("started", f"Walbridge {__version__} has started")
    supervisor = Supervisor(config, telemetry, stop, pause, pace)
    link = JetStreamLink(config.nats, config.publish.stream)
    try:
        async with trio.open_nursery() as outer:  # outlives the drain, so that health still answers
            await outer.start(stop_on_signal, stop, outer.cancel_scope)
            serve = partial(
                serve_http, config, telemetry,
                stop=stop, pause=pause, pace=pace, stream_info=link.stream_info, request_snapshot=link.request_snapshot,
                lookup=StreamLookup(link.jetstream, config.publish.stream),
                acknowledge_gap=supervisor.acknowledge_gap, has_table=supervisor.has_table,
            )  # fmt: skip
            await outer.start(serve)
            log.info("serving", page=page_url(config.http))
            outer.start_soon(_log_metrics, telemetry)
            if config.heartbeat_url:
                from actors.heartbeat import beat  # noqa: PLC0415  (an HTTP client, loaded only if it is used)

                outer.start_soon(beat, config.heartbeat_url, telemetry)
            if config.otlp.endpoint and not config.otlp.disabled:
                _export_otlp(outer, config, telemetry)
            if config.statsd:
                from actors.statsd_sender import send_statsd  # noqa: PLC0415

                outer.start_soon(send_statsd, config, telemetry)
            if beside is not None:
                outer.start_soon(beside, config)
            outer.start_soon(watch_slot, config.postgres, config.source, telemetry)
            outer.start_soon(link.run)
            outer.start_soon(watch_streams, link, roles_of(config), telemetry)
            code = await supervisor.run()
            log.info(
                "stopped" if code == 0 else "stopped without draining",
                events=telemetry.events_published, transactions=telemetry.transactions,
                confirmed_lsn=format_lsn(confirmed_lsn(telemetry)), stream_seq=telemetry.stored_seq,
                uptime_s=telemetry.uptime_s,
            )  # fmt: skip
            telemetry.state, telemetry.not_ready_reason = "halted", "stopped"
            if telemetry.looking.is_watched:
                await trio.sleep(LAST_WORD_S)
            outer.cancel_scope.cancel()
            return code
    except BaseExceptionGroup as group:
        raise most_telling(group) from group
    return 1  # a second signal


def _export_otlp(nursery: trio.Nursery, config: Config, telemetry: Telemetry) -> None:
    """Start the export. Clusters set the variable for everybody, so a bridge without the library streams all the same."""
    try:
        from actors.otlp_exporter import export_otlp  # noqa: PLC0415
    except ImportError as exc:
        log.warning(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, but the library is missing: nothing is exported",
            reason=str(exc), fix="pip install 'walbridge[otel]'",
        )  # fmt: skip
        return
    nursery.start_soon(export_otlp, config, telemetry)


def pause_before_retry_s(longest_s: float, failed_runs: int) -> float:
    """Return how long to wait after a fault: a server that restarts, or a cut connection, is back at once; an outage is not."""
    return min(longest_s, FIRST_RETRY_S * 2.0 ** min(failed_runs, 10))


class Supervisor:
    """Runs the pipeline, and restarts it from the stream's tail after a transient fault. Nothing else retries.

    While NATS is away the replication stream stays open but unread: PostgreSQL gets status updates, and no memory fills. While
    the bridge is paused there is neither pipeline nor stream, only the record is kept in line with the pause.
    """

    def __init__(self, config: Config, telemetry: Telemetry, stop: trio.Event, pause: Pause, pace: Pace) -> None:
        self._config, self._telemetry, self._stop, self._pause, self._pace = config, telemetry, stop, pause, pace
        self._halt = trio.Event()  # of this run of the pipeline, or of the wait for the next
        self._live: LiveStream | None = None
        self._opening: trio.CancelScope | None = None  # cancelled by a stop: there is nothing to drain yet
        self._known_servers: set[str] = set()
        self._pause_record = PauseRecord(config, pause, self._known_servers)
        self._problems = ProblemBoard(telemetry)
        self._store: RecordStore | None = None  # while the bridge may write it
        self._down_since: float | None = None
        self._told_fault = ""
        """Of this outage, in the journal."""
        self._streaming_since: float | None = None
        self._failed_runs = 0  # since the last one that streamed for long
        self._has_streamed = self._history_diverged = False
        self._transactions = TransactionLog()
        self._publication = PublicationModel(config.source.publication)
        self._remembered, self._batch_limit = RememberedIds(), BatchLimit()

    async def run(self) -> int:
        """Run until stopped; return 0 when drained, 1 when stopped while not streaming. Raises Fatal errors."""
        async with trio.open_nursery() as statuses:
            statuses.start_soon(self._await_stop)
            statuses.start_soon(self._await_pause)
            try:
                await self._pause_record.look()
                while True:
                    if self._pause.is_on:
                        await self._stay_paused()
                        if self._stop.is_set():
                            self._log_stopped_paused()
                            return 0
                    self._halt = trio.Event()
                    if self._stop.is_set():
                        self._halt.set()
                    fault = await self._run_once(statuses)
                    if fault is None and self._stop.is_set():
                        return 0
                    if fault is None:
                        continue
                    if self._pause.is_on:
                        self._learn(fault)
                        log.debug("paused before all that was read was stored", reason=str(fault))
                        continue
                    await self._note(fault)
                    if await self._stopped_while_waiting(fault):
                        # a slot that nobody has seen may not be there yet
                        kept = "; the slot keeps all changes" if confirmed_lsn(self._telemetry) else ""
                        log.warning(f"stopped while waiting{kept}", waiting_for=str(fault))
                        return 1
            finally:
                with trio.move_on_after(2) as closing:
                    closing.shield = True
                    await self._close_stream()
                statuses.cancel_scope.cancel()

    # -- one run

    async def _run_once(self, statuses: trio.Nursery) -> Transient | None:
        """Run the pipeline once; return None when it was stopped and drained, else the transient fault that ended it."""
        try:
            with trio.CancelScope() as opening:
                self._opening = opening
                await self._open_and_run(statuses)
        except BaseExceptionGroup as group:
            leaves = causes(group)
            faults = [leaf for leaf in leaves if isinstance(leaf, Transient)]
            if len(faults) < len(leaves):
                raise most_telling(group) from group
            # when both sides fail, PostgreSQL's fault is the cause
            return next((f for f in faults if isinstance(f, SourceUnavailable)), faults[0])
        except Transient as fault:
            return fault
        finally:
            self._opening, self._telemetry.nats_connected, self._store = None, False, None
        if opening.cancelled_caught:
            return Transient("WB311", f"{'paused' if self._pause.is_on else 'stopped'} before streaming began")
        return None

    async def _open_and_run(self, statuses: trio.Nursery) -> None:
        config, telemetry = self._config, self._telemetry
        source, publishing = config.source, config.publish
        catalog = await PgConnection.connect(config.postgres, application_name="walbridge catalog")
        with closing(catalog):
            telemetry.postgres_address = catalog.address
            self._problems.show(
                "source",
                await check_postgres(
                    catalog, slot=source.slot, publication=source.publication, temporary=source.temporary
                ),
            )  # fmt: skip
            # without a lock on a table: a few seconds are enough for everything else, too
            await catalog.query("SET lock_timeout = '1s'")
            await self._publication.look(catalog)
            self._problems.show("publication", await find_problems(catalog, self._publication))
            async with open_nats(config.nats, self._known_servers) as nats:
                # a user who may not hear requests is refused here, before the bridge says that it streams
                await nats.subscribe(REQUEST_ALL, lambda _: None)
                js = JetStream(nats)
                telemetry.nats_address = str(nats.server)
                await self._pause_record.agree(js)
                if self._pause.is_on:
                    return
                await check_slot_feeds_no_other(catalog, js, source.slot, publishing.stream)
                setup = await prepare_streams(
                    js, stream=publishing.stream, mode=publishing.mode, replicas=config.nats.replicas,
                    fmt=config.snapshots.format, zstd=config.snapshots.zstd or config.snapshots.zstd_events,
                )  # fmt: skip
                telemetry.nats_connected, telemetry.publish_mode = True, setup.mode
                telemetry.confirm_hold_s = publishing.confirm_hold_s
                await self._close_stream()  # it stayed open while NATS was away; a slot has one reader
                session = await open_session(
                    config, catalog, js, setup, self._transactions, self._publication, telemetry,
                    history_diverged=self._history_diverged,
                )  # fmt: skip
                self._history_diverged = False
                with ExitStack() as unread:
                    unread.callback(session.plan.close)
                    # another bridge of the slot may have been paused since the record was looked at
                    self._pause.adopt(session.store.record.paused_at)
                    if self._pause.is_on:
                        return
                    others = await read_other_bridges(js, publishing.stream)
                    self._problems.show("other bridges", same_tables_elsewhere(session.store.record, others))
                    unread.pop_all()  # from here on the stream owns the plan's connection
                live = await self._start_stream(session.plan, statuses)
                # Only the slot's reader writes the record: a bridge that waits for the slot must not disturb its reader.
                self._note_gap(session.start.gap)
                self._store = session.store
                self._show_gaps()
                remembered = self._remembered.messages(session.start.last_seq, session.plan.unheld)
                plan = await take_over(session.plan, js, session.encoder)
                session = replace(
                    session, plan=plan, remembered=remembered, batch_messages_max=self._batch_limit.messages_max
                )  # fmt: skip
                self._opening = None
                self._show_streaming(session)
                await self._run_until_halted(session, live)

    async def _run_until_halted(self, session: Session, live: LiveStream) -> None:
        """Run the pipeline; if a pause has ended it, write that into the record before the slot is released."""
        try:
            await run_pipeline(self._config, session, live, self._telemetry, self._halt, self._problems.show, self._pace)
        except DrainTimeout as exc:
            if self._stop.is_set() or not self._pause.is_on:
                raise
            raise Transient("WB312", exc.what, means=exc.means, fix=exc.fix) from exc
        if self._pause.is_on:
            since = self._pause.since.value
            await session.store.update(paused_at=since)
            self._pause.written(since)

    def _log_stopped_paused(self) -> None:
        if self._pause.is_recorded:
            log.info("stopped while paused; the next start stays paused")
        else:
            log.warning("stopped while paused, which could not be recorded in NATS: the next start streams")

    async def _start_stream(self, plan: StartPlan, statuses: trio.Nursery) -> LiveStream:
        source = self._config.source
        stream = await open_replication_stream(
            self._config.postgres, slot=source.slot, publication=source.publication, start_lsn=plan.start.start_lsn,
            connection=plan.slot_connection,
            tables=[f"{quoted(table.schema)}.{quoted(table.name)}" for table in self._publication.tables.values()],
        )  # fmt: skip
        live = self._live = LiveStream(stream, Feedback(plan.confirmed_lsn, is_held=self._config.publish.confirm_hold_s > 0))
        statuses.start_soon(live.run_status)
        self._telemetry.postgres_connected = True
        return live

    async def _close_stream(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            await live.close()
        self._telemetry.postgres_connected = False

    async def _await_stop(self) -> None:
        await self._stop.wait()
        self._telemetry.journal.note("stopping", "stopping: what was read is stored and confirmed")
        self._halt_run("stopping")

    async def _await_pause(self) -> None:
        async for _ in self._pause.since.transitions():
            if self._pause.is_on:
                self._telemetry.journal.note("paused", "pausing: what was read is stored, then the slot is released")
                self._halt_run("pausing")
            else:
                self._telemetry.journal.note("resumed", "resumed: the slot is read again", "ok")

    def _halt_run(self, reason: str) -> None:
        self._halt.set()
        if self._opening is not None:
            self._opening.cancel()
        elif self._telemetry.state == "streaming":  # the pipeline drains now
            self._telemetry.state, self._telemetry.not_ready_reason = "draining", reason

    # -- paused

    async def _stay_paused(self) -> None:
        """Release the slot, and keep record and pause in line until the pause ends or the bridge is stopped."""
        telemetry, pause = self._telemetry, self._pause
        since = pause.since.value
        await self._close_stream()
        telemetry.note_pause()
        telemetry.not_ready_reason = pause.words()
        log.warning(pause.words(), slot=self._config.source.slot, confirmed_lsn=format_lsn(telemetry.confirmed_lsn))
        async with trio.open_nursery() as keeping:
            keeping.start_soon(self._pause_record.keep, self._stop, telemetry.show_nats)
            await wait_any(self._stop.wait, partial(pause.since.wait_value, 0.0))
            keeping.cancel_scope.deadline = trio.current_time() + (0 if pause.is_recorded else RECORD_WITHIN_S)
        if not pause.is_on:
            log.info("resumed", paused_s=round(time.time() - since))
            telemetry.state, telemetry.not_ready_reason = "starting", "resuming"

    # -- between two runs

    async def _note(self, fault: Transient) -> None:
        """Count a fault and show what the bridge waits for. Raises ConfigError when waiting would not help."""
        telemetry = self._telemetry
        if isinstance(fault, SinkRefused | SourceRefused) and not self._has_streamed:
            raise ConfigError(fault.code, fault.what, said=fault.said, means=fault.means, fix=fault.fix)
        self._learn(fault)
        from_source = isinstance(fault, SourceUnavailable)
        if self._down_since is None:
            self._down_since = time.monotonic()
        telemetry.fenced += isinstance(fault, SinkFenced)
        telemetry.not_ready_reason = str(fault)
        if self._told_fault != fault.what:
            self._told_fault = fault.what
            telemetry.journal.note("outage", fault.what, "bad")
        telemetry.note_fault(
            Problem(fault.code, fault.what, fault.said, fault.means, fault.fix), from_source=from_source
        )  # fmt: skip
        if from_source or self._config.source.temporary:  # only the connection that made a temporary slot can read it
            await self._close_stream()
        if from_source and not self._pause_record.was_read:
            await self._pause_record.look()

    def _learn(self, fault: Transient) -> None:
        """Take note of what the next run has to know of a fault."""
        self._history_diverged = self._history_diverged or isinstance(fault, HistoryDiverged)
        self._remembered.note(fault)
        self._batch_limit.note(fault)

    async def _stopped_while_waiting(self, fault: Transient) -> bool:
        """Wait before the next run, with jitter; return True on a stop. A pause ends the wait as well."""
        since, self._streaming_since = self._streaming_since, None
        if since is not None and time.monotonic() - since > STREAMED_LONG_S:
            self._failed_runs = 0
        delay_s = pause_before_retry_s(fault.retry_s, self._failed_runs) * random.uniform(0.75, 1.25)
        self._failed_runs += 1
        waiting_for = "PostgreSQL" if isinstance(fault, SourceUnavailable) else "NATS"
        log.warning(
            f"waiting for {waiting_for}", reason=str(fault), next_try_s=round(delay_s, 1),
            **({"fix": fault.fix} if fault.fix else {}),
        )  # fmt: skip
        with trio.move_on_after(delay_s):
            await self._halt.wait()
        return self._stop.is_set()

    # -- what users see and ask

    async def has_table(self, token: str) -> bool:
        """Return whether the publication has a table, by a look of now if it had not before; True while nobody can look."""
        telemetry, publication = self._telemetry, self._publication
        if telemetry.state != "streaming" or token in publication.tables:
            return True
        with trio.move_on_after(LOOK_WITHIN_S) as looking:
            before = publication.looks.value
            publication.wake.set()
            await publication.looks.wait_value(lambda looks: looks > before)
        return looking.cancelled_caught or token in publication.tables

    async def acknowledge_gap(self, seq: int) -> bool:
        """Forget a gap event, the stream's message `seq`, of which the user knows; False when there is none.

        Raises SinkUnavailable while the bridge does not stream.
        """
        store = self._store
        if store is None:
            raise SinkUnavailable("WB200", "the bridge does not stream now, so it cannot write this down; try again later")
        left = tuple(gap for gap in store.record.gaps if gap.seq != seq)
        if left == store.record.gaps:
            return False
        await store.update(gaps=left)
        log.info("a gap was acknowledged", stream_seq=seq)
        self._show_gaps()
        return True

    def _show_gaps(self) -> None:
        gaps = self._store.record.gaps if self._store is not None else ()
        self._telemetry.gap_problems = tuple(gap_problem(gap, self._config.publish.stream, self._config.http) for gap in gaps)

    def _show_streaming(self, session: Session) -> None:
        telemetry, config = self._telemetry, self._config
        telemetry.note_streaming(tuple(sorted(session.publication.tables)))
        self._has_streamed, self._streaming_since = True, time.monotonic()
        away = ""
        if self._down_since is not None:
            away, self._down_since = f" after {time.monotonic() - self._down_since:.1f} s", None
        self._told_fault = ""
        telemetry.journal.note("streaming", f"streaming{away}", "ok")
        log.info(
            f"streaming{away}",
            slot=config.source.slot, publication=config.source.publication, stream=config.publish.stream,
            mode=session.setup.mode, from_lsn=format_lsn(session.start.skip.lsn), stream_seq=session.start.last_seq,
            tables=len(telemetry.tables),
        )  # fmt: skip

    def _note_gap(self, gap: Gap | None) -> None:
        if gap is None:
            return
        self._telemetry.gaps += 1
        lost = f"changes from {format_lsn(gap.from_lsn)} to {format_lsn(gap.to_lsn)} are lost permanently: {gap.reason}"
        self._telemetry.journal.note("gap", lost, "bad")


async def _log_metrics(telemetry: Telemetry) -> None:
    """Print the METRICS line every 15 s."""
    next_due = trio.current_time()
    while True:
        next_due += METRICS_EVERY_S
        await trio.sleep_until(next_due)
        print_metrics_line(telemetry)
