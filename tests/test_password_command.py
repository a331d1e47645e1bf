"""A command that prints the password: run at each connect, and whatever it does instead is an error without its output."""

from __future__ import annotations

import logging
import stat
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psutil
import psycopg
import pytest
import trio

from actors.clients.postgres.connection import PgConnection, SourceRefused
from actors.clients.postgres.password_command import CommandFailed, read_password
from actors.embedded.nats import NatsServer
from actors.errors import ConfigError
from actors.settings.resolve import resolve
from actors.telemetry.log import RENEWED_MAX, get_logger, mask, set_up_logging
from tests.conftest import MakeBridge
from tests.servers import Database, wait_for, wait_for_events

VARIABLE = "POSTGRES_BRIDGE_PASSWORD_COMMAND"
SECRET = "s3cret-token"


def shell(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


def failure(script: str, timeout_s: float = 30.0) -> CommandFailed:
    with pytest.raises(CommandFailed) as caught:
        trio.run(lambda: read_password(shell(script), timeout_s=timeout_s))
    assert SECRET not in caught.value.what + caught.value.said
    return caught.value


@pytest.mark.parametrize("script", ["echo 'a b$1'", "printf 'a b$1'", "printf 'a b$1\\r\\n'", "echo noise >&2; echo 'a b$1'"])
def test_what_it_prints_is_the_password(script: str) -> None:
    assert trio.run(read_password, shell(script)) == "a b$1"


@pytest.mark.parametrize(
    ("script", "what", "said"),
    [
        ("exit 3", "ended with exit code 3", ""),
        (f"echo {SECRET}; echo 'token expired' >&2; exit 1", "ended with exit code 1", "token expired"),
        (f"set -x; echo {SECRET}; exit 1", "ended with exit code 1", "+ exit 1"),
        (f"set -x; echo {SECRET}", "", ""),
        (f"echo {SECRET}; echo {SECRET} >&2; kill -9 $$", "ended with signal 9", "********"),
        ("true", "printed nothing", ""),
        ("echo; echo", "printed nothing", ""),
        (f"echo {SECRET}; echo more", "printed 2 lines, and a password is one", ""),
        ("printf 'a\\000b'", "printed what is not text", ""),
        ("printf '\\377\\376'", "printed what is not text", ""),
        ("yes", "printed more than 64 KiB", ""),
    ],
)
def test_anything_else_is_an_error_that_never_has_its_output(script: str, what: str, said: str) -> None:
    if not what:
        assert trio.run(read_password, shell(script)) == SECRET
        return
    found = failure(script)
    assert (found.what, found.said) == (what, said)


def test_a_program_that_is_not_there_is_an_error() -> None:
    with pytest.raises(CommandFailed, match="cannot be started") as caught:
        trio.run(read_password, ["/nonexistent/program"])
    assert caught.value.said == "No such file or directory"


def test_a_late_command_is_killed_with_its_children(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    found = failure(f"sleep 1000 & echo $! > {pid_file}; echo waiting >&2; wait", timeout_s=1.0)
    assert found.what == "did not end within 1 s"
    assert found.said == "waiting"
    child = int(pid_file.read_text())
    wait_for(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)


def test_a_process_that_it_leaves_behind_does_not_hold_up_the_password() -> None:
    """As an agent does that is started by the first command: it keeps stderr open, and lives on."""
    begun = time.monotonic()
    assert trio.run(read_password, shell("sleep 20 >/dev/null & echo token")) == "token"
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({VARIABLE: "echo 'x"}, "a quote that is not closed"),
        ({VARIABLE: "echo x", "POSTGRES_BRIDGE_PASSWORD": "hunter22"}, "are both set"),
    ],
)
def test_a_command_that_cannot_be_meant_is_refused(env: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        resolve({}, {"POSTGRES_BRIDGE_USER": "u", **env})
    assert "hunter22" not in caught.value.explain()


def test_a_password_in_the_url_beats_the_command_and_print_config_says_so() -> None:
    config = resolve({}, {VARIABLE: "echo x", "DATABASE_URL": "postgresql://u:hunter22@h/d"})
    assert config.postgres.password_command == ()
    (row,) = [row for row in config.origins if row[0] == VARIABLE]
    assert row[1:] == ("echo x", f"environment {VARIABLE} (not used: DATABASE_URL is set)")
    split = resolve({}, {VARIABLE: "aws rds --name 'a b' \"$HOME\"", "DATABASE_URL": "postgresql://u@h/d"})
    assert split.postgres.password_command == ("aws", "rds", "--name", "a b", "$HOME"), "no shell: nothing is expanded"


def test_the_log_masks_the_newest_passwords_and_does_not_keep_all_of_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bridge that connects every minute for a year must not compare each line with half a million tokens."""
    monkeypatch.setattr(logging.root, "handlers", [])
    set_up_logging("INFO", "logfmt", ("lasting-secret",))
    for number in range(RENEWED_MAX + 50):
        mask((f"token-{number:05}",))
    get_logger("test").info(f"lasting-secret token-{RENEWED_MAX + 49:05} token-{50:05} token-{49:05}")
    assert capsys.readouterr().err.split("msg=")[1].strip() == '"******** ******** ******** token-00049"'


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], Path]:
    """Writes the program, which counts how often it runs."""

    def write(password: str) -> Path:
        path = tmp_path / "print password"
        path.write_text(f"#!/bin/sh\necho run >> '{tmp_path}/runs'\necho '{password}'\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return write


def test_a_bridge_asks_for_a_new_password_at_each_connect_and_logs_none(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, program: Callable[[str], Path], tmp_path: Path
) -> None:
    role, port = f"by_command_{database.name}", psycopg.conninfo.conninfo_to_dict(database.dsn)["port"]
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE t")
    database.execute(f"CREATE ROLE {role} LOGIN SUPERUSER PASSWORD 'first-token'")
    try:
        env = {VARIABLE: f"'{program('first-token')}'", "LOG_LEVEL": "DEBUG"}
        bridge = make_bridge(f"postgresql://{role}@127.0.0.1:{port}/{database.name}", nats, env=env)
        database.execute(f"ALTER ROLE {role} PASSWORD 'second-token'")
        program("second-token")
        database.execute(
            f"INSERT INTO t VALUES (1); SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'"
        )
        wait_for_events(nats.url, 1)
        wait_for(lambda: bridge.get("/ready")[0] == 200)

        # a command that fails later is waited for, and named
        (tmp_path / "print password").write_text("#!/bin/sh\necho third-token\necho 'no network' >&2\nexit 7\n")
        database.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'")
        wait_for(lambda: "WB139" in bridge.log(), bridge.log)
        assert "ended with exit code 7 (no network)" in bridge.log()
        program("second-token")
        database.execute("INSERT INTO t VALUES (2)")
        wait_for_events(nats.url, 2)
        assert bridge.stop() == 0
        assert "-token" not in bridge.log()
        assert len((tmp_path / "runs").read_text().split()) >= 2
    finally:
        database.execute(f"DROP ROLE {role}")


def test_at_the_start_a_command_that_fails_ends_the_bridge(
    database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    url = database.dsn.replace(f":{database.server.password}@", "@")
    bridge = make_bridge(url, nats, start=False, env={VARIABLE: f"{sys.executable} -c 'print(\"{SECRET}\"); exit(9)'"})
    bridge.start(ready=False)
    assert bridge.wait() == 2
    assert "WB139" in bridge.log()
    assert "exit code 9" in bridge.log()
    assert SECRET not in bridge.log()


def test_every_connection_runs_it_that_of_the_doctor_too(database: Database) -> None:
    url = database.dsn.replace(f":{database.server.password}@", "@")

    async def connect(command: str) -> None:
        config = resolve({}, {"DATABASE_URL": url, VARIABLE: command}).postgres
        with closing(await PgConnection.connect(config, application_name="test", replication=True)):
            pass

    trio.run(connect, f"echo {database.server.password}")
    with pytest.raises(SourceRefused) as caught:
        trio.run(connect, "echo wrong-password")
    assert caught.value.code == "WB103"
    assert "wrong-password" not in caught.value.explain()
