"""A secret or certificate in a file is changed while the program runs: the next connection uses the new one."""

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
from tests.certificates import Authority
from tests.conftest import MakeBridge, MakeNats
from tests.mirrors import MirrorProcess
from tests.nats_operator import Operator
from tests.servers import Database, wait_for


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


def test_renewed_certificates_of_nats_are_read_at_the_next_connect(make_nats: MakeNats, tmp_path: Path) -> None:
    """The client's certificate, its key, and the authorities that it trusts."""
    names = {name: tmp_path / f"{name}.pem" for name in ("ca", "cert", "key")}

    def renew(authority: Authority) -> None:
        ours = authority.issue("bridge")
        for path, source in zip(names.values(), (authority.ca, ours.cert, ours.key), strict=True):
            path.write_bytes(Path(source).read_bytes())

    def serve(authority: Authority) -> str:
        pair = authority.issue("server", "localhost")
        return f'tls {{ cert_file: "{pair.cert}", key_file: "{pair.key}", ca_file: "{authority.ca}", verify: true }}'

    first, second = Authority(tmp_path / "first"), Authority(tmp_path / "second")
    server = make_nats(extra_config=serve(first))
    renew(first)
    env = {f"NATS_{name.upper()}": str(path) for name, path in names.items()}
    config = resolve({}, env | {"NATS_URL": f"tls://localhost:{server.port}", "POSTGRES_BRIDGE_USER": "nobody"}).nats

    async def connect() -> None:
        async with open_nats(config, set()):
            pass

    trio.run(connect)
    server.extra_config = serve(second)
    server.restart()
    with pytest.raises(SinkRefused) as caught:
        trio.run(connect)
    assert caught.value.code == "WB208"
    names["cert"].write_text("half of a")
    with pytest.raises(SinkRefused) as caught:  # in the middle of its renewal
        trio.run(connect)
    assert caught.value.code == "WB205"
    renew(second)
    trio.run(connect)


def test_a_bridge_and_its_readers_go_on_with_renewed_creds(
    database: Database, make_nats: MakeNats, make_bridge: MakeBridge, tmp_path: Path
) -> None:
    """Without a restart, and over a moment in which the file is no good."""
    operator, creds = Operator(), tmp_path / "user.creds"
    server = make_nats(extra_config=operator.config())
    creds.write_text(operator.creds(issued=1000))
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE t")
    env = {"NATS_CREDS": str(creds)}
    bridge = make_bridge(database, server.url, env=env)
    assert bridge.post("/snapshot/t")[0] == 202
    mirror = MirrorProcess(server.url, f"sqlite:///{tmp_path}/replica.db", tmp_path)
    mirror.env.update(env)
    try:
        mirror.start()
        database.execute("INSERT INTO t VALUES (1)")
        mirror.wait_for("SELECT id FROM t", [(1,)])
        server.extra_config = operator.config(revoked_until=2000)
        server.restart()
        wait_for(lambda: "WB203" in bridge.log(), bridge.log)
        creds.write_text("half of a")
        for program in (bridge, mirror):
            wait_for(lambda program=program: "WB205" in program.log(), program.log)  # type: ignore[misc]
        database.execute("INSERT INTO t VALUES (2)")
        creds.write_text(operator.creds(issued=3000))
        mirror.wait_for("SELECT id FROM t ORDER BY id", [(1,), (2,)])
        assert bridge.stop() == 0
        assert mirror.stop() == 0
    finally:
        mirror.kill()
