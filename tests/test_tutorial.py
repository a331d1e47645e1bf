"""The tutorial of the guides, as it is printed: servers, programs and commands, and the races that its text speaks of."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nats
import psycopg
import pytest

from actors.embedded.process import free_port
from tests.documents import section
from tests.servers import HANG_S, ROOT

TUTORIAL = (ROOT / "docs/guides/tutorial.md").read_text(encoding="utf-8")
FOLLOWING = "following orders"


def fences(text: str, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [body for name, body in found if name == language]


class Folder:
    """The reader's folder with the programs of the page, and terminals in it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        (path / "bin").mkdir()
        program = path / "bin" / "walbridge"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m actors.main "$@"\n')
        (path / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        for script in (path / "bin").iterdir():
            script.chmod(0o755)
        for name, body in re.findall(r"`(\w+\.py)`:\n\n```python\n(.*?)^```$", TUTORIAL, re.MULTILINE | re.DOTALL):
            (path / name).write_text(body, encoding="utf-8")
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("PG", "NATS_", "POSTGRES_", "DATABASE_"))
        }
        self._env = {
            **kept,
            "PATH": f"{path}/bin:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "BRIDGE_PORT": str(free_port()),
        }

    def settings(self) -> dict[str, str]:
        lines = (self._path / "shop/walbridge.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))

    def run(self, commands: str) -> str:
        """What the commands print; those that a terminal has had before are repeated first."""
        before = "set -a && . shop/walbridge.env && set +a\n"
        done = subprocess.run(["sh", "-euc", before + commands.replace(before, "")], cwd=self._path, env=self._env,
                              capture_output=True, text=True, timeout=4 * HANG_S, check=False)  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def terminal(self, commands: str, *, until: str, ends: signal.Signals = signal.SIGINT) -> Iterator[None]:
        """Commands that run until the end of the block, once they have printed `until`."""
        log = self._path / f"log-{time.monotonic_ns()}"
        with log.open("wb") as file:
            process = subprocess.Popen(["sh", "-euc", commands], cwd=self._path, env=self._env, stdout=file, stderr=file,
                                       start_new_session=True)  # fmt: skip
        try:
            wait(lambda: until in log.read_text() or process.poll() is not None)
            assert until in log.read_text(), log.read_text()
            yield
        finally:
            if process.poll() is None:
                os.killpg(process.pid, ends)
                process.wait(HANG_S)


def wait(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + HANG_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.own_servers("the tutorial starts its own")
def test_the_tutorial_from_the_table_to_the_invalidator(server_folder: Path) -> None:
    path = server_folder / "tutorial"  # PostgreSQL's user can enter it
    path.mkdir(mode=0o755)
    folder = Folder(path)
    (start,) = fences(section(TUTORIAL, "1. Start"), "sh")
    install, serve = start.splitlines()
    assert install.startswith("pip install"), "what is tested is installed"
    (follow,) = fences(section(TUTORIAL, "4. The invalidator"), "sh")
    see, killed = section(TUTORIAL, "5. See it work"), section(TUTORIAL, "6. Kill the invalidator")
    with folder.terminal(serve, until="msg=streaming"):
        with folder.terminal(follow, until=FOLLOWING, ends=signal.SIGKILL):
            (commands,), (prints,) = fences(see, "sh"), fences(see, "")
            assert folder.run(commands) == prints
        before, after = fences(killed, "sh")
        stale, fresh = fences(killed, "")
        assert folder.run(before) == stale
        with folder.terminal(follow, until=FOLLOWING):
            assert folder.run(after) == fresh
            asyncio.run(races(path, folder.settings()))
            assert_forgets_all(folder)


async def races(path: Path, settings: dict[str, str]) -> None:
    """A reader that is slow between look and fill never leaves an older value behind."""
    names: dict[str, object] = {}
    exec((path / "cache.py").read_text(), names)
    client = await nats.connect(
        settings["NATS_URL"], user=settings["NATS_BRIDGE_USER"], password=settings["NATS_BRIDGE_PASSWORD"]
    )
    cache = await names["Cache"].open(client.jetstream())  # type: ignore[attr-defined]
    for forget in (cache.forget("orders", 7), cache.forget_all("orders")):
        found, place = await cache.look("orders", 7)
        assert found is None
        assert place is not None
        await forget
        await cache.fill(place, {"id": 7, "status": "old"})
        found, place = await cache.look("orders", 7)
        assert found is None, "what was read before it was forgotten was stored after it"
    await cache.fill(place, {"id": 7, "status": "new"})
    assert (await cache.look("orders", 7))[0] == {"id": 7, "status": "new"}
    await client.close()


def assert_forgets_all(folder: Folder) -> None:
    """A change that names no row, such as a new column, empties the cache."""
    assert folder.run("python shop.py show 1\npython shop.py show 1\n").splitlines()[-1].startswith("hit")
    with psycopg.connect(folder.settings()["DATABASE_URL"], autocommit=True) as connection:
        connection.execute("ALTER TABLE orders ADD note text")
        connection.execute("UPDATE orders SET note = 'x' WHERE id = 2")
    wait(lambda: folder.run("python shop.py show 1\n").startswith("miss"))
