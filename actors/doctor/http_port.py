"""The check of the bridge's HTTP port, which needs no server."""

from __future__ import annotations

import errno
import http.client
import json
import socket
from functools import partial
from typing import Any

import trio
from psycopg.conninfo import conninfo_to_dict

from actors.clients.postgres.connection import address_of
from actors.doctor.checking import Found, warned
from actors.settings.config import Config, HttpConfig
from actors.telemetry.telemetry import Problem
from actors.web.serving import cannot_listen


async def check_port(config: Config) -> Found:
    """See whether the bridge may listen where it is told to, or listens there already. Raises ConfigError."""
    http_config, slot = config.http, config.source.slot
    try:
        family = socket.AF_INET6 if ":" in http_config.bind else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((http_config.bind, http_config.port))
    except OSError as exc:
        if exc.errno != errno.EADDRINUSE:
            raise cannot_listen(http_config, exc) from None
        status = await trio.to_thread.run_sync(partial(_status, http_config), abandon_on_cancel=True)
        if status is None:
            raise cannot_listen(http_config, exc) from None
        database = str(status.get("source") or "").rpartition("/")[2]
        own = address_of(conninfo_to_dict(config.postgres.conninfo)).rpartition("/")[2]
        if status["slot"] != slot or database not in ("", own):
            of = f" of database {database}" if database else ""
            raise cannot_listen(http_config, exc, f"the bridge of slot {status['slot']}{of} listens there") from None
        verdict = status.get("verdict") or {}
        words = f"the bridge of this slot runs on {http_config.port}: {verdict.get('text', '')}"
        if verdict.get("level") != "bad":
            return Found(words)
        return warned("", Problem("", words, means="the bridge itself says that something is wrong", fix="walbridge status"))
    return Found(f"{http_config.bind}:{http_config.port} is free")


def _status(http_config: HttpConfig) -> dict[str, Any] | None:
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}
    connection = http.client.HTTPConnection(local.get(http_config.bind, http_config.bind), http_config.port, timeout=2)
    try:
        connection.request("GET", "/status", headers={"Host": "localhost"})
        found = json.loads(connection.getresponse().read())
        return found if isinstance(found, dict) and "slot" in found else None
    except (OSError, ValueError, http.client.HTTPException):
        return None
    finally:
        connection.close()
