"""The mirror: a replica equals its source, whatever happens to rows, shapes, streams and processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actors.tools.embedded_nats import NatsServer
from tests.conftest import MakeBridge
from tests.mirrors import MirrorProcess
from tests.servers import Database

MakeMirror = Callable[..., MirrorProcess]


@pytest.fixture(params=["sqlite", "postgresql"])
def kind(request: pytest.FixtureRequest) -> str:
    """Of the replica."""
    return str(request.param)


@pytest.fixture
def make_mirror(kind: str, database: Database, nats: NatsServer, tmp_path: Path) -> Iterator[MakeMirror]:
    """Makes and starts mirrors, each with a replica of its own; they and PostgreSQL replicas end with the test."""
    mirrors: list[MirrorProcess] = []
    databases: list[Database] = []

    def make(*flags: str, server: NatsServer | None = None, start: bool = True) -> MirrorProcess:
        if kind == "sqlite":
            to = f"sqlite:///{tmp_path}/replica-{len(mirrors)}.db"
        else:
            databases.append(Database(database.server, f"{database.name}_replica_{len(mirrors)}"))
            to = databases[-1].dsn
        mirrors.append(MirrorProcess(server or nats, to, tmp_path, *flags))
        if start:
            mirrors[-1].start()
        return mirrors[-1]

    yield make
    for mirror in mirrors:
        mirror.kill()
    for replica in databases:
        replica.drop()


def test_rows_from_before_and_after_the_snapshot_are_in_the_replica(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, make_mirror: MakeMirror
) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY, name text); CREATE PUBLICATION cdc_pub FOR TABLE users")
    database.execute("INSERT INTO users SELECT g, 'user ' || g FROM generate_series(1, 1000) g")
    make_bridge(database, nats)
    mirror = make_mirror()
    mirror.wait_live(1)
    assert mirror.query("SELECT count(*), min(name) FROM users") == [(1000, "user 1")]
    database.execute("UPDATE users SET name = 'Ada' WHERE id = 1; DELETE FROM users WHERE id = 2")
    database.execute("INSERT INTO users VALUES (2000, 'Grace')")
    mirror.wait_for("SELECT id, name FROM users WHERE id IN (1, 2, 2000) ORDER BY id", [(1, "Ada"), (2000, "Grace")])
    assert mirror.stop() == 0
