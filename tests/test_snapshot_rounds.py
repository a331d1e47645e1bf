"""Snapshots in rounds on real servers: exact under load, continued after any kill, and ended when the table changes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from typing import Any

from actors.embedded.nats import NatsServer
from tests.conftest import MakeBridge, MakeNats, MakePostgres
from tests.rounds import Rounds, ask, copy_of, rounds, take_rounds, wait_for_rounds
from tests.row_writers import moving_rows, writers
from tests.servers import HANG_S, ROOT, Bridge, Database, read_messages, wait_for
from tests.snapshots import snapshots, take, wait_for_snapshots
from tests.standbys import standby_of

ITEMS = """
CREATE TABLE items (id bigint PRIMARY KEY, v int, filler text);
INSERT INTO items SELECT g, 0, repeat('x', 200) FROM generate_series(1, 20000) g;
CREATE PUBLICATION cdc_pub FOR TABLE items;
ANALYZE items;
"""
SHORT = ("--snapshot-round-s", "1")


def settle(database: Database, url: str) -> None:
    """Wait until everything committed so far is in the stream."""
    ((marker,),) = database.execute(
        "INSERT INTO items (id) VALUES (-1000000000 - (random() * 1000000000)::int) RETURNING id::text"
    )
    wait_for(lambda: any(marker.encode() in m.data for m in read_messages(url, "CDC")[-2000:]))


def table_of(database: Database, columns: str = "id, v, filler") -> dict[tuple[Any, ...], dict[str, Any]]:
    names = columns.split(", ")
    return {(row[0],): dict(zip(names, row, strict=True)) for row in database.execute(f"SELECT {columns} FROM items")}


def assert_exact(snapshot: Rounds, database: Database, url: str) -> None:
    copy = copy_of(snapshot, read_messages(url, "CDC"), "items")
    assert not copy.missing
    expected = table_of(database)
    assert copy.rows.keys() == expected.keys(), (len(copy.rows), len(expected))
    assert copy.rows == expected


JSON = ("--json",)  # so that a test finds a number in a message


def test_rounds_under_load_join_the_events_exactly(
    make_postgres: MakePostgres, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    # a slow commit: long between its place in the WAL and its being seen
    database = Database(make_postgres(fsync="on", commit_delay="3000", commit_siblings="1"), "exact")
    with closing(database):
        database.execute(ITEMS)
        bridge = make_bridge(database, nats, *SHORT, *JSON, "--snapshot-rate-mb-s", "2")
        with writers(database, moving_rows, open_s=[0.03] * 4):
            taken = [take_rounds(nats.url, "items+ranges") for _ in range(2)]
        settle(database, nats.url)
        for snapshot in taken:
            assert len(snapshot.places) > 1, "several rounds"
            assert_exact(snapshot, database, nats.url)
        assert taken[0].start.key == ("id",)
        assert bridge.get("/ready")[0] == 200


def test_rounds_that_read_a_standby_under_load_join_the_events_exactly(
    make_postgres: MakePostgres, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    primary = make_postgres()
    with closing(Database(primary, "exact")) as database, standby_of(primary) as standby:
        # no superuser, who alone may call pg_log_standby_snapshot()
        database.execute(f"{ITEMS}; CREATE ROLE reader LOGIN REPLICATION PASSWORD 'secret'; GRANT SELECT ON items TO reader")
        login = f"postgresql://reader:secret@127.0.0.1:{primary.port}/exact"
        env = {"SNAPSHOT_DATABASE_URL": f"postgresql://127.0.0.1:{standby.port}"}
        bridge = make_bridge(login, nats, *SHORT, *JSON, "--snapshot-rate-mb-s", "1", env=env)
        with writers(database, moving_rows, open_s=[0.03] * 4):
            ask(nats.url, "items+ranges")
            wait_for(lambda: any(one.chunks for one in rounds(nats.url, "items+ranges")))
            bridge.kill()
            bridge.start()
            (snapshot,) = wait_for_rounds(nats.url, "items+ranges", 1)
        settle(database, nats.url)
        assert len(snapshot.places) > 1, "several rounds"
        assert_exact(snapshot, database, nats.url)


def test_a_transaction_that_stays_open_stops_no_round(database: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    database.execute(ITEMS)
    bridge = make_bridge(database, nats, *SHORT, *JSON)
    with database.connect(autocommit=False) as slow, writers(database, moving_rows, open_s=[0.03] * 2):
        slow.execute("UPDATE items SET v = 100 WHERE id = 1")
        slow.execute("INSERT INTO items VALUES (-5, 5)")
        snapshot = take_rounds(nats.url, "items+ranges")  # the exact way waits for `slow`, so the other one is taken
        assert "waiting" not in str(snapshot.error)
        assert (-5,) not in {(row["id"],) for row in snapshot.rows}
        slow.commit()
    settle(database, nats.url)
    assert_exact(snapshot, database, nats.url)
    assert bridge.get("/ready")[0] == 200


def kill_nats(bridge: Bridge, nats: NatsServer, database: Database) -> None:
    nats.kill()
    nats.start()


def kill_postgres(bridge: Bridge, nats: NatsServer, database: Database) -> None:
    database.close()
    database.server.stop("immediate")
    database.server.start()


def kill_bridge(bridge: Bridge, nats: NatsServer, database: Database) -> None:
    bridge.kill()
    bridge.start(ready=False)


def stop_bridge(bridge: Bridge, nats: NatsServer, database: Database) -> None:
    bridge.wait_ready()
    assert bridge.stop() == 0
    bridge.start(ready=False)


KILLS: list[Callable[[Bridge, NatsServer, Database], None]] = [kill_bridge, kill_postgres, kill_nats, stop_bridge]


def test_a_snapshot_goes_on_after_kills_amid_rounds(
    make_postgres: MakePostgres, make_nats: MakeNats, make_bridge: MakeBridge
) -> None:
    nats, database = make_nats(), Database(make_postgres(), "killed")
    with closing(database):
        database.execute(ITEMS)
        bridge = make_bridge(database, nats, *SHORT, *JSON, "--snapshot-rate-mb-s", "2", "--publish", "plain")
        with writers(database, moving_rows, open_s=[0.03] * 3):
            ask(nats.url, "items+ranges")
            for number, kill in enumerate(KILLS):
                wait_for(lambda n=number: sum(len(one.chunks) for one in rounds(nats.url, "items+ranges")) > n)
                kill(bridge, nats, database)
            (snapshot,) = wait_for_rounds(nats.url, "items+ranges")
        settle(database, nats.url)
        assert_exact(snapshot, database, nats.url)
        assert snapshot.meta is not None
        # what was read again is what the last chunk did not have
        assert snapshot.meta.row_count < 1.2 * 20_000
        ((requests,),) = [(read_messages(nats.url, "REQUESTS"),)]
        assert not requests, "the request was answered"


def test_a_bridge_that_was_paused_adds_nothing(database: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    """Its successor has the number of its next chunk: the stream refuses it."""
    import signal  # noqa: PLC0415

    database.execute(ITEMS)
    flags = (*SHORT, *JSON, "--snapshot-rate-mb-s", "2")
    first = make_bridge(database, nats, *flags)
    ask(nats.url, "items+ranges")
    wait_for(lambda: any(one.chunks for one in rounds(nats.url, "items+ranges")))
    first.signal(signal.SIGSTOP)
    # PostgreSQL notices that it is gone only after a while
    database.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active_pid IS NOT NULL")
    second = make_bridge(database, nats, *flags)
    known = len(rounds(nats.url, "items+ranges")[0].chunks)
    wait_for(lambda: len(rounds(nats.url, "items+ranges")[0].chunks) > known)
    first.signal(signal.SIGCONT)
    (snapshot,) = wait_for_rounds(nats.url, "items+ranges")
    first.kill()
    settle(database, nats.url)
    assert_exact(snapshot, database, nats.url)
    assert second.exit_code is None


def test_a_snapshot_is_cancelled_while_it_runs(database: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    database.execute(ITEMS)
    database.execute("INSERT INTO items SELECT g, 0, repeat('x', 200) FROM generate_series(20001, 200000) g")
    bridge = make_bridge(database, nats, *SHORT, "--snapshot-rate-mb-s", "1")
    command = [sys.executable, "-m", "actors.main", "snapshot", "items"]
    followed = subprocess.Popen([*command, "--rounds"], cwd=ROOT, env=bridge.env, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: any(len(one.chunks) > 1 for one in rounds(nats.url, "items+ranges")))
    (running,) = rounds(nats.url, "items+ranges")
    subprocess.run([*command, "--cancel", running.start.snapshot_id], cwd=ROOT, env=bridge.env, check=True, timeout=HANG_S)
    (cancelled,) = wait_for_rounds(nats.url, "items+ranges")
    _, words = followed.communicate(timeout=HANG_S)
    assert followed.returncode == 1
    assert "failed: cancelled" in words
    assert "somebody has cancelled this snapshot" in words
    assert cancelled.error is not None
    assert cancelled.error.error_type == "cancelled"
    assert sum(len(chunk.rows) for chunk in cancelled.chunks) < 200_000
    ask(nats.url, "items")
    wait_for(lambda: any(one.chunks for one in snapshots(nats.url, "items")))
    ask(nats.url, f"items+cancel-{snapshots(nats.url, 'items')[0].start['snapshot_id']}")
    (whole,) = wait_for_snapshots(nats.url, "items")
    assert whole.error is not None, whole.meta
    assert whole.error["error_type"] == "cancelled"
    wait_for(lambda: not read_messages(nats.url, "REQUESTS"))


CHANGES = {
    "column with a default": "ALTER TABLE items ADD COLUMN extra int DEFAULT 7",
    "rewrite": "ALTER TABLE items ALTER COLUMN filler TYPE varchar USING upper(filler)",
    "another table": "ALTER TABLE items RENAME TO old; CREATE TABLE items (LIKE old INCLUDING ALL);"
    " INSERT INTO items SELECT * FROM old; ALTER PUBLICATION cdc_pub SET TABLE items",
    "filter": "ALTER PUBLICATION cdc_pub SET TABLE items WHERE (id > 100)",
    "identity": "ALTER TABLE items ALTER COLUMN filler SET NOT NULL; CREATE UNIQUE INDEX i ON items (id, filler);"
    " ALTER TABLE items REPLICA IDENTITY USING INDEX i",
    "column list": "ALTER TABLE items REPLICA IDENTITY DEFAULT;"
    " ALTER PUBLICATION cdc_pub SET TABLE items (id, v) WHERE (id > 100)",
}


def test_a_shape_that_changes_between_rounds_begins_another_snapshot(
    database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute(ITEMS)
    make_bridge(database, nats, *SHORT, "--snapshot-rate-mb-s", "1")
    ask(nats.url, "items+ranges")
    for number, change in enumerate(CHANGES, 1):
        wait_for(lambda n=number: sum(bool(one.chunks) for one in rounds(nats.url, "items+ranges")) == n)
        database.execute(CHANGES[change])
    *ended, last = wait_for_rounds(nats.url, "items+ranges", len(CHANGES) + 1)
    assert len(ended) == len(CHANGES)
    for change, snapshot in zip(CHANGES, ended, strict=True):
        assert snapshot.error is not None, change
        assert snapshot.error.error_type == "table_changed", change
    shapes = [(one.start.version, one.start.schema_id) for one in (*ended, last)]
    assert len(set(shapes)) == len(shapes)
    assert last.meta is not None
    assert last.meta.row_count == 20_000 - 100
    assert all(list(row) == ["id", "v"] for row in last.rows)


def test_a_gap_between_rounds_ends_the_snapshot(database: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    """A row whose key is too large for a message suspends its table: events are left out."""
    database.execute(
        "CREATE TABLE items (id text PRIMARY KEY, filler text); CREATE PUBLICATION cdc_pub FOR TABLE items;"
        "ALTER TABLE items REPLICA IDENTITY FULL; INSERT INTO items SELECT g, repeat('x', 200) FROM generate_series(1, 40000) g"
    )
    make_bridge(database, nats, *SHORT, "--snapshot-rate-mb-s", "2")
    ask(nats.url, "items+ranges")
    wait_for(lambda: any(one.chunks for one in rounds(nats.url, "items+ranges")))
    bridge_slots = "SELECT slot_name FROM pg_replication_slots WHERE NOT temporary"
    assert database.execute(bridge_slots) == [("cdc_slot",)]

    async def gap(client: Any) -> None:
        info = await client.jetstream().stream_info("CDC")
        body = (
            b'{"operation": "GAP", "msg_id": "%x-0-items-gap", "slot": "cdc_slot", "reason": "a test", "from_lsn": 5,'
            b' "to_lsn": 5, "tables": ["items"], "last": true}'
        )
        ((lsn,),) = database.execute("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn")
        body %= (int(lsn),)
        headers = {"Nats-Msg-Id": f"{int(lsn):x}-0-items-gap"}
        await client.jetstream().publish("cdc._bridge.gap", body, headers=headers)
        assert info is not None

    from tests.servers import with_nats  # noqa: PLC0415

    with_nats(nats.url, gap)
    (snapshot,) = wait_for_rounds(nats.url, "items+ranges")
    assert snapshot.error is not None
    assert snapshot.error.error_type == "gap"


KEYS = {
    "skewed": (
        "(id bigint PRIMARY KEY, v text)",
        "SELECT (g ^ 3)::bigint, repeat('x', g % 400) FROM generate_series(1, 30000) g",
    ),
    "composite": (
        "(b text, a int, id int, v text, PRIMARY KEY (a, b, id))",
        "SELECT 'b' || g % 7, g % 3, g, repeat('x', 200) FROM generate_series(1, 30000) g",
    ),
    "texts": (
        "(id text COLLATE pg_unicode_fast PRIMARY KEY, v text)",
        "SELECT CASE g % 4 WHEN 0 THEN '' WHEN 1 THEN 'É' WHEN 2 THEN 'é''\\' ELSE 'Z ' END || md5(g::text), repeat('x', 200)"
        " FROM generate_series(1, 30000) g",
    ),
    "odd_types": (
        "(n numeric, t timestamptz, c char(5), e mood, b bytea, u uuid, v text, PRIMARY KEY (n, t, c, e, b, u))",
        "SELECT g / 7.0, '2026-01-01'::timestamptz + g * interval '1.0001 s', (g % 90)::text, 'sad', decode(md5(g::text), 'hex'),"
        " gen_random_uuid(), repeat('x', 200) FROM generate_series(1, 30000) g",
    ),
    "by_index": (
        "(id int PRIMARY KEY, other text NOT NULL UNIQUE, v text)",
        "SELECT g, md5(g::text), repeat('x', 200) FROM generate_series(1, 30000) g;"
        " ALTER TABLE items REPLICA IDENTITY USING INDEX items_other_key",
    ),
    "partitions": (
        "(id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF items FOR VALUES FROM (0) TO (9000);"
        "CREATE TABLE p2 PARTITION OF items DEFAULT",
        "SELECT g, repeat('x', 200) FROM generate_series(1, 30000) g",
    ),
    "no_rows": ("(id int PRIMARY KEY, v text)", "SELECT 1, '' WHERE false"),
}


def test_every_row_comes_once_whatever_its_key(database: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    database.execute("CREATE TYPE mood AS ENUM ('happy', 'sad')")
    for name, (columns, rows) in KEYS.items():
        database.execute(f"CREATE TABLE {name} {columns}; INSERT INTO {name} {rows}".replace("items", name))
    database.execute(f"CREATE PUBLICATION cdc_pub FOR TABLE {', '.join(KEYS)} WITH (publish_via_partition_root = true)")
    make_bridge(database, nats, *SHORT, "--snapshot-rate-mb-s", "12", "--snapshot-parallel", "3")
    for name in KEYS:
        ask(nats.url, f"{name}+ranges")
    for name in KEYS:
        (snapshot,) = wait_for_rounds(nats.url, f"{name}+ranges")
        assert snapshot.meta is not None, snapshot.error
        whole = take(nats.url, name)
        assert sorted(map(repr, snapshot.rows)) == sorted(map(repr, whole.rows)), name
        assert snapshot.rows or name == "no_rows"


NO_ORDER = {
    "no_key": ("CREATE TABLE no_key (id int, v text); ALTER TABLE no_key REPLICA IDENTITY FULL", "no key by which events"),
    "nothing": (
        "CREATE TABLE nothing (id int PRIMARY KEY, v text); ALTER TABLE nothing REPLICA IDENTITY NOTHING",
        "no replica identity",
    ),
    "later": (
        "CREATE TABLE later (id int PRIMARY KEY DEFERRABLE, v text); ALTER TABLE later REPLICA IDENTITY FULL",
        "DEFERRABLE",
    ),
    "descending": (
        "CREATE TABLE descending (id text NOT NULL, v text); CREATE UNIQUE INDEX i ON descending (id DESC);"
        "ALTER TABLE descending REPLICA IDENTITY USING INDEX i",
        "another order",
    ),
}


def test_a_table_whose_identity_has_no_order_is_whole_only(
    database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    for sql, _ in NO_ORDER.values():
        database.execute(sql)
    database.execute("CREATE PUBLICATION cdc_pub FOR ALL TABLES")
    make_bridge(database, nats)
    for name, (_, words) in NO_ORDER.items():
        refused = take_rounds(nats.url, f"{name}+ranges").error
        assert refused is not None
        assert refused.error_type == "no_key"
        assert words in refused.error_message
    unknown = take_rounds(nats.url, "nobody+ranges").error
    assert unknown is not None
    assert unknown.error_type == "unknown_table"


def test_rows_are_named_by_their_keys(database: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    database.execute(
        "CREATE TABLE items (tenant text, id int, v text, PRIMARY KEY (tenant, id)); INSERT INTO items"
        " SELECT 'o''neill', g, repeat('x', 3000) FROM generate_series(1, 2000) g; CREATE PUBLICATION cdc_pub FOR TABLE items"
    )
    make_bridge(database, nats)
    one = take_rounds(nats.url, "items+me-1", {"keys": [["o'neill", 7], ["o'neill", 7], ["nobody", 7], ["o'neill", 2000]]})
    assert one.error is None, one.error
    assert one.start.mode == "keys"
    assert [(row["tenant"], row["id"]) for row in one.rows] == [("o'neill", 7), ("o'neill", 2000)]
    many = take_rounds(nats.url, "items+me-2", {"keys": [["o'neill", n] for n in range(1, 1001)]})
    assert len(many.rows) == 1000
    assert len(many.places) == 1, "several chunks where one message cannot hold them, at one place"
    for number, body in enumerate(({"keys": [["x"]]}, {"keys": [["a", "b"]]}, {}, {"keys": [["a", 1]] * 1001})):
        refused = take_rounds(nats.url, f"items+bad-{number}", body).error
        assert refused is not None, body
        assert refused.error_type in ("bad_request", "postgres_error")


def test_a_row_that_no_message_can_carry_is_found_before_any_is_read(
    database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute(
        "CREATE TABLE items (id int PRIMARY KEY, v text); ALTER TABLE items ALTER v SET STORAGE EXTERNAL; INSERT INTO items"
        " SELECT g, repeat('x', 900000) FROM generate_series(1, 12) g; INSERT INTO items VALUES (777, repeat('x', 3000000));"
        "CREATE PUBLICATION cdc_pub FOR TABLE items"
    )
    bridge = make_bridge(database, nats)
    for part, body in (("items+ranges", None), ("items+me-1", {"keys": [[1], [777]]})):
        refused = take_rounds(nats.url, part, body)
        assert refused.start is None
        assert refused.error is not None
        assert refused.error.error_type == "row_too_large"
        assert "id=777" in refused.error.error_message
    large = take_rounds(nats.url, "items+me-2", {"keys": [[n] for n in range(1, 13)]})
    assert sorted(row["id"] for row in large.rows) == [*range(1, 13)], "more than is held at once"
    assert len(large.places) == 1
    assert "id=777" not in str(bridge.status()["snapshots"]), "who sees the bridge's state sees no row"
    assert "id=777" in bridge.log()


def test_small_tables_do_not_wait_for_large_ones(database: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    tables = ["large1", "large2", "large3"]
    for name in tables:
        database.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, v text)")
        database.execute(f"INSERT INTO {name} SELECT g, repeat('x', 2000) FROM generate_series(1, 10000) g")
    database.execute("CREATE TABLE small (id int PRIMARY KEY); INSERT INTO small VALUES (1)")
    database.execute("CREATE PUBLICATION cdc_pub FOR ALL TABLES")
    bridge = make_bridge(database, nats, "--snapshot-rate-mb-s", "4")
    ask(nats.url, "large1")
    ask(nats.url, "large2+ranges")
    ask(nats.url, "large3")
    wait_for(lambda: snapshots(nats.url, "large1") and rounds(nats.url, "large2+ranges"))
    assert take(nats.url, "small").rows == [{"id": 1}]
    states = {one["table"]: one["state"] for one in bridge.status()["snapshots"]}
    assert states == {"large1": "running", "large2+ranges": "running", "large3": "waiting", "small": "done"}
    assert not snapshots(nats.url, "large3")
    assert wait_for_rounds(nats.url, "large2+ranges")[0].meta is not None
    assert wait_for_snapshots(nats.url, "large3")[0].meta is not None


def test_a_round_lasts_no_longer_than_it_may(database: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    """PostgreSQL's own statistics say how old the bridge's transactions are, and how many rows it has read."""
    database.execute("CREATE TABLE items (id int PRIMARY KEY, v text); CREATE PUBLICATION cdc_pub FOR TABLE items")
    database.execute("INSERT INTO items SELECT g, repeat('x', 100) FROM generate_series(1, 200000) g; VACUUM ANALYZE items"
                     .split("; ", maxsplit=1)[0])  # fmt: skip
    database.execute("VACUUM ANALYZE items")
    make_bridge(database, nats, *SHORT, "--snapshot-rate-mb-s", "8")
    database.execute("SELECT pg_stat_reset()")
    ask(nats.url, "items+ranges")
    oldest = 0.0
    while not any(one.meta for one in rounds(nats.url, "items+ranges")):
        ((age,),) = database.execute(
            "SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0)::float8 FROM pg_stat_activity"
            " WHERE application_name = 'walbridge snapshot' AND datname = current_database() AND state <> 'idle'"
        )
        oldest = max(oldest, age)
    (snapshot,) = rounds(nats.url, "items+ranges")
    assert len(snapshot.places) > 2
    assert snapshot.meta is not None
    assert snapshot.meta.row_count == 200_000
    assert oldest < 3, "a round of one second, and what it waits for"
    read = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'items'"
    wait_for(lambda: database.execute(read)[0][0] >= 200_000)
    ((rows,),) = database.execute(read)
    assert rows < 1.05 * 200_000 + 30_000, "a sample for each cut"
