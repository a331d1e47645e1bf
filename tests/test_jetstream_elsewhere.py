"""JetStream of another domain, over a leaf node, and of another account, which the bridge's account imports."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from nats.aio.client import Client

from actors.embedded.process import free_port
from actors.errors import ConfigError
from actors.settings.resolve import resolve
from tests.command_line import run_here
from tests.conftest import MakeBridge, MakeNats
from tests.documents import section
from tests.mirrors import MirrorProcess
from tests.servers import ROOT, Database, ask, wait_for, wait_for_events, with_nats
from tests.snapshots import take

OPERATIONS = (ROOT / "docs/operations.md").read_text(encoding="utf-8")


class Elsewhere(NamedTuple):
    """A JetStream that the bridge reaches through something."""

    near: str
    """URL for the bridge and its readers."""
    settings: Mapping[str, str]
    far: str
    """URL of a client beside the streams."""


def leaf_node(make_nats: MakeNats) -> Elsewhere:
    """A hub with the streams, and a leaf node with a JetStream of its own, which stays empty."""
    port = free_port()
    hub = make_nats(domain="hub", extra_config=f"leafnodes {{ listen: 127.0.0.1:{port} }}")
    leaf = make_nats(domain="edge", extra_config=f'leafnodes {{ remotes: [{{ url: "nats://127.0.0.1:{port}" }}] }}')
    wait_for(lambda: "Leafnode connection created" in leaf.log_path.read_text(), leaf.log_tail)
    return Elsewhere(leaf.url, {"NATS_DOMAIN": "hub"}, hub.url)


def other_account(make_nats: MakeNats) -> Elsewhere:
    """Two accounts of one server, configured as the documents say."""
    text = section(OPERATIONS, "JetStream of another domain or account")
    (accounts,) = (block.partition("\n```")[0] for block in text.split("```text\n")[1:])
    server = make_nats(extra_config=accounts.replace("$STREAMS_PASSWORD", "pw").replace("$APP_PASSWORD", "pw"))
    return Elsewhere(
        server.url.replace("//", "//bridge:pw@"), {"NATS_JS_PREFIX": "streams.API"}, server.url.replace("//", "//admin:pw@")
    )


async def _streams(client: Client) -> list[str]:
    return sorted((await ask(client, "STREAM.NAMES"))["streams"])


@pytest.mark.parametrize("build", [leaf_node, other_account])
def test_everything_works_through_a_domain_or_an_import(
    build: Callable[[MakeNats], Elsewhere], database: Database, make_nats: MakeNats, make_bridge: MakeBridge, tmp_path: Path
) -> None:
    there = build(make_nats)
    settings = dict(there.settings)
    database.execute("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE PUBLICATION cdc_pub FOR TABLE t")
    bridge = make_bridge(database, there.near, env=settings)
    database.execute("INSERT INTO t VALUES (1, 'single')")
    database.execute("INSERT INTO t SELECT g, 'batch' FROM generate_series(2, 500) g")
    events = [event.body for event in wait_for_events(there.far, 500)]
    assert [event["data"]["id"] for event in events] == list(range(1, 501))
    assert with_nats(there.far, _streams) == ["CDC", "INIT", "KV_bridges", "KV_schemas", "REQUESTS"]

    # resumes at the stream's tail, and serves requests that are made beside the streams or at its own page
    assert bridge.stop() == 0
    database.execute("INSERT INTO t VALUES (501, 'later')")
    bridge.start()
    assert [event.body["data"]["id"] for event in wait_for_events(there.far, 501)[-2:]] == [500, 501]
    assert len(take(there.far, "t").rows) == 501
    assert bridge.post("/snapshot/t")[0] == 202

    # readers take the same settings
    mirror = MirrorProcess(there.near, f"sqlite:///{tmp_path}/replica.db", tmp_path)
    mirror.env.update(settings)
    try:
        mirror.start()
        mirror.wait_for("SELECT count(*), max(id) FROM t", [(501, 501)])
        database.execute("UPDATE t SET v = 'last' WHERE id = 501")
        mirror.wait_for("SELECT v FROM t WHERE id = 501", [("last",)])
        mirror.assert_equal(database.dsn)
    finally:
        mirror.kill()
    environment = {"NATS_URL": there.near, **settings}
    tail = run_here("tail", "--from", "first", "--no-wait", "--json", env=environment)
    assert (tail.returncode, len(tail.stdout.splitlines())) == (0, 502), tail.stderr
    checked = run_here("doctor", "--json", env={**environment, "DATABASE_URL": database.dsn, "BRIDGE_PORT": str(free_port())})
    rows = json.loads(checked.stdout)["checks"]
    assert [row for row in rows if row["level"] == "fail" and row["check"] != "slot"] == []
    assert bridge.stop() == 0


def test_a_domain_that_is_not_there_is_named_and_waited_for(
    database: Database, make_nats: MakeNats, make_bridge: MakeBridge
) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE t")
    bridge = make_bridge(database, make_nats(), start=False, env={"NATS_DOMAIN": "nowhere"})
    bridge.start(ready=False)
    wait_for(lambda: "WB211" in bridge.log() or bridge.exit_code is not None, bridge.log)
    assert "nothing answers below $JS.nowhere.API" in bridge.log()
    assert "NATS_DOMAIN" in bridge.log()
    assert bridge.exit_code is None


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"NATS_DOMAIN": "hub", "NATS_JS_PREFIX": "hub.API"}, "NATS_DOMAIN and NATS_JS_PREFIX are both set"),
        ({"NATS_DOMAIN": "two words"}, "NATS_DOMAIN"),
        ({"NATS_DOMAIN": "a.b"}, "NATS_DOMAIN"),
        ({"NATS_JS_PREFIX": "hub.>"}, "NATS_JS_PREFIX"),
        ({"NATS_JS_PREFIX": "a..b"}, "NATS_JS_PREFIX"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(env: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        resolve({}, {"POSTGRES_BRIDGE_USER": "u", **env})


@pytest.mark.parametrize(
    ("env", "prefix", "key"),
    [
        ({}, "$JS.API", "$KV.schemas.t"),
        ({"NATS_DOMAIN": "hub"}, "$JS.hub.API", "$JS.hub.API.$KV.schemas.t"),
        ({"NATS_JS_PREFIX": "streams.API"}, "streams.API", "streams.API.$KV.schemas.t"),
        ({"NATS_JS_PREFIX": "streams.API."}, "streams.API", "streams.API.$KV.schemas.t"),
    ],
)
def test_subjects_of_the_api_and_keys_of_buckets_have_the_prefix(env: dict[str, str], prefix: str, key: str) -> None:
    api = resolve({}, {"POSTGRES_BRIDGE_USER": "u", **env}).nats.api
    assert api.action("STREAM.INFO.CDC") == f"{prefix}.STREAM.INFO.CDC"
    assert api.next_message("CDC", "c") == f"{prefix}.CONSUMER.MSG.NEXT.CDC.c"
    assert api.key("$KV.schemas.t") == key
