"""The servers of one benchmark: one PostgreSQL for all of it, a new nats-server for each run of the bridge."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import psycopg

from actors.embedded.nats import NatsServer, find_nats_server
from actors.embedded.postgres import PostgresServer, find_postgres_bin_dir, reachable_bin_dir
from actors.embedded.process import free_port, unprivileged_account

# No disk waits: the disk is not what is measured. And nothing that writes WAL or reads tables on its own account.
SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "shared_buffers": "256MB",
    "max_wal_size": "16GB",
    "checkpoint_timeout": "1h",
}


class Servers:
    """Everything that runs during a benchmark. Made and ended by `open_servers`."""

    def __init__(self, folder: Path, postgres: PostgresServer) -> None:
        self.folder, self.postgres = folder, postgres
        self._nats_binary, self._serial = find_nats_server(), count(1)

    def connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        """One more connection, which commits each statement; the caller closes it."""
        return psycopg.connect(self.postgres.dsn(), autocommit=True)

    @contextmanager
    def new_nats(self, *, sync_interval: str | None = None) -> Iterator[NatsServer]:
        """A nats-server with nothing in it; killed and removed at the end."""
        folder = self.folder / f"nats-{next(self._serial)}"
        server = NatsServer(self._nats_binary, folder, port=free_port(), sync_interval=sync_interval)
        server.start()
        try:
            yield server
        finally:
            server.kill()
            shutil.rmtree(server.data_dir)

    @contextmanager
    def new_slot(self, *, copy_of: str | None = None) -> Iterator[str]:
        """A slot, dropped at the end: one that begins now, or one with the same backlog as another."""
        name = f"bench_{next(self._serial)}"
        with self.connect() as connection:
            if copy_of is None:
                connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [name])
            else:
                connection.execute("SELECT pg_copy_logical_replication_slot(%s, %s)", [copy_of, name])
            try:
                yield name
            finally:  # after its reader has let go of it
                connection.execute(
                    "SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots"
                    " WHERE slot_name = %s AND active_pid IS NOT NULL", [name])  # fmt: skip
                connection.execute("SELECT pg_drop_replication_slot(%s)", [name])


@contextmanager
def open_servers() -> Iterator[Servers]:
    """Start PostgreSQL in a temporary folder; stop it and remove everything at the end."""
    with tempfile.TemporaryDirectory(prefix="walbridge-bench-") as name:
        folder = Path(name)
        folder.chmod(0o711)  # PostgreSQL does not run as root: its user must get in
        bin_dir = reachable_bin_dir(find_postgres_bin_dir(), unprivileged_account(), folder)
        postgres = PostgresServer(bin_dir, folder / "postgres", port=free_port(), settings=SETTINGS, password=None)
        postgres.initdb()
        postgres.start()
        try:
            yield Servers(folder, postgres)
        finally:
            postgres.stop("immediate")
