"""`walbridge mirror --port`: what Prometheus and probes see of a mirror, with real servers behind it."""

from __future__ import annotations

import json
import sqlite3
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from actors.embedded.nats import NatsServer
from actors.errors import ConfigError
from actors.mirror.metrics import MirrorMetrics
from actors.mirror.mirror_counts import MirrorCounts
from actors.mirror.run import REPORT_EVERY_S, _report
from actors.mirror.table_choice import KeptTables
from actors.mirror.track import CAUSES
from actors.mirror.view import View
from actors.settings.resolve import resolve_client
from actors.telemetry.metrics import OPERATIONS, TABLES_MAX
from tests.conftest import MakeBridge, MakeNats
from tests.servers import HANG_S, Database, with_nats
from tests.watched_mirrors import WatchedMirror, parsed

NO_REPLICA: Any = None


@pytest.fixture
def mirror(nats: NatsServer, tmp_path: Path) -> Iterator[WatchedMirror]:
    """Not started; killed at the end."""
    mirror = WatchedMirror(nats, f"sqlite:///{tmp_path}/replica.db", tmp_path)
    yield mirror
    mirror.kill()


@pytest.fixture(params=["sqlite", "postgresql"])
def any_mirror(request: pytest.FixtureRequest, database: Database, nats: NatsServer, tmp_path: Path) -> Iterator[WatchedMirror]:
    """Not started, on either kind of replica."""
    replica = Database(database.server, f"{database.name}_replica") if request.param == "postgresql" else None
    mirror = WatchedMirror(nats, replica.dsn if replica is not None else f"sqlite:///{tmp_path}/replica.db", tmp_path)
    yield mirror
    mirror.kill()
    if replica is not None:
        replica.drop()


def test_without_the_flag_nothing_is_served() -> None:
    environ = {"BRIDGE_PORT": "9090", "NATS_URL": "nats://localhost"}
    assert resolve_client({}, environ).http is None
    http = resolve_client({"port": "9095"}, environ).http
    assert http is not None
    assert (http.bind, http.port) == ("127.0.0.1", 9095)
    for flags, says in (
        ({"bind": "0.0.0.0"}, "--bind"),
        ({"port": "99999"}, "--port: '99999'"),
        ({"port": "x"}, "--port: 'x'"),
    ):
        with pytest.raises(ConfigError) as caught:
            resolve_client(flags, environ)
        assert says in str(caught.value).replace('"', "'")


def test_every_series_is_there_before_anything_has_happened(mirror: WatchedMirror) -> None:
    mirror.start()
    mirror.wait_until(lambda: "waiting for a bridge" in mirror.log())
    assert mirror.get("/health") == (200, '{"status":"ok"}\n')
    status, body = mirror.get("/ready")
    assert (status, json.loads(body)["reason"]) == (503, "waiting for a bridge to create stream CDC")
    assert mirror.log().count("waiting for a bridge") == 1, "not again and again"
    assert 'fix="start the bridge: walbridge run; or give the name of its stream with --stream"' in mirror.log()
    found = mirror.samples()
    for name in (
        "mirror_connected", "mirror_position_sequence", "mirror_history_used_ratio", "mirror_snapshots_total",
        "mirror_snapshot_rows_total", "mirror_unknown_values_total", "mirror_verify_mismatched_keys",
        "mirror_verify_last_success_timestamp_seconds",
    ):  # fmt: skip
        assert found[name, ()] == 0, name
    assert {labels for name, labels in found if name == "mirror_resnapshots_total"} == {(cause,) for cause in CAUSES}
    assert found["mirror_lag_seconds", ()] > 0, "nobody knows that it is up to date"
    assert mirror.get("/nowhere")[0] == 404
    request = urllib.request.Request(f"http://127.0.0.1:{mirror.port}/metrics", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request, timeout=HANG_S)


