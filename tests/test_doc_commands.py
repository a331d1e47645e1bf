"""Every command that the documents print to copy is run: here, on real servers, or in the test that is named for it.

A new block of commands fails until it is one of these. Programs and hosts that no test has are in NEEDS, with the reason.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from cyclopts import CycloptsError, UnknownOptionError, UnusedCliTokensError

from actors.embedded.nats import NatsServer
from actors.embedded.process import free_port
from actors.main import app
from tests.conftest import MakeBridge
from tests.documents import PAGES
from tests.servers import HANG_S, ROOT, Bridge, Database, wait_for_events

DOCUMENTS = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "compose/README.md", *PAGES]


class Block(NamedTuple):
    """Commands as they are printed."""

    place: str
    """`file#heading`."""
    commands: str
    prints: str
    """The block of output that follows, if one does before any other text of commands."""


def blocks() -> list[Block]:
    found: list[Block] = []
    for name in DOCUMENTS:
        heading, text = "", (ROOT / name).read_text(encoding="utf-8")
        fences = list(
            re.finditer(r"^(?:#+ (?P<heading>[^\n]*)|```(?P<language>\w*)\n(?P<body>.*?)^```)$", text, re.MULTILINE | re.DOTALL)
        )
        for i, fence in enumerate(fences):
            heading = fence["heading"] or heading
            if fence["language"] in ("sh", "console", "bash"):
                after = fences[i + 1] if i + 1 < len(fences) else None
                prints = after["body"] if after is not None and after["language"] == "" else ""
                found.append(Block(f"{name}#{heading}", fence["body"], prints))
    return found


RUN_HERE = {
    "README.md#With your own servers": "test_the_readmes_way_to_ones_own_servers",
    "README.md#A live copy": "test_a_live_copy_and_its_proof",
    "docs/operations.md#Before going live": "test_the_doctor_before_going_live",
    "docs/consumers.md#Looking at changes": "test_a_live_copy_and_its_proof",
    "docs/mirror.md#Start one": "test_a_live_copy_and_its_proof",
    "docs/mirror.md#Prove it": "test_a_live_copy_and_its_proof",
    "docs/guides/kubernetes.md#2. The role, the publication, the NATS user": "test_the_files_for_a_cluster_are_written",
    "docs/guides/kubernetes.md#4. The files": "test_the_files_for_a_cluster_are_written",
    "docs/guides/resync.md#1. Is there a difference?": "test_a_difference_is_found_and_its_table_copied_again",
    "docs/guides/resync.md#2. One table of a mirror": "test_a_difference_is_found_and_its_table_copied_again",
    "docs/guides/resync.md#4. A consumer of your own": "test_a_difference_is_found_and_its_table_copied_again",
}
RUN_ELSEWHERE = {
    # with the planted consumer in the place of one's own
    "docs/certify.md#Is my consumer right?": "tests/test_certify.py::test_the_command_prints_the_smallest_history",
    "docs/scaling.md#Several bridges": "tests/test_scaling.py::test_several_bridges_are_exact_each_and_one_view_has_every_change_once",
    "docs/scaling.md#One hot table": "tests/test_scaling.py::test_row_filters_split_a_hot_table_and_the_parts_make_the_whole",
    "docs/scaling.md#Three NATS servers":
        "tests/test_scaling.py::test_the_leader_of_three_servers_is_killed_under_load_and_the_stream_stays_exact",
    # for less time
    "CONTRIBUTING.md#Faults on real servers": "tests/test_faults.py::test_faults_on_real_servers_lose_and_double_nothing",
    # with fewer seeds
    "CONTRIBUTING.md#The simulation": "property_tests/test_simulation.py::test_seeds_find_nothing",
    # without the installation: .ci/run does that on a virtual environment of its own
    "README.md#Quick start": "tests/test_demo.py::test_without_a_terminal_it_is_plain_lines_and_a_verdict",
    **{f"docs/guides/tutorial.md#{step}": "tests/test_tutorial.py::test_the_tutorial_from_the_table_to_the_invalidator"
       for step in ("1. Start", "4. The invalidator", "5. See it work", "6. Kill the invalidator")},
    # the doctor, on a server that is not the provider's
    **{f"docs/guides/{provider}.md#Check and start":
       "tests/test_guides.py::test_a_providers_statements_make_a_role_that_the_doctor_finds_fit"
       for provider in ("azure", "cloud-sql", "neon", "rds", "supabase")},
    # with PostgreSQL 18 as the old server and the new one
    "docs/guides/postgresql-upgrade.md#Upgrade with pg_upgrade":
        "tests/test_upgrade.py::test_the_stream_goes_on_after_pg_upgrade_without_a_gap",
    # after a slot that was dropped, with the same server
    "docs/guides/postgresql-upgrade.md#When the slot cannot be kept":
        "tests/test_operation.py::test_a_dropped_slot_ends_the_bridge_until_the_gap_is_accepted",
}  # fmt: skip
NEEDS = {
    "README.md#Quick start": "pip install: the network. .ci/run takes the tests' command from the README and runs it",
    "CONTRIBUTING.md#Set up": "pip install: the network. tests/test_contributing.py compares constraints.txt with pyproject.toml",
    "CONTRIBUTING.md#The full check": "the whole suite. tests/test_contributing.py compares it with the README's command, which .ci/run runs",
    "compose/README.md#Walbridge with Docker Compose": "a container engine; tests/test_compose.py and tests/test_servers_option.py run"
    " everything that is in the containers",
    "docs/guides/azure.md#Switch logical replication on": "az, and a server at Azure",
    "docs/guides/azure.md#Address, TLS, and the env file": "the authorities' certificates, from the network",
    "docs/guides/cloud-sql.md#Switch logical replication on": "gcloud, and an instance at Google",
    "docs/guides/cloud-sql.md#Address, TLS, and the env file": "gcloud, and an instance at Google",
    "docs/guides/neon.md#Make the role and the publication": "neon, and a project there",
    "docs/guides/rds.md#Switch logical replication on": "aws, and an instance at Amazon",
    "docs/guides/rds.md#Limit the WAL": "aws, and an instance at Amazon",
    "docs/guides/rds.md#Address, TLS, and the env file": "Amazon's certificates, from the network",
    "docs/guides/supabase.md#Before you begin": "supabase, and a project there",
    "docs/guides/kubernetes.md#3. The image": "docker and a registry; .ci/run measures what the image installs",
    "docs/guides/kubernetes.md#5. Start": "kubectl and a cluster",
    "docs/guides/upgrade.md#Upgrade": "pip install: the network, and two released versions",
    "docs/guides/upgrade.md#Go back": "kubectl and a cluster",
}  # fmt: skip

SEVERAL = {
    "README.md#Quick start": 2, "compose/README.md#Walbridge with Docker Compose": 2,
    "docs/guides/kubernetes.md#5. Start": 3, "docs/guides/tutorial.md#6. Kill the invalidator": 2,
    "docs/guides/upgrade.md#Upgrade": 2,
}  # fmt: skip
"""Blocks under one heading."""


def test_every_block_of_commands_is_run() -> None:
    places = Counter(block.place for block in blocks())
    assert places == {place: SEVERAL.get(place, 1) for place in places}, "one more: is it run?"
    assert places.keys() == RUN_HERE.keys() | RUN_ELSEWHERE.keys() | NEEDS.keys(), "a new one: run it, or say which test does"
    for test in RUN_HERE.values():
        assert test in globals()
    for named in RUN_ELSEWHERE.values():
        path, _, test = named.partition("::")
        assert re.search(rf"^def {test}\b", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), named


@pytest.mark.parametrize("name", [*DOCUMENTS, "CHANGELOG.md"])
def test_every_command_of_ours_in_the_text_is_one_that_there_is(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    inline = re.findall(r"`walbridge ([^`|]+)[^`]*`", text) + re.findall(r"^ {4}walbridge (.*)$", text, re.MULTILINE)
    for words in inline:
        given = [word for word in shlex.split(words) if word != "..."]
        try:
            app.parse_args(given, print_error=False, exit_on_error=False)
        except (UnknownOptionError, UnusedCliTokensError) as exc:
            raise AssertionError(f"{name}: walbridge {words}") from exc
        except CycloptsError:
            pass  # it leaves out what must be given, to speak of something else


def the_block(place: str) -> Block:
    (block,) = [block for block in blocks() if block.place == place]
    return block


class Shell:
    """Runs blocks in a folder of their own, as a person would: the installed commands, and a port that is free."""

    def __init__(self, folder: Path, addresses: dict[str, str]) -> None:
        """`addresses` are put in for the ones that the documents invent."""
        self._folder, self._addresses = folder, addresses
        self.port = str(free_port())
        (folder / "bin").mkdir()
        program = folder / "bin" / "walbridge"
        program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m actors.main "$@"\n')
        program.chmod(0o755)
        ours = ("PG", "NATS_", "POSTGRES_", "DATABASE_URL", "BRIDGE_", "LOG_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        self.env = {**kept, "PATH": f"{folder}/bin:{os.environ['PATH']}", "BRIDGE_PORT": self.port}

    def script(self, commands: str) -> str:
        """What is printed, with our servers in it; it must name them all."""
        for invented, real in self._addresses.items():
            commands = commands.replace(invented, real)
        assert "example.org" not in commands, commands
        return re.sub(r"^pip install -e \.$", "", commands, flags=re.MULTILINE)  # what is tested is installed

    def run(self, commands: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["sh", "-euc", self.script(commands)], cwd=self._folder, env=self.env, capture_output=True,
                              text=True, timeout=4 * HANG_S, check=False)  # fmt: skip

    @contextmanager
    def running(self, commands: str) -> Iterator[Callable[[], str]]:
        """What runs until it is stopped: gives its log; stopped with Ctrl-C at the end, which must end it with exit code 0."""
        log = self._folder / f"log-{time.monotonic_ns()}"
        with log.open("wb") as file:
            process = subprocess.Popen(["sh", "-euc", self.script(commands)], cwd=self._folder, env=self.env, stdout=file,
                                       stderr=file, start_new_session=True)  # fmt: skip
        try:
            yield log.read_text
            assert process.poll() is None, log.read_text()
            os.killpg(process.pid, signal.SIGINT)
            process.wait(HANG_S)
            assert re.search(r"msg=\"?stopped", log.read_text()), log.read_text()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def until(self, holds: Callable[[], object], log: Callable[[], str]) -> None:
        deadline = time.monotonic() + HANG_S
        while not holds():
            assert time.monotonic() < deadline, log()
            time.sleep(0.1)


def invented(database: Database, nats: NatsServer, password: str) -> dict[str, str]:
    return {
        "PG_HOST=db.example.org PG_DB=app": f"PG_HOST=127.0.0.1 PG_PORT={database.server.port} PG_DB={database.name}",
        "postgresql://walbridge@db.example.org/app": database.dsn.replace(
            f"postgres:{database.server.password}@", f"walbridge:{password}@"
        ),
        "nats://nats.example.org:4222": nats.url,
    }


@pytest.fixture
def role(database: Database) -> Iterator[str]:
    """The statements of the README, but for those that the test's server has in its configuration; gives the password."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (statements,) = re.findall(r"^```sql\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    database.execute("CREATE TABLE users (id int PRIMARY KEY, name text); CREATE TABLE orders (id int PRIMARY KEY)")
    for statement in re.sub(r"--.*", "", statements).split(";"):
        if statement.strip() and "ALTER SYSTEM" not in statement:
            database.execute(statement)
    yield re.findall(r"PASSWORD '(.*)'", statements)[0]
    database.execute("DROP OWNED BY walbridge CASCADE; DROP ROLE walbridge")


