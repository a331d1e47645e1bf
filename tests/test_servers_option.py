"""`pytest --servers=compose`, on a stack made without a container engine: the same settings, scripts, users and secrets."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from actors.embedded.nats import find_nats_server
from actors.embedded.postgres import PostgresServer
from actors.embedded.process import free_port
from tests.compose_files import MAIN, healthy, run_init_scripts, with_secrets
from tests.servers import HANG_S, ROOT, Database

pytestmark = [pytest.mark.servers, pytest.mark.own_servers("it starts a stack")]

PASS = [
    "tests/test_http.py::test_status_metrics_and_stream_info_tell_what_was_stored",
    "tests/test_types.py::test_json_values_are_exact_or_named_raw",
    "tests/test_snapshots.py::test_a_table_comes_whole_and_typed",
    "tests/test_exactness.py::test_a_stop_right_after_a_start_is_clean",
    "tests/test_mirror.py::test_what_a_gap_lost_is_copied_again[sqlite]",
    "tests/test_mirror.py::test_what_a_gap_lost_is_copied_again[postgresql]",
]
SKIPPED = {
    "tests/test_http.py::test_wrong_credentials_end_the_bridge_at_the_start": "needs a nats-server of its own",
    "tests/test_operation.py::test_a_lost_slot_says_which_range_and_goes_on_when_accepted": "needs a PostgreSQL server of its own",
    "tests/test_operation.py::test_two_bridges_with_a_stream_each_and_one_consumer_of_both":
        "the compose stack lets the bridge write stream CDC alone",
    "tests/test_operation.py::test_postgresql_15_streams_exactly": "the compose stack has no PostgreSQL 15",
    "tests/test_status.py::test_it_tells_what_a_running_bridge_does":
        "needs a server of its own: kill is not for the compose stack's",
    "tests/test_cleanup.py::test_the_slot_alone":
        "not with the compose stack: who cleans up may delete streams; the stack's bridge may not",
}  # fmt: skip


@pytest.fixture
def stack_folder(tmp_path: Path, server_folder: Path, postgres_bin_dir: Callable[[int], Path]) -> Iterator[Path]:
    """A copy of compose/ on free ports, with its PostgreSQL and its NATS running."""
    folder = with_secrets(tmp_path)
    secrets = folder / "secrets"
    compose = (folder / "compose.yaml").read_text()
    ports = {there: free_port() for there in (5432, 4222)}
    for there, here in ports.items():
        compose = compose.replace(f'"127.0.0.1:{there}:{there}"', f'"127.0.0.1:{here}:{there}"')
    (folder / "compose.yaml").write_text(compose)
    command = MAIN["services"]["postgres"]["command"]
    settings = dict(word.split("=", 1) for word in command if "=" in word)
    password = (secrets / "postgres_password").read_text()
    server = PostgresServer(
        postgres_bin_dir(18), server_folder / "stack", port=ports[5432], settings=settings, password=password
    )
    monitor = free_port()
    nats = tmp_path / "nats"
    shutil.copytree(folder / "nats", nats)
    config = (nats / "nats.conf").read_text().replace("0.0.0.0:4222", f"127.0.0.1:{ports[4222]}")
    config = config.replace("0.0.0.0:8222", f"127.0.0.1:{monitor}").replace('"/data"', f'"{nats}/data"')
    (nats / "nats.conf").write_text(config)
    env = {"PATH": f"{find_nats_server().parent}:{os.environ['PATH']}", "SECRETS_DIR": str(secrets), "NATS_SERVER_NAME": "nats"}
    server.initdb()
    server.start()
    with (tmp_path / "nats.log").open("wb") as log:
        process = subprocess.Popen(["sh", "start.sh", "-c", "nats.conf"], cwd=nats, env=env, stdout=log, stderr=log)
    try:
        Database(server, "app").close()
        run_init_scripts(server, secrets)
        deadline = time.monotonic() + HANG_S
        while not healthy(monitor):
            assert time.monotonic() < deadline, (tmp_path / "nats.log").read_text()
            time.sleep(0.05)
        yield folder
    finally:
        process.kill()
        process.wait()
        server.stop("immediate")
        shutil.rmtree(server.data_dir)


def run_tests(folder: Path, *what: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", "--servers=compose", f"--compose-dir={folder}", *what],
        cwd=ROOT, capture_output=True, text=True, timeout=10 * HANG_S, check=False)  # fmt: skip


def test_tests_run_on_the_stack_and_say_why_when_they_do_not(stack_folder: Path) -> None:
    done = run_tests(stack_folder, *PASS, *SKIPPED)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-6000:]
    assert len(re.findall(r"^PASSED ", done.stdout, re.MULTILINE)) == len(PASS), done.stdout[-3000:]
    reasons = re.findall(r"^SKIPPED \[\d+\] \S+: (.*)$", done.stdout, re.MULTILINE)
    assert sorted(reasons) == sorted(SKIPPED.values())


def test_a_stack_that_somebody_works_with_is_left_alone(stack_folder: Path) -> None:
    port, password = re.search(r"127.0.0.1:(\d+):5432", (stack_folder / "compose.yaml").read_text()), "postgres_password"
    assert port is not None
    dsn = f"postgresql://postgres:{(stack_folder / 'secrets' / password).read_text()}@127.0.0.1:{port[1]}/app"
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute("SELECT pg_create_logical_replication_slot('theirs', 'pgoutput')")
        done = run_tests(stack_folder, *PASS)
        assert done.returncode == 4
        assert "slot theirs" in done.stdout + done.stderr
        assert admin.execute("SELECT slot_name FROM pg_replication_slots").fetchall() == [("theirs",)]