def test_what_is_applied_is_counted_by_table_and_operation(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, any_mirror: WatchedMirror
) -> None:
    mirror = any_mirror
    database.execute("CREATE TABLE users (id int PRIMARY KEY, name text); CREATE TABLE idle (id int PRIMARY KEY)")
    database.execute("CREATE PUBLICATION cdc_pub FOR TABLE users, idle; INSERT INTO users VALUES (-1, 'old')")
    make_bridge(database, nats)
    mirror.start()
    mirror.wait_until(mirror.is_ready)
    database.execute("INSERT INTO users SELECT g, 'x' FROM generate_series(1, 7000) g")  # more than one flush
    database.execute("UPDATE users SET name = 'y' WHERE id <= 30; DELETE FROM users WHERE id <= 20; TRUNCATE idle")
    mirror.wait_value(lambda truncates: truncates == 1, "mirror_rows_applied_total", "truncate", "idle")
    mirror.wait_value(lambda lag: lag == 0, "mirror_lag_seconds")
    found = mirror.samples()
    applied = {labels: value for (name, labels), value in found.items() if name == "mirror_rows_applied_total"}
    assert applied == {
        ("insert", "users"): 7000, ("update", "users"): 31, ("delete", "users"): 21, ("truncate", "users"): 0,
        ("insert", "idle"): 0, ("update", "idle"): 0, ("delete", "idle"): 0, ("truncate", "idle"): 1,
    }  # fmt: skip
    assert found["mirror_snapshots_total", ()] == 2
    assert found["mirror_snapshot_rows_total", ()] == 1
    assert {labels: value for (name, labels), value in found.items() if name == "mirror_tables"} == {
        ("waiting",): 0, ("live",): 2, ("stale",): 0, ("refused",): 0, ("unpublished",): 0,
    }  # fmt: skip
    last = with_nats(nats.url, lambda client: client.jetstream().stream_info("CDC")).state.last_seq
    mirror.wait_value(lambda seq: seq == last, "mirror_position_sequence")
    mirror.wait_value(lambda ratio: ratio == 0, "mirror_history_used_ratio")


def test_a_stuck_replica_falls_behind_and_says_so(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, mirror: WatchedMirror
) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE users")
    make_bridge(database, nats)
    mirror.start()
    mirror.wait_live(1)
    mirror.wait_value(lambda lag: lag == 0, "mirror_lag_seconds")
    with closing(sqlite3.connect(mirror.to.removeprefix("sqlite:///"), isolation_level=None)) as somebody:
        somebody.execute("BEGIN IMMEDIATE")
        for i in range(50):
            database.execute("INSERT INTO users VALUES (%s)", [i])
        mirror.wait_value(lambda ratio: ratio > 0.5, "mirror_history_used_ratio")
        mirror.wait_value(lambda lag: lag > 2, "mirror_lag_seconds")
        assert mirror.value("mirror_lag_seconds") < 60, "not since the process began, nor since 1970"
        somebody.execute("ROLLBACK")
    mirror.wait_value(lambda lag: lag == 0, "mirror_lag_seconds")
    mirror.wait_value(lambda ratio: ratio == 0, "mirror_history_used_ratio")
    assert mirror.value("mirror_rows_applied_total", "insert", "users") == 50, "each once, although the first try failed"


def test_while_nats_is_away_nobody_knows(
    database: Database, make_nats: MakeNats, make_bridge: MakeBridge, tmp_path: Path
) -> None:
    server = make_nats()
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE users")
    make_bridge(database, server)
    mirror = WatchedMirror(server, f"sqlite:///{tmp_path}/replica.db", tmp_path)
    with mirror.running():
        mirror.wait_live(1)
        mirror.wait_value(lambda lag: lag == 0, "mirror_lag_seconds")
        assert mirror.value("mirror_connected") == 1
        server.kill()
        mirror.wait_value(lambda connected: connected == 0, "mirror_connected")
        mirror.wait_value(lambda lag: lag > 1, "mirror_lag_seconds")
        status, body = mirror.get("/ready")
        assert status == 503
        assert "WB20" in json.loads(body)["reason"] or "NATS" in json.loads(body)["reason"]
        server.start()
        mirror.wait_until(mirror.is_ready)
        mirror.wait_value(lambda lag: lag == 0, "mirror_lag_seconds")


