"""Promise 1: every committed change once, in commit order, whatever is killed."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import closing

import pytest

from actors.embedded.nats import NatsServer
from tests.conftest import MakeBridge, MakeNats, MakePostgres
from tests.load import Load, ledger
from tests.oracle import assert_exact, difference, place
from tests.servers import Database, read_stream, wait_for, wait_until_drained


def pause(dice: random.Random, longest_s: float = 0.6) -> None:
    time.sleep(dice.uniform(0.05, longest_s))


def test_a_backlog_of_300000_rows_is_stored_once_and_in_order(
    database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute("CREATE TABLE ledger (id bigint PRIMARY KEY, payload text); CREATE PUBLICATION cdc_pub FOR TABLE ledger")
    bridge = make_bridge(database, nats)
    assert bridge.stop() == 0
    for txn in range(300):
        database.execute("INSERT INTO ledger SELECT %s * 1000 + g, 'row ' || g FROM generate_series(0, 999) g", [txn])
    bridge.start()
    wait_until_drained(bridge, database)
    events = [e for e in read_stream(nats.url) if e.body["operation"] == "INSERT"]
    assert [e.body["data"]["id"] for e in events] == list(range(300_000))
    assert [e.body["seq"] for e in events] == [*range(1000)] * 300
    assert bridge.status()["cdc_events_published"] == 300_000


@pytest.mark.parametrize("mode", ["fast", "plain"])
def test_kill_9_of_the_bridge_ten_times_under_load_loses_and_doubles_nothing(
    mode: str, database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    dice = random.Random(f"bridge {mode}")
    with ledger(database) as oracle:
        bridge = make_bridge(database, nats, "--publish", mode)
        with Load(database):
            for _ in range(10):
                pause(dice)
                bridge.kill()
                bridge.start(ready=dice.random() < 0.7)
        bridge.wait_ready()
        wait_until_drained(bridge, database)
        assert_exact(read_stream(nats.url), oracle.expected())


def test_packed_events_survive_kill_9_as_well(database: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    dice = random.Random("pack")
    with ledger(database) as oracle:
        bridge = make_bridge(database, nats, "--pack", "10", "--json")
        with Load(database):
            for _ in range(4):
                pause(dice)
                bridge.kill()
                bridge.start()
        wait_until_drained(bridge, database)
        events = read_stream(nats.url)
        assert_exact(events, oracle.expected())
        assert len({e.seq for e in events}) < len(events)


Fault = Callable[[random.Random], None]


@pytest.mark.parametrize("victims", [("nats",), ("postgres",), ("nats", "postgres", "bridge")])
def test_servers_killed_under_load_cost_nothing(
    victims: tuple[str, ...], make_postgres: MakePostgres, make_nats: MakeNats, make_bridge: MakeBridge
) -> None:
    dice = random.Random(str(victims))
    # fsync on: a killed server must find its own WAL again
    postgres, nats = make_postgres(fsync="on"), make_nats()
    database = Database(postgres, "chaos")
    with closing(database), ledger(database) as oracle:
        bridge = make_bridge(database, nats)
        with Load(database):
            for turn in range(6):
                pause(dice, 1.0)
                victim = victims[turn % len(victims)]
                if victim == "nats":
                    nats.kill()
                    pause(dice)
                    nats.start()
                elif victim == "postgres":
                    postgres.kill()
                    pause(dice)
                    postgres.start()
                else:
                    bridge.kill()
                    bridge.start(ready=False)
        database.close()  # its server was killed: the next statement connects anew
        bridge.wait_ready()
        wait_until_drained(bridge, database)
        assert_exact(read_stream(nats.url), oracle.expected())


def test_sigterm_under_load_drains_confirms_and_repeats_nothing(
    database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    with ledger(database) as oracle:
        bridge = make_bridge(database, nats)
        with Load(database):
            time.sleep(1)
            assert bridge.stop() == 0, bridge.log()
            stored = [place(e.body) for e in read_stream(nats.url) if e.body["operation"] != "SCHEMA"]
            ((confirmed,),) = database.execute(
                "SELECT (confirmed_flush_lsn - '0/0')::bigint FROM pg_replication_slots WHERE slot_name = 'cdc_slot'"
            )
            expected = [(e.lsn, e.seq, e.operation, e.token) for e in oracle.expected()]
            assert stored == expected[: len(stored)], difference(stored, expected)
            whole = {e.body["lsn"] for e in read_stream(nats.url) if e.body.get("last")}
            assert max(whole) < confirmed, "what was published whole is confirmed"
        bridge.start()
        wait_until_drained(bridge, database)
        assert_exact(read_stream(nats.url), oracle.expected())


def test_two_bridges_on_one_slot_take_turns_and_the_stream_stays_exact(
    database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    with ledger(database) as oracle:
        first = make_bridge(database, nats)
        second = make_bridge(database, nats, start=False)
        with Load(database, workers=2):
            second.start(ready=False)
            wait_for(lambda: second.get("/ready")[0] == 503 and "another process" in second.status()["reason"])
            time.sleep(7)  # a second try, at least
            assert first.status()["nats_reconnect_count"] == 0, "who waits does not disturb who works"
            first.kill()
            second.wait_ready()
            first.start(ready=False)
            time.sleep(1)
        wait_until_drained(second, database)
        assert_exact(read_stream(nats.url), oracle.expected())


def test_copy_of_many_rows_arrives_whole(database: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE t")
    bridge = make_bridge(database, nats)
    with database.connect() as connection, connection.cursor().copy("COPY t FROM STDIN") as copy:
        copy.write("\n".join(map(str, range(20_000))) + "\n")
    wait_until_drained(bridge, database)
    rows = [e.body for e in read_stream(nats.url)]
    assert [r["data"]["id"] for r in rows] == list(range(20_000))
    assert len({r["msg_id"] for r in rows}) == 20_000


def test_a_stop_right_after_a_start_is_clean(database: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    database.execute("CREATE TABLE t (id bigserial PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE t")
    bridge = make_bridge(database, nats, start=False)
    for _ in range(8):
        bridge.start()
        database.execute("INSERT INTO t DEFAULT VALUES")
        assert bridge.stop() == 0, bridge.log()
    assert [e.body["data"]["id"] for e in read_stream(nats.url)] == sorted(
        {e.body["data"]["id"] for e in read_stream(nats.url)}
    )
