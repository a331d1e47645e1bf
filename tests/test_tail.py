"""`walbridge tail` on real streams: what it shows, where it begins, and what it survives."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import zstandard
from nats.aio.client import Client

from actors.contract.records import Gap
from actors.embedded.bridge import nats_environment
from actors.embedded.nats import NatsServer
from actors.embedded.process import free_port
from actors.tail.lines import LineMaker
from tests.command_line import run_here
from tests.conftest import MakeBridge
from tests.servers import CLEAN, HANG_S, ROOT, Database, read_messages, wait_for, wait_for_events, with_nats

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}"


def tail(nats: NatsServer, *arguments: str, place: str = "first") -> subprocess.CompletedProcess[str]:
    """Everything that is there now, in this process."""
    return run_here("tail", "--from", place, "--no-wait", *arguments, env=nats_environment(nats))


def shown(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Its lines without the place, the LSN and the time."""
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert all(re.match(rf" *\d+ [0-9A-F]+/[0-9A-F]+ +{TIME} ", line) for line in lines), lines
    return [" ".join(line.split()[4:]) for line in lines]


@contextmanager
def following(nats: NatsServer, folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A tail that goes on; gives the process and the file with what it prints, its talk included."""
    output = folder / "tailed"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "actors.main", "tail", *arguments], cwd=ROOT, stdout=file, stderr=file,
            env={**CLEAN, **nats_environment(nats)},
        )  # fmt: skip
        try:
            yield process, output
        finally:
            process.kill()
            process.wait()


def wait_until(output: Path, condition: Callable[[str], bool]) -> str:
    deadline = time.monotonic() + HANG_S
    while not condition(text := output.read_text(encoding="utf-8")):
        assert time.monotonic() < deadline, text
        time.sleep(0.05)
    return text


TABLES = """
CREATE TABLE users (id int PRIMARY KEY, name text, notes text);
ALTER TABLE users ALTER notes SET STORAGE EXTERNAL;
CREATE SCHEMA sales; CREATE TABLE sales.lines ("order no" int, line int, total numeric, PRIMARY KEY ("order no", line));
CREATE PUBLICATION cdc_pub FOR TABLE users, sales.lines;
"""


def test_it_shows_each_kind_of_change_readably_and_chooses_by_table_key_and_place(
    database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute(TABLES)
    bridge = make_bridge(database, nats, "--pack", "10")
    database.execute("INSERT INTO users VALUES (1, 'Ada Müller', repeat('x', 3000)), (2, 'null', NULL)")
    database.execute("UPDATE users SET name = 'Ada L.' WHERE id = 1; UPDATE users SET id = 7 WHERE id = 2")
    database.execute("INSERT INTO sales.lines VALUES (1, 1, 19.90), (1, 2, 5)")
    middle = database.execute("SELECT pg_current_wal_lsn()::text")[0][0]
    wait_for_events(nats.url, 6)
    since = datetime.now(UTC)
    database.execute("DELETE FROM users WHERE id = 1")
    database.execute("ALTER TABLE users ADD age int; UPDATE users SET age = 3")
    database.execute("TRUNCATE users")
    events = wait_for_events(nats.url, 10)
    lines = shown(tail(nats))
    assert lines == [
        f'INSERT users id=1 name="Ada Müller" notes={"x" * 3000}',
        'INSERT users id=2 name="null" notes=null',
        'UPDATE users id=1 name="Ada L." notes=(unchanged)',
        'UPDATE users id=2→7 name="null" notes=null',
        "INSERT sales.lines order no=1 line=1 total=19.90",
        "INSERT sales.lines order no=1 line=2 total=5",
        "DELETE users id=1",
        "SCHEMA users columns from here on: id integer key, name text, notes text, age integer",
        'UPDATE users id=7 name="null" notes=null age=3',
        "TRUNCATE users",
    ]
    of_users = [line for line in lines if " users" in line]
    assert shown(tail(nats, "--tables", "users")) == of_users
    assert shown(tail(nats, "--tables", "sales.lines")) == lines[4:6] == shown(tail(nats, "--tables", "sales/lines"))
    changes_of_2 = [lines[1], lines[3], *lines[7:]]
    assert shown(tail(nats, "--tables", "users", "--key", "id=2")) == [lines[1], lines[3], lines[7], lines[9]]
    assert shown(tail(nats, "--tables", "users", "--key", "7")) == changes_of_2[1:]
    assert shown(tail(nats, "--tables", "sales.lines", "--key", "order no=1", "--key", "line=2")) == [lines[5]]
    for place in (str(events[6].seq), middle, since.isoformat(), since.replace(tzinfo=None).isoformat(sep=" ")):
        assert shown(tail(nats, place=place)) == lines[6:], place
    assert shown(tail(nats, "--count", "2", place="1h")) == lines[:2]
    assert shown(tail(nats, place="now")) == []

    objects = [json.loads(line) for line in tail(nats, "--json").stdout.splitlines()]
    assert [{name: one[name] for name in one if name != "stream_seq"} for one in objects] == [event.body for event in events]
    assert [one["stream_seq"] for one in objects] == [event.seq for event in events]

    strange = tail(nats, "--tables", "users", "--key", "nr=2")
    assert strange.stderr.count("--key nr=2: the key of users is id\n") == 1
    unknown = tail(nats, "--tables", "user")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "did you mean users?" in unknown.stderr
    bridge.stop()


def test_it_reads_compressed_changes_hears_gaps_and_what_is_no_bridge_s(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, tmp_path: Path
) -> None:
    database.execute(
        "CREATE TABLE users (id int PRIMARY KEY, name text, email text); CREATE PUBLICATION cdc_pub FOR TABLE users"
    )
    samples = [
        json.dumps({"subject": "cdc.users.insert", "table": "users", "n": i, "m": i * 7919}).encode() for i in range(3000)
    ]
    (tmp_path / "users.zstd.dict").write_bytes(zstandard.train_dictionary(4096, samples).as_bytes())
    flags = ("--zstd-events", "--dictionaries", str(tmp_path))
    bridge = make_bridge(database, nats, *flags)
    database.execute("INSERT INTO users SELECT g, 'User ' || g, repeat('u', 300) FROM generate_series(1, 3) g")
    wait_for(lambda: len(stored := read_messages(nats.url, "CDC")) == 3 and "Dictionary-Id" in stored[0].headers)
    assert shown(tail(nats))[0] == 'INSERT users id=1 name="User 1" email=' + "u" * 300
    bridge.stop()
    database.execute("SELECT pg_drop_replication_slot('cdc_slot')")
    with_nats(nats.url, lambda client: client.jetstream().publish("cdc.users.insert", b"mine"))
    assert "message 4, cdc.users.insert: not a bridge's message" in tail(nats).stderr
    with_nats(nats.url, lambda client: client.jetstream().delete_msg("CDC", 4))
    make_bridge(database, nats, *flags, "--accept-gap")
    wait_for(lambda: any("GAP" in line for line in shown(tail(nats))))
    (gap,) = [line for line in shown(tail(nats, "--tables", "users", "--key", "99")) if line.startswith("GAP")]
    assert re.match(r"GAP changes are lost from \S+ to \S+: .*dropped.*; copies of these are out of date: users$", gap)
    with_nats(nats.url, remove_dictionaries)
    blind = tail(nats)
    assert "cannot be read: WB216" in blind.stderr
    assert [line.split()[0] for line in shown(blind)] == ["GAP"]


async def remove_dictionaries(client: Client) -> None:
    await client.jetstream().delete_stream("KV_dictionaries")


def test_it_survives_nats_restarts_and_says_what_the_stream_has_lost(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, tmp_path: Path
) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE users")
    bridge = make_bridge(database, nats)
    database.execute("INSERT INTO users VALUES (1)")
    wait_for_events(nats.url, 1)
    with following(nats, tmp_path, "--from", "first", "--count", "4") as (process, output):
        wait_until(output, lambda text: "id=1" in text)
        nats.kill()
        wait_until(output, lambda text: "interrupted, trying again" in text)
        database.execute("INSERT INTO users VALUES (2)")
        nats.start()
        wait_until(output, lambda text: "connected again after" in text and "id=2" in text)
        nats.pause()
        database.execute("INSERT INTO users VALUES (3)")
        nats.resume()
        wait_until(output, lambda text: "id=3" in text)
        bridge.stop()
        nats.kill()
        shutil.rmtree(nats.data_dir)
        database.execute("SELECT pg_drop_replication_slot('cdc_slot')")
        nats.start()
        bridge.start()
        database.execute("INSERT INTO users VALUES (4)")
        assert process.wait(HANG_S) == 0
        text = output.read_text(encoding="utf-8")
    assert re.findall(r"INSERT +users +id=(\d)", text) == ["1", "2", "3", "4"], text
    assert "changes may be missing: the stream was created again" in text


def test_ctrl_c_is_no_error_and_a_reader_that_has_enough_neither(nats: NatsServer, tmp_path: Path) -> None:
    with_nats(nats.url, lambda client: client.jetstream().add_stream(name="CDC", subjects=["cdc.>"]))
    for number, place in (signal.SIGINT, "first"), (signal.SIGTERM, "now"):
        with following(nats, tmp_path, "--from", place) as (process, _):
            wait_for_consumer(nats)
            process.send_signal(number)
            assert process.wait(HANG_S) == 0


def wait_for_consumer(nats: NatsServer) -> None:
    async def count(client: Client) -> int:
        return (await client.jetstream().stream_info("CDC")).state.consumer_count

    deadline = time.monotonic() + HANG_S
    while not with_nats(nats.url, count):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_colours_are_for_terminals_and_not_where_somebody_wants_none(monkeypatch: pytest.MonkeyPatch) -> None:
    gap = Gap(1, 0, True, "s", "slot lost\x1b[2J", 1, 2, ("sales/orders",), of_table=False)
    shown = {}
    for on_terminal, no_colour in (True, ""), (True, "1"), (False, ""):
        monkeypatch.setenv("NO_COLOR", no_colour)
        monkeypatch.setattr(sys.stdout, "isatty", lambda answer=on_terminal: answer)
        shown[on_terminal, no_colour] = LineMaker.for_stdout().line(7, 10**18, gap)
    assert "\x1b[1;31mGAP" in shown[True, ""]
    assert "\x1b[2J" not in shown[True, ""], "what a database says steers no terminal"
    assert shown[True, "1"] == shown[False, ""]
    assert shown[False, ""].startswith("7 0/1         2001-09-09 01:46:40.000 GAP ")
    assert shown[False, ""].endswith("copies of these are out of date: sales.orders")


def test_what_cannot_work_is_said_at_once(nats: NatsServer) -> None:
    done = tail(nats)
    assert done.returncode == 2
    assert "there is no stream CDC" in done.stderr
    done = run_here("tail", env={"NATS_PORT": str(free_port())})
    assert (done.returncode, "WB200" in done.stderr) == (2, True)
    for bad in ("0", "yesterday", "2026-13-01", "0/xyz", "-1h", "1/2/3"):
        done = run_here("tail", f"--from={bad}")
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert repr(bad) in done.stderr
