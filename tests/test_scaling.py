"""docs/scaling.md: every statement, command and stream of it is used as it is printed there."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import nats as nats_py
import psycopg
import pytest
from nats.aio.client import Client

from actors.embedded.nats import NatsServer
from tests.cluster import Cluster
from tests.conftest import MakeBridge, MakeNats
from tests.load import Load, ledger
from tests.mirrors import MirrorProcess
from tests.oracle import WalOracle, assert_exact
from tests.servers import HANG_S, ROOT, Bridge, Database, StoredEvent, read_stream, wait_until_drained, with_nats

DOCUMENT = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return DOCUMENT.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def blocks(title: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", section(title), re.MULTILINE | re.DOTALL)


def bridges_of(title: str, database: Database, nats: NatsServer, make_bridge: MakeBridge) -> dict[str, Bridge]:
    """The bridges of a section, by stream; their ports are free ones."""
    found: dict[str, Bridge] = {}
    (text,) = blocks(title, "sh")
    for line in text.splitlines():
        words = shlex.split(line)
        words = words[words.index("walbridge") + 1 :]
        given = dict(zip(words[::2], words[1::2], strict=True))
        assert set(given) == {"--slot", "--pub", "--stream", "--port"}
        found[given["--stream"]] = make_bridge(database, nats, "--stream", given["--stream"], slot=given["--slot"],
                                               pub=given["--pub"])  # fmt: skip
    return found


def add_stream(nats: NatsServer, config: str) -> None:
    """As `nats stream add --config` does."""

    async def add(client: Client) -> None:
        wanted = json.loads(config)
        reply = json.loads((await client.request(f"$JS.API.STREAM.CREATE.{wanted['name']}", config.encode(), timeout=10)).data)
        assert "error" not in reply, reply

    with_nats(nats.url, add)


def wait_confirmed(database: Database, *slots: str) -> None:
    """Until the slots are confirmed up to what was written before."""
    (written,) = database.execute("SELECT pg_current_wal_lsn()")[0]
    deadline = time.monotonic() + 2 * HANG_S
    for slot in slots:
        while not database.execute(
            "SELECT confirmed_flush_lsn >= %s::pg_lsn FROM pg_replication_slots WHERE slot_name = %s", [written, slot]
        )[0][0]:
            assert time.monotonic() < deadline, f"slot {slot} is not confirmed"
            time.sleep(0.05)


def wait_for_stream(nats: NatsServer, stream: str, count: int) -> list[StoredEvent]:
    deadline = time.monotonic() + HANG_S
    while len(events := read_stream(nats.url, stream)) < count:
        assert time.monotonic() < deadline, f"{len(events)} of {count} in {stream}"
        time.sleep(0.1)
    return events


def test_several_bridges_are_exact_each_and_one_view_has_every_change_once(
    database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY, v int); CREATE TABLE orders (id int PRIMARY KEY, v int)")
    (statements,) = blocks("Several bridges", "sql")
    database.execute(statements)
    oracles = {
        "CDC": WalOracle(database, "people_pub", "oracle_people"),
        "ORDERS": WalOracle(database, "orders_pub", "oracle_orders"),
    }
    bridges = bridges_of("Several bridges", database, nats, make_bridge)
    assert list(bridges) == ["CDC", "ORDERS"]
    (view,) = blocks("Several bridges", "json")
    add_stream(nats, view)
    for start in range(0, 3000, 100):  # each transaction has rows of both
        with database.connect(autocommit=False) as connection:
            for table in ("users", "orders"):
                connection.execute(
                    f"INSERT INTO {table} SELECT g, 0 FROM generate_series(%s::int, %s::int) g".encode(), (start, start + 99)
                )
                connection.execute(f"UPDATE {table} SET v = v + 1 WHERE id %% 10 = 0 AND id >= %s".encode(), (start,))
        if start in (1000, 2000):  # one of them is killed: the other must not notice
            bridges["ORDERS"].kill()
            bridges["ORDERS"].start()
    wait_confirmed(database, "people_slot", "orders_slot")
    stored = {stream: read_stream(nats.url, stream) for stream in oracles}
    for stream, oracle in oracles.items():
        assert_exact(stored[stream], oracle.expected())
        assert {event.subject.split(".")[1] for event in stored[stream]} == {"users" if stream == "CDC" else "orders"}
    merged = wait_for_stream(nats, "ALL", sum(map(len, stored.values())))
    by_source: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for event in merged:
        source, seq, *_ = event.headers["Nats-Stream-Source"].split()
        by_source[source].append((int(seq), event.body["msg_id"]))
    for stream, events in stored.items():
        assert by_source[stream] == [(event.seq, event.body["msg_id"]) for event in events], "in order, with its first place"
    assert len({event.body["msg_id"] for event in merged}) == len(merged)


async def ask_for(table: str, client: Client) -> None:
    await client.publish(f"snapshot.request.{table}", b"")


def test_each_bridge_answers_for_its_own_tables(database: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE TABLE orders (id int PRIMARY KEY)")
    database.execute("INSERT INTO users VALUES (1); INSERT INTO orders VALUES (1), (2)")
    (statements,) = blocks("Several bridges", "sql")
    database.execute(statements)
    bridges_of("Several bridges", database, nats, make_bridge)
    for table in ("users", "orders", "nobody"):
        with_nats(nats.url, partial(ask_for, table))
    ended = wait_for_init(nats, {"init.meta.users", "init.meta.orders", "init.error.nobody"})
    assert ended["init.meta.users"][0]["row_count"] == 1
    assert ended["init.meta.orders"][0]["row_count"] == 2
    assert {len(bodies) for bodies in ended.values()} == {1}


def wait_for_init(nats: NatsServer, subjects: set[str], count: int = 1) -> dict[str, list[Any]]:
    """The messages of INIT on these subjects, once there are so many on each, and a moment later."""
    deadline = time.monotonic() + HANG_S

    async def read(client: Client) -> dict[str, list[Any]]:
        js = client.jetstream()
        found: dict[str, list[Any]] = defaultdict(list)
        try:
            last = (await js.stream_info("INIT")).state.last_seq
        except nats_py.js.errors.NotFoundError:
            return {}
        for seq in range(1, last + 1):
            message = await js.get_msg("INIT", seq)
            if message.subject in subjects:
                found[str(message.subject)].append(msgpack.unpackb(message.data or b""))
        return found

    while True:
        found = with_nats(nats.url, read)
        if found.keys() == subjects and min(map(len, found.values())) >= count:
            time.sleep(1)
            return with_nats(nats.url, read)
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


def test_row_filters_split_a_hot_table_and_the_parts_make_the_whole(
    database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute("CREATE TABLE hot (id int PRIMARY KEY, v int)")
    (statements,) = blocks("One hot table", "sql")
    database.execute(statements)
    bridges_of("One hot table", database, nats, make_bridge)
    database.execute("INSERT INTO hot SELECT g, 0 FROM generate_series(-500, 500) g")
    for round_ in range(20):
        database.execute("UPDATE hot SET v = v + 1 WHERE id %% 5 = %s", [round_ % 5])
    database.execute("DELETE FROM hot WHERE id % 7 = 0")
    database.execute("UPDATE hot SET id = id + 10001 WHERE id % 11 = 0")  # from one half to the other
    wait_confirmed(database, "even_slot", "odd_slot")
    streams = {name: read_stream(nats.url, name) for name in ("EVEN", "ODD")}
    replica: dict[str, dict[int, int]] = {}
    for name, events in streams.items():
        rows: dict[int, int] = {}
        for event in (e.body for e in events if e.body["operation"] != "SCHEMA"):
            row = event["data"]
            assert (row["id"] % 2 == 0) == (name == "EVEN")
            if event["operation"] == "DELETE":
                del rows[row["id"]]
            else:
                assert (event["operation"] == "INSERT") != (row["id"] in rows)
                rows[row["id"]] = row["v"]
        replica[name] = rows
    assert not replica["EVEN"].keys() & replica["ODD"].keys()
    assert replica["EVEN"] | replica["ODD"] == dict(database.execute("SELECT id, v FROM hot"))
    moved = {name: {e.body["lsn"] for e in events[-20:]} for name, events in streams.items()}
    assert moved["EVEN"] & moved["ODD"], "a row that moves is in both streams, with the same lsn"
    for name in streams:
        with_nats(nats.url, partial(ask_for, f"hot@{name}"))
    metas = wait_for_init(nats, {"init.meta.hot"}, count=2)["init.meta.hot"]
    assert {meta["stream"]: meta["row_count"] for meta in metas} == {name: len(rows) for name, rows in replica.items()}


@pytest.fixture
def halves(database: Database, nats: NatsServer, make_bridge: MakeBridge) -> dict[str, Bridge]:
    """The bridges of "One hot table", by stream, on a table of 1,001 rows."""
    database.execute("CREATE TABLE hot (id int PRIMARY KEY, v int)")
    (statements,) = blocks("One hot table", "sql")
    database.execute(statements)
    database.execute("INSERT INTO hot SELECT g, 0 FROM generate_series(0, 1000) g")
    return bridges_of("One hot table", database, nats, make_bridge)


ROWS = {"EVEN": 501, "ODD": 500}


def test_mirrors_of_both_halves_begun_together_hold_their_own(
    halves: dict[str, Bridge], nats: NatsServer, tmp_path: Path
) -> None:
    for round_ in range(8):
        if round_ % 2:  # in every other round they find no snapshot to begin with, and ask
            with_nats(nats.url, lambda client: client.jetstream().purge_stream("INIT"))
        mirrors = {
            stream: MirrorProcess(nats, f"sqlite:///{tmp_path}/{stream}-{round_}.db", tmp_path, "--stream", stream)
            for stream in halves
        }
        with ExitStack() as running:
            for mirror in mirrors.values():
                running.enter_context(mirror.running())
            for mirror in mirrors.values():
                mirror.wait_live(1)
        held = {
            stream: mirror.query("SELECT count(*), min(id % 2), max(id % 2) FROM hot") for stream, mirror in mirrors.items()
        }
        assert held == {"EVEN": [(501, 0, 0)], "ODD": [(500, 1, 1)]}, f"round {round_}"


def test_a_request_is_served_by_the_bridge_that_it_names_and_removed_by_no_other(
    halves: dict[str, Bridge], nats: NatsServer
) -> None:
    async def waiting(client: Client) -> set[str]:
        info = await client.jetstream().stream_info("REQUESTS", subjects_filter=">")
        return {subject.removeprefix("snapshot.request.") for subject in info.state.subjects or ()}

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "actors.main", "snapshot", "hot", *words]
        return subprocess.run(argv, env={**os.environ, "NATS_URL": nats.url}, capture_output=True, text=True, check=False)

    assert halves["ODD"].stop() == 0
    for request in ("hot@ODD", "hot~acme", "hot~acme@EVEN", "hot@NONE"):
        with_nats(nats.url, partial(ask_for, request))
    assert json.loads(command("--stream", "EVEN", "--json").stdout)["row_count"] == ROWS["EVEN"]
    assert halves["EVEN"].post("/snapshot/hot")[0] == 202
    metas = wait_for_init(nats, {"init.meta.hot"}, count=2)["init.meta.hot"]
    assert [meta["stream"] for meta in metas] == ["EVEN", "EVEN"]
    left = {"hot@ODD", "hot~acme", "hot~acme@EVEN", "hot@NONE"}
    assert with_nats(nats.url, waiting) == left
    halves["ODD"].start()
    found = wait_for_init(nats, {"init.start.hot", "init.meta.hot"}, count=3)
    assert [(meta["stream"], meta["row_count"]) for meta in found["init.meta.hot"]][2:] == [("ODD", ROWS["ODD"])]
    assert {start["snapshot_id"]: start["stream"] for start in found["init.start.hot"]} == {
        meta["snapshot_id"]: meta["stream"] for meta in found["init.meta.hot"]
    }
    assert with_nats(nats.url, waiting) == left - {"hot@ODD"}
    with_nats(nats.url, partial(ask_for, "hot"))
    with_nats(nats.url, partial(ask_for, "hot@EVEN"))  # the answer to the other one does not concern it
    found = wait_for_init(nats, {"init.error.hot", "init.meta.hot"})
    (error,) = found["init.error.hot"]
    assert (error["error_type"], error["streams"], error["stream"]) == ("ambiguous", ["EVEN", "ODD"], "EVEN")
    assert "snapshot.request.hot@EVEN" in error["error_message"]
    assert json.loads(command("--stream", "ODD", "--json").stdout)["row_count"] == ROWS["ODD"]
    assert with_nats(nats.url, waiting) == left - {"hot@ODD"}


def test_a_broken_off_snapshot_is_taken_again_by_its_own_bridge(halves: dict[str, Bridge], nats: NatsServer) -> None:
    """What another bridge has told of the table since hides neither its start nor that it never ended."""
    assert halves["EVEN"].stop() == 0

    async def start(client: Client) -> None:
        body = {"stream": "EVEN", "snapshot_id": "snap-1-aaaa", "table": "hot"}
        await client.jetstream().publish("init.start.hot", msgpack.packb(body))

    with_nats(nats.url, start)
    with_nats(nats.url, partial(ask_for, "hot@ODD"))
    wait_for_init(nats, {"init.meta.hot"})
    halves["EVEN"].start()
    metas = wait_for_init(nats, {"init.meta.hot"}, count=2)["init.meta.hot"]
    assert [meta["stream"] for meta in metas] == ["ODD", "EVEN"]
    for bridge in halves.values():
        assert bridge.stop() == 0
        bridge.start()
    assert len(wait_for_init(nats, {"init.meta.hot"}, count=2)["init.meta.hot"]) == 2, "both have ended"


def test_partitions_keep_each_table_whole_and_in_order(database: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    tables = [f"table_{n}" for n in range(12)]
    database.execute("; ".join(f"CREATE TABLE {table} (id int PRIMARY KEY)" for table in tables))
    database.execute(f"CREATE PUBLICATION cdc_pub FOR TABLE {', '.join(tables)}")
    make_bridge(database, nats)
    (config,) = blocks("Partitions for consumers", "json")
    add_stream(nats, config)
    for n in range(50):
        database.execute("; ".join(f"INSERT INTO {table} VALUES ({n})" for table in tables))
    stored = wait_for_stream(nats, "CDC", 600)
    events = wait_for_stream(nats, "PARTS", len(stored))
    partitions: dict[str, set[str]] = defaultdict(set)
    for event in events:
        _, partition, cdc, table, operation = event.subject.split(".")
        assert (cdc, operation) == ("cdc", event.body["operation"].lower())
        assert table == event.body["table"]
        partitions[table].add(partition)
    assert {len(found) for found in partitions.values()} == {1}, "a table is in one partition"
    assert len({next(iter(found)) for found in partitions.values()}) > 1, "and not all in the same"
    assert {p for found in partitions.values() for p in found} <= {"0", "1", "2", "3"}
    for table in tables:
        assert [e.body["data"]["id"] for e in events if e.body["table"] == table] == list(range(50))


def test_the_leader_of_three_servers_is_killed_under_load_and_the_stream_stays_exact(
    database: Database, make_nats: MakeNats, make_bridge: MakeBridge
) -> None:
    (line,) = blocks("Three NATS servers", "sh")
    assert "NATS_REPLICAS=3" in line
    cluster = Cluster(make_nats)
    with ledger(database) as oracle:
        bridge = make_bridge(database, cluster.url, env={"NATS_REPLICAS": "3"})
        for stream in ("CDC", "INIT", "REQUESTS", "KV_schemas", "KV_bridges"):
            info = cluster.ask(f"$JS.API.STREAM.INFO.{stream}", {})
            assert info["config"]["num_replicas"] == 3
            assert len(info["cluster"]["replicas"]) == 2
        published = 0
        with Load(database, workers=1):
            for _ in range(3):
                time.sleep(1)
                leader = cluster.leader("CDC")
                cluster.servers[leader].kill()
                published = bridge.status()["cdc_events_published"]
                deadline = time.monotonic() + HANG_S
                while bridge.status()["cdc_events_published"] <= published + 500:
                    assert time.monotonic() < deadline, bridge.log()[-3000:]
                    time.sleep(0.1)
                assert cluster.leader("CDC") != leader, "two of three go on without it"
                cluster.servers[leader].start()
                cluster.wait_for_replicas()
        wait_until_drained(bridge, database)
        assert bridge.status()["publish"] == "fast"
        assert bridge.exit_code is None
        assert_exact(read_stream(cluster.servers[cluster.leader("CDC")].url), oracle.expected())
        assert bridge.stop() == 0


@pytest.mark.parametrize("name", re.findall(r"`((?:compose|tests|docs)/[\w/.]+)`", DOCUMENT))
def test_files_that_it_names_are_there(name: str) -> None:
    assert Path(ROOT, name).exists()


def test_a_filter_on_another_column_is_refused_by_postgresql_as_it_says(database: Database) -> None:
    database.execute("CREATE TABLE hot (id int PRIMARY KEY, v int); INSERT INTO hot VALUES (1, 1)")
    database.execute("CREATE PUBLICATION wrong FOR TABLE hot WHERE (v > 0)")
    with pytest.raises(psycopg.errors.InvalidColumnReference):
        database.execute("UPDATE hot SET v = 2")
