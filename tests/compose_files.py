"""The compose files as tests use them: read as Docker Compose does, copied with secrets, and applied to servers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from actors.embedded.postgres import PostgresServer
from tests.servers import ROOT

COMPOSE = ROOT / "compose"


NATS_USERS = ("bridge", "mirror", "consumer", "browser", "admin")


def config_of_nats_users() -> str:
    """nats-permissions.conf with its users' passwords: each is its name, as nats-server would read 1e5."""
    variables = "\n".join(f'NATS_{user.upper()}_PASSWORD: "1e5{user}"' for user in NATS_USERS)
    return f"{variables}\n{(COMPOSE / 'nats/nats-permissions.conf').read_text()}"


def as_nats_user(url: str, user: str) -> str:
    """The address of a server with that configuration, for one of its users."""
    return url.replace("//", f"//{user}:1e5{user}@")


def read_compose(folder: Path, name: str = "compose.yaml") -> dict[str, Any]:
    """A compose file of `folder`, with the names of its `.env` or, without one, with the defaults."""
    env = folder / ".env"
    return parse_compose((folder / name).read_text(encoding="utf-8"), env.read_text(encoding="utf-8") if env.exists() else "")


def parse_compose(text: str, env: str = "") -> dict[str, Any]:
    """Variables are filled in after the YAML is parsed, so that no value changes the structure."""
    found = _fill(yaml.safe_load(text), parse_env(env))
    assert isinstance(found, dict)
    return found


ASSIGNMENT = re.compile(
    r"""^(?P<name>[A-Za-z_]\w*)=(?:'(?P<plain>[^']*)'|"(?P<escaped>(?:[^"\\]|\\.)*)"|(?P<bare>[^\s'"#$][^\n'"#$]*))?$""",
    re.MULTILINE | re.DOTALL | re.ASCII,
)


def parse_env(text: str) -> dict[str, str]:
    """The rules of compose-go for what we write: quotes of both kinds, escapes in double ones; anything else is refused."""
    found: dict[str, str] = {}
    rest = re.sub(r"\A(?:#[^\n]*\n)*", "", text)
    while rest:
        match = ASSIGNMENT.match(rest)
        assert match is not None, f"no assignment: {rest[:60]!r}"
        value = match["plain"] or match["bare"] or ""
        if match["escaped"] is not None:
            assert not re.search(r"(?<!\\)(?:\\\\)*\$", match["escaped"]), "a variable would be filled in"
            assert set(re.findall(r"\\(.)", match["escaped"], re.DOTALL)) <= set('"\\$'), "an escape that means something else"
            value = re.sub(r"\\(.)", r"\1", match["escaped"], flags=re.DOTALL)
        found[match["name"]] = value
        rest = rest[match.end() :].removeprefix("\n")
    return found


VARIABLE = re.compile(r"\$(?:\$|\{(\w+):-([^}]*)\})")


def _fill(value: Any, env: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {name: _fill(inner, env) for name, inner in value.items()}
    if isinstance(value, list):
        return [_fill(inner, env) for inner in value]
    if isinstance(value, str):
        return VARIABLE.sub(lambda match: (env.get(match[1]) or match[2]) if match[1] else "$", value)
    return value


MAIN = read_compose(COMPOSE)


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
