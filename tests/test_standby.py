"""A bridge on a standby: it streams, takes snapshots and is verified, or says what on the primary keeps it from that."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
import pytest
import trio

from actors.clients.postgres.connection import PgConnection
from actors.clients.postgres.slots import export_snapshot
from actors.embedded.nats import NatsServer
from actors.embedded.postgres import PostgresServer
from actors.errors import SourceUnavailable
from actors.settings.config import PostgresConfig
from tests.beside import beside
from tests.command_line import run_here
from tests.conftest import MakeBridge, MakePostgres
from tests.mirrors import MirrorProcess
from tests.servers import Database, wait_for, wait_for_events
from tests.standbys import standby_of


@contextmanager
def not_idle(primary: PostgresServer) -> Iterator[None]:
    """While a primary has something to do it notes its transactions every 15 s; here more often."""

    def note(done: threading.Event) -> None:
        with psycopg.connect(primary.dsn(), autocommit=True) as connection:
            while not done.wait(0.2):
                connection.execute("SELECT pg_log_standby_snapshot()")

    with beside(note):
        yield


def test_a_bridge_on_a_standby_streams_takes_snapshots_and_is_verified(
    make_postgres: MakePostgres, nats: NatsServer, make_bridge: MakeBridge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    primary = make_postgres()
    database = Database(primary, "app")
    database.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1); CREATE PUBLICATION cdc_pub FOR TABLE t")
    with standby_of(primary) as standby:
        bridge = make_bridge(standby.dsn("app"), nats, start=False)
        bridge.start(ready=False)
        wait_for(lambda: "waits for the primary" in bridge.get("/ready")[1])
        assert "SELECT pg_log_standby_snapshot();" in bridge.log()
        assert bridge.status()["problems"][0]["fix"].startswith("SELECT pg_log_standby_snapshot();")
        with not_idle(primary):
            bridge.wait_ready()
            database.execute("INSERT INTO t VALUES (2)")
            assert [event.body["data"] for event in wait_for_events(nats.url, 1)] == [{"id": 2}]
            env = {"DATABASE_URL": standby.dsn("app"), "NATS_URL": nats.url, "BRIDGE_PORT": str(bridge.port)}
            rows = json.loads(run_here("doctor", "--json", "--round-trip", env=env).stdout)["checks"]
            assert {row["check"] for row in rows if row["level"] not in ("ok", "note")} == {"WAL limit", "rights", "round trip"}
            mirror = MirrorProcess(nats, f"sqlite:///{tmp_path}/replica.db", tmp_path)
            mirror.start()
            try:
                mirror.wait_live(1)
                database.execute("INSERT INTO t VALUES (3)")
                mirror.assert_equal(standby.dsn("app"))
                assert mirror.query("SELECT id FROM t ORDER BY id") == [(1,), (2,), (3,)]
            finally:
                mirror.kill()
        assert bridge.stop() == 0
        monkeypatch.setattr("actors.clients.postgres.slots.STANDBY_TIMEOUT_S", 0.5)

        async def snapshot() -> None:
            config = PostgresConfig(standby.dsn("app"))
            with closing(await PgConnection.connect(config, application_name="test", replication=True)) as connection:
                with pytest.raises(SourceUnavailable) as caught:
                    await export_snapshot(connection, timeout_s=0.1)
                assert (caught.value.code, "on the primary" in caught.value.fix) == ("WB124", True)

        trio.run(snapshot)
    database.close()
