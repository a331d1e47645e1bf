"""A major upgrade of PostgreSQL with pg_upgrade, which keeps the slot: the stream goes on without a gap when told so."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from actors.embedded.nats import NatsServer
from actors.embedded.postgres import PostgresServer
from actors.embedded.process import free_port, run_as
from tests.conftest import FAST, MakeBridge, MakePostgres
from tests.servers import wait_for_events


@pytest.fixture
def trusting(make_postgres: MakePostgres, server_folder: Path) -> tuple[PostgresServer, PostgresServer]:
    """Two clusters without passwords, which pg_upgrade could not give; neither runs."""
    template = make_postgres()
    template.stop()
    made = [
        PostgresServer(template.bin_dir, template.data_dir / name, port=free_port(), settings=FAST, password=None)
        for name in ("old", "new")
    ]
    for server in made:
        server.initdb()
    return made[0], made[1]


def upgrade(old: PostgresServer, new: PostgresServer) -> None:
    """Stop the old server, make the new one of it with pg_upgrade, and start that."""
    old.stop()
    new.start()  # writes its settings
    new.stop()
    programs, folder = str(new.bin_dir), str(new.data_dir)
    ports = [str(free_port()), str(free_port())]
    done = run_as(new.account, [
        "/bin/sh", "-c", 'cd "$0" && exec "$@"', folder, f"{programs}/pg_upgrade", "-b", programs, "-B", programs, "-U", "postgres",
        "-d", str(old.data_dir), "-D", folder, "-p", ports[0], "-P", ports[1], "-s", folder, "--no-sync", "--link",
    ])  # fmt: skip
    assert done.returncode == 0, done.stdout
    new.start()


def insert(server: PostgresServer, *keys: int) -> None:
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        for key in keys:
            connection.execute("INSERT INTO t VALUES (%s)", [key])


def test_the_stream_goes_on_after_pg_upgrade_without_a_gap(
    trusting: tuple[PostgresServer, PostgresServer], nats: NatsServer, make_bridge: MakeBridge
) -> None:
    old, new = trusting
    old.start()
    with psycopg.connect(old.dsn(), autocommit=True) as connection:
        connection.execute("CREATE TABLE t (id int PRIMARY KEY)")
        connection.execute("CREATE PUBLICATION cdc_pub FOR TABLE t")
    bridge = make_bridge(old.dsn(), nats)
    insert(old, 1, 2)
    wait_for_events(nats.url, 2)
    assert bridge.stop() == 0
    upgrade(old, new)
    try:
        insert(new, 3)
        refused = make_bridge(new.dsn(), nats, start=False)
        refused.start(ready=False)
        assert refused.wait() == 1
        assert "WB150" in refused.log()
        assert "--accept-upgrade" in refused.log()
        upgraded = make_bridge(new.dsn(), nats, "--accept-upgrade")
        insert(new, 4)
        wait_for_events(nats.url, 4)
        assert upgraded.stop() == 0
        insert(new, 5)
        refused.start()
        events = [event.body for event in wait_for_events(nats.url, 5)]
        assert [(event["operation"], event["data"]["id"]) for event in events] == [("INSERT", key) for key in range(1, 6)]
        assert events == sorted(events, key=lambda event: event["lsn"])
        assert refused.stop() == 0
    finally:
        new.stop("immediate")
