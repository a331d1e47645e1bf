"""What administrators of NATS do to a bridge's streams: limits of their own, and edits while the bridge runs."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from typing import Any

import pytest
import trio
from nats.aio.client import Client
from nats.js.api import StreamConfig

from actors.clients.nats.connection import NatsConnection, open_nats
from actors.clients.nats.jetstream import JetStream, JetStreamError
from actors.clients.nats.ordered_consumer import open_consumer
from actors.embedded.nats import NatsServer
from actors.errors import ConfigError
from actors.process import most_telling
from actors.settings.config import NatsConfig
from actors.startup.stream_rules import FIELDS, unknown_fields
from actors.startup.streams import StreamSetup, prepare_streams
from tests.conftest import MakeBridge, MakeMirror, MakeNats
from tests.servers import (
    Bridge,
    Database,
    StoredMessage,
    ask,
    decode_body,
    edit_stream,
    read_messages,
    wait_for,
    wait_until_drained,
    with_nats,
)

GIB, MIB = 1 << 30, 1 << 20
HOUR_NS = 3600 * 10**9
ORDERS = "CREATE TABLE orders (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE orders"


def make_stream(url: str, **config: object) -> None:
    async def make(client: Client) -> None:
        await ask(client, f"STREAM.CREATE.{config['name']}", {"storage": "file", **config})

    with_nats(url, make)


def prepare(config: NatsConfig, **more: Any) -> StreamSetup:
    """What a bridge does at its start, without PostgreSQL."""

    async def run() -> StreamSetup:
        async with open_nats(config, set()) as connection:
            return await _prepare(connection, **more)

    try:
        return trio.run(run)
    except BaseExceptionGroup as group:
        raise most_telling(group) from None


async def _prepare(connection: NatsConnection, **more: Any) -> StreamSetup:
    options = {"stream": "CDC", "mode": "auto", "replicas": 1, **more}
    return await prepare_streams(JetStream(connection), **options)


def limits_of(url: str) -> dict[str, int]:
    async def read(client: Client) -> dict[str, int]:
        return {s["config"]["name"]: s["config"]["max_bytes"] for s in (await ask(client, "STREAM.LIST"))["streams"]}

    return with_nats(url, read)


# -- sizes that fit

ACCOUNT = "accounts {{ A {{ users: [{{user: u, password: p}}], jetstream {{ {} }} }} }}"


@pytest.mark.parametrize(
    ("options", "cdc", "init"),
    [
        ({}, 10 * GIB, 8 * GIB),
        ({"max_file_store": "100GB"}, 10 * GIB, 8 * GIB),
        ({"max_file_store": "10GB"}, 5 * GIB, 4 * GIB),
        ({"max_file_store": "11GB"}, 5 * GIB, 4 * GIB),
        ({"max_file_store": "2415919104"}, 960 * MIB, 768 * MIB),  # three quarters of a disk with 3 GB free
        ({"max_file_store": "200MB"}, 80 * MIB, 64 * MIB),
        ({"extra_config": ACCOUNT.format("max_file: 6GB, max_mem: 1MB")}, 5 * GIB // 2, 2 * GIB),
        ({"extra_config": ACCOUNT.format("max_file: 60GB, max_mem: 1MB, store_max_stream_bytes: 1GB")}, 960 * MIB, GIB),
    ],
    ids=["unlimited", "100GB", "10GB", "11GB", "small disk", "200MB", "account", "largest stream"],
)
def test_a_first_start_takes_the_room_that_there_is(options: dict[str, Any], cdc: int, init: int, make_nats: MakeNats) -> None:
    server = make_nats(**options)
    config = NatsConfig((server.url,), user="u" if "extra_config" in options else "", password="p")
    prepare(config)
    url = server.url.replace("//", "//u:p@") if "extra_config" in options else server.url
    limits = limits_of(url)
    assert (limits["CDC"], limits["INIT"]) == (cdc, init)
    assert limits["REQUESTS"] == limits["KV_bridges"] == limits["KV_schemas"] == -1
    assert prepare(config).last_seq == 0, "and the next start takes them as they are"
    prepare(config, zstd=True)


@pytest.mark.parametrize("room", ["max_file: 20GB", "max_file: 1GB", "max_file: 100MB"])
def test_an_account_that_demands_limits_gets_them_and_they_fit(room: str, make_nats: MakeNats) -> None:
    server = make_nats(extra_config=ACCOUNT.format(f"{room}, max_mem: 1MB, max_bytes_required: true"))
    prepare(NatsConfig((server.url,), user="u", password="p"), zstd=True)
    limits = limits_of(server.url.replace("//", "//u:p@"))
    assert set(limits) == {"CDC", "INIT", "REQUESTS", "KV_bridges", "KV_schemas", "KV_dictionaries"}
    assert min(limits.values()) >= 2 * MIB
    assert min(limits["CDC"], limits["INIT"]) >= 16 * MIB


@pytest.mark.parametrize(
    ("limits", "words"),
    [("max_file: 20GB, max_streams: 3", "raise max_streams"),
     ("max_file: 20GB, store_max_stream_bytes: 1MB", "raise store_max_stream_bytes")],
)  # fmt: skip
def test_what_no_smaller_stream_helps_against_is_named(limits: str, words: str, make_nats: MakeNats) -> None:
    server = make_nats(extra_config=ACCOUNT.format(f"{limits}, max_mem: 1MB"))
    with pytest.raises(ConfigError) as caught:
        prepare(NatsConfig((server.url,), user="u", password="p"))
    assert caught.value.code == "WB230"
    assert words in caught.value.fix
    assert "nats stream add" not in caught.value.fix, "the account refuses that as well"


def test_a_full_bucket_and_an_account_without_consumers_are_refused_with_what_helps(make_nats: MakeNats) -> None:
    server = make_nats(extra_config=ACCOUNT.format("max_file: 20GB, max_mem: 1MB, max_consumers: 1"))
    config = NatsConfig((server.url,), user="u", password="p")
    prepare(config)
    edit_stream(server.url.replace("//", "//u:p@"), "KV_bridges", max_msgs=1)

    async def refusals() -> list[str]:
        found: list[str] = []
        async with open_nats(config, set()) as connection:
            js = JetStream(connection)
            await js.kv_put("bridges", "CDC", b"1")
            async with open_consumer(js, "CDC", ["cdc.>"], 1):
                for refused in (partial(js.kv_put, "bridges", "CDC", b"2"),
                                partial(js.create_consumer, "CDC", {"name": "more", "ack_policy": "none"})):  # fmt: skip
                    with pytest.raises(JetStreamError) as caught:
                        await refused()
                    found.append(caught.value.fix)
        return found

    full, consumers = trio.run(refusals)
    assert full.startswith("nats stream edit KV_bridges --max-bytes=-1 --max-msgs=-1")
    assert consumers.startswith("nats consumer ls CDC")


# -- what a bridge refuses, and what it only warns of

CDC = {"name": "CDC", "subjects": ["cdc.>"]}


@pytest.mark.parametrize(
    ("stream", "changes", "code", "fix"),
    [
        (CDC, {"max_msgs_per_subject": 1}, "WB238", "nats stream edit CDC --max-msgs-per-subject=-1"),
        (CDC, {"subject_transform": {"src": "cdc.orders.>", "dest": "x.>"}}, "WB234", "nats stream edit CDC --no-transform"),
        (CDC, {"subject_delete_marker_ttl": 10**9}, "WB238", "nats stream edit CDC --subject-del-markers-ttl=0s"),
        (CDC, {"republish": {"src": "cdc.*.>", "dest": "init.snap.>"}}, "WB236", "nats stream edit CDC --no-republish"),
        (CDC, {"allow_msg_counter": True}, "WB236", "nats stream rm CDC"),
        ({"name": "INIT", "subjects": ["init.>"]}, {"retention": "interest"}, "WB235", "nats stream edit INIT --interactive"),
        ({"name": "KV_bridges", "subjects": ["$KV.bridges.>"]}, {"max_age": HOUR_NS}, "WB238",
         "nats stream edit KV_bridges --max-age=0s"),
        ({"name": "KV_bridges", "subjects": ["$KV.bridges.>"]}, {"discard": "old", "max_bytes": MIB}, "WB238",
         "nats stream edit KV_bridges --discard=new"),
        ({"name": "KV_schemas", "subjects": ["$KV.schemas.>"]}, {"no_ack": True}, "WB236", "nats stream edit KV_schemas --ack"),
    ],
)  # fmt: skip
def test_a_stream_or_bucket_that_cannot_work_is_refused(
    stream: dict[str, Any], changes: dict[str, Any], code: str, fix: str, nats: NatsServer
) -> None:
    make_stream(nats.url, **stream, **changes)
    with pytest.raises(ConfigError) as caught:
        prepare(NatsConfig((nats.url,)))
    assert caught.value.code == code
    assert caught.value.fix.startswith(fix)


def test_every_field_of_a_new_servers_streams_is_known(nats: NatsServer) -> None:
    prepare(NatsConfig((nats.url,)), stream="EVEN", zstd=True)
    make_stream(nats.url, name="ODD", subjects=["odd.>"], sources=[{"name": "EVEN"}], republish={"src": ">", "dest": "r.>"},
                subject_delete_marker_ttl=10**9, subject_transform={"src": "odd.>", "dest": "o.>"})  # fmt: skip

    async def configs(client: Client) -> list[dict[str, Any]]:
        return [stream["config"] for stream in (await ask(client, "STREAM.LIST"))["streams"]]

    for config in with_nats(nats.url, configs):
        assert unknown_fields(config) == []
    assert {field.name for field in fields(StreamConfig)} <= FIELDS.keys()


# -- edits while the bridge runs


def event_of(message: StoredMessage) -> dict[str, Any]:
    (event,) = decode_body(message.data)
    return event


def end_of_an_edited_run(bridge: Bridge, code: str) -> None:
    assert bridge.wait() == 2, bridge.log()[-4000:]
    assert f"error {code}" in bridge.log()


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
@pytest.mark.parametrize("mode", ["fast", "plain"])
def test_what_a_stream_of_interest_threw_away_is_sent_again(
    mode: str, database: Database, nats: NatsServer, make_bridge: MakeBridge, make_mirror: MakeMirror
) -> None:
    """The server remembers the ids of what it threw away for hours: they must not keep the changes out."""
    make_stream(nats.url, **CDC, duplicate_window=8 * HOUR_NS, allow_batched=mode == "fast")
    database.execute(ORDERS)
    bridge = make_bridge(database, nats)
    database.execute("INSERT INTO orders VALUES (1)")
    wait_until_drained(bridge, database)
    mirror = make_mirror(start=mode == "fast")
    if mode == "fast":
        mirror.wait_live(1)
        mirror.stop()  # its consumer would be the interest
    edit_stream(nats.url, "CDC", retention="interest")
    for i in range(2, 12):
        if bridge.exit_code is None:
            database.execute("INSERT INTO orders VALUES (%s)", [i])
    end_of_an_edited_run(bridge, "WB235")
    (written,) = database.execute("SELECT max(id) FROM orders")[0]
    edit_stream(nats.url, "CDC", retention="limits")
    database.execute("INSERT INTO orders VALUES (100), (101)")
    bridge.start()
    wait_until_drained(bridge, database)
    messages = read_messages(nats.url, "CDC")
    assert [event_of(m)["data"]["id"] for m in messages] == [*range(2, written + 1), 100, 101]
    ids = [m.headers.get("Nats-Msg-Id") or m.headers["Walbridge-Msg-Id"] for m in messages]
    assert ids == [event_of(m)["msg_id"] for m in messages]
    # met as duplicates (WB225), unless the record shows beforehand that JetStream remembers ids of what it no longer has
    assert any("Walbridge-Msg-Id" in m.headers for m in messages), bridge.log()
    if mode == "plain":
        return
    bridge.stop()
    bridge.start()  # the last message's id is found whichever header has it
    database.execute("INSERT INTO orders VALUES (200)")
    wait_until_drained(bridge, database)
    last = read_messages(nats.url, "CDC")[-1]
    assert (event_of(last)["data"]["id"], last.headers["Nats-Msg-Id"]) == (200, event_of(last)["msg_id"])
    assert "cdc._bridge.gap" not in {message.subject for message in messages}
    mirror.start()
    mirror.wait_for("SELECT max(id) FROM orders", [(200,)])
    mirror.assert_equal(database.dsn)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"no_ack": True}, "WB236"),
        ({"subject_transform": {"src": "cdc.>", "dest": "x.>"}}, "WB234"),
    ],
)
def test_an_edit_that_a_bridge_cannot_work_with_ends_it_before_anything_is_confirmed(
    changes: dict[str, Any], code: str, database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute(ORDERS)
    bridge = make_bridge(database, nats)
    database.execute("INSERT INTO orders VALUES (1)")
    wait_until_drained(bridge, database)
    before = edit_stream(nats.url, "CDC", **changes)
    (lsn,) = database.execute("SELECT pg_current_wal_lsn()")[0]
    database.execute("INSERT INTO orders VALUES (2)")
    end_of_an_edited_run(bridge, code)
    assert database.execute("SELECT confirmed_flush_lsn <= %s::pg_lsn FROM pg_replication_slots", [lsn]) == [(True,)]
    edit_stream(nats.url, "CDC", **{name: before.get(name) for name in changes})


def test_acts_that_a_bridge_goes_on_after(database: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    """Names that are too long, a purged record, a time limit on the bucket of schemas."""
    database.execute(ORDERS)
    bridge = make_bridge(database, nats)
    for name in ("A" * 700, "A" * 5_000, "A" * 60_000):
        assert bridge.get(f"/streams/info?stream={name}")[0] in (400, 414)
        assert bridge.post(f"/snapshot/{name}")[0] in (404, 414)
    assert bridge.get(f"/streams/info?stream={'A' * 255}")[0] == 404
    database.execute("INSERT INTO orders VALUES (1)")
    wait_until_drained(bridge, database)
    assert bridge.status()["nats_reconnect_count"] == 0

    async def purge(client: Client) -> None:
        await ask(client, "STREAM.PURGE.KV_bridges", {"filter": "$KV.bridges.CDC"})

    edit_stream(nats.url, "KV_schemas", max_age=HOUR_NS)
    with_nats(nats.url, purge)
    database.execute("INSERT INTO orders VALUES (2)")
    wait_for(lambda: "WB223" in bridge.log())
    wait_until_drained(bridge, database)
    assert "was purged, or has expired" in bridge.log()
    assert "another bridge" not in bridge.log()
    assert bridge.exit_code is None
    bridge.stop()
    bridge.start()
    wait_for(lambda: any(problem["code"] == "WB239" for problem in bridge.status()["problems"]))