def test_copies_made_again_are_counted_by_reason(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, mirror: WatchedMirror
) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY, name text); CREATE PUBLICATION cdc_pub FOR TABLE users")
    database.execute("INSERT INTO users VALUES (1, 'a'), (2, 'b')")
    bridge = make_bridge(database, nats)
    mirror.start()
    mirror.wait_live(1)

    def wait_copied_again(**expected: int) -> None:
        for cause in CAUSES:
            mirror.wait_value(lambda n, c=cause: n == expected.get(c, 0), "mirror_resnapshots_total", cause)  # type: ignore[misc]
        mirror.wait_until(mirror.is_ready)

    database.execute("ALTER TABLE users ADD age int DEFAULT 3; INSERT INTO users VALUES (3, 'c', 4)")
    wait_copied_again(schema=1)
    mirror.change("DELETE FROM users WHERE id = 1")
    database.execute("UPDATE users SET name = 'z' WHERE id = 1")
    wait_copied_again(schema=1, rows=1)
    bridge.stop()
    database.execute("SELECT pg_drop_replication_slot('cdc_slot'); INSERT INTO users VALUES (4, 'd', 5)")
    make_bridge(database, nats, "--accept-gap")
    database.execute("INSERT INTO users VALUES (5, 'e', 6)")
    wait_copied_again(schema=1, rows=1, gap=1)
    mirror.assert_equal(database.dsn)


def test_verify_leaves_what_it_found_where_the_mirror_shows_it(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, any_mirror: WatchedMirror
) -> None:
    mirror = any_mirror
    database.execute("CREATE TABLE users (id int PRIMARY KEY, name text); CREATE TABLE other (id int PRIMARY KEY)")
    database.execute("CREATE PUBLICATION cdc_pub FOR TABLE users, other")
    database.execute("INSERT INTO users SELECT g, 'x' FROM generate_series(1, 3000) g")
    make_bridge(database, nats)
    mirror.start()
    mirror.wait_live(2)
    before = time.time()
    mirror.assert_equal(database.dsn, "--tables", "users")
    mirror.assert_equal(database.dsn)
    mirror.wait_value(lambda at: before - 1 <= at <= time.time(), "mirror_verify_last_success_timestamp_seconds")
    succeeded = mirror.value("mirror_verify_last_success_timestamp_seconds")
    assert mirror.value("mirror_verify_mismatched_keys") == 0
    mirror.change("UPDATE users SET name = 'y' WHERE id <= 1500")
    time.sleep(1.1)  # the time is kept in seconds
    found = mirror.verify(database.dsn, "--json", "--limit", "1")
    assert found.returncode == 1
    by_table = {report["table"]: report for report in json.loads(found.stdout)["tables"]}
    differing = by_table["users"]["mismatched_keys"]
    assert len(by_table["users"]["keys"]) == 1
    assert 1000 < differing <= 1500, "at least; of equal keys' places it looks at some"
    assert by_table["users"]["all_counted"] is False
    assert (
        f"  ... and at least {differing - 1:,} more (--limit shows more)\n"
        in mirror.verify(database.dsn, "--limit", "1").stdout
    )
    shown = [line for line in mirror.verify(database.dsn, "--limit", "1500").stdout.splitlines() if line.startswith("  id=")]
    assert shown == [f"  id={i}: differs in name" for i in range(1, 1501)], "all, by their numbers"
    differing = 1500
    mirror.wait_value(lambda keys: keys == differing, "mirror_verify_mismatched_keys")
    assert mirror.value("mirror_verify_last_success_timestamp_seconds") == succeeded, "not all of it is equal"
    mirror.stop()
    mirror.start()
    mirror.wait_value(lambda keys: keys == differing, "mirror_verify_mismatched_keys")  # it outlives the mirror
    mirror.stop()  # the mend that docs/operations.md gives
    mirror.change("DROP TABLE users")
    mirror.change(f"DELETE FROM {mirror.own('tables')} WHERE token = 'users'")
    mirror.start()
    mirror.wait_until(mirror.is_ready)
    mirror.assert_equal(database.dsn)
    mirror.wait_value(lambda keys: keys == 0, "mirror_verify_mismatched_keys")
    mirror.wait_value(lambda at: at > succeeded, "mirror_verify_last_success_timestamp_seconds")


