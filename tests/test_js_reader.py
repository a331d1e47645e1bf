"""A replica that may make no consumers: it reads by sequences, over WebSocket, as the user that the exported file has for pages."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.embedded.nats import NatsServer
from actors.embedded.process import free_port
from tests.beside import beside
from tests.compose_files import as_nats_user, config_of_nats_users
from tests.conftest import MakeBridge, MakeNats
from tests.node_replicas import NodeReplica
from tests.servers import Database


@pytest.fixture
def guarded(make_nats: MakeNats) -> NatsServer:
    """A server with the users of nats-permissions.conf."""
    return make_nats(extra_config=config_of_nats_users(), websocket_port=free_port())


class PageReplica(NodeReplica):
    """A replica as a page has it, in Node."""

    def __init__(self, nats: NatsServer, to: str, folder: Path, *flags: str) -> None:
        super().__init__(as_nats_user(nats.url, "mirror"), to, folder, *flags)  # `verify` runs as a user that may read records
        self._page = {
            "NATS_URL": nats.websocket_url, "NATS_AS": "browser", "NATS_PASS": "1e5browser", "DOMAIN": "CDC", "MAKES_CONSUMERS": "no"
        }  # fmt: skip

    def start(self) -> None:
        of_verify, self.env = self.env, {**self.env, **self._page}
        super().start()
        self.env = of_verify


@pytest.fixture
def page(guarded: NatsServer, tmp_path: Path) -> Iterator[PageReplica]:
    replica = PageReplica(guarded, f"sqlite:///{tmp_path}/page.db", tmp_path, "--tables", "users,notes")
    yield replica
    replica.kill()


def test_it_copies_follows_and_goes_on_after_kills_and_is_equal(
    database: Database, guarded: NatsServer, make_bridge: MakeBridge, page: PageReplica
) -> None:
    """Its tables' events are dense, sparse among another table's, and come while it is away."""
    database.execute(
        "CREATE TABLE users (id int PRIMARY KEY, name text); CREATE TABLE notes (id int PRIMARY KEY, note text);"
        "CREATE TABLE others (id bigserial PRIMARY KEY, v text); CREATE PUBLICATION cdc_pub FOR TABLE users, notes, others"
    )
    database.execute("INSERT INTO users SELECT g, 'user ' || g FROM generate_series(1, 3000) g")
    bridge = make_bridge(database, as_nats_user(guarded.url, "bridge"))
    page.start()
    page.wait_live(2)

    def write(done: threading.Event) -> None:
        with database.connect() as connection:
            for i in range(10_000_000):
                if done.wait(0.004):
                    return
                connection.execute("INSERT INTO others (v) SELECT 'x' FROM generate_series(1, %s)", [1 + 40 * (i % 3)])
                connection.execute("UPDATE users SET name = 'at ' || %s WHERE id %% 500 = %s", [i, i % 500])
                if i % 5 == 0:
                    connection.execute("INSERT INTO notes VALUES (%s, 'note')", [i])

    with beside(write):
        page.wait_until(lambda: page.query("SELECT count(*) > 20 FROM notes") == [(1,)])
        page.kill()
        bridge.kill()
        guarded.kill()
        guarded.start()
        bridge.start()
        page.start()
        seen = page.query("SELECT count(*) FROM notes")[0][0]
        page.wait_until(lambda: page.query("SELECT count(*) FROM notes")[0][0] > seen + 20)
    page.assert_equal(database.dsn)
    assert "refused" not in page.log()
    assert "ermission" not in page.log()
