"""The world that faults happen to: servers, networks, a bridge, two mirrors, and the operator who keeps them running."""

from __future__ import annotations

import random
import re
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import psycopg

from actors.embedded.nats import NatsServer
from actors.embedded.postgres import PostgresServer
from tests.faults.proxy import Proxy
from tests.faults.servers_of import Servers
from tests.faults.setting import BRIDGES_PASSWORD, USUAL, Setting
from tests.faults.small_disk import NoSmallDisk
from tests.faults.tables import SETUP, TABLES
from tests.faults.witness import OwnSession, Witness
from tests.faults.writers import Writers
from tests.servers import Bridge, Database
from tests.watched_mirrors import WatchedMirror

DATABASE = "faults"
_CRASH = re.compile(r"Traceback \(most recent|AssertionError")
_CODE = re.compile(r"\bWB\d{3}\b")
_NOTICED = re.compile(r" met |UNIQUE constraint|duplicate key value")


class World:
    """One of everything. Owns all processes and the folder; `close` ends them."""

    def __init__(self, seed: str, setting: Setting = USUAL) -> None:
        """Start everything and wait until the mirrors are live. Raises NoSmallDisk; leaves nothing then."""
        self.setting = setting
        self.folder = Path(tempfile.mkdtemp(prefix="walbridge-faults-"))
        self.folder.chmod(0o711)
        try:
            self.servers = Servers(self.folder, setting)
        except NoSmallDisk:
            shutil.rmtree(self.folder)
            raise
        self.database = Database(self.postgres, DATABASE)
        self.database.execute(f"CREATE ROLE walbridge LOGIN REPLICATION PASSWORD '{BRIDGES_PASSWORD}'")
        self.database.execute(SETUP)
        self.to_postgres, self.to_nats, self.mirrors_to_nats = (
            Proxy(port) for port in (self.postgres.port, self.nats.port, self.nats.port)
        )
        self.role_dsn = f"postgresql://walbridge:{BRIDGES_PASSWORD}@127.0.0.1:{self.to_postgres.port}/{DATABASE}"
        cluster = self.servers.cluster
        self.bridge_nats = cluster.url if cluster else f"nats://127.0.0.1:{self.to_nats.port}"
        self.bridge = self.one_more_bridge(*setting.flags)
        self._argv = list(self.bridge.argv)
        self.start_bridge("--snapshot-format", "array")  # INIT gets all subjects, so that a restart with other flags can work
        self.bridge.wait_ready()
        urls = [server.url for server in self.servers.nats_servers]
        self.witness = Witness(OwnSession(self.database), urls, failover=setting.standby != "none")
        nats_url = cluster.url if cluster else f"nats://127.0.0.1:{self.mirrors_to_nats.port}"
        self.mirrors = [WatchedMirror(nats_url, self._replica(kind), self.folder) for kind in setting.mirrors]
        for mirror in self.mirrors:
            mirror.start()
        for mirror in self.mirrors:
            mirror.wait_live(len(TABLES))
        self.writers = Writers(lambda: self.postgres.dsn(DATABASE), seed)
        self.ended: Counter[str] = Counter()
        """How often bridge or mirror ended by themselves, by their last error."""
        self.to_accept: set[str] = set()
        """Codes whose loss a person has caused and accepts."""
        self._known_lines: defaultdict[re.Pattern[str], set[str]] = defaultdict(set)

    @property
    def postgres(self) -> PostgresServer:
        """The server that is written to: another one after a failover."""
        return self.servers.postgres

    @property
    def nats(self) -> NatsServer:
        """The nats-server, or one of the cluster that runs."""
        servers = self.servers.nats_servers
        return next((server for server in servers if server.pid is not None), servers[0])

    def one_more_bridge(self, *flags: str, slot: str = "cdc_slot") -> Bridge:
        """Another bridge on the same servers, not started."""
        env = {"NATS_REPLICAS": "3"} if self.servers.cluster else {}
        if self.setting.has_users:
            env |= {"NATS_BRIDGE_USER": "bridge", "NATS_BRIDGE_PASSWORD": BRIDGES_PASSWORD}
        return Bridge(self.role_dsn, self.bridge_nats, self.folder, *flags, slot=slot, env=env)

    def _replica(self, kind: str) -> str:
        if kind == "sqlite":
            return f"sqlite:///{self.folder}/replica.db"
        replica = Database(self.postgres, "replica")
        replica.close()
        return replica.dsn

    def sql(self, statements: str, *, lock_timeout: str = "3s") -> None:
        """Be an administrator of PostgreSQL, who does not wait for locks forever. Raises psycopg.Error when refused."""
        with psycopg.connect(self.postgres.dsn(DATABASE), autocommit=True, connect_timeout=5) as session:
            session.execute(f"SET lock_timeout = '{lock_timeout}'".encode())
            session.execute(statements.encode())

    def query(self, statement: str, params: Sequence[object] | None = None) -> list[tuple[Any, ...]]:
        """Rows of a query, over a connection that no earlier kill has broken."""
        with psycopg.connect(self.postgres.dsn(DATABASE), autocommit=True, connect_timeout=5) as session:
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
        self.servers.start_what_is_down()
        if self.servers.cluster is not None:
            self.servers.cluster.wait_for_replicas()
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

    def wait_until_confirmed(self, patience_s: float) -> bool:
        """Wait until the slot has confirmed what is written now."""
        written = self.query("SELECT pg_current_wal_lsn()")[0][0]
        confirmed = "SELECT confirmed_flush_lsn >= %s::pg_lsn FROM pg_replication_slots WHERE slot_name = 'cdc_slot'"
        return self.wait(lambda: self.query(confirmed, [written]) == [(True,)], patience_s)

    def crashes(self) -> list[str]:
        """New lines of the logs that no act explains."""
        return self._new_lines(_CRASH)

    def noticed(self) -> list[str]:
        """New lines of the logs that say that a replica was not what it should have been, as after a TRUNCATE of a partition."""
        return self._new_lines(_NOTICED)

    def codes(self) -> set[str]:
        """Codes of errors and problems that bridge and mirrors logged since this was asked last."""
        return {code for line in self._new_lines(_CODE) for code in _CODE.findall(line)}

    def _new_lines(self, pattern: re.Pattern[str]) -> list[str]:
        logs = (self.bridge.log_path, *(mirror.log_path for mirror in self.mirrors))
        found = {
            f"{log.name}: {line}"
            for log in logs
            for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
            if pattern.search(line)
        } - self._known_lines[pattern]
        self._known_lines[pattern] |= found
        return sorted(found)

    def close(self, *, keep: bool) -> None:
        """End all processes; `keep` the folder with the logs."""
        self.bridge.kill()
        for mirror in self.mirrors:
            mirror.kill()
        self.servers.close()
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    @staticmethod
    def _last_code(log: str) -> str:
        codes = re.findall(r"error (WB\d+)", log)
        return str(codes[-1]) if codes else "without a code"


class Act(Protocol):
    """Something that happens to a world; returns when it is over.

    Raises psycopg.Error or nats.errors.Error when a server refuses it, AssertionError when the product is at fault.
    """

    __name__: str

    def __call__(self, world: World, dice: random.Random, /) -> None: ...
