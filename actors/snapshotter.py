"""snapshotter: serves requests for snapshots, several at once, beside the stream of events (contract, section 5)."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import trio

from actors.clients.nats.connection import SinkRefused
from actors.clients.nats.jetstream import JetStream, JetStreamError, StoredMessage
from actors.clients.nats.snapshot_answers import newest_answer
from actors.clients.postgres.connection import PgConnection, PostgresError
from actors.clients.postgres.publications import PublishedTable
from actors.contract.event_encoder import read_any_document
from actors.contract.records import AMBIGUOUS
from actors.contract.snapshot_encoder import Message, error_message
from actors.contract.subjects import (
    CDC,
    INIT,
    INIT_STARTS,
    RANGES,
    PartKind,
    init_error,
    init_meta,
    init_start,
    parse,
    part_of,
    request,
    split_suffix,
)
from actors.contract.table_token import table_name
from actors.errors import SourceUnavailable
from actors.positions import Lsn, parse_lsn
from actors.publication_model import PublicationModel
from actors.settings.config import PostgresConfig
from actors.snapshots.chunks import RowTooLarge
from actors.snapshots.course import Course, unfinished
from actors.snapshots.failures import NoWatermark, SnapshotFailed, TableChanged, failure_of, fix_of
from actors.snapshots.key_requests import read_keys
from actors.snapshots.progress import SnapshotBoard
from actors.snapshots.ranges_taking import RangesTaker, ShapeChanged
from actors.snapshots.requests import Asked, SnapshotRequests, verdict_on
from actors.snapshots.seats import SMALL_BYTES, Seats
from actors.snapshots.setup import Cancelling, SnapshotSetup
from actors.snapshots.table_reader import small_relations
from actors.snapshots.taking import SnapshotTaker
from actors.snapshots.unknown_tables import UNKNOWN_AT_ONCE, UnknownTables
from actors.startup.other_bridges import read_other_bridges
from actors.suspensions import Suspensions
from actors.telemetry.log import get_logger
from actors.telemetry.telemetry import SnapshotProgress, Telemetry

log = get_logger("snapshotter")

ATTEMPTS_MAX = 5
TOLD_WITHIN_S = 20.0
"""How long to wait for the stream to tell of a table's change."""
WRITER_ENDS_S = 2.0
"""Pause before the next attempt while a transaction is open from before the table was published."""
FAILURES = (SnapshotFailed, PostgresError, RowTooLarge, UnicodeDecodeError, JetStreamError, SinkRefused)
"""Errors that end one snapshot; `failure_of` has words for them."""


@dataclass(eq=False, slots=True)
class Job:
    """A snapshot that is being taken, and the requests that it serves."""

    served: Sequence[Asked]
    published: PublishedTable
    progress: SnapshotProgress
    give_back_seat: Callable[[], None]
    cancelling: Cancelling = field(default_factory=Cancelling)
    cancels: list[Asked] = field(default_factory=list)
    """The requests that have cancelled it."""
    cancelled_id: str = ""

    @property
    def token(self) -> str:
        """The table's."""
        return self.served[0].token

    @property
    def answered_as(self) -> str:
        return self.served[0].answered_as


