"""The servers of a world, as its setting requires them."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import psycopg

from actors.embedded.nats import NatsServer, find_nats_server
from actors.embedded.postgres import PostgresServer, find_postgres_bin_dir, reachable_bin_dir
from actors.embedded.process import free_port, unprivileged_account
from actors.positions import parse_lsn
from tests.cluster import Cluster
from tests.faults.proxy import Proxy
from tests.faults.setting import BRIDGES_PASSWORD, Setting
from tests.faults.small_disk import SmallDisk
from tests.standbys import start_standby

SETTINGS = {
    "fsync": "on", "shared_buffers": "64MB", "wal_sender_timeout": "20s", "max_slot_wal_keep_size": "2GB",
    "autovacuum_naptime": "5s",
}  # fmt: skip
SMALL = {"max_wal_size": "64MB", "min_wal_size": "32MB", "max_slot_wal_keep_size": "150MB"}
_DISK_MB = {"nats": 96, "postgres": 400}
STANDBY = "standby"
"""The name of its physical slot."""


class Servers:
    """PostgreSQL, perhaps with a standby, and one or three nats-servers. `close` ends them and removes their disks."""

    def __init__(self, folder: Path, setting: Setting) -> None:
        """Start them. Raises NoSmallDisk."""
        self._folder, self._setting, self._serial = folder, setting, count()
        self.disk = SmallDisk(folder / "disk", _DISK_MB[setting.small_disk]) if setting.small_disk != "none" else None
        programs = reachable_bin_dir(find_postgres_bin_dir(), unprivileged_account(), folder)
        small = setting.small_disk == "postgres"
        self.postgres = PostgresServer(
            programs, (self.disk.folder if self.disk and small else folder) / "postgres", port=free_port(),
            settings=SETTINGS | (SMALL if small else {}) | dict(setting.postgres), password=BRIDGES_PASSWORD)  # fmt: skip
        self.postgres.initdb()
        self.postgres.start()
        self.standby: PostgresServer | None = None
        self.to_primary = Proxy(self.postgres.port)
        """The standby's own network."""
        if setting.standby != "none":
            self.add_standby()
        self._nats_folder = self.disk.folder if self.disk and setting.small_disk == "nats" else folder
        self.cluster = Cluster(self._start_nats) if setting.is_cluster else None
        self.nats_servers = list(self.cluster.servers.values()) if self.cluster else [self._start_nats()]

    def _start_nats(self, **options: Any) -> NatsServer:
        if self._setting.has_users:
            options["extra_config"] = users_with()
        server = NatsServer(find_nats_server(), self._nats_folder / f"nats-{next(self._serial)}", port=free_port(), **options)
        server.start()
        return server

    def add_standby(self) -> None:
        """Let a standby follow the primary."""
        self.to_primary.target = self.postgres.port
        folder = self._folder / f"standby-{next(self._serial)}"
        self.standby = start_standby(self.postgres, folder, slot=STANDBY, port=self.to_primary.port)

    def promote(self) -> int:
        """The primary is gone for good, the standby takes its place; return the LSN of the fork."""
        assert self.standby is not None
        self.postgres.kill()
        self.to_primary.cut()
        self.postgres, self.standby = self.standby, None
        with psycopg.connect(self.postgres.dsn(), autocommit=True) as session:
            session.execute("SELECT pg_promote()")
            ((timeline,),) = session.execute(
                "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) AS timeline"
            ).fetchall()
        history = self.postgres.data_dir / "pg_wal" / f"{timeline}.history"
        self.to_primary.heal()
        return parse_lsn(history.read_text(encoding="utf-8").splitlines()[-1].split("\t")[1])

    def start_what_is_down(self) -> None:
        """After a fault that left something dead."""
        if self.disk is not None:
            self.disk.free()
        for nats in self.nats_servers:
            if nats.pid is None:
                nats.start()
        if self.postgres.pid is None:
            self.postgres.start()

    def close(self) -> None:
        """End all of them."""
        for nats in self.nats_servers:
            nats.kill()
        for postgres in filter(None, (self.postgres, self.standby)):
            postgres.stop("immediate")
        if self.disk is not None:
            self.disk.close()


def users_with(*, deny: str = "") -> str:
    """Lines of nats-server's configuration: user `bridge` may publish everything but one subject."""
    rights = f', permissions: {{ publish: {{ deny: "{deny}" }} }}' if deny else ""
    return (
        f'authorization {{ users: [ {{ user: bridge, password: "{BRIDGES_PASSWORD}"{rights} }},'
        f' {{ user: anybody, password: "anybody" }} ] }}\nno_auth_user: anybody'
    )