@pytest.mark.own_servers("the documents' NATS has no password")
def test_the_readmes_way_to_ones_own_servers(role: str, database: Database, nats: NatsServer, tmp_path: Path) -> None:
    shell = Shell(tmp_path, invented(database, nats, role))
    with shell.running(the_block("README.md#With your own servers").commands) as log:
        shell.until(lambda: shell.run("walbridge health").stdout == "ready\n", log)
        database.execute("INSERT INTO users VALUES (1, 'Ada'); INSERT INTO orders VALUES (2)")
        assert [event.subject for event in wait_for_events(nats.url, 2)] == ["cdc.users.insert", "cdc.orders.insert"]
        database.execute("CREATE TABLE more (id int PRIMARY KEY); ALTER PUBLICATION cdc_pub ADD TABLE more")
        database.execute("INSERT INTO more VALUES (3)")
        assert wait_for_events(nats.url, 3)[-1].subject == "cdc.more.insert", "without a restart"
        status = shell.run("walbridge status")
        assert status.returncode == 0, status.stderr


@pytest.mark.own_servers("the documents' NATS has no password")
def test_a_live_copy_and_its_proof(
    role: str, database: Database, nats: NatsServer, make_bridge: MakeBridge, tmp_path: Path
) -> None:
    bridge: Bridge = make_bridge(database, nats)
    database.execute("GRANT SELECT ON users, orders TO walbridge")
    database.execute(
        "INSERT INTO users SELECT g, 'x' FROM generate_series(1, 430) g; INSERT INTO orders SELECT generate_series(1, 378)"
    )
    shell = Shell(tmp_path, invented(database, nats, role))
    prove = the_block("docs/mirror.md#Prove it")
    export, from_mirror = the_block("docs/mirror.md#Start one").commands.splitlines()
    assert from_mirror + "\n" == the_block("README.md#A live copy").commands
    with shell.running(f"{export}\n{from_mirror}\n") as log:
        shell.until(lambda: log().count("table is live") == 2, log)
        proof = shell.run(f"{export}\n{prove.commands}")
        assert proof.returncode == 0, proof.stdout + proof.stderr
        assert alike(proof.stdout) == alike(prove.prints)
    assert bridge.get("/ready")[0] == 200
    printed = []
    for line in the_block("docs/consumers.md#Looking at changes").commands.splitlines():
        tailed = shell.run(f"{export}\n{line.partition('#')[0].replace('--no-wait', '')} --no-wait")
        assert tailed.returncode == 0, tailed.stderr
        printed.append(tailed.stdout.splitlines())
    assert [len(lines) for lines in printed] == [0, 1, 10, 808]


