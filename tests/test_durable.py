"""--publish durable: transactions that appear whole or not at all. --confirm-hold: a power cut of NATS that loses nothing."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import groupby

import pytest
import trio

from actors.clients.nats.acknowledgements import Acknowledgements
from actors.clients.nats.connection import open_nats
from actors.clients.nats.jetstream import JetStream
from actors.embedded.nats import NatsServer
from actors.errors import BatchTooLarge
from actors.messages import Batch
from actors.positions import NO_LSN
from actors.publisher import Publisher
from actors.settings.resolve import resolve
from actors.startup.batch_limit import BatchLimit
from actors.startup.streams import prepare_streams
from actors.wire.jetstream import OutMessage
from tests.conftest import MakeBridge, MakeNats, MakePostgres
from tests.load import Load, ledger
from tests.oracle import assert_exact
from tests.servers import Database, edit_stream, read_stream, wait_for, wait_until_drained

DURABLE = ("--publish", "durable")
TABLE = "CREATE TABLE t (id int PRIMARY KEY, txn int); CREATE PUBLICATION cdc_pub FOR TABLE t"


def insert(database: Database, txn: int, rows: int) -> None:
    database.execute("INSERT INTO t SELECT %s * 10000 + g, %s FROM generate_series(0, %s - 1) g", [txn, txn, rows])


def stored(nats: NatsServer) -> dict[int, list[int]]:
    """Ids by transaction, as the stream has them."""
    rows = [event.body["data"] for event in read_stream(nats.url) if event.body["operation"] == "INSERT"]
    return {txn: [row["id"] for row in of_txn] for txn, of_txn in groupby(rows, lambda row: row["txn"])}


def parts(nats: NatsServer) -> Iterator[tuple[int, bool]]:
    """Of each transaction in the stream how many events there are, and whether that is all of them."""
    events = [event.body for event in read_stream(nats.url) if event.body["operation"] != "SCHEMA"]
    for _, of_txn in groupby(events, lambda event: event["lsn"]):
        bodies = list(of_txn)
        yield len(bodies), bool(bodies[-1].get("last"))


def divides_only_what_is_larger_than_a_batch(nats: NatsServer) -> bool:
    *before, (events, whole) = parts(nats)
    assert all(whole for _, whole in before)
    return whole or events == 1000


@pytest.mark.parametrize("killed", ["bridge", "nats"])
def test_a_transaction_is_stored_whole_or_in_full_batches_that_the_next_start_completes(
    killed: str, database: Database, make_nats: MakeNats, make_bridge: MakeBridge
) -> None:
    nats = make_nats()
    database.execute(TABLE)
    bridge = make_bridge(database, nats, *DURABLE)
    assert bridge.status()["publish"] == "durable"
    done: dict[int, list[int]] = {}
    for txn, (rows, fits, prefix) in enumerate([(1000, 999, 0), (1001, 1000, 1000), (2500, 2499, 2000), (3, 2, 0)]):
        room = sum(map(len, done.values())) + fits
        edit_stream(nats.url, "CDC", max_msgs=room, discard="new")
        insert(database, txn, rows)
        wait_for(lambda: bridge.status()["state"] == "waiting_nats" and "maximum messages" in bridge.status()["reason"])
        (bridge if killed == "bridge" else nats).kill()
        if killed == "nats":
            nats.start()
        whole = list(range(txn * 10000, txn * 10000 + rows))
        assert stored(nats) == done | ({txn: whole[:prefix]} if prefix else {}), "full batches alone"
        done[txn] = whole
        edit_stream(nats.url, "CDC", max_msgs=-1, discard="old")
        if killed == "bridge":
            bridge.start()
        wait_until_drained(bridge, database)
        assert stored(nats) == done


def test_kill_9_under_load_divides_no_transaction_and_loses_nothing(
    database: Database, make_nats: MakeNats, make_bridge: MakeBridge
) -> None:
    nats, dice = make_nats(sync_interval="always"), random.Random("durable")
    with ledger(database) as oracle:
        bridge = make_bridge(database, nats, *DURABLE, "--confirm-hold", "1")
        with Load(database, workers=2):
            for turn in range(6):
                time.sleep(dice.uniform(0.05, 1.0))
                database.execute("INSERT INTO ledger (payload) SELECT 'large' FROM generate_series(1, %s)", [1000 + turn % 2])
                if turn % 2:
                    nats.kill()
                    nats.start()
                else:
                    bridge.kill()
                    wait_for(lambda: divides_only_what_is_larger_than_a_batch(nats))  # a batch may be just being stored
                    bridge.start(ready=False)
        bridge.wait_ready()
        wait_until_drained(bridge, database)
        assert_exact(read_stream(nats.url), oracle.expected())


def test_a_power_cut_of_nats_loses_nothing_that_was_held(
    make_postgres: MakePostgres, make_nats: MakeNats, make_bridge: MakeBridge
) -> None:
    """The store is exchanged for an older copy, as a power cut leaves it that takes what was not synced."""
    postgres, nats = make_postgres(), make_nats()
    database = Database(postgres, "held")
    with closing(database), ledger(database) as oracle:
        bridge = make_bridge(database, nats, *DURABLE, "--confirm-hold", "8")
        older = nats.data_dir.with_name(nats.data_dir.name + "-older")
        with Load(database, workers=2):
            created = bridge.status()["current_lsn"]
            wait_for(lambda: bridge.status()["current_lsn"] != created)
            nats.pause()
            shutil.copytree(nats.data_dir, older)
            nats.resume()
            sequence = bridge.status()["stream_seq"]
            wait_for(lambda: bridge.status()["stream_seq"] > sequence + 100)
            time.sleep(2)  # without the hold more would be confirmed by now
            nats.kill()
            shutil.rmtree(nats.data_dir)
            older.rename(nats.data_dir)
            nats.start()
            wait_for(lambda: "was cut short" in bridge.log())
        wait_for(lambda: bridge.status()["stream_seq"] == len(oracle.expected()))
        assert_exact(read_stream(nats.url), oracle.expected())
        assert bridge.status()["gaps"] == 0
        assert bridge.status()["confirm_hold_seconds"] == 8


def test_a_server_that_takes_only_smaller_batches_names_its_limit(nats: NatsServer) -> None:
    """No release has a setting for it, so the bridge's side asks for more than the usual limit."""

    async def publish(messages: int, limit: BatchLimit) -> None:
        async with open_nats(
            resolve({}, {"DATABASE_URL": "postgresql://u@h/db", "NATS_URL": nats.url}).nats, set()
        ) as connection:
            setup = await prepare_streams(JetStream(connection), stream="CDC", mode="durable", replicas=1)
            acks = Acknowledgements(setup.last_seq)
            acks.reply_prefix = await connection.inbox(acks.on_reply)
            publisher = Publisher("durable", acks.reply_prefix, setup.last_seq)
            out = [OutMessage(b"cdc.t.insert", b"1-%d-t-insert" % n, b"{}") for n in range(messages)]
            await connection.send(publisher.frames(Batch(out, 0, {}, None, NO_LSN, 0, 0)))
            try:
                assert await acks.beyond(0) == messages
            except BatchTooLarge as exc:
                limit.note(exc)

    limit = BatchLimit()
    limit.messages_max = 5000
    trio.run(publish, 1200, limit)
    assert limit.messages_max == 1000
    trio.run(publish, 1000, limit)


