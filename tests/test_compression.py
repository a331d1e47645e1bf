"""zstd and dictionaries: what is compressed, with what, what consumers find, and what happens when something is wrong."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zstandard
from nats.js.api import StreamConfig

from actors.clients.nats.dictionaries import BYTES_MAX, read_dictionaries
from actors.contract.compression import Compressor, dictionary_id
from actors.embedded.nats import NatsServer
from actors.errors import MalformedMessage
from tests.conftest import MakeBridge, MakeNats
from tests.documents import section
from tests.frames import decompress
from tests.servers import ROOT, Database, StoredMessage, decode_body, read_messages, wait_for, wait_for_events, with_nats
from tests.snapshots import ask, unpacked, wait_for_snapshots


def event(i: int, operation: str) -> dict[str, Any]:
    """As the contract has it: two header lines of 60 bytes must be made up for before compression pays."""
    place = {"lsn": 20_000_000 + 200 * i, "xid": 700 + i, "commit_ts": 1_795_244_733_014_087 + i * 10_007}
    return {
        "subject": f"cdc.users.{operation}", "table": "users", "schema": "public", "operation": operation.upper(),
        "relation_id": 16_400, "key": ["id"], **place, "msg_id": f"{place['lsn']:x}-0-users-{operation}", "seq": i % 9,
        "data": {"id": i, "name": f"User-{i}", "body": None}, "last": True,
    }  # fmt: skip


EVENTS = [event(i, operation) for i in range(1000) for operation in ("insert", "update", "delete")]
SAMPLES: list[bytes | bytearray | memoryview] = [
    body for one in EVENTS for body in (msgpack.packb(one), json.dumps(one, separators=(",", ":")).encode())
]
DICTIONARY = zstandard.train_dictionary(4096, SAMPLES).as_bytes()
TABLE = "CREATE TABLE users (id int PRIMARY KEY, name text, body text); CREATE PUBLICATION cdc_pub FOR TABLE users;"


# -- frames


def test_a_body_comes_back_from_one_frame_that_tells_its_size() -> None:
    body = bytes(SAMPLES[7])
    for dictionary in (None, DICTIONARY):
        compressor = Compressor("users", dictionary)
        frame = compressor.compress(body)
        assert zstandard.get_frame_parameters(frame).content_size == len(body)
        assert decompress(frame, bytes_max=len(body), dictionary=dictionary) == body
        assert compressor.compress(body) == frame, "the same each time, whatever came before"
    assert len(Compressor("users", DICTIONARY).compress(body)) * 2 < len(Compressor().compress(body))


def test_a_dictionary_is_known_by_its_content() -> None:
    key = f"sales/Order=20Lines_dict.{hashlib.sha256(DICTIONARY).hexdigest()[:8]}"
    assert dictionary_id("sales/Order=20Lines", DICTIONARY) == key
    compressor = Compressor("sales/Order=20Lines", DICTIONARY)
    assert compressor.headers == {"Content-Encoding": "zstd", "Dictionary-Id": key}
    assert compressor.header_lines == f"Content-Encoding: zstd\r\nDictionary-Id: {key}\r\n".encode()
    assert Compressor("users").header_lines == b"Content-Encoding: zstd\r\n"


@pytest.mark.parametrize("broken", [b"", b"x", b"no dictionary" * 100, DICTIONARY[:20]])
def test_what_is_no_dictionary_is_refused(broken: bytes) -> None:
    with pytest.raises(ValueError, match="dictionary"):
        Compressor("users", broken)


def test_hostile_frames_are_refused_before_they_take_memory() -> None:
    bomb = zstandard.compress(bytes(50_000_000))
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(b"no size told")
    lying = zstandard.compress(b"a" * 200)[:5] + b"\x0a" + zstandard.compress(b"a" * 200)[6:]
    extra = zstandard.compress(b"one") + zstandard.compress(b"two")
    wrong = Compressor("users", DICTIONARY).compress(bytes(SAMPLES[0]))
    for frame in (bomb, unsized, lying, extra, wrong, b"", b"{}", bomb[: len(bomb) // 2]):
        with pytest.raises(MalformedMessage):
            decompress(frame, bytes_max=1_000_000)


# -- files


def test_files_that_are_no_dictionaries_are_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "sales").mkdir()
    good = {"users": tmp_path / "users.zstd.dict", "sales/Order=20Lines": tmp_path / "sales/Order=20Lines.zstd.dict"}
    for file in good.values():
        file.write_bytes(DICTIONARY)
    (tmp_path / "empty.zstd.dict").touch()
    (tmp_path / "broken.zstd.dict").write_bytes(b"no dictionary")
    (tmp_path / "large.zstd.dict").write_bytes(DICTIONARY + bytes(BYTES_MAX))
    (tmp_path / "folder.zstd.dict").mkdir()
    (tmp_path / "Order Lines.zstd.dict").write_bytes(DICTIONARY)
    (tmp_path / ".zstd.dict").write_bytes(DICTIONARY)
    os.mkfifo(tmp_path / "pipe.zstd.dict")
    (tmp_path / "README.md").write_text("not meant")
    assert read_dictionaries(tmp_path) == dict.fromkeys(good, DICTIONARY)
    warned = {Path(record.fields["file"]).name for record in caplog.records}  # type: ignore[attr-defined]
    bad = {"empty", "broken", "large", "folder", "Order Lines", "", "pipe"}
    assert warned == {f"{name}.zstd.dict" for name in bad}
    assert all(record.fields["reason"] for record in caplog.records)  # type: ignore[attr-defined]
    assert read_dictionaries(tmp_path / "missing") == {}


# -- the bridge


def folder_with(tmp_path: Path, dictionary: bytes = DICTIONARY, token: str = "users") -> str:
    folder = tmp_path / "dictionaries"
    folder.mkdir(exist_ok=True)
    (folder / f"{token}.zstd.dict").write_bytes(dictionary)
    return str(folder)


def entries(url: str) -> list[StoredMessage]:
    return read_messages(url, "KV_dictionaries")


def test_an_unchanged_dictionary_is_put_once_and_an_old_one_stays_for_good(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, tmp_path: Path
) -> None:
    database.execute(TABLE)
    newer = zstandard.train_dictionary(2048, SAMPLES).as_bytes()
    bridge = make_bridge(database, nats, "--zstd-events", "--dictionaries", folder_with(tmp_path))
    database.execute("INSERT INTO users VALUES (1, 'User-1')")
    wait_for_events_stored(nats.url, 1)
    bridge.stop()
    bridge.start()
    assert len(entries(nats.url)) == 2
    bridge.stop()
    folder_with(tmp_path, newer)
    bridge.start()
    database.execute("INSERT INTO users VALUES (2, 'User-2')")
    first, second = wait_for_events_stored(nats.url, 2)
    found = {entry.subject.removeprefix("$KV.dictionaries."): entry.data for entry in entries(nats.url)}
    assert found == {
        "users_dict": newer, dictionary_id("users", DICTIONARY): DICTIONARY, dictionary_id("users", newer): newer
    }  # fmt: skip
    assert len(entries(nats.url)) == 4, "two each, and nothing written again"
    used = [message.headers["Dictionary-Id"] for message in (first, second)]
    assert used == [dictionary_id("users", DICTIONARY), dictionary_id("users", newer)]
    bodies = [decode_body(unpacked(message, found))[0] for message in (first, second)]
    assert [body["data"]["id"] for body in bodies] == [1, 2]


def test_the_consumer_of_the_documents_reads_compressed_and_plain_bodies(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, tmp_path: Path
) -> None:
    lines = section((ROOT / "docs/consumers.md").read_text(encoding="utf-8"), "Compressed bodies").splitlines()
    scope: dict[str, Any] = {"zstandard": zstandard}
    exec("\n".join(line[4:] for line in lines if line.startswith("    ")), scope)
    database.execute(TABLE + "CREATE TABLE plain (id int PRIMARY KEY, name text); ALTER PUBLICATION cdc_pub ADD TABLE plain")
    make_bridge(database, nats, "--zstd", "--zstd-events", "--dictionaries", folder_with(tmp_path))
    database.execute("INSERT INTO users VALUES (1, 'User-1'); INSERT INTO plain SELECT g, 'x' FROM generate_series(1, 3000) g")
    wait_for(lambda: len(read_messages(nats.url, "CDC")) == 3001)
    ask(nats.url, "plain")
    wait_for_snapshots(nats.url, "plain")

    async def read(client: Any) -> list[dict[str, Any]]:
        js = client.jetstream()
        bucket = await js.key_value("dictionaries")
        found = [await js.get_msg("CDC", seq) for seq in (1, 2)] + [await js.get_last_msg("INIT", "init.snap.plain.*.0")]
        encodings = [(message.headers or {}).get("Content-Encoding") for message in found]
        assert encodings == ["zstd", None, "zstd"]
        return [decode_body(await scope["unpacked"](message, bucket))[0] for message in found]

    event, plain, chunk = with_nats(nats.url, read)
    assert (event["data"]["name"], plain["data"]["name"], len(chunk["data"])) == ("User-1", "x", 3000)


def wait_for_events_stored(url: str, count: int) -> list[StoredMessage]:
    wait_for(lambda: len(read_messages(url, "CDC")) >= count)
    return read_messages(url, "CDC")


@pytest.mark.parametrize("flags", [(), ("--json",), ("--pack", "50"), ("--publish", "plain")], ids=" ".join)
def test_events_of_a_table_with_a_dictionary_are_compressed_and_others_are_not(
    flags: tuple[str, ...], database: Database, nats: NatsServer, make_bridge: MakeBridge, tmp_path: Path
) -> None:
    database.execute(TABLE + "CREATE TABLE plain (id int PRIMARY KEY, name text); ALTER PUBLICATION cdc_pub ADD TABLE plain")
    folder = folder_with(tmp_path)
    make_bridge(database, nats, "--zstd-events", "--dictionaries", folder, *flags)
    database.execute("""
        INSERT INTO users SELECT g, 'User-' || g FROM generate_series(1, 100) g;
        INSERT INTO plain SELECT g, 'User-' || g FROM generate_series(1, 100) g;
        UPDATE users SET name = 'x' WHERE id = 1; DELETE FROM users WHERE id = 2; TRUNCATE plain""")
    found = {dictionary_id("users", DICTIONARY): DICTIONARY}
    wait_for(lambda: sum(len(decode_body(unpacked(m, found))) for m in read_messages(nats.url, "CDC")) == 203)
    for message in read_messages(nats.url, "CDC"):
        is_users = message.subject.startswith("cdc.users.")
        assert ("Content-Encoding" in message.headers) == ("Dictionary-Id" in message.headers) == is_users, message
        last = decode_body(unpacked(message, found))[-1]
        assert message.headers["Nats-Msg-Id"] == last["msg_id"]
    bodies = [body for m in read_messages(nats.url, "CDC") for body in decode_body(unpacked(m, found))]
    assert [body["seq"] for body in bodies] == list(range(203))
    assert [body["seq"] for body in bodies if body.get("last")] == [202]


def test_a_body_that_gets_no_smaller_goes_as_it_is(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, tmp_path: Path
) -> None:
    database.execute("""
        CREATE TABLE noise (id int PRIMARY KEY, body bytea); CREATE PUBLICATION cdc_pub FOR TABLE noise""")
    noise: list[bytes | bytearray | memoryview] = [os.urandom(20) + b"far from any event" for _ in range(3000)]
    trained = zstandard.train_dictionary(1024, noise).as_bytes()
    make_bridge(database, nats, "--zstd-events", "--dictionaries", folder_with(tmp_path, trained, "noise"))
    with database.connect() as connection:
        connection.execute("INSERT INTO noise VALUES (1, %s)", [os.urandom(50_000)])
    (event,) = wait_for_events(nats.url, 1)
    assert "Content-Encoding" not in event.headers
    assert len(event.body["data"]["body"]) == 50_000


def test_limits_hold_for_bytes_as_sent(
    database: Database, make_nats: MakeNats, make_bridge: MakeBridge, tmp_path: Path
) -> None:
    nats = make_nats(max_payload=65536)
    database.execute(TABLE)
    bridge = make_bridge(database, nats, "--zstd-events", "--dictionaries", folder_with(tmp_path))
    with database.connect() as connection:
        connection.execute("INSERT INTO users VALUES (1, 'fits', %s)", ["compresses well " * 30_000])
        connection.execute("INSERT INTO users VALUES (2, 'does not', %s)", [os.urandom(90_000).hex()])
        connection.execute("INSERT INTO users SELECT g, 'run', %s FROM generate_series(3, 6) g", ["and many " * 20_000])
    found = {dictionary_id("users", DICTIONARY): DICTIONARY}
    messages = wait_for_events_stored(nats.url, 6)
    assert all(len(message.data) < 65536 for message in messages)
    bodies = [decode_body(unpacked(message, found))[0] for message in messages]
    assert len(bodies[0]["data"]["body"]) == 16 * 30_000
    assert "omitted" not in bodies[0]
    assert bodies[1]["omitted"] == ["body"]
    assert [len(body["data"]["body"]) for body in bodies[2:]] == [9 * 20_000] * 4
    assert bridge.status()["state"] == "streaming"


@pytest.mark.parametrize("why", ["bucket", "max_payload"])
def test_without_its_upload_compression_goes_on_without_the_dictionary(
    why: str, database: Database, make_nats: MakeNats, make_bridge: MakeBridge, tmp_path: Path
) -> None:
    nats = make_nats(max_payload=8192 if why == "max_payload" else None)
    large = zstandard.train_dictionary(10_000, SAMPLES).as_bytes()
    assert len(large) > 8192

    async def small_bucket(client: Any) -> None:
        config = StreamConfig(name="KV_dictionaries", subjects=["$KV.dictionaries.>"], max_msg_size=1024)
        await client.jetstream().add_stream(config)

    if why == "bucket":
        with_nats(nats.url, small_bucket)
    database.execute(TABLE)
    flags = ("--zstd", "--zstd-events", "--dictionaries", folder_with(tmp_path, large))
    bridge = make_bridge(database, nats, *flags)
    assert "continuing without a dictionary" in bridge.log()
    assert "--zstd-events compresses nothing" in bridge.log()
    database.execute("INSERT INTO users SELECT g, 'User-' || g FROM generate_series(1, 500) g")
    events = wait_for_events(nats.url, 500)
    assert not any("Content-Encoding" in event.headers for event in events)
    ask(nats.url, "users")
    snapshot = wait_for_snapshots(nats.url, "users")[0]
    assert snapshot.start["compression_enabled"] is True
    assert "dictionary_id" not in snapshot.start
    assert len(snapshot.rows) == 500
    assert bridge.status()["state"] == "streaming"


def test_the_dictionaries_of_the_sample_tables_can_be_used_and_pay() -> None:
    found = read_dictionaries(ROOT / "dictionaries")
    assert set(found) == {"users", "orders", "test_types"}
    code = (
        "import sys; from actors.contract.compression import Compressor as C; d = open(sys.argv[1], 'rb').read();"
        "b = sys.stdin.buffer.read(); print(len(C('users', d).compress(b)), len(C().compress(b)), len(b))"
    )
    body = (
        b'{"subject":"cdc.users.insert","table":"users","schema":"public","operation":"INSERT","relation_id":16385,"key":["id"],'
        b'"lsn":24446776,"xid":754,"commit_ts":1795244733014087,"msg_id":"1750738-0-users-insert","seq":0,"data":{"id":1,'
        b'"name":"Ada","email":"ada@example.org","age":null,"price":null,"created_at":"2026-11-21T07:05:33.013313Z"},"last":true}'
    )
    file = str(ROOT / "dictionaries/users.zstd.dict")
    printed = subprocess.run([sys.executable, "-c", code, file], cwd=ROOT, input=body, capture_output=True, check=True).stdout
    with_it, without, plain = map(int, printed.split())
    assert with_it * 2 < without < plain
