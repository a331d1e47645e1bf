"""The mirror's process: settings, signals, the report in the log, and the supervisor that starts one session after another."""

from __future__ import annotations

import random
import signal
import time
from dataclasses import dataclass

import trio

from actors.clients.nats.connection import open_nats
from actors.clients.nats.jetstream import JetStream
from actors.errors import Transient
from actors.mirror.http_server import serve_mirror
from actors.mirror.mirror_counts import MirrorCounts
from actors.mirror.session import open_session, run_session, wait_for_bridge
from actors.mirror.source_stream import SourceStream
from actors.mirror.stores.open import check_replica, open_store, replica_name
from actors.mirror.table_choice import choose_tables, tokens_in
from actors.mirror.view import View
from actors.process import freeze_loaded_objects, most_telling
from actors.settings.config import HttpConfig, NatsConfig
from actors.telemetry.log import get_logger

log = get_logger("mirror")

REPORT_EVERY_S = 15.0


@dataclass(frozen=True, slots=True)
class MirrorConfig:
    """The settings of one mirror."""

    nats: NatsConfig
    stream: str
    to: str
    """The replica's URL."""
    tables: tuple[str, ...]
    """Tokens or names; empty for all that the bridge publishes."""
    again: tuple[str, ...] = ()
    """Tables to copy again first."""
    http: HttpConfig | None = None
    """Where health and metrics are served; None for nowhere."""
    rounds_from_rows: int = 0
    """Tables with so many rows are copied in rounds; 0 for none."""


def run(config: MirrorConfig) -> int:
    """Mirror until stopped by a signal; return the exit code. Raises Fatal."""
    freeze_loaded_objects()  # an event is a dozen objects without cycles: looking for cycles took a third of its time
    try:
        return trio.run(_run, config)
    except BaseExceptionGroup as group:
        raise most_telling(group) from group


async def _run(config: MirrorConfig) -> int:
    counts = MirrorCounts()
    view = View(config.stream, config.to.partition(":")[0], counts, replica_name(config.to))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_on_signal, nursery.cancel_scope)
        if config.http is not None:
            await nursery.start(serve_mirror, config.http, view)
        nursery.start_soon(_report, counts)
        await _supervise(config, view)
    log.info("stopped", changes=counts.applied, snapshots=counts.snapshots, copied_again=sum(counts.resnapshots.values()))
    return 0


async def _stop_on_signal(scope: trio.CancelScope) -> None:
    """Cancel everything at a signal: what is not committed is applied again at the next start."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for number in signals:
            log.info("stopping", signal=signal.Signals(number).name)
            scope.cancel()


async def _report(counts: MirrorCounts) -> None:
    before, since = counts.applied, trio.current_time()
    while True:
        await trio.sleep(REPORT_EVERY_S)
        now = trio.current_time()
        log.info(
            "mirroring", changes=counts.applied, changes_per_s=round((counts.applied - before) / (now - since)),
            lag_s=round(counts.lag_s(time.time()), 3), snapshots=counts.snapshots, unknown_values=counts.unknown_values,
        )  # fmt: skip
        before, since = counts.applied, now


async def _supervise(config: MirrorConfig, view: View) -> None:
    """Reconnect after every transient error; the replica stores where to resume."""
    await check_replica(config.to)
    known: set[str] = set()
    again = list(config.again)
    while True:
        try:
            await _connect_and_run(config, view, known, again)
            raise AssertionError("a session ends by an error")
        except Transient as exc:
            error = exc
        except BaseExceptionGroup as group:
            found = most_telling(group)
            if not isinstance(found, Transient):
                raise found from group
            error = found
        finally:
            view.counts.connected, view.counts.is_behind = False, True
        view.reason = str(error)
        pause_s = error.retry_s * random.uniform(0.5, 1.0)
        log.warning(
            "session ended by an error, retrying", reason=str(error), next_try_s=round(pause_s, 1),
            **({"fix": error.fix} if error.fix else {}),
        )  # fmt: skip
        await trio.sleep(pause_s)


async def _connect_and_run(config: MirrorConfig, view: View, known: set[str], again: list[str]) -> None:
    """Run one session until an error. Empties `again` after its tables are marked."""
    async with open_nats(config.nats, known) as connection:
        source = SourceStream(JetStream(connection), config.stream)
        in_replica = await tokens_in(config.to)
        record = await wait_for_bridge(source, view, has_tables=bool(in_replica))
        chosen = choose_tables(config.tables, record.tables, known=in_replica)
        again[:] = choose_tables(again, record.tables, "--again", in_replica)
        store = await open_store(config.to)  # after the tables' names were checked: a wrong name must not create a file
        try:
            replica = await open_session(store, source, record, view)
            replica.rounds_from_rows = config.rounds_from_rows
            await run_session(replica, source, record, view, chosen, again, is_watched=config.http is not None)
        finally:
            await store.close()
