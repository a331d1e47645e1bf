"""`walbridge init`: what it writes leads from an empty server to a bridge that is ready, by its own words."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from actors.embedded.bridge import HANG_S
from actors.embedded.nats import NatsServer
from actors.embedded.process import free_port
from actors.settings.env_file import read_env_file
from tests.command_line import run_here
from tests.conftest import MakePostgres
from tests.servers import CLEAN, ROOT, Bridge, Database, wait_for, wait_for_events


def steps(printed: str) -> list[str]:
    """The commands that it says come next."""
    return re.findall(r"^ {5}(\S.*)$", printed, re.MULTILINE)


def test_its_words_lead_to_a_bridge_that_is_ready(make_postgres: MakePostgres, nats: NatsServer, tmp_path: Path) -> None:
    server = make_postgres(wal_level="replica")
    database = Database(server, "shop")
    database.execute(
        'CREATE TABLE users (id int PRIMARY KEY); CREATE SCHEMA sales; CREATE TABLE sales."Odd, name" (id int PRIMARY KEY)'
    )
    folder = tmp_path / "a folder"
    done = run_here(
        "init", "--dir", str(folder), "--postgres", f"postgresql://127.0.0.1:{server.port}/shop", "--slot", "s_1", "--pub", "Its own",
        "--tables", 'users,sales."Odd, name"', "--role", "the bridge", "--nats", nats.url, "--keep-wal", "3GB",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in ("walbridge.env", "walbridge.sql"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    assert "PASSWORD=" not in (folder / "walbridge.sql").read_text().replace("POSTGRES_BRIDGE_PASSWORD", "")
    written = read_env_file(folder / "walbridge.env")
    assert (written["BRIDGE_SLOT"], written["BRIDGE_PUB"], written.keys() & {"BRIDGE_STREAM", "BRIDGE_PORT"}) == (
        "s_1",
        "Its own",
        set(),
    )
    script, doctor, run, tail = steps(done.stdout)
    assert run == f"walbridge run --env-file '{folder / 'walbridge.env'}'", "the file has all that was given"
    program = tmp_path / "walbridge"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m actors.main "$@"\n')
    program.chmod(0o755)
    psql = shutil.which("psql") or str(server.bin_dir / "psql")
    env = {**CLEAN, "PATH": f"{tmp_path}:{Path(psql).parent}:{os.environ['PATH']}", "PGPASSWORD": str(server.password)}

    def shell(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, shell=True, env=env, capture_output=True, text=True, check=False, timeout=HANG_S)

    for command in (run, doctor):
        early = shell(command)
        assert f"if walbridge.sql was not run since it was written: {script}\n" in early.stdout + early.stderr
    first = shell(script)
    assert first.returncode == 0, first.stderr
    assert "restart PostgreSQL now" in first.stderr
    assert "restart PostgreSQL: its configuration has another wal_level already" in shell(doctor).stdout
    database.close()
    server.settings.pop("wal_level")
    server.restart()
    again = shell(script)
    assert (again.returncode, "restart" in again.stderr) == (0, False), again.stderr
    assert database.execute("SHOW max_slot_wal_keep_size") == [("3GB",)]
    checked = shell(f"{doctor} --port {free_port()}")
    assert checked.returncode in (0, 1), checked.stdout + checked.stderr
    bridge = Bridge(database.dsn, nats, tmp_path)
    with subprocess.Popen(f"exec {run} --port {bridge.port}", shell=True, env=env, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: bridge.get("/ready")[0] == 200)
            database.execute('INSERT INTO users VALUES (1); INSERT INTO sales."Odd, name" VALUES (2)')
            wait_for_events(nats.url, 2)
            assert "sales.Odd, name id=2" in shell(f"{tail} --from first --no-wait").stdout
        finally:
            process.terminate()
            database.close()


def test_it_asks_on_a_terminal_and_overwrites_nothing(tmp_path: Path) -> None:
    primary, secondary = pty.openpty()
    command = [sys.executable, "-m", "actors.main", "init", "--dir", str(tmp_path), "--role", "r"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=CLEAN, stdin=secondary, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    os.close(secondary)
    os.write(primary, b"db.example.org\ndb.example.org/app?sslmode=require\n\nusers\nhttp://x\n\nwriter\n")
    out, asked = process.communicate(timeout=HANG_S)
    os.close(primary)
    assert process.returncode == 0, asked
    assert asked.count("PostgreSQL, with the database [") == 2, "an answer that cannot be used is asked for again"
    assert "is not an address with a database" in asked
    assert asked.count("Tables to publish") == asked.count("NATS [nats://127.0.0.1:4222]: ") == 2
    assert "if writer is there already, write its own password into" in out
    assert "walbridge export nats-permissions" in out
    written = read_env_file(tmp_path / "walbridge.env")
    assert written["DATABASE_URL"] == "postgresql://r@db.example.org/app?sslmode=require"
    assert written["NATS_URL"] == "nats://127.0.0.1:4222"
    assert written["NATS_BRIDGE_USER"] == "writer"
    assert min(len(written[name]) for name in ("POSTGRES_BRIDGE_PASSWORD", "NATS_BRIDGE_PASSWORD")) >= 32
    refused = run_here("init", "--dir", str(tmp_path), "--tables", "users")
    assert (refused.returncode, "--force" in refused.stderr) == (2, True)
    assert read_env_file(tmp_path / "walbridge.env") == written
    assert run_here("init", "--dir", str(tmp_path), "--tables", "users", "--force").returncode == 0
    assert read_env_file(tmp_path / "walbridge.env")["POSTGRES_BRIDGE_PASSWORD"] != written["POSTGRES_BRIDGE_PASSWORD"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--tables"),
        (["--tables", "a..b"], "--tables"),
        (["--tables", "a", "--postgres", "db.example.org"], "--postgres"),
        (["--tables", "a", "--postgres", "postgresql://db.example.org"], "--postgres"),
        (["--tables", "a", "--postgres", "postgresql://u:hunter2@h/d"], "--role"),
        (["--tables", "a", "--nats", "http://x"], "NATS_URL"),
        (["--tables", "a", "--keep-wal", "lots'"], "--keep-wal"),
        (["--tables", "a", "--slot", "Bad-Slot"], "--slot"),
        (["--tables", "a", "--nats-user", "a'b\"c"], "cannot stand in an env file"),
        (["--tables", "a", "--nats-user", "a\nPG_HOST=x"], "cannot stand in an env file"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(arguments: list[str], words: str, tmp_path: Path) -> None:
    done = run_here("init", "--dir", str(tmp_path), *arguments)
    assert (done.returncode, words in done.stderr) == (2, True), done.stderr
    assert "hunter2" not in done.stderr
    assert list(tmp_path.iterdir()) == []
