"""`pytest -m "not servers"` starts no server: what needs one is marked, and what is not marked cannot start one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from actors.embedded.nats import find_nats_server
from actors.embedded.postgres import find_postgres_bin_dir
from tests.servers import ROOT


class Collected:
    """A plugin that keeps which modules have tests that need servers, and which have others."""

    def __init__(self) -> None:
        self.modules: dict[bool, set[str]] = {True: set(), False: set()}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            self.modules[item.get_closest_marker("servers") is not None].add(item.nodeid.partition("::")[0])


def test_a_test_is_marked_by_the_fixtures_that_it_requests_names_or_inherits() -> None:
    requested = "tests/test_events.py"
    named = "tests/test_postgres_preflight.py"  # by request.getfixturevalue
    inherited = "tests/test_temporary_slot.py"  # through a fixture of its own
    own = "tests/unit/test_servers_marker.py"
    found = Collected()
    files = [str(ROOT / path) for path in (requested, named, inherited, own)]
    quiet = ["--collect-only", "-q", f"--rootdir={ROOT}", "-p", "no:cacheprovider", "-p", "no:faulthandler", "-p", "no:xdist"]
    assert pytest.main([*quiet, *files], plugins=[found]) == 0
    assert found.modules == {True: {requested, named, inherited, own}, False: {own}}


PROGRAMS = [find_nats_server(), find_postgres_bin_dir() / "postgres", find_postgres_bin_dir() / "initdb"]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_a_test_that_is_not_marked_cannot_start_a_server(program: Path) -> None:
    with pytest.raises(RuntimeError, match=f"test_servers_marker.py::.* is not marked `servers` and starts {program.name}"):
        subprocess.run([program, "--version"], check=True)


def test_nor_can_the_python_programs_that_it_starts() -> None:
    start = f"import subprocess; subprocess.run([{str(find_nats_server())!r}, '--version'])"
    done = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "is not marked `servers` and starts nats-server" in done.stderr


@pytest.mark.servers
def test_a_marked_test_may() -> None:
    assert subprocess.run([str(find_nats_server()), "--version"], check=True, capture_output=True).stdout
