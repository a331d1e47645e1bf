"""A mirror copies a large table in rounds: exact under load, and continued after kills of either side."""

from __future__ import annotations

from actors.embedded.nats import NatsServer
from tests.conftest import MakeBridge, MakeMirror
from tests.large_table import ITEMS, ROWS, move_into_what_is_copied, writing_items
from tests.rounds import rounds
from tests.servers import Database, wait_for


def test_a_large_table_is_copied_in_rounds_and_continued_after_kills(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, make_mirror: MakeMirror
) -> None:
    database.execute(ITEMS)
    bridge = make_bridge(database, nats, "--snapshot-round-s", "1", "--snapshot-rate-mb-s", "1")
    mirror = make_mirror("--rounds-from", "60000", start=False)
    with writing_items(database):
        mirror.start()
        wait_for(lambda: any(len(one.chunks) > 1 for one in rounds(nats.url, "items+ranges")))
        mirror.wait_until(lambda: mirror.query(f"SELECT chunks > 0 FROM {mirror.own('rounds')}")[0][0] in (1, True))
        mirror.kill()
        bridge.kill()
        move_into_what_is_copied(database, nats.url)
        bridge.start()
        mirror.start()
        mirror.wait_live(1)
    (snapshot,) = rounds(nats.url, "items+ranges")
    assert snapshot.meta is not None
    assert len(snapshot.places) > 2
    assert "a copy continues" in mirror.log()
    assert "asking for rows that lack values" in mirror.log()
    mirror.assert_equal(database.dsn)
    assert mirror.query(f"SELECT count(*) FROM {mirror.own('rounds')}") == [(0,)]


def test_a_table_that_cannot_be_read_in_rounds_is_copied_whole(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, make_mirror: MakeMirror
) -> None:
    database.execute("CREATE TABLE items (id int, v text); ALTER TABLE items REPLICA IDENTITY FULL")
    database.execute(f"INSERT INTO items SELECT g, 'x' FROM generate_series(1, {ROWS}) g")
    database.execute("CREATE PUBLICATION cdc_pub FOR TABLE items; ANALYZE items")
    make_bridge(database, nats)
    mirror = make_mirror("--rounds-from", "60000")
    mirror.wait_live(1)
    mirror.assert_equal(database.dsn)
    assert "cannot be copied in rounds" in mirror.log()
