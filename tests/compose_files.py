"""The compose files as tests use them: read, copied with secrets of their own, and applied to servers."""

from __future__ import annotations

import os
import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from actors.embedded.postgres import PostgresServer
from tests.servers import ROOT

COMPOSE = ROOT / "compose"
MAIN: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())


def with_secrets(tmp_path: Path) -> Path:
    """A copy of compose/ whose secrets are made."""
    folder = tmp_path / "compose"
    if not folder.exists():
        shutil.copytree(COMPOSE, folder, ignore=shutil.ignore_patterns("secrets"))
    subprocess.run(["sh", str(folder / "make-secrets.sh")], check=True)
    return folder


def run_init_scripts(server: PostgresServer, secrets: Path) -> None:
    """What is in init/, on the database that the compose file names, with the secrets that it gives."""
    given = MAIN["services"]["postgres"]["environment"]
    env = {name: str(value).replace("/run/secrets", str(secrets)) for name, value in given.items()}
    for script in sorted((COMPOSE / "init").iterdir()):
        done = subprocess.run(
            [str(server.bin_dir / "psql"), "-v", "ON_ERROR_STOP=1", "--no-psqlrc", "-d", server.dsn(given["POSTGRES_DB"]),
             "-f", str(script)], env={**os.environ, **env}, capture_output=True, text=True, check=False)  # fmt: skip
        assert done.returncode == 0, f"{script.name}: {done.stderr}"


def healthy(monitor: int) -> bool:
    """As the health check of the compose file asks."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{monitor}/healthz", timeout=3) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