def test_tables_beyond_the_limit_are_counted_together() -> None:
    counts = MirrorCounts()
    view = View("CDC", "sqlite", counts)
    tokens = tuple(f"t{i}" for i in range(TABLES_MAX + 50))
    view.begin(NO_REPLICA, KeptTables(NO_REPLICA, tokens))
    metrics = MirrorMetrics(view)
    counts.rows["t0", "insert"] = 3
    for i in range(TABLES_MAX, TABLES_MAX + 50):
        counts.rows[f"t{i}", "update"] = 2
    found = {key: value for key, value in parsed(metrics.render().decode()).items() if key[0] == "mirror_rows_applied_total"}
    assert len(found) == TABLES_MAX * len(OPERATIONS) + 1
    assert found["mirror_rows_applied_total", ("update", "_other")] == 100
    view.begin(NO_REPLICA, KeptTables(NO_REPLICA, tuple(reversed(tokens))))
    again = parsed(metrics.render().decode())
    assert again.items() >= found.items(), "the same series, whatever the order is now"


def test_the_log_line_tells_the_lag_of_now(caplog: pytest.LogCaptureFixture) -> None:
    """The last change came late. That says nothing of now."""
    counts = MirrorCounts(commit_us=int((time.time() - 500) * 1e6))

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_report, counts)
            counts.note_caught_up()
            await trio.sleep(REPORT_EVERY_S + 1)
            counts.is_behind, counts.caught_up_at = True, time.time() - 40
            await trio.sleep(REPORT_EVERY_S)
            nursery.cancel_scope.cancel()

    with caplog.at_level("INFO", "walbridge.mirror"):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    lags = [record.fields["lag_s"] for record in caplog.records]  # type: ignore[attr-defined]
    assert lags[0] == 0
    assert 40 <= lags[1] < 45


def test_how_far_it_is_behind() -> None:
    counts = MirrorCounts(started_at=1000)
    assert counts.lag_s(1010) == 10, "since it began, as long as nothing is known"
    counts.commit_us = 500_000_000
    assert counts.lag_s(1010) == 510, "what is being applied is as old as that"
    counts.note_caught_up()
    assert counts.lag_s(time.time()) == 0
    counts.caught_up_at, counts.is_behind = 2000, True
    assert counts.lag_s(2005) == 5
    counts.commit_us = 2_004_000_000
    assert counts.lag_s(2005) == 1


def test_the_password_of_a_replica_need_not_be_on_the_command_line(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, tmp_path: Path
) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE users")
    database.execute("INSERT INTO users VALUES (1)")
    make_bridge(database, nats)
    replica = Database(database.server, f"{database.name}_replica")
    password = database.server.password
    assert password
    assert password in replica.dsn
    (tmp_path / "pgpass").write_text(f"*:*:*:*:{password}\n")
    (tmp_path / "pgpass").chmod(0o600)
    mirror = WatchedMirror(nats, replica.dsn.replace(f":{password}@", "@"), tmp_path)
    mirror.env["PGPASSFILE"] = str(tmp_path / "pgpass")
    try:
        with mirror.running():
            mirror.wait_until(mirror.is_ready)
            mirror.assert_equal(database.dsn)
            assert mirror.process is not None
            assert password.encode() not in Path(f"/proc/{mirror.process.pid}/cmdline").read_bytes()
    finally:
        replica.drop()
