"""Snapshots that read a standby: as exact and as recent as those of the primary, or refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager

import psycopg

from actors.embedded.nats import NatsServer
from actors.embedded.postgres import PostgresServer
from tests.command_line import run_here
from tests.conftest import MakeBridge, MakePostgres
from tests.servers import Bridge, Database, wait_for
from tests.snapshots import ask, snapshots, take
from tests.standbys import standby_of

READ = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'users'"
USERS = "CREATE TABLE users (id int PRIMARY KEY); INSERT INTO users VALUES (1); CREATE PUBLICATION cdc_pub FOR TABLE users"


def at(server: PostgresServer) -> dict[str, str]:
    """The setting: who we are and which database are the primary's."""
    return {"SNAPSHOT_DATABASE_URL": f"postgresql://127.0.0.1:{server.port}"}


@contextmanager
def users_and_standby(primary: PostgresServer) -> Iterator[tuple[Database, PostgresServer]]:
    """A published table, and a standby of its server."""
    with closing(Database(primary, "app")) as database, standby_of(primary) as standby:
        database.execute(USERS)
        yield database, standby


def test_a_complete_snapshot_reads_the_standby_alone(
    make_postgres: MakePostgres, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    with users_and_standby(make_postgres()) as (database, standby):
        make_bridge(database, nats, env=at(standby))
        assert [row["id"] for row in take(nats.url, "users").rows] == [1]
        with psycopg.connect(standby.dsn("app"), autocommit=True) as there:
            wait_for(lambda: there.execute(READ).fetchall() == [(1,)])
        assert database.execute(READ) == [(0,)]


def test_a_snapshot_waits_for_a_standby_that_is_behind_and_has_what_was_committed_before_its_request(
    make_postgres: MakePostgres, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    with users_and_standby(make_postgres()) as (database, standby):
        bridge = make_bridge(database, nats, env=at(standby))
        with psycopg.connect(standby.dsn("app"), autocommit=True) as there:
            there.execute("SELECT pg_wal_replay_pause()")
            database.execute("INSERT INTO users VALUES (2)")
            ask(nats.url, "users")
            wait_for(lambda: "behind its primary" in bridge.log())
            assert "WB141" in bridge.log()
            assert not snapshots(nats.url, "users")
            checks = doctor(bridge)
            assert checks["snapshots' standby"]["level"] == "ok", "a little behind: doctor does not know for how long"
            there.execute("SELECT pg_wal_replay_resume()")
            wait_for(lambda: snapshots(nats.url, "users") and snapshots(nats.url, "users")[-1].meta)
        assert [row["id"] for row in snapshots(nats.url, "users")[-1].rows] == [1, 2]


def test_a_promoted_standby_and_another_server_are_refused(
    make_postgres: MakePostgres, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    with users_and_standby(make_postgres()) as (database, standby):
        bridge = make_bridge(database, nats, env=at(standby))
        with psycopg.connect(standby.dsn("app"), autocommit=True) as there:
            there.execute("SELECT pg_promote()")
            there.execute("INSERT INTO users VALUES (13)")
            ask(nats.url, "users")
            wait_for(lambda: "WB140" in bridge.log() and "timeline 2, not 1" in bridge.log())
            row = doctor(bridge)["snapshots' standby"]
            assert (row["level"], row["code"]) == ("fail", "WB140")
        assert not [snapshot for snapshot in snapshots(nats.url, "users") if snapshot.start]
        assert bridge.get("/ready")[0] == 200, "events go on"
        other = make_postgres()
        with closing(Database(other, "app")) as there:
            there.execute(USERS)
            bridge.env = {**bridge.env, **at(other)}
            row = doctor(bridge)["snapshots' standby"]
            assert (row["level"], row["code"]) == ("fail", "WB140")
            assert "system id" in row["said"]


def doctor(bridge: Bridge) -> dict[str, dict[str, str]]:
    """The doctor's rows by check, with the bridge's settings."""
    found = json.loads(run_here("doctor", "--json", env=bridge.env).stdout)["checks"]
    return {row["check"]: row for row in found}