@pytest.mark.own_servers("the documents' NATS has no password")
def test_the_doctor_before_going_live(role: str, database: Database, nats: NatsServer, tmp_path: Path) -> None:
    shell = Shell(tmp_path, invented(database, nats, role))
    _, postgres, to_nats, _ = the_block("README.md#With your own servers").commands.splitlines()
    sample = the_block("docs/operations.md#Before going live")
    done = shell.run(f"{postgres}\n{to_nats}\n{sample.commands}")
    assert done.returncode == 1, done.stdout + done.stderr
    printed = done.stdout.replace(f"127.0.0.1:{database.server.port}/{database.name}", "db.example.org:5432/app")
    printed = printed.replace(nats.url.removeprefix("nats://"), "nats.example.org:4222")
    assert numberless(printed) == numberless(sample.prints)


@pytest.mark.own_servers("the documents' NATS has no password")
def test_a_difference_is_found_and_its_table_copied_again(
    role: str, database: Database, nats: NatsServer, make_bridge: MakeBridge, tmp_path: Path
) -> None:
    make_bridge(database, nats)
    database.execute("INSERT INTO users SELECT g, 'x' FROM generate_series(1, 430) g; INSERT INTO orders VALUES (1)")
    shell = Shell(tmp_path, {})
    url = invented(database, nats, role)["postgresql://walbridge@db.example.org/app"]
    (tmp_path / "walbridge.env").write_text(f"DATABASE_URL={url}\nNATS_URL={nats.url}\n")
    compare = the_block("docs/guides/resync.md#1. Is there a difference?")
    again = the_block("docs/guides/resync.md#2. One table of a mirror").commands
    with shell.running(again.replace("--again users ", "")) as log:
        shell.until(lambda: log().count("table is live") == 2, log)
        assert shell.run(compare.commands).returncode == 0
        with closing(sqlite3.connect(tmp_path / "replica.db", timeout=HANG_S)) as replica, replica:
            replica.execute("UPDATE users SET name = 'y' WHERE id = 17")
        found = shell.run(compare.commands)
        assert found.returncode == 1, found.stdout + found.stderr
        assert without_lsn(found.stdout) == without_lsn(compare.prints)
    with shell.running(again) as log:
        shell.until(lambda: log().count("table is live") == 1, log)
        proof = shell.run(compare.commands)
        assert proof.returncode == 0, proof.stdout + proof.stderr
        asked = shell.run(the_block("docs/guides/resync.md#4. A consumer of your own").commands)
        assert asked.returncode == 0, asked.stdout + asked.stderr


