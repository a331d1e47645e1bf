"""What a campaign plays with: servers, networks, a bridge, two mirrors, and who keeps them running."""

from __future__ import annotations

import random
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg

from actors.embedded.nats import NatsServer, find_nats_server
from actors.embedded.postgres import PostgresServer, find_postgres_bin_dir, reachable_bin_dir
from actors.embedded.process import free_port, unprivileged_account
from tests.campaign.proxy import Proxy
from tests.campaign.tables import SETUP, TABLES
from tests.campaign.witness import OwnSession, Witness
from tests.campaign.writers import Writers
from tests.servers import Bridge, Database
from tests.watched_mirrors import WatchedMirror

SETTINGS = {
    "fsync": "on", "shared_buffers": "64MB", "wal_sender_timeout": "20s", "max_slot_wal_keep_size": "2GB",
    "autovacuum_naptime": "5s",
}  # fmt: skip
_CRASH = re.compile(r"Traceback \(most recent|AssertionError")
_NOTICED = re.compile(r" met |UNIQUE constraint|duplicate key value")


class World:
    """One of everything. Owns all processes and the folder; `close` ends them."""

    def __init__(self, seed: str) -> None:
        """Start everything and wait until the mirrors are live."""
        self.folder = Path(tempfile.mkdtemp(prefix="walbridge-campaign-"))
        self.folder.chmod(0o711)
        programs = reachable_bin_dir(find_postgres_bin_dir(), unprivileged_account(), self.folder)
        self.postgres = PostgresServer(
            programs, self.folder / "postgres", port=free_port(), settings=SETTINGS, password="campaign"
        )
        self.postgres.initdb()
        self.postgres.start()
        self.nats = NatsServer(find_nats_server(), self.folder / "nats", port=free_port())
        self.nats.start()
        self.database = Database(self.postgres, "campaign")
        self.database.execute("CREATE ROLE walbridge LOGIN REPLICATION PASSWORD 'campaign'")
        self.database.execute(SETUP)
        self.to_postgres, self.to_nats, self.mirrors_to_nats = (
            Proxy(port) for port in (self.postgres.port, self.nats.port, self.nats.port)
        )
        self.role_dsn = f"postgresql://walbridge:campaign@127.0.0.1:{self.to_postgres.port}/campaign"
        self.bridge = Bridge(self.role_dsn, f"nats://127.0.0.1:{self.to_nats.port}", self.folder)
        self._argv = list(self.bridge.argv)
        self.start_bridge("--snapshot-format", "array")  # INIT gets all subjects, so that a restart with other flags can work
        self.bridge.wait_ready()
        self.witness = Witness(OwnSession(self.database), self.nats.url)
        replica = Database(self.postgres, "replica")
        replica.close()
        nats_url = f"nats://127.0.0.1:{self.mirrors_to_nats.port}"
        self.mirrors = [WatchedMirror(nats_url, to, self.folder) for to in (f"sqlite:///{self.folder}/replica.db", replica.dsn)]
        for mirror in self.mirrors:
            mirror.start()
        for mirror in self.mirrors:
            mirror.wait_live(len(TABLES))
        self.writers = Writers(self.postgres.dsn("campaign"), seed)
        self.ended: Counter[str] = Counter()
        """How often bridge or mirror ended by themselves, by their last error."""
        self.to_accept: set[str] = set()
        """Codes whose loss a person has caused and accepts."""
        self._known_lines: set[str] = set()

    def sql(self, statements: str) -> None:
        """Be an administrator of PostgreSQL, who does not wait for locks forever. Raises psycopg.Error when refused."""
        with psycopg.connect(self.postgres.dsn("campaign"), autocommit=True, connect_timeout=5) as session:
            session.execute("SET lock_timeout = '3s'")
            session.execute(statements.encode())

    def query(self, statement: str, params: Sequence[object] | None = None) -> list[tuple[Any, ...]]:
        """Rows of a query, over a connection that no earlier kill has broken."""
        with psycopg.connect(self.postgres.dsn("campaign"), autocommit=True, connect_timeout=5) as session:
            return session.execute(statement.encode(), params).fetchall()

    def slots(self) -> set[str]:
        """Names of the replication slots."""
        return {str(name) for (name,) in self.query("SELECT slot_name FROM pg_replication_slots")}

    def start_bridge(self, *flags: str) -> None:
        """Start the bridge with these flags, now and until it is started with others."""
        self.bridge.argv = [*self._argv, *flags]
        self.bridge.start(ready=False)

    def keep_alive(self) -> None:
        """Start again what ended, as a supervisor would; accept a loss only if a person caused it."""
        if self.bridge.exit_code is not None:
            code = self._last_code(self.bridge.log())
            self.ended[f"bridge {code}"] += 1
            accepted = code in self.to_accept
            flags = [flag for flag in self.bridge.argv[len(self._argv) :] if flag != "--accept-gap"]
            self.start_bridge(*flags, *(["--accept-gap"] if accepted else []))
        for mirror in self.mirrors:
            if mirror.process is None or mirror.process.poll() is not None:
                self.ended[f"mirror {self._last_code(mirror.log())}"] += 1
                mirror.start()

    def restart_bridge(self, *flags: str) -> None:
        """Stop it in order, as an operator does, and start it."""
        if self.bridge.exit_code is None:
            self.bridge.stop()
        self.start_bridge(*flags)

    def heal(self) -> None:
        """Bring back servers and networks."""
        for proxy in (self.to_postgres, self.to_nats, self.mirrors_to_nats):
            proxy.heal()
        for server in (self.nats, self.postgres):
            if server.pid is None:
                server.start()
        self.keep_alive()

    def wait(self, condition: Callable[[], bool], patience_s: float) -> bool:
        """Wait until it is so, while what ends is started again; an error of a server counts as: not yet."""
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            with suppress(OSError, psycopg.Error):
                if condition():
                    return True
            self.keep_alive()
            time.sleep(0.2)
        return False

    def crashes(self) -> list[str]:
        """New lines of the logs that no act explains."""
        return self._new_lines(_CRASH)

    def noticed(self) -> list[str]:
        """New lines of the logs that say that a replica was not what it should have been, as after a TRUNCATE of a partition."""
        return self._new_lines(_NOTICED)

    def _new_lines(self, pattern: re.Pattern[str]) -> list[str]:
        logs = (self.bridge.log_path, *(mirror.log_path for mirror in self.mirrors))
        found = {
            f"{log.name}: {line}"
            for log in logs
            for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
            if pattern.search(line)
        } - self._known_lines
        self._known_lines |= found
        return sorted(found)

    def close(self, *, keep: bool) -> None:
        """End all processes; `keep` the folder with the logs."""
        for process in (self.bridge, *self.mirrors):
            process.kill()
        self.nats.kill()
        self.postgres.stop("immediate")
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    @staticmethod
    def _last_code(log: str) -> str:
        codes = re.findall(r"error (WB\d+)", log)
        return str(codes[-1]) if codes else "without a code"


Act = Callable[[World, random.Random], None]
"""Something that happens to a world; returns when it is over. Raises psycopg.Error when PostgreSQL refuses it."""