class Snapshotter:
    """Serves one bridge's requests, several at once. Owns PostgreSQL connections while snapshots run, none in between."""

    def __init__(
        self, setup: SnapshotSetup, js: JetStream, publication: PublicationModel, suspensions: Suspensions, telemetry: Telemetry
    ) -> None:
        self._setup, self._js, self._suspensions = setup, js, suspensions
        self._config = setup.config
        self._stream = setup.stream.stream
        self._publication = publication
        self._requests = SnapshotRequests(js, publication.tables, stream=self._stream, kept=setup.stream.requests_kept)
        self._board = SnapshotBoard(telemetry)
        self._seats = Seats(setup.config.snapshots.parallel, self._requests.nudge)
        self._unknown = UnknownTables()
        self._jobs: dict[str, Job] = {}
        """By the token of the answer: of equal requests one is served at a time."""

    async def run(self) -> None:
        """Serve requests until cancelled; the next start repeats an unfinished snapshot, or continues one in rounds.

        Raises SinkUnavailable when NATS is away.
        """
        try:
            await self._serve_all()
        finally:
            self._board.interrupted()

    async def _serve_all(self) -> None:
        await self._requests.listen()
        for asked in await self._unfinished():
            log.info("a snapshot was interrupted: taking it up again", table=asked.answered_as)
            self._requests.add(asked)
        async with trio.open_nursery() as nursery:
            while True:
                self._requests.expect_news()
                self._board.waiting([token for token in self._requests.tables if token not in self._jobs])
                await self._start_some(nursery)
                self._board.waiting([token for token in self._requests.tables if token not in self._jobs])
                await self._requests.wait_for_news()

    # -- which requests are ours

    async def _start_some(self, nursery: trio.Nursery) -> None:
        """Start what there is room for, and answer the requests that no snapshot can serve."""
        await self._cancel()
        waiting = [asked for asked in self._requests.waiting if asked.answered_as not in self._jobs]
        if not waiting:
            self._seats.is_anybody_waiting = False
            return
        try:
            published = self._publication.tables
            if not all(asked.token in published for asked in waiting):
                published = await self._look()
            self._requests.known = published.keys()
            own = self._stream
            servable = [asked for asked in waiting if asked.token in published and (asked.stream or own == CDC)]
            rest = [asked for asked in waiting if asked not in servable]
            if rest:
                servable += await self._answer_the_rest(rest[:UNKNOWN_AT_ONCE], published)
            small = await self._small_tables(servable, published)
        except (SourceUnavailable, PostgresError) as exc:
            log.warning("cannot take a snapshot yet: waiting for PostgreSQL", table=waiting[0].token, reason=str(exc))
            await trio.sleep(SourceUnavailable.retry_s)
            self._requests.nudge()
            return
        is_anybody_waiting = len(rest) > UNKNOWN_AT_ONCE
        if is_anybody_waiting:
            self._requests.nudge()
        for asked in servable:
            if asked.answered_as in self._jobs:
                continue
            give_back = self._seats.take(is_small=asked.token in small or _kind(asked) == "keys")
            if give_back is None:
                is_anybody_waiting = True
                continue
            alike = [one for one in servable if one.answered_as == asked.answered_as]
            progress = self._board.running(asked.answered_as)
            job = self._jobs[asked.answered_as] = Job(alike, published[asked.token], progress, give_back)
            nursery.start_soon(self._run, job)
        self._seats.is_anybody_waiting = is_anybody_waiting

    async def _small_tables(self, servable: Sequence[Asked], published: Mapping[str, PublishedTable]) -> Collection[str]:
        """The tokens of requested tables that are small, if that matters: no seat is free but the one for them."""
        whole = {asked.token for asked in servable if _kind(asked) == "whole"}
        if len(servable) <= self._seats.free or not self._seats.is_small_free or not whole:
            return ()
        tokens = {published[token].relation_oid: token for token in whole}
        connection = await PgConnection.connect(self._config.postgres, application_name="walbridge snapshot")
        try:
            return {tokens[oid] for oid in await small_relations(connection, list(tokens), bytes_max=SMALL_BYTES)}
        finally:
            connection.close()

    async def _cancel(self) -> None:
        """Do what requests to cancel a snapshot ask for."""
        for asked in self._requests.waiting:
            part = part_of(asked.suffix)
            if part is None or part.kind != "cancel":
                continue
            self._requests.leave(asked)
            busy = {*self._jobs}
            open_parts = [whole for whole in (asked.token, asked.token + RANGES) if await self._open_id(whole) == part.id]
            jobs = [
                job
                for job in self._jobs.values()
                if job.token == asked.token
                and (job.progress.snapshot_id or (part.id if job.answered_as in open_parts else "")) == part.id
            ]
            for job in jobs:
                log.info("a snapshot is cancelled", table=job.answered_as, snapshot_id=part.id)
                job.cancels.append(asked)
                job.cancelled_id = part.id
                job.cancelling.is_asked.set()
            if jobs:
                continue  # the request is answered by the error
            idle = [answered_as for answered_as in open_parts if answered_as not in busy]
            if idle and not await self._cancel_idle(idle, part.id):
                continue
            others = await read_other_bridges(self._js, self._stream) if not idle and not asked.stream else {}
            publishing = [self._stream] if asked.token in self._publication.tables else []
            publishing += [stream for stream, record in others.items() if asked.token in record.tables]
            if idle or verdict_on(asked, self._stream, publishing) != "another bridge's":
                await self._requests.answered(asked)

    async def _cancel_idle(self, answered_as: Sequence[str], snapshot_id: str) -> bool:
        """End a snapshot that has begun and that no job takes now, and leave what would take it up again.

        Returns whether that is stored. A request that is younger than the snapshot's start stays.
        """
        for one in answered_as:
            start = await newest_answer(self._js, init_start(one), self._stream)
            token, failure = split_suffix(one)[0], Cancelling.failure()
            published = self._publication.tables.get(token)
            name = token if published is None else published.name
            log.info("a snapshot is cancelled", table=one, snapshot_id=snapshot_id)
            message = error_message(
                self._setup.encoder, one, name, failure.kind, str(failure), stream=self._stream, snapshot_id=snapshot_id
            )
            if not await self._publish(message):
                return False
            await self._leave_before(start, [asked for asked in self._requests.waiting if asked.answered_as == one])
        return True

    async def _answer_the_rest(self, waiting: Sequence[Asked], published: Collection[str]) -> list[Asked]:
        """Answer, or leave to others, what no snapshot of this bridge can serve; return the requests that one can."""
        own, found = self._stream, list[Asked]()
        others = await read_other_bridges(self._js, own)
        tables: dict[str, Collection[str]] = {own: published, **{stream: record.tables for stream, record in others.items()}}
        for asked in waiting:
            publishing = sorted(stream for stream, listed in tables.items() if asked.token in listed)
            verdict = verdict_on(asked, own, publishing)
            if verdict == "snapshot":
                found.append(asked)
                continue
            self._requests.leave(asked)
            if verdict == "ambiguous":
                await self._answer_ambiguous(asked, publishing)
            elif verdict == "unknown table":
                await self._answer_unknown(asked, sorted(published))
            else:
                continue
            await self._requests.answered(asked)
        return found

    async def _look(self) -> dict[str, PublishedTable]:
        """Read the publication's present tables, by token."""
        connection = await PgConnection.connect(self._config.postgres, application_name="walbridge snapshot")
        try:
            await self._publication.look(connection)
            self._publication.wake.set()  # readers of the stream are to know what is known here
            return self._publication.tables
        finally:
            connection.close()

    async def _answer_unknown(self, asked: Asked, available: list[str]) -> None:
        token = asked.token
        if self._unknown.may_answer(token, time.monotonic()):
            log.warning("a snapshot of an unknown table was requested", table=token)
            words = f"no table {table_name(token)} in publication {self._config.source.publication}"
            encoder = self._setup.encoder
            await self._publish(
                error_message(
                    encoder, asked.answered_as, token, "unknown_table", words, stream=self._stream, available_tables=available
                )
            )

    async def _answer_ambiguous(self, asked: Asked, streams: Sequence[str]) -> None:
        token = asked.token
        if self._unknown.may_answer(token, time.monotonic()):
            words = f"several bridges publish {token}: name the stream of one, as in {request(asked.answered_as, streams[0])}"
            log.warning("a snapshot was asked for of no bridge by name, and several publish the table", table=token)
            encoder = self._setup.encoder
            await self._publish(
                error_message(encoder, asked.answered_as, token, AMBIGUOUS, words, stream=self._stream, streams=streams)
            )

    async def _unfinished(self) -> list[Asked]:
        """Return the snapshots of this bridge that have a start but neither meta nor error, of each kind the last."""
        found: list[Asked] = []
        for subject in await self._js.subjects_of(INIT, INIT_STARTS):
            start = parse(subject)
            answered_as = start.token if start is not None else ""
            token, suffix = split_suffix(answered_as)
            part = part_of(suffix)
            # who has named rows asks again
            is_ours = token in self._publication.tables and part is not None and part.kind in ("whole", "ranges")
            if is_ours and await self._open_id(answered_as):
                found.append(Asked(token, self._stream, suffix))
        return found

    async def _open_id(self, answered_as: str) -> str:
        """The id of the newest snapshot if it has neither meta nor error, else nothing."""
        begun = await self._last_id(init_start(answered_as))
        ended = [await self._last_id(of(answered_as)) for of in (init_meta, init_error)] if begun else []
        return "" if begun in ended else begun

    async def _last_id(self, subject: str) -> str:
        message = await newest_answer(self._js, subject, self._stream)
        body = read_any_document(message.data) if message is not None else None
        return str(body.get("snapshot_id", "")) if isinstance(body, dict) else ""

    # -- one request

    async def _run(self, job: Job) -> None:
        """Take one snapshot. Raises SinkUnavailable when NATS is away."""
        try:
            if _kind(job.served[0]) == "ranges":
                await self._serve_in_rounds(job)
            else:
                await self._serve(job)
            if job.cancels and await self._open_id(job.answered_as) != job.cancelled_id:
                await self._requests.answered(*job.cancels)
        finally:
            del self._jobs[job.answered_as]
            job.give_back_seat()

    async def _serve(self, job: Job) -> None:
        """Take a table's snapshot in at most five attempts; a failure is reported and ends this snapshot only."""
        failure = SnapshotFailed(
            "no_watermark", f"in {ATTEMPTS_MAX} attempts no LSN divided what the snapshot saw from the rest; request it again"
        )
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                job.cancelling.check()
                if attempt > 1:
                    job.published = await self._look_again(job.token)
                if _kind(job.served[0]) == "keys":
                    await self._answer_keys(job)
                else:
                    await self._suspensions.resume(job.token, partial(_wal_end, self._config.postgres))
                    taker = SnapshotTaker(self._setup, self._js, self._requests, self._board, job.cancelling)
                    with self._board.reading(job.progress):
                        await taker.take(job.token, job.published, job.progress, job.served)
            except NoWatermark as exc:
                if str(exc):
                    failure = SnapshotFailed("no_watermark", str(exc))
                    await trio.sleep(WRITER_ENDS_S)
                continue
            except TableChanged:
                failure = SnapshotFailed(
                    "table_changed", "the table or its publication was altered, and the stream does not say so yet; request "
                    "the snapshot again when the bridge has caught up"
                )  # fmt: skip
                await self._settled(job.token)
            except SourceUnavailable as exc:
                failure = SnapshotFailed("postgres_unavailable", str(exc))
                if attempt < ATTEMPTS_MAX:
                    log.warning(
                        "a snapshot was interrupted: retrying", table=job.answered_as, reason=str(exc), next_try_s=exc.retry_s
                    )
                    await trio.sleep(exc.retry_s)
            except FAILURES as exc:
                failure = failure_of(exc)
                break
            else:
                return
        await self._fail(job, failure)

    async def _serve_in_rounds(self, job: Job) -> None:
        """Take a snapshot in rounds, and another one by itself whenever the table has changed between two rounds."""
        course = await unfinished(self._js, job.answered_as, self._stream)
        if course is not None:
            await self._leave_older(job, course)
        for_nothing = 0
        while True:
            taker = self._taker(job)
            try:
                if course is None:
                    await self._resume(job)
                await taker.take(job.answered_as, job.published, course)
            except ShapeChanged:
                for_nothing = 0 if taker.course is not None and taker.course.chunks else for_nothing + 1
                failure = SnapshotFailed("table_changed", "the table was altered between two rounds; another snapshot begins")
                if for_nothing == ATTEMPTS_MAX:
                    failure = SnapshotFailed("keeps_changing", "the table was altered repeatedly; request the snapshot again")
                    break
                again = Asked(job.token, self._stream, job.served[0].suffix)
                job.served = list(dict.fromkeys([*job.served, again]))
                await self._requests.keep(again)  # before the error: another one begins even if the bridge ends now
                await self._publish_error(job, failure)
                job.progress = self._board.running(job.answered_as)
                course = None
            except FAILURES as exc:
                failure = failure_of(exc)
                break
            else:
                self._done(job, taker)
                return
        await self._fail(job, failure)

    async def _resume(self, job: Job) -> None:
        """Let the events of a suspended table go out again before its rows are read."""
        while True:
            job.cancelling.check()
            try:
                await self._suspensions.resume(job.token, partial(_wal_end, self._config.postgres))
                job.published = await self._look_again(job.token)
            except SourceUnavailable as exc:
                log.warning("a snapshot waits for PostgreSQL", table=job.answered_as, reason=str(exc), next_try_s=exc.retry_s)
                await trio.sleep(exc.retry_s)
            else:
                return

    async def _answer_keys(self, job: Job) -> None:
        """Answer with the rows that were named."""
        keys = read_keys(await self._requests.body_of(job.served[0]))
        taker = self._taker(job)
        await taker.answer(job.answered_as, job.published, keys)
        self._done(job, taker)

    def _taker(self, job: Job) -> RangesTaker:
        async def begun() -> None:
            self._requests.leave(*job.served)
            await self._requests.answered(*job.served)

        return RangesTaker(
            self._setup, self._js, self._board, job.progress, job.cancelling, self._seats,
            look=partial(self._look_again, job.token), settled=partial(self._settled, job.token), begun=begun,
        )  # fmt: skip

    def _done(self, job: Job, taker: RangesTaker) -> None:
        progress, course = job.progress, taker.course
        self._board.done(progress)
        if course is not None:
            log.info(
                "snapshot done", table=job.answered_as, snapshot_id=course.start.snapshot_id, rows=course.rows,
                chunks=course.chunks, bytes=progress.bytes, seconds=round(progress.seconds, 3),
            )  # fmt: skip

    async def _leave_older(self, job: Job, course: Course) -> None:
        """Leave the requests that are older than a running snapshot's start, which is their answer."""
        await self._leave_before(await self._js.get_message(INIT, seq=course.start_seq), job.served)

    async def _leave_before(self, start: StoredMessage | None, requests: Sequence[Asked]) -> None:
        for asked in requests:
            if start is None or await self._requests.stored_at(asked) < start.time:
                self._requests.leave(asked)
                await self._requests.answered(asked)

    async def _settled(self, token: str) -> None:
        with trio.move_on_after(TOLD_WITHIN_S):
            await self._publication.settled(token)

    async def _look_again(self, token: str) -> PublishedTable:
        published = (await self._look()).get(token)
        if published is None:
            publication = self._config.source.publication
            raise SnapshotFailed("unknown_table", f"no table {table_name(token)} in publication {publication} any more")
        return published

    async def _fail(self, job: Job, failure: SnapshotFailed) -> None:
        self._requests.leave(*job.served)
        await self._publish_error(job, failure)
        await self._requests.answered(*job.served)

    async def _publish_error(self, job: Job, failure: SnapshotFailed) -> None:
        progress = job.progress
        fix = fix_of(failure, job.published.qualified, job.published.token, self._stream)
        self._board.failed(progress, f"{failure.kind}: {failure.shown}", fix)
        log.error(
            "snapshot failed", table=job.answered_as, kind=failure.kind, reason=str(failure), snapshot_id=progress.snapshot_id
        )
        await self._publish(
            error_message(
                self._setup.encoder, job.answered_as, job.published.name, failure.kind, str(failure), stream=self._stream,
                snapshot_id=progress.snapshot_id or None,
            )
        )  # fmt: skip

    async def _publish(self, message: Message) -> bool:
        """Return whether it is stored."""
        try:
            await self._js.publish(message.subject, message.body)
        except (JetStreamError, SinkRefused) as exc:
            log.warning("cannot publish the error to consumers", subject=message.subject, reason=str(exc))
            return False
        return True


def _kind(asked: Asked) -> PartKind:
    part = part_of(asked.suffix)
    return "whole" if part is None else part.kind


async def _wal_end(config: PostgresConfig) -> Lsn:
    connection = await PgConnection.connect(config, application_name="walbridge snapshot")
    try:
        ((lsn,),) = await connection.query(
            "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END"
        )
        return parse_lsn(lsn or "0/0")
    finally:
        connection.close()
