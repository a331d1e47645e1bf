"""The check of the NATS user's rights: each is tried with a request that the server refuses for another reason."""

from __future__ import annotations

import re
from collections.abc import Sequence

import orjson

from actors.clients.nats.connection import ALLOW, NatsConnection
from actors.clients.nats.trials import NOT_A_REQUEST, may_subscribe, refused_publishes, refused_requests
from actors.contract.subjects import BRIDGE_TOKEN, REQUEST_ALL, REQUESTS, request, trial_subjects
from actors.doctor.checking import Found
from actors.doctor.report import Level
from actors.settings.config import Config
from actors.telemetry.quantities import listed
from actors.telemetry.telemetry import Problem

TRIED_TABLES_MAX = 50
"""So many tables' subjects are tried; users with a right for each table have few."""


async def check_rights(
    connection: NatsConnection, config: Config, tokens: Sequence[str], streams: Sequence[str], *, zstd: bool
) -> Found:
    """Try everything that a bridge does with these tables and streams. `zstd` says whether it compresses."""
    stream = config.publish.stream
    subjects = trial_subjects(stream, tokens[:TRIED_TABLES_MAX], arrays=config.snapshots.format == "array", zstd=zstd)
    read = [name for name in streams if name != REQUESTS]
    actions = [f"STREAM.INFO.{name}" for name in streams] + [f"STREAM.MSG.GET.{name}" for name in read]
    nothing = orjson.dumps({"filter": request(BRIDGE_TOKEN)})  # no such request is ever made
    lesser = {f"STREAM.PURGE.{REQUESTS}": nothing, f"CONSUMER.LIST.{stream}": NOT_A_REQUEST}
    needed = [
        *await refused_publishes(connection, subjects),
        *await refused_requests(connection, dict.fromkeys(actions, NOT_A_REQUEST)),
    ]
    useful = [*await refused_requests(connection, lesser)]
    unheard = [] if await may_subscribe(config.nats, REQUEST_ALL) else [REQUEST_ALL]
    kinds: list[tuple[Level, str, Sequence[str], str]] = [
        ("fail", "publish to", needed, "the bridge ends, or waits, at the first of these"),
        ("fail", "subscribe to", unheard, "the bridge hears no requests for snapshots"),
        ("warn", "publish to", useful, "served requests are served again at each start, or the page shows no consumers"),
    ]
    tried = len(subjects) + len(actions) + len(lesser) + 1
    return Found(
        f"all {tried} that were tried are there",
        [(level, _missing(doing, refused, means)) for level, doing, refused, means in kinds if refused],
    )


def _missing(doing: str, subjects: Sequence[str], means: str) -> Problem:
    # what was tried stands for a pattern
    shown = [re.sub(r"\.trial\b.*", ".>", re.sub(rf"\.{BRIDGE_TOKEN}$", ".*", subject)) for subject in subjects]
    return Problem("WB204", f"the NATS user may not {doing} {listed(shown)}", means=means, fix=ALLOW)
