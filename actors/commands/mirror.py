"""`walbridge mirror`: parameters and the log. The mirror itself is in actors/mirror/."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from cyclopts.validators import Number

from actors.mirror.run import MirrorConfig, run
from actors.settings.flags import EnvFile, Flags, option, takes_settings
from actors.settings.replica import names_of, secrets_of
from actors.settings.resolve import resolve_client
from actors.settings.setting import REPLICA
from actors.telemetry.log import set_up_logging

ROUNDS_FROM_ROWS = 1_000_000


@takes_settings(
    "nats_context", "bind", stream="the bridge's stream", port="serve /health, /ready and /metrics on this port [off]"
)
def mirror(
    flags: Flags,
    *,
    to: Annotated[str, option(REPLICA, "the replica: sqlite:///file.db or postgresql://user@host/db", "URL")],
    tables: Annotated[str, option(REPLICA, "tables, separated by commas [all that the bridge publishes]", "TABLES")] = "",
    again: Annotated[str, option(REPLICA, "tables to copy again first, separated by commas", "TABLES")] = "",
    rounds_from: Annotated[
        int, option(REPLICA, "copy tables with so many rows in rounds; 0: none [1000000]", "ROWS", validator=Number(gte=0))
    ] = ROUNDS_FROM_ROWS,
    env_file: EnvFile = None,
) -> int:
    """Keep SQLite or PostgreSQL tables equal to the source, until stopped."""
    return run_mirror(to, tables, again, flags, env_file, rounds_from)


def run_mirror(
    to: str, tables: str, again: str, flags: Mapping[str, object], env_file: Path | None, rounds_from: int = ROUNDS_FROM_ROWS
) -> int:
    """Mirror until stopped; return the exit code. Raises Fatal."""
    client = resolve_client(flags, os.environ, env_file)
    set_up_logging(client.log.level, client.log.format, client.secrets + secrets_of(to))
    return run(MirrorConfig(client.nats, client.stream, to, names_of(tables), names_of(again), client.http, rounds_from))
