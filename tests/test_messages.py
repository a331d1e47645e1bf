"""GET /messages, /schema and /journal of a real bridge: what is found of the stream, by whom, and where each reader is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import zstandard

from actors.embedded.bridge import Bridge
from actors.embedded.nats import NatsServer
from actors.telemetry.telemetry import Telemetry
from tests.conftest import MakeBridge
from tests.http_api import Server, streaming
from tests.mirrors import MirrorProcess
from tests.servers import Database, wait_for, with_nats


def messages(bridge: Bridge, **asked: str) -> dict[str, Any]:
    status, body = bridge.get(f"/messages?{urlencode({name.rstrip('_'): word for name, word in asked.items()})}")
    assert status == 200, body
    found: dict[str, Any] = json.loads(body)
    return found


def seqs(found: dict[str, Any]) -> list[int]:
    return [message["seq"] for message in found["messages"]]


def test_messages_are_found_by_table_row_and_place_decoded_and_the_newest_first(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, tmp_path: Path
) -> None:
    database.execute("""
        CREATE TABLE users (id int PRIMARY KEY, name text, picture bytea); CREATE SCHEMA sales;
        CREATE TABLE sales.lines (id bigint PRIMARY KEY); CREATE SCHEMA "Sales Dept";
        CREATE TABLE "Sales Dept"."Order Lines.v2" (id int PRIMARY KEY);
        CREATE PUBLICATION cdc_pub FOR TABLE users, sales.lines, "Sales Dept"."Order Lines.v2" """)
    samples = [json.dumps({"subject": "cdc.users.insert", "n": i, "m": i * 7919}).encode() for i in range(3000)]
    (tmp_path / "users.zstd.dict").write_bytes(zstandard.train_dictionary(4096, samples).as_bytes())
    bridge = make_bridge(database, nats, "--zstd-events", "--dictionaries", str(tmp_path))
    assert messages(bridge) == {"stream": "CDC", "first_seq": 0, "last_seq": 0, "messages": [], "more": None}
    database.execute("INSERT INTO users SELECT g, repeat('u', 300), '\\x00ff' FROM generate_series(1, 40) g")
    (place,) = database.execute("SELECT pg_current_wal_lsn()::text")[0]
    database.execute("INSERT INTO sales.lines VALUES (9007199254740993)")
    database.execute("UPDATE users SET name = 'Ada' WHERE id = 7")
    wait_for(lambda: bridge.status()["stream_seq"] == 42)

    newest = messages(bridge, limit="2")
    assert seqs(newest) == [42, 41]
    assert newest["more"] == {"before": 41}
    update, line = newest["messages"]
    assert update["events"][0]["data"] == {"id": 7, "name": "Ada", "picture": "AP8="}
    assert update["headers"]["Nats-Msg-Id"] == update["events"][0]["msg_id"]
    assert line["events"][0]["data"] == {"id": "9007199254740993"}, "a number that JavaScript would round"
    assert seqs(messages(bridge, limit="2", before="41")) == [40, 39]
    for name in ("Sales Dept.Order Lines.v2", '"Sales Dept"."Order Lines.v2"', "Sales=20Dept/Order=20Lines=2Ev2"):
        status, body = bridge.get(f"/schema/{quote(name)}")
        assert (status, json.loads(body)["table"]) == (200, "Order Lines.v2"), (name, body)
        assert messages(bridge, table=name)["messages"] == []
    of_users = messages(bridge, table="users", limit="200")
    assert seqs(of_users) == [42, *range(40, 0, -1)]
    assert of_users["more"] is None
    assert of_users["messages"][1]["is_compressed"]
    assert "Dictionary-Id" in of_users["messages"][1]["headers"]
    assert of_users["messages"][1]["events"][0]["data"]["name"] == "u" * 300
    assert seqs(messages(bridge, table="users", key="id=7")) == [42, 7]
    assert seqs(messages(bridge, table="sales/lines", key="9007199254740993")) == [41]
    assert seqs(messages(bridge, from_=place)) == [41, 42]
    assert messages(bridge, from_="39", limit="2")["more"] == {"from": 41}
    assert seqs(messages(bridge, from_="39", limit="2")) == [39, 40]
    status, body = bridge.get("/messages?table=nobody")
    assert (status, "the stream has no table nobody" in body) == (404, True), "not taken for a table without changes"
    assert "no table userz; did you mean users?" in bridge.get("/messages?table=userz")[1]

    with_nats(nats.url, lambda client: client.jetstream().publish("cdc.users.insert", b"mine"))
    (foreign,) = messages(bridge, limit="1")["messages"]
    assert (foreign["events"], foreign["problem"]) == ([], "not a bridge's message: another program publishes here")
    for query, words in (
        ("from=yesterday", "is no place in the stream"), ("from=1&before=2", "not both"), ("limit=many", "no positive number"),
        ("before=0", "no positive number"), ("table=" + "x" * 5000, "so long a name"), ("key=" + "x" * 5000, "characters"),
    ):  # fmt: skip
        status, body = bridge.get(f"/messages?{query}")
        assert (status, words in body) == (400, True), body

    status, body = bridge.get("/schema/users")
    assert [(c["name"], c["pk"]) for c in json.loads(body)["columns"]] == [("id", True), ("name", False), ("picture", False)]
    assert bridge.get("/schema/nobody")[0] == 404
    shown = bridge.status()
    assert (shown["source"].rpartition("/")[2], shown["nats"]) == (
        database.name,
        nats.url.rpartition("@")[2].removeprefix("nats://"),
    )


def test_a_change_is_followed_to_the_mirror_and_the_journal_has_what_verify_found(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, tmp_path: Path
) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE users")
    bridge = make_bridge(database, nats)
    mirror = MirrorProcess(nats, f"sqlite:///{tmp_path}/copy.db", tmp_path)

    def note() -> dict[str, Any]:
        notes = [one["note"] for one in bridge.status()["consumers"] if one["note"]["kind"] == "mirror"]
        return notes[0] if notes else {"applied_seq": None, "verified_at": 0}

    with mirror.running():
        mirror.wait_live(1)
        database.execute("INSERT INTO users VALUES (1), (2)")
        assert mirror.verify(database.dsn).returncode == 0
        told: dict[str, Any] = {}

        def is_told() -> bool:
            told.update(note())  # between two consumers of the mirror none has it
            return bool((told["applied_seq"] or 0) >= 2 and told["verified_at"])

        wait_for(is_told, lambda: str(told))
        assert told["replica"] == "sqlite copy.db"
        assert told["mismatched_keys"] == 0
    wait_for(lambda: '"verified"' in bridge.get("/journal")[1])  # the look after the one that status shows
    journal = json.loads(bridge.get("/journal")[1])
    said = [(entry["kind"], entry["level"], entry["text"]) for entry in journal["entries"]]
    kinds = [kind for kind, _, _ in said]
    assert kinds[0] == "started"
    assert "streaming" in kinds
    assert ("snapshot", "ok", "snapshot of users is complete: 0 rows") in said
    assert ("reader", "info", "mirror sqlite copy.db reads the stream") in said
    assert ("verified", "ok", "mirror sqlite copy.db: verify found it equal to its source") in said
    assert json.loads(bridge.get(f"/journal?since={journal['last'] - 1}")[1])["entries"] == journal["entries"][-1:]
    assert bridge.get("/journal?since=x")[0] == 400

    nats.kill()
    wait_for(lambda: bridge.status()["state"] == "waiting_nats")
    assert bridge.get("/messages")[0] == 503
    nats.start()
    wait_for(lambda: bridge.status()["state"] == "streaming")
    entries = json.loads(bridge.get(f"/journal?since={journal['last']}")[1])["entries"]
    kinds = [entry["kind"] for entry in entries if entry["kind"] in ("outage", "streaming")]
    assert (kinds[0], kinds[-1]) == ("outage", "streaming")


def test_rows_are_for_who_may_read_them() -> None:
    rows = ("/messages", "/messages?table=users", "/schema/users")
    with Server(streaming(Telemetry()), token="correct-horse") as server:
        server.lookup.schemas["users"] = {"columns": []}
        for path in rows:
            assert server.ask("GET", path)[0] == 401
            assert server.ask("HEAD", path)[0] == 401
            assert server.ask("GET", path, Authorization="Bearer wrong")[0] == 401
            status, headers, _ = server.ask("GET", path, Authorization="Bearer correct-horse")
            assert (status, headers["Cache-Control"], headers["X-Content-Type-Options"]) == (200, "no-store", "nosniff")
        assert server.ask("GET", "/status")[0] == 200, "figures need no token"
        assert server.ask("GET", "/journal")[0] == 200
        assert [question.token for question in server.lookup.asked] == ["", "users"]
    with Server(streaming(Telemetry()), bind="0.0.0.0") as server:
        assert [server.ask("GET", path)[0] for path in rows] == [403, 403, 403]
    with Server(streaming(Telemetry()), token="correct-horse", messages="no") as server:
        for path in rows:
            status, _, body = server.ask("GET", path, Authorization="Bearer correct-horse")
            assert (status, "BRIDGE_HTTP_MESSAGES" in body) == (403, True)
    with Server(streaming(Telemetry())) as server:
        assert server.ask("GET", "/messages")[0] == 200
        assert server.ask("GET", "/messages", Origin="http://evil.example")[0] == 403
