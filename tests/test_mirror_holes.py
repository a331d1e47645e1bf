"""What an administrator deletes from the stream, and what a NATS server loses in a power cut, never leaves a replica wrong."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Awaitable, Callable

import pytest
from nats.aio.client import Client

from actors.embedded.nats import NatsServer
from tests.conftest import MakeBridge, MakeMirror
from tests.servers import Database, wait_until_drained, with_nats

pytestmark = pytest.mark.parametrize("kind", ["sqlite"], indirect=True)

ORDERS = "cdc.orders.insert"
TABLES = """
CREATE TABLE users (id int PRIMARY KEY);
CREATE TABLE orders (id int PRIMARY KEY);
CREATE PUBLICATION cdc_pub FOR TABLE users, orders
"""


async def purge_subject(client: Client) -> None:
    await client.jetstream().purge_stream("CDC", subject=ORDERS)


async def delete_message(client: Client) -> None:
    js = client.jetstream()
    last = await js.get_last_msg("CDC", ORDERS)
    assert last.seq is not None
    await js.delete_msg("CDC", last.seq)


async def limit_subjects(client: Client, most: int = 2) -> None:
    js = client.jetstream()
    config = (await js.stream_info("CDC")).config
    config.max_msgs_per_subject = most
    await js.update_stream(config)


async def lift_the_limit(client: Client) -> None:
    await limit_subjects(client, -1)


def add_orders(database: Database, first: int, last: int) -> None:
    for i in range(first, last + 1):
        database.execute("INSERT INTO orders VALUES (%s)", [i])
    database.execute("INSERT INTO users VALUES (%s)", [last])


@pytest.mark.parametrize("harm", [purge_subject, delete_message, limit_subjects])
def test_messages_deleted_in_the_middle(
    harm: Callable[[Client], Awaitable[None]], database: Database, nats: NatsServer, make_bridge: MakeBridge,
    make_mirror: MakeMirror,
) -> None:  # fmt: skip
    database.execute(TABLES)
    bridge = make_bridge(database, nats)
    database.execute("INSERT INTO users VALUES (0)")
    mirror, narrow = make_mirror(), make_mirror("--tables", "orders")
    mirror.wait_live(2)
    narrow.wait_live(1)
    add_orders(database, 1, 10)
    for one in (mirror, narrow):
        one.wait_for("SELECT count(*) FROM orders", [(10,)])
        one.stop()
    add_orders(database, 11, 20)
    wait_until_drained(bridge, database)
    with_nats(nats.url, harm)
    if harm is limit_subjects:  # the bridge does not go on while changes are thrown away
        database.execute("UPDATE users SET id = 30 WHERE id = 0")
        assert bridge.wait() == 2
        with_nats(nats.url, lift_the_limit)
        bridge.start()
    later = make_mirror()  # which finds the snapshots of the first one in INIT
    for one in (mirror, narrow):
        one.start()
        one.wait_for("SELECT count(*) FROM orders", [(20,)])
    later.wait_live(2)
    assert later.query("SELECT count(*) FROM orders") == [(20,)]
    mirror.assert_equal(database.dsn)
    assert "messages that come next were deleted from the stream" in mirror.log()
    again = mirror.log().count("must be copied again")
    mirror.stop()
    mirror.start()
    database.execute("INSERT INTO users VALUES (100)")
    mirror.wait_for("SELECT max(id) FROM users", [(100,)])
    assert mirror.log().count("must be copied again") == again, "deleted before its place"


def test_messages_deleted_before_a_live_mirror_has_received_them(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, make_mirror: MakeMirror
) -> None:
    database.execute(TABLES)
    bridge = make_bridge(database, nats)
    database.execute("INSERT INTO users VALUES (0)")
    mirror = make_mirror()
    mirror.wait_live(2)
    assert mirror.process is not None
    mirror.process.send_signal(signal.SIGSTOP)
    database.execute(
        "DO $$BEGIN FOR i IN 1..4000 LOOP INSERT INTO orders VALUES (i); INSERT INTO users VALUES (i); END LOOP; END$$"
    )  # more messages than a consumer asks for at a time
    wait_until_drained(bridge, database)
    with_nats(nats.url, purge_subject)
    mirror.process.send_signal(signal.SIGCONT)
    mirror.wait_for("SELECT count(*) FROM orders", [(4000,)])
    mirror.assert_equal(database.dsn)
    assert "messages that come next were deleted from the stream" in mirror.log()


def test_a_stream_that_lost_its_end_and_grew_beyond_the_place(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, make_mirror: MakeMirror
) -> None:
    database.execute(TABLES)
    bridge = make_bridge(database, nats, "--accept-gap")
    mirror = make_mirror()
    mirror.wait_live(2)
    add_orders(database, 1, 5)
    mirror.wait_for("SELECT max(id) FROM users", [(5,)])
    wait_until_drained(bridge, database)
    nats.stop()
    aside = nats.data_dir.with_name(f"{nats.data_dir.name}-aside")
    shutil.copytree(nats.data_dir, aside)
    nats.start()
    add_orders(database, 6, 20)
    mirror.wait_for("SELECT max(id) FROM users", [(20,)])
    wait_until_drained(bridge, database)
    database.execute("DELETE FROM orders WHERE id = 7")
    mirror.wait_for("SELECT count(*) FROM orders", [(19,)])
    wait_until_drained(bridge, database)
    mirror.stop()
    nats.stop()
    shutil.rmtree(nats.data_dir)
    aside.rename(nats.data_dir)
    database.execute("UPDATE orders SET id = 1000 WHERE id = 8")
    nats.start()
    bridge.stop()
    bridge.start()
    add_orders(database, 21, 60)
    wait_until_drained(bridge, database)
    later = make_mirror()
    mirror.start()
    for one in (mirror, later):
        one.wait_for("SELECT max(id) FROM users", [(60,)])
        one.assert_equal(database.dsn)
    assert "holds another message where reading ended" in mirror.log()
