"""`walbridge produce`: what it says it has written is there, and it writes nowhere else."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from typing import Any

import psycopg
import pytest

from actors.embedded.nats import NatsServer
from actors.embedded.servers import _SAMPLE
from actors.sample.mixed_load import Counts, MixedLoad
from actors.sample.rows import COLUMNS, SampleRows
from tests.command_line import run_here
from tests.conftest import MakeBridge
from tests.documents import OPERATIONS, section
from tests.servers import CLEAN, HANG_S, ROOT, Database, read_stream, wait_for


@pytest.fixture
def samples(database: Database) -> Database:
    """A database with the sample tables."""
    database.execute(_SAMPLE)
    return database


def produce(database: Database | str, *arguments: str) -> subprocess.CompletedProcess[str]:
    url = database if isinstance(database, str) else database.dsn
    return subprocess.run([sys.executable, "-m", "actors.main", "produce", *arguments], cwd=ROOT,
                          env=CLEAN | {"DATABASE_URL": url}, text=True, capture_output=True, check=False)  # fmt: skip


def produced(database: Database, *arguments: str) -> dict[str, Any]:
    done = produce(database, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def count(database: Database, table: str) -> int:
    return int(database.execute(f"SELECT count(*) FROM {table}")[0][0])


def test_bulk_inserts_so_many_rows_in_transactions_of_a_batch(samples: Database) -> None:
    assert produced(samples, "bulk", "2500")["transactions"] == 3
    assert produced(samples, "bulk", "70", "--table", "test_types", "--batch", "7")["transactions"] == 10
    assert {table: count(samples, table) for table in COLUMNS} == {"users": 2500, "orders": 0, "test_types": 70}
    transactions = samples.execute(
        "SELECT count(DISTINCT xmin::text) FROM users UNION ALL SELECT count(DISTINCT xmin::text) FROM test_types"
    )
    assert [n for (n,) in transactions] == [3, 10]


def test_orders_are_those_of_users_that_there_are(samples: Database) -> None:
    assert produced(samples, "bulk", "50", "--table", "orders")["inserted"] == 50
    assert count(samples, "users") == 100, "there were none, so some were made"
    produced(samples, "bulk", "50", "--table", "orders")
    assert (count(samples, "users"), count(samples, "orders")) == (100, 100)


def test_a_seed_gives_the_same_rows_each_time(samples: Database) -> None:
    for table in ("users", "test_types"):
        columns = ", ".join(COLUMNS[table])
        for _ in range(2):
            produced(samples, "bulk", "100", "--table", table, "--seed", "5")
        produced(samples, "bulk", "100", "--table", table, "--seed", "6")
        rows = samples.execute(f"SELECT ({columns})::text FROM {table} ORDER BY id")
        assert rows[:100] == rows[100:200] != rows[200:]
        assert len(set(rows)) == 200


def test_stream_keeps_its_pace_and_its_number(samples: Database) -> None:
    result = produced(samples, "stream", "--every", "20ms", "--take", "20", "--rows", "3")
    assert (result["inserted"], result["transactions"], count(samples, "users")) == (60, 20, 60)
    assert result["seconds"] >= 19 * 0.02, "not faster than asked for"


def test_crud_shows_its_row_as_it_was_and_leaves_none(samples: Database) -> None:
    result = produced(samples, "crud", "--seed", "1")
    assert list(result) == ["inserted", "updated", "deleted"]
    inserted, updated, deleted = result.values()
    assert updated == deleted
    assert updated["tags"] == [*inserted["tags"], "updated"]
    assert updated["matrix"] == [[7, 8, 9], [1, 2, 3]] != inserted["matrix"]
    assert updated["metadata"] == inserted["metadata"] | {"updated": True}
    assert round(updated["price"] - inserted["price"], 4) == 0.0001
    assert count(samples, "test_types") == 0
    assert produce(samples, "crud").stdout.split()[0] == "inserted"


def test_check_tells_where_it_is_and_what_is_there(samples: Database) -> None:
    produced(samples, "bulk", "12")
    shown = produced(samples, "check")
    assert (shown["database"], shown["rows"]) == (samples.name, {"users": 12, "orders": 0, "test_types": 0})
    text = produce(samples, "check").stdout
    assert samples.name in text
    assert "12 rows" in text


def test_the_stream_holds_what_mixed_says_it_changed(samples: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    make_bridge(samples, nats)
    result = produced(samples, "mixed", "--rate", "300", "--seconds", "4", "--seed", "3")
    assert result["seconds"] >= 3
    expected = sum(result[name] for name in ("inserted", "updated", "key_changes", "deleted"))
    assert all(result[name] > 0 for name in ("inserted", "updated", "key_changes", "deleted", "rolled_back"))
    assert expected + result["undone"] <= 300 * (result["seconds"] + 1), "no faster than asked for"

    def events() -> list[dict[str, Any]]:
        return [event.body for event in read_stream(nats.url)]

    samples.execute("INSERT INTO users (name) VALUES ('the end')")
    wait_for(lambda: any(event["data"].get("name") == "the end" for event in events()[-1:]))
    found = events()[:-1]
    operations = {op: [e for e in found if e["operation"] == op] for op in ("INSERT", "UPDATE", "DELETE")}
    assert len(operations["INSERT"]) == result["inserted"]
    key_changes = [e for e in operations["UPDATE"] if "old" in e]
    assert len(key_changes) == result["key_changes"]
    assert len(operations["UPDATE"]) - len(key_changes) == result["updated"]
    assert len(operations["DELETE"]) >= result["deleted"], "a user's orders go with the user"
    assert {e["table"] for e in found} == {"users", "orders"}
    left = {table: sum(e["operation"] == "INSERT" and e["table"] == table for e in found)
            - sum(e["operation"] == "DELETE" and e["table"] == table for e in found) for table in ("users", "orders")}  # fmt: skip
    samples.execute("DELETE FROM users WHERE name = 'the end'")
    assert left == {table: count(samples, table) for table in ("users", "orders")}


def test_what_is_rolled_back_is_not_counted_and_other_writers_are_no_fault(samples: Database) -> None:
    with samples.connect() as own, samples.connect() as other:
        load = MixedLoad(own, SampleRows(1), counts := Counts())
        for _ in range(200):
            load.transaction()
        assert counts.rolled_back > 0
        inserted = counts.inserted
        other.execute("DELETE FROM users")
        before = counts.transactions + counts.rolled_back
        for _ in range(200):
            load.transaction()
        assert counts.transactions + counts.rolled_back == before + 200
        assert counts.inserted > inserted
        assert 0 < count(samples, "orders") + count(samples, "users") <= counts.inserted - inserted


def test_ctrl_c_ends_it_with_a_report_of_what_was_done(samples: Database) -> None:
    command = [sys.executable, "-m", "actors.main", "produce", "stream", "--every", "5ms", "--json"]
    process = subprocess.Popen(command, cwd=ROOT, env=CLEAN | {"DATABASE_URL": samples.dsn}, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    deadline = time.monotonic() + HANG_S
    while count(samples, "users") < 20 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=HANG_S)
    assert process.returncode == 0, err
    result = json.loads(out)
    assert result["stopped"] is True
    # interrupted within a commit, that commit may have come through
    assert 0 <= count(samples, "users") - result["inserted"] <= 1
    assert "Traceback" not in err


def test_it_writes_to_the_sample_tables_only_and_says_how_to_make_them(database: Database) -> None:
    for arguments in (["bulk", "5"], ["stream", "--take", "1"], ["mixed"], ["crud"], ["check"]):
        done = produce(database, *arguments)
        assert done.returncode == 2
        assert "WB524" in done.stderr
        assert done.stdout == ""
    shown = section(OPERATIONS, "WB524 no sample table")
    statements = "\n".join(line[4:] for line in shown.splitlines() if line.startswith("    "))
    database.execute(statements)
    assert produce(database, "check").returncode == 0
    described = (
        "SELECT table_name, column_name, data_type, is_nullable, column_default, numeric_precision FROM information_schema.columns"
        " WHERE table_schema = 'public' ORDER BY 1, ordinal_position"
    )
    ours = database.execute(described)
    database.execute("DROP TABLE users, orders, test_types")
    database.execute(_SAMPLE)
    assert database.execute(described) == ours


def test_ctrl_c_waits_for_the_transaction_and_the_second_one_does_not(samples: Database) -> None:
    with samples.connect(autocommit=False) as somebody:
        somebody.execute("LOCK TABLE users")
        command = [sys.executable, "-m", "actors.main", "produce", "bulk", "5000"]
        process = subprocess.Popen(command, cwd=ROOT, env=CLEAN | {"DATABASE_URL": samples.dsn}, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
        deadline = time.monotonic() + HANG_S
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'walbridge produce' AND wait_event_type = 'Lock'"
        )
        while samples.execute(waiting) == [(0,)] and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert "Ctrl-C again stops at once" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=HANG_S)
    assert process.returncode in (0, 1), "as far as it came, or cut off in the middle of something"
    assert err == ""
    assert count(samples, "users") == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bulk", "x"], ["ROWS", "'x'"]),
        (["bulk", "-1"], ["ROWS", "'-1'"]),
        (["bulk", "5", "--table", "secrets"], ["--table", "'secrets'", "users, orders, test_types"]),
        (["bulk", "5", "--batch", "0"], ["--batch", "'0'"]),
        (["stream", "--every", "1 day"], ["--every", "'1 day'", "1ms"]),
        (["mixed", "--rate", "fast"], ["--rate", "'fast'"]),
        (["mixed", "--speed", "1"], ["--speed"]),
        (["bulk", "5", "--seed", "x"], ["--seed", "'x'"]),
    ],
    ids=" ".join,
)
def test_a_bad_value_is_one_line_and_exit_2(arguments: list[str], words: list[str]) -> None:
    done = run_here("produce", *arguments, env={"DATABASE_URL": "postgresql://u@127.0.0.1:1/d"})
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert all(word in line for word in words), line


def test_a_missing_number_is_said_with_an_example(samples: Database) -> None:
    done = produce(samples, "bulk")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "walbridge: ROWS: missing; e.g. walbridge produce bulk 1000\n"


@pytest.mark.own_servers("it needs a role of its own, whose password is asked for")
def test_a_role_without_rights_gets_the_statement_that_gives_them(samples: Database) -> None:
    samples.execute("DROP ROLE IF EXISTS produce_poor; CREATE ROLE produce_poor LOGIN PASSWORD 'hunter2'")
    address = f"127.0.0.1:{samples.server.port}/{samples.name}"
    try:
        stranger = produce(f"postgresql://produce_poor:hunter3@{address}", "bulk", "5")
        assert (stranger.returncode, "error WB103: " in stranger.stderr) == (2, True), stranger.stderr
        assert "does not let produce_poor in" in stranger.stderr
        assert "hunter3" not in stranger.stderr
        poor = produce(f"postgresql://produce_poor:hunter2@{address}", "bulk", "5")
        assert (poor.returncode, "error WB100: " in poor.stderr, "42501" in poor.stderr) == (1, True, True), poor.stderr
        fix = poor.stderr.partition("fix:")[2].partition("  more:")[0]
        samples.execute(fix.partition(": ")[2])
        for arguments in (["bulk", "5"], ["bulk", "5", "--table", "orders"], ["mixed", "--seconds", "1"], ["crud"], ["check"]):
            done = produce(f"postgresql://produce_poor:hunter2@{address}", *arguments)
            assert done.returncode == 0, done.stderr
        assert "Traceback" not in stranger.stderr + poor.stderr
    finally:
        samples.execute("DROP OWNED BY produce_poor; DROP ROLE produce_poor")


def test_a_server_that_is_away_or_refuses_is_said_without_the_password(samples: Database) -> None:
    away = produce("postgresql://u:hunter2@127.0.0.1:1/d", "check")
    assert (away.returncode, "WB101" in away.stderr) == (1, True)
    samples.execute("ALTER TABLE users ADD CHECK (age < 0)")
    refused = produce(samples, "bulk", "50")
    assert (refused.returncode, "WB100" in refused.stderr, "23514" in refused.stderr) == (1, True, True)
    assert "fix:" in refused.stderr
    assert "hunter2" not in away.stderr
    assert "Traceback" not in away.stderr + refused.stderr


def test_rows_fit_their_tables_whatever_the_seed(samples: Database) -> None:
    with psycopg.connect(samples.dsn) as connection:
        for seed in range(20):
            rows = SampleRows(seed)
            for table in ("users", "test_types"):
                placeholders = ", ".join(["%s"] * len(COLUMNS[table]))
                statement = f"INSERT INTO {table} ({', '.join(COLUMNS[table])}) VALUES ({placeholders})"
                connection.cursor().executemany(statement.encode(), [next(rows.rows(table)) for _ in range(50)])