def test_the_files_for_a_cluster_are_written(tmp_path: Path) -> None:
    shell = Shell(tmp_path, {"registry.example.org": "registry.invalid"})
    guide = (ROOT / "docs/guides/kubernetes.md").read_text(encoding="utf-8")
    (settings,) = re.findall(r"^```ini\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)
    (tmp_path / "walbridge.env").write_text(settings)
    for step in ("2. The role, the publication, the NATS user", "4. The files"):
        done = shell.run(the_block(f"docs/guides/kubernetes.md#{step}").commands)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "role.sql").read_text().count("\nGRANT SELECT ON") == 2
    assert 'user: "bridge"' in (tmp_path / "nats-permissions.conf").read_text()
    deployment = (tmp_path / "k8s/deployment.yaml").read_text()
    for value in ("registry.invalid/walbridge:0.1.0", "host=db.example.org", "nats://nats.messaging.svc:4222"):
        assert value in deployment
    for named in re.findall(r"`(\w+\.yaml)`", guide):
        assert (tmp_path / "k8s" / named).exists(), named


def numberless(printed: str) -> list[str]:
    """Lines without figures and widths; what else the shared server has slots for may differ."""
    lines = [" ".join(re.sub(r"[+-]?\d[\d.,:]*", "N", line).split()) for line in printed.splitlines()]
    return [line for line in lines if "other slot" not in line]


def without_lsn(printed: str) -> str:
    return re.sub(r"[0-9A-F]+/[0-9A-F]+", "LSN", printed)


def alike(printed: str) -> list[list[str]]:
    """Lines as words, without positions in the WAL; the order of tables is not promised."""
    return sorted(without_lsn(line).split() for line in printed.splitlines())
