"""Physical standbys."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from actors.embedded.postgres import PostgresServer
from actors.embedded.process import free_port, run_as


def start_standby(primary: PostgresServer, data_dir: Path, *, slot: str = "", port: int = 0) -> PostgresServer:
    """A running standby that follows a server, with its settings; the folder must not exist.

    `slot` is made on the primary for it, and has it keep the logical slots that are made for a failover; `port` leads to the
    primary (a proxy, say).
    """
    data_dir.mkdir(mode=0o700)
    owner = primary.data_dir.stat()
    os.chown(data_dir, owner.st_uid, owner.st_gid)
    address = primary.dsn().replace(f":{primary.port}/", f":{port or primary.port}/")
    made = run_as(primary.account, [
        str(primary.bin_dir / "pg_basebackup"), "-D", str(data_dir), "-d", address, "-R", "-c", "fast", "--no-sync",
        *(["-C", "-S", slot] if slot else []),
    ])  # fmt: skip
    assert made.returncode == 0, made.stdout
    settings = primary.settings | {"hot_standby_feedback": "on"} | ({"sync_replication_slots": "on"} if slot else {})
    standby = PostgresServer(primary.bin_dir, data_dir, port=free_port(), settings=settings, password=primary.password)
    standby.start()
    return standby


@contextmanager
def standby_of(primary: PostgresServer) -> Iterator[PostgresServer]:
    """A running standby that follows a server."""
    standby = start_standby(primary, primary.data_dir.with_name(primary.data_dir.name + "-standby"))
    try:
        yield standby
    finally:
        standby.stop("immediate")
        shutil.rmtree(standby.data_dir)
