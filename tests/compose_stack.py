"""The PostgreSQL and the NATS of a running compose stack, for `pytest --servers=compose`: shared, and nobody's to kill."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from nats.aio.client import Client

from actors.embedded.nats import NatsServer
from actors.embedded.postgres import PostgresServer
from tests.compose_files import read_compose
from tests.servers import with_nats

UP = "docker compose -f compose/compose.yaml -p walbridge-tests up -d --wait postgres nats"
DOWN = "docker compose -f compose/compose.yaml -p walbridge-tests down -v"


class _Shared:
    """Has the attributes in `_known`; a test that wants another one wants a server of its own, and is skipped."""

    _known: frozenset[str] = frozenset()

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_") or name in type(self)._known:
            return super().__getattribute__(name)
        pytest.skip(f"needs a server of its own: {name} is not for the compose stack's")


class ComposePostgres(_Shared, PostgresServer):
    """The stack's PostgreSQL, as superuser."""

    _known = frozenset({"dsn", "port", "password"})

    def __init__(self, port: int, password: str) -> None:
        self.port, self.password = port, password


class ComposeNats(_Shared, NatsServer):
    """The stack's NATS. `url` is an administrator's; bridges and mirrors get the users that the stack has for them."""

    _known = frozenset({"url", "port", "users", "token", "environment_of"})

    def __init__(self, port: int, passwords: Mapping[str, str]) -> None:
        self.port, self._passwords = port, dict(passwords)
        self.users: dict[str, str] = {}
        self.token = None

    @property
    def url(self) -> str:
        return f"nats://admin:{quote(self._passwords['admin'], safe='')}@127.0.0.1:{self.port}"

    def environment_of(self, user: str) -> dict[str, str]:
        """How one of the stack's users connects."""
        return {"NATS_URL": f"nats://127.0.0.1:{self.port}", "NATS_BRIDGE_USER": user,
                "NATS_BRIDGE_PASSWORD": self._passwords[user]}  # fmt: skip


class ComposeStack:
    """What `compose.yaml` and `secrets/` of a folder say about the servers; they must hold nothing yet."""

    def __init__(self, folder: Path) -> None:
        services: dict[str, Any] = read_compose(folder)["services"]
        try:
            secrets = {path.name: path.read_text().strip() for path in (folder / "secrets").iterdir()}
        except FileNotFoundError:
            pytest.exit(f"--servers=compose: no secrets in {folder}; first: {folder}/make-secrets.sh && {UP}", returncode=4)
        users = {name: secrets[f"nats_{name}_password"] for name in ("admin", "bridge", "mirror", "consumer")}
        self.postgres = ComposePostgres(_published(services["postgres"]), secrets["postgres_password"])
        self.nats = ComposeNats(_published(services["nats"]), users)
        self._refuse_what_is_in_use()

    def remove_streams(self) -> None:
        """All of them; each test begins with none."""

        async def remove(client: Client) -> None:
            js = client.jetstream()
            for info in await js.streams_info():
                await js.delete_stream(info.config.name or "")

        with_nats(self.nats.url, remove)

    def _refuse_what_is_in_use(self) -> None:
        """The tests remove streams and slots: never those of a stack that somebody works with."""

        async def streams(client: Client) -> list[str]:
            return [info.config.name or "" for info in await client.jetstream().streams_info()]

        try:
            with psycopg.connect(self.postgres.dsn()) as admin:
                found = [f"slot {slot}" for (slot,) in admin.execute("SELECT slot_name FROM pg_replication_slots")]
            found += [f"stream {name}" for name in with_nats(self.nats.url, streams)]
        except (psycopg.OperationalError, OSError) as exc:
            pytest.exit(f"--servers=compose: {str(exc).strip()}\nstart it: {UP}", returncode=4)
        if found:
            pytest.exit(
                f"--servers=compose: the stack is in use ({', '.join(found)}) and the tests would remove that.\n"
                f"Take a new one, without its bridge: {DOWN}; {UP}", returncode=4)  # fmt: skip


def _published(service: dict[str, Any]) -> int:
    """The port of this host that a service listens on."""
    return int(str(service["ports"][0]).split(":")[1])
