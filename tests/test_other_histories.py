"""A server whose WAL is not the one that the stream was written from: restored from a copy, promoted while it lagged."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from actors.contract.bridge_record import BridgeRecord
from actors.embedded.nats import NatsServer
from actors.embedded.postgres import PostgresServer
from actors.positions import parse_lsn
from tests.conftest import MakeBridge, MakePostgres
from tests.servers import Database, read_messages, wait_for, wait_for_events


@pytest.fixture
def source(make_postgres: MakePostgres) -> PostgresServer:
    server = make_postgres()
    database = Database(server, "app")
    database.execute("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE unpublished (v text);"
                     "CREATE PUBLICATION cdc_pub FOR TABLE t")  # fmt: skip
    database.close()
    return server


def ask(server: PostgresServer, *statements: str) -> list[tuple[Any, ...]]:
    """Run statements, each in a transaction of its own, on a connection that does not outlive them."""
    with psycopg.connect(server.dsn("app"), autocommit=True) as connection:
        for statement in statements:
            cursor = connection.execute(statement)  # type: ignore[call-overload]
        return cursor.fetchall() if cursor.description else []


def copy_of(server: PostgresServer) -> Path:
    """A copy of a server's volume, slots included; the server is stopped for it."""
    server.stop()
    copy = server.data_dir.with_name(server.data_dir.name + "-copy")
    shutil.copytree(server.data_dir, copy, copy_function=_copy_with_owner)
    _give(server.data_dir, copy)
    server.start()
    return copy


def _copy_with_owner(source: str, target: str) -> str:
    shutil.copy2(source, target)
    _give(Path(source), Path(target))
    return target


def _give(source: Path, target: Path) -> None:
    stat = source.stat()
    shutil.chown(target, stat.st_uid, stat.st_gid)
    for inner in source.iterdir() if source.is_dir() else ():
        if inner.is_dir() and (target / inner.name).is_dir():
            _give(inner, target / inner.name)


def put_back(server: PostgresServer, copy: Path, *, as_standby: bool = False) -> None:
    """The server comes back with the copy's volume, or a standby in the state of the copy is promoted."""
    server.stop("immediate")
    shutil.rmtree(server.data_dir)
    copy.rename(server.data_dir)
    if as_standby:
        signal = server.data_dir / "standby.signal"
        signal.touch()
        _give(server.data_dir / "PG_VERSION", signal)
    server.start()
    if as_standby:
        ask(server, "SELECT pg_promote()")
        wait_for(lambda: ask(server, "SELECT pg_is_in_recovery()") == [(False,)])


def record_of(nats: NatsServer) -> BridgeRecord:
    return BridgeRecord.decode(read_messages(nats.url, "KV_bridges")[-1].data, "CDC")


def test_a_restored_volume_with_a_longer_history_is_refused_and_told_when_accepted(
    source: PostgresServer, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    bridge = make_bridge(source.dsn("app"), nats)
    ask(source, "INSERT INTO t SELECT g, 'first' FROM generate_series(1, 10) g")
    wait_for_events(nats.url, 10)
    assert bridge.stop() == 0
    copy = copy_of(source)
    bridge.start()
    ask(source, *(f"INSERT INTO t VALUES ({key}, 'lost with the volume')" for key in range(11, 51)))
    wait_for_events(nats.url, 50)
    bridge.kill()
    put_back(source, copy)
    ask(source, *(f"INSERT INTO t VALUES ({key}, repeat('after the restore', 20))" for key in range(11, 111)))
    slot = "SELECT confirmed_flush_lsn FROM pg_replication_slots"
    before = ask(source, slot)
    bridge.start(ready=False)
    assert bridge.wait() == 1
    assert "WB151" in bridge.log()
    assert ask(source, slot) == before, "nothing of the other history was confirmed"
    make_bridge(source.dsn("app"), nats, "--accept-gap")
    events = [event.body for event in wait_for_events(nats.url, 151)]
    assert events[50]["operation"] == "GAP"
    assert events[50]["from_lsn"] <= events[10]["lsn"] <= events[49]["lsn"] < events[50]["to_lsn"]
    assert [event["data"]["id"] for event in events[51:]] == list(range(11, 111))


def test_a_promoted_standby_without_the_newest_wal_is_confirmed_nothing_that_is_not_stored(
    source: PostgresServer, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    """What was confirmed on the old timeline names other changes now: those are only received when NATS is slow."""
    bridge = make_bridge(source.dsn("app"), nats)
    ask(source, "INSERT INTO t VALUES (0, 'before')")
    wait_for_events(nats.url, 1)
    assert bridge.stop() == 0
    copy = copy_of(source)
    bridge.start()
    ask(source, "INSERT INTO unpublished SELECT repeat('x', 1000) FROM generate_series(1, 5000)")
    ((surplus,),) = ask(source, "SELECT pg_current_wal_lsn()")
    wait_for(lambda: record_of(nats).confirmed_lsn >= parse_lsn(surplus))
    assert bridge.stop() == 0
    put_back(source, copy, as_standby=True)
    bridge.start()
    ((begin,),) = ask(source, "SELECT pg_current_wal_flush_lsn()")
    nats.pause()
    ask(source, *(f"INSERT INTO t VALUES ({key}, repeat('x', 1000))" for key in range(1, 201)))
    ((end,),) = ask(source, "SELECT pg_current_wal_flush_lsn()")
    assert parse_lsn(end) < parse_lsn(surplus)
    received = "SELECT coalesce(write_lsn, '0/0') FROM pg_stat_replication WHERE application_name = 'walbridge'"
    wait_for(lambda: parse_lsn(ask(source, received)[0][0]) > parse_lsn(begin))
    time.sleep(2.5)  # for two more reports to PostgreSQL: in NATS nothing moves any more
    bridge.kill()
    nats.resume()
    bridge.start()
    events = [event.body for event in wait_for_events(nats.url, 201)]
    assert [(e["operation"], e["data"]["id"]) for e in events] == [("INSERT", key) for key in range(201)]


def test_a_first_start_that_breaks_off_before_anything_is_confirmed_is_no_gap(
    database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE t")
    bridge = make_bridge(database, nats)
    bridge.kill()
    bridge.start()
    database.execute("INSERT INTO t VALUES (1)")
    assert [event.body["operation"] for event in wait_for_events(nats.url, 1)] == ["INSERT"]