@pytest.mark.parametrize("version", ["2.10", "2.12"])
def test_a_stream_that_takes_no_atomic_batches_is_refused_with_the_command_that_changes_it(
    version: str, database: Database, make_nats: MakeNats, make_bridge: MakeBridge
) -> None:
    nats = make_nats(version)  # type: ignore[arg-type]
    database.execute(TABLE)
    bridge = make_bridge(database, nats)
    assert bridge.status()["publish"] == "plain"
    bridge.stop()
    if version == "2.12":
        edit_stream(nats.url, "CDC", allow_atomic=False)
    refused = make_bridge(database, nats, *DURABLE, start=False)
    refused.start(ready=False)
    assert refused.wait() == 2
    assert "error WB232: --publish durable: stream CDC does not take atomic batches" in refused.log()
    assert "nats stream edit CDC --allow-batch" in refused.log()
    if version == "2.12":
        edit_stream(nats.url, "CDC", allow_atomic=True)
        refused.start()
        insert(database, 1, 1500)
        wait_until_drained(refused, database)
        assert {txn: len(ids) for txn, ids in stored(nats).items()} == {1: 1500}


def test_postgresql_does_not_wait_at_its_stop_until_what_is_held_is_confirmed(
    make_postgres: MakePostgres, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    postgres = make_postgres()
    database = Database(postgres, "held")
    database.execute(TABLE)
    bridge = make_bridge(database, nats, "--confirm-hold", "600")
    insert(database, 1, 10)
    wait_for(lambda: stored(nats) == {1: [*range(10_000, 10_010)]})
    database.close()
    postgres.stop("fast")  # an immediate one after 30 s
    assert "immediate shutdown request" not in postgres.log_path.read_text(encoding="utf-8")
    postgres.start()
    bridge.wait_ready()
    insert(database, 2, 1)
    wait_for(lambda: stored(nats) == {1: [*range(10_000, 10_010)], 2: [20_000]})
    database.close()
