"""A password in a file is changed while the program runs: the next connection uses the new one."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import psycopg
import pytest
import trio

from actors.clients.nats.connection import SinkRefused, open_nats
from actors.clients.postgres.connection import PgConnection, SourceRefused
from actors.settings.config import PostgresConfig
from actors.settings.resolve import resolve
from tests.conftest import MakeNats
from tests.servers import Database


async def connects(config: PostgresConfig) -> None:
    with closing(await PgConnection.connect(config, application_name="test")) as connection:
        assert await connection.query("SELECT 1") == [("1",)]


@pytest.mark.parametrize("given", ["POSTGRES_BRIDGE_PASSWORD_FILE", "DATABASE_URL_FILE", "passfile"])
def test_a_rotated_password_of_postgresql_is_read_at_the_next_connect(given: str, database: Database, tmp_path: Path) -> None:
    role, file = f"rotated_{database.name}", tmp_path / "secret"
    words = psycopg.conninfo.conninfo_to_dict(database.dsn)
    url = f"postgresql://{role}@127.0.0.1:{words['port']}/{database.name}"

    def rotate(password: str) -> None:
        content = {
            "DATABASE_URL_FILE": url.replace("@", f":{password}@"), "passfile": f"*:*:*:*:{password}"
        }.get(given, password)  # fmt: skip
        file.write_text(content + "\n")
        file.chmod(0o600)

    rotate("first-password")
    env = {given: str(file)} if given.isupper() else {"DATABASE_URL": f"{url}?passfile={file}"}
    if given == "POSTGRES_BRIDGE_PASSWORD_FILE":
        env["DATABASE_URL"] = url
    config = resolve({}, env).postgres
    database.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'first-password'")
    try:
        trio.run(connects, config)
        database.execute(f"ALTER ROLE {role} PASSWORD 'second-password'")
        with pytest.raises(SourceRefused):
            trio.run(connects, config)
        rotate("second-password")
        trio.run(connects, config)
        file.unlink()
        if given.isupper():
            with pytest.raises(SourceRefused) as caught:  # a file that is being replaced is no reason to end
                trio.run(connects, config)
            assert "first-password" not in caught.value.explain()
    finally:
        database.execute(f"DROP ROLE {role}")


def test_a_rotated_password_of_nats_is_read_at_the_next_connect(make_nats: MakeNats, tmp_path: Path) -> None:
    server, file = make_nats(users={"bridge": "second-password"}), tmp_path / "secret"
    file.write_text("first-password")
    env = {"NATS_URL": server.url, "NATS_BRIDGE_USER": "bridge", "NATS_BRIDGE_PASSWORD_FILE": str(file)}
    config = resolve({}, env | {"POSTGRES_BRIDGE_USER": "nobody"}).nats

    async def connect() -> None:
        async with open_nats(config, set()):
            pass

    with pytest.raises(SinkRefused):
        trio.run(connect)
    file.write_text("second-password\n")
    trio.run(connect)
