"""What the demo shows, gathered from outside: the bridge's /status, PostgreSQL, the replica, and the stream itself."""

from __future__ import annotations

import json
import sqlite3
import threading
import urllib.request
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import msgpack
import psycopg
import trio

from actors.clients.nats.connection import open_nats
from actors.contract.subjects import CDC_ALL, parse
from actors.demo.screen import Seen, TableRows
from actors.embedded.servers import EmbeddedServers
from actors.errors import SinkUnavailable, WalbridgeError
from actors.settings.config import NatsConfig
from actors.telemetry.quantities import escaped
from actors.wire.nats import Msg

TIMEOUT_S = 1.0


class Watcher:
    """Looks at both sides. Owns a connection to PostgreSQL and a thread that listens to NATS, until `close`."""

    def __init__(self, servers: EmbeddedServers, port: int, replica: Path, tables: Sequence[str]) -> None:
        self._url = f"http://127.0.0.1:{port}/status"
        self._postgres = psycopg.connect(servers.database_url, autocommit=True)
        self._replica, self._tables = replica, tables
        self._stored = dict.fromkeys(tables, 0)
        self._latest = ""
        self._events = 0
        self._was_there = False
        nats = NatsConfig((servers.nats_url,), user=servers.nats_user, password=servers.nats_password)
        self._stop = threading.Event()
        self._listener = threading.Thread(target=trio.run, args=[self._listen, nats], name="listener", daemon=True)
        self._listener.start()

    def look(self) -> Seen:
        """Read the state of both sides at this moment."""
        status = self._status()
        latency = status.get("latency_ms") or {}
        self._was_there = self._was_there or bool(status)
        self._events = max(self._events, sum(self._stored.values()))
        return Seen(
            state=str(status.get("state") or ("down" if self._was_there else "starting")),
            events=self._events,
            lag_seconds=status.get("lag_seconds"),
            wal_held_bytes=status.get("wal_lag_bytes"),
            p50_ms=latency.get("p50"),
            p99_ms=latency.get("p99"),
            tables=[self._table(name) for name in self._tables],
            latest=self._latest,
        )

    def close(self) -> None:
        """End the connection and the listener."""
        self._stop.set()
        self._postgres.close()
        self._listener.join(2)

    def _status(self) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(self._url, timeout=TIMEOUT_S) as answer:
                return dict(json.load(answer))
        except (OSError, ValueError):
            return {}

    def _table(self, name: str) -> TableRows:
        row = self._postgres.execute(f"SELECT count(*) FROM public.{name}".encode()).fetchone()
        replica: int | None = None
        with suppress(sqlite3.Error), closing(sqlite3.connect(f"file:{self._replica}?mode=ro", uri=True, timeout=0.2)) as db:
            replica = int(db.execute(f"SELECT count(*) FROM {name}").fetchone()[0])
        return TableRows(name, row[0] if row else 0, self._stored[name], replica)

    async def _listen(self, config: NatsConfig) -> None:
        """Count events and remember the last one; NATS may be gone for a while."""
        while not self._stop.is_set():
            try:
                async with open_nats(config, set()) as nats:
                    await nats.subscribe(CDC_ALL, self._take)
                    while not self._stop.is_set():  # noqa: ASYNC110  (set by another thread)
                        await trio.sleep(0.2)
            except* (SinkUnavailable, WalbridgeError):
                await trio.sleep(0.5)

    def _take(self, message: Msg) -> None:
        subject = message.subject.decode()
        found = parse(subject)
        if found is not None and found.kind == "event" and found.token in self._stored:
            self._stored[found.token] += 1
        data = msgpack.unpackb(message.payload).get("data", {})
        self._latest = escaped(f"{subject}  {json.dumps(data, default=str, ensure_ascii=False)}")
