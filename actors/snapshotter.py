"""snapshotter: serves requests for snapshots, one table at a time, beside the stream of events (contract, section 5)."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from functools import partial

import trio

from actors.clients.nats.connection import SinkRefused
from actors.clients.nats.jetstream import JetStream, JetStreamError
from actors.clients.nats.snapshot_answers import newest_answer
from actors.clients.postgres.connection import PgConnection, PostgresError
from actors.clients.postgres.publications import PublishedTable
from actors.contract.event_encoder import read_any_document
from actors.contract.records import AMBIGUOUS
from actors.contract.snapshot_encoder import Message, error_message
from actors.contract.subjects import CDC, INIT, INIT_STARTS, init_error, init_meta, init_start, parse, request
from actors.errors import SourceUnavailable
from actors.positions import Lsn, parse_lsn
from actors.publication_model import PublicationModel
from actors.settings.config import PostgresConfig
from actors.snapshots.chunks import RowTooLarge
from actors.snapshots.failures import NoWatermark, SnapshotFailed, TableChanged, failure_of, fix_of
from actors.snapshots.progress import SnapshotBoard
from actors.snapshots.requests import Asked, SnapshotRequests, verdict_on
from actors.snapshots.taking import SnapshotSetup, SnapshotTaker
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
UNKNOWN_EVERY_S = 60.0
UNKNOWN_AT_ONCE = 100
"""Unknown tables answered per minute; more are a mistake or malice."""


class UnknownTables:
    """Limits how often requests for unknown tables are answered. No I/O."""

    def __init__(self) -> None:
        self._answered: dict[str, float] = {}

    def may_answer(self, token: str, now_s: float) -> bool:
        """Return whether to answer a request, and count the answer: once per minute and table, 100 tables per minute."""
        answered = self._answered
        for old in [t for t, at in answered.items() if now_s - at >= UNKNOWN_EVERY_S]:
            del answered[old]
        if token in answered or len(answered) >= UNKNOWN_AT_ONCE:
            return False
        answered[token] = now_s
        return True


class Snapshotter:
    """Serves one bridge's requests. Owns one or two PostgreSQL connections while a snapshot runs, none in between."""

    def __init__(
        self, setup: SnapshotSetup, js: JetStream, publication: PublicationModel, suspensions: Suspensions, telemetry: Telemetry
    ) -> None:
        self._setup, self._js, self._suspensions = setup, js, suspensions
        self._config = setup.config
        self._stream = setup.stream.stream
        self._publication = publication
        self._requests = SnapshotRequests(js, publication.tables, stream=self._stream, kept=setup.stream.requests_kept)
        self._board = SnapshotBoard(telemetry)
        self._taker = SnapshotTaker(setup, js, self._requests, self._board)
        self._unknown = UnknownTables()

    async def run(self) -> None:
        """Serve requests until cancelled; the next start repeats an unfinished snapshot.

        Raises SinkUnavailable when NATS is away.
        """
        await self._requests.listen()
        for token in await self._unfinished():
            log.info("a snapshot was interrupted: taking it again", table=token)
            self._requests.add(Asked(token, self._stream))
        while True:
            await self._requests.wait()
            self._board.waiting(self._requests.tables)
            await self._serve_some()
            self._board.waiting(self._requests.tables)

    # -- which requests are ours

    async def _serve_some(self) -> None:
        """Serve the first request for a published table; if there is none, answer those that no snapshot can serve."""
        waiting = self._requests.waiting
        try:
            published = self._publication.tables
            if not any(asked.token in published for asked in waiting):
                published = await self._look()
        except (SourceUnavailable, PostgresError) as exc:
            log.warning("cannot take a snapshot yet: waiting for PostgreSQL", table=waiting[0].token, reason=str(exc))
            await trio.sleep(SourceUnavailable.retry_s)
            return
        self._requests.known = published.keys()
        own = self._stream
        served = next((asked for asked in waiting if asked.token in published and (asked.stream or own == CDC)), None)
        if served is None:
            served = await self._answer_the_rest(waiting[:UNKNOWN_AT_ONCE], published)
        if served is not None:
            token = served.token
            alike = [asked for asked in waiting if asked.token == token and (asked.stream or asked == served or own == CDC)]
            await self._serve(token, published[token], alike)

    async def _answer_the_rest(self, waiting: Sequence[Asked], published: Collection[str]) -> Asked | None:
        """Answer, or leave to others, what no snapshot of this bridge can serve; returns the first request that one can."""
        own, first = self._stream, None
        others = await read_other_bridges(self._js, own)
        tables: dict[str, Collection[str]] = {own: published, **{stream: record.tables for stream, record in others.items()}}
        for asked in waiting:
            publishing = sorted(stream for stream, listed in tables.items() if asked.token in listed)
            verdict = verdict_on(asked, own, publishing)
            if verdict == "snapshot":
                first = first or asked
                continue
            self._requests.leave(asked)
            if verdict == "ambiguous":
                await self._answer_ambiguous(asked.token, publishing)
            elif verdict == "unknown table":
                await self._answer_unknown(asked.token, sorted(published))
            else:
                continue
            await self._requests.answered(asked)
        return first

    async def _look(self) -> dict[str, PublishedTable]:
        """Read the publication's present tables, by token."""
        connection = await PgConnection.connect(self._config.postgres, application_name="walbridge snapshot")
        try:
            await self._publication.look(connection)
            self._publication.wake.set()  # readers of the stream are to know what is known here
            return self._publication.tables
        finally:
            connection.close()

    async def _answer_unknown(self, token: str, available: list[str]) -> None:
        if self._unknown.may_answer(token, time.monotonic()):
            log.warning("a snapshot of an unknown table was requested", table=token)
            words = f"no table {token} in publication {self._config.source.publication}"
            encoder = self._setup.encoder
            await self._publish(
                error_message(encoder, token, token, "unknown_table", words, stream=self._stream, available_tables=available)
            )

    async def _answer_ambiguous(self, token: str, streams: Sequence[str]) -> None:
        if self._unknown.may_answer(token, time.monotonic()):
            words = f"several bridges publish {token}: name the stream of one, as in {request(token, streams[0])}"
            log.warning("a snapshot was asked for of no bridge by name, and several publish the table", table=token)
            encoder = self._setup.encoder
            await self._publish(error_message(encoder, token, token, AMBIGUOUS, words, stream=self._stream, streams=streams))

    async def _unfinished(self) -> list[str]:
        """Return the tables whose last snapshot by this bridge has a start but neither meta nor error."""
        found: list[str] = []
        for subject in await self._js.subjects_of(INIT, INIT_STARTS):
            start = parse(subject)
            token = start.token if start is not None else ""
            if token in self._publication.tables:
                begun = await self._last_id(init_start(token))
                if begun and begun not in [await self._last_id(of(token)) for of in (init_meta, init_error)]:
                    found.append(token)
        return found

    async def _last_id(self, subject: str) -> str:
        message = await newest_answer(self._js, subject, self._stream)
        body = read_any_document(message.data) if message is not None else None
        return str(body.get("snapshot_id", "")) if isinstance(body, dict) else ""

    # -- one request

    async def _serve(self, token: str, published: PublishedTable, served: Sequence[Asked]) -> None:
        """Take a table's snapshot in at most five attempts; a failure is reported and ends this snapshot only."""
        progress = self._board.running(token)
        failure = SnapshotFailed(
            "no_watermark", f"in {ATTEMPTS_MAX} attempts no LSN divided what the snapshot saw from the rest; request it again"
        )
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                if attempt > 1:
                    published = await self._look_again(token)
                await self._suspensions.resume(token, partial(_wal_end, self._config.postgres))
                await self._taker.take(token, published, progress, served)
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
                with trio.move_on_after(TOLD_WITHIN_S):
                    await self._publication.settled(token)
            except SourceUnavailable as exc:
                failure = SnapshotFailed("postgres_unavailable", str(exc))
                if attempt < ATTEMPTS_MAX:
                    log.warning("a snapshot was interrupted: retrying", table=token, reason=str(exc), next_try_s=exc.retry_s)
                    await trio.sleep(exc.retry_s)
            except (SnapshotFailed, PostgresError, RowTooLarge, UnicodeDecodeError, JetStreamError, SinkRefused) as exc:
                failure = failure_of(exc)
                break
            else:
                return
        await self._fail(served, published, progress, failure)

    async def _look_again(self, token: str) -> PublishedTable:
        published = (await self._look()).get(token)
        if published is None:
            publication = self._config.source.publication
            raise SnapshotFailed("unknown_table", f"no table {token} in publication {publication} any more")
        return published

    async def _fail(
        self, served: Sequence[Asked], published: PublishedTable, progress: SnapshotProgress, failure: SnapshotFailed
    ) -> None:
        token = served[0].token
        self._requests.leave(*served)
        self._board.failed(progress, f"{failure.kind}: {failure}", fix_of(failure, published.qualified, token))
        log.error("snapshot failed", table=token, kind=failure.kind, reason=str(failure), snapshot_id=progress.snapshot_id)
        await self._publish(
            error_message(
                self._setup.encoder, token, published.name, failure.kind, str(failure), stream=self._stream,
                snapshot_id=progress.snapshot_id or None,
            )
        )  # fmt: skip
        await self._requests.answered(*served)

    async def _publish(self, message: Message) -> None:
        try:
            await self._js.publish(message.subject, message.body)
        except (JetStreamError, SinkRefused) as exc:
            log.warning("cannot publish the error to consumers", subject=message.subject, reason=str(exc))


async def _wal_end(config: PostgresConfig) -> Lsn:
    connection = await PgConnection.connect(config, application_name="walbridge snapshot")
    try:
        ((lsn,),) = await connection.query(
            "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END"
        )
        return parse_lsn(lsn or "0/0")
    finally:
        connection.close()
