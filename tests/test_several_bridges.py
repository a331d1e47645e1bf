"""Two bridges of one account that publish tables of one name: nothing of one is taken for the other's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import zstandard
from nats.aio.client import Client

from actors.contract.compression import dictionary_id
from actors.embedded.nats import NatsServer
from tests.conftest import MakeBridge
from tests.mirrors import MirrorProcess
from tests.servers import ROOT, Bridge, Database, decode_body, read_messages, with_nats
from tests.snapshots import ask, snapshots, wait_for_snapshots


@pytest.fixture
def other_database(database: Database) -> Iterator[Database]:
    """A second database on the same server."""
    other = Database(database.server, f"{database.name}_other")
    yield other
    other.drop()


def problems(bridge: Bridge) -> list[dict[str, str]]:
    return [problem for problem in bridge.status()["problems"] if problem["code"] == "WB243"]


def test_two_databases_with_a_table_of_one_name(
    database: Database, other_database: Database, nats: NatsServer, make_bridge: MakeBridge, tmp_path: Path
) -> None:
    for rows, source in ((3, database), (5, other_database)):
        source.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE users")
        source.execute("INSERT INTO users SELECT g FROM generate_series(1, %s) g", [rows])
    first = make_bridge(database, nats)
    assert problems(first) == []
    second = make_bridge(other_database, nats, "--stream", "OTHER", slot="other_slot")
    (problem,) = problems(second)
    assert f"stream CDC publishes users from database {database.name}" in problem["what"]
    assert "WB243" in second.log()
    mirrors = {
        stream: MirrorProcess(nats, f"sqlite:///{tmp_path}/{stream}.db", tmp_path, "--stream", stream)
        for stream in ("CDC", "OTHER")
    }
    with ExitStack() as running:
        for mirror in mirrors.values():
            running.enter_context(mirror.running())
        for mirror in mirrors.values():
            mirror.wait_live(1)
    assert {stream: mirror.query("SELECT count(*) FROM users") for stream, mirror in mirrors.items()} == {
        "CDC": [(3,)],
        "OTHER": [(5,)],
    }
    before = len(snapshots(nats.url, "users"))
    ask(nats.url, "users")
    assert wait_for_snapshots(nats.url, "users", before + 1)[-1].start["stream"] == "CDC", "who names no bridge means CDC's"
    ask(nats.url, "users@OTHER")
    *_, last = wait_for_snapshots(nats.url, "users", before + 2)
    assert last.meta is not None
    assert (last.start["stream"], last.meta["stream"], last.meta["row_count"]) == ("OTHER", "OTHER", 5)
    assert first.stop() == 0
    first.start()
    assert len(problems(first)) == 1, "the one that was there first sees it when it starts again"
    assert first.stop() == 0

    async def remove_stream(client: Client) -> None:
        await client.jetstream().delete_stream("CDC")

    with_nats(nats.url, remove_stream)
    ask(nats.url, "users")
    assert wait_for_snapshots(nats.url, "users", before + 3)[-1].start["stream"] == "OTHER", "CDC's bridge answers nothing now"


def keys(nats: NatsServer, bucket: str) -> dict[str, bytes]:
    """The newest value of each key."""
    return {message.subject.removeprefix(f"$KV.{bucket}."): message.data for message in read_messages(nats.url, f"KV_{bucket}")}


@pytest.mark.own_servers("who cleans up may delete streams; the stack's bridge may not")
def test_two_shapes_of_one_table(database: Database, nats: NatsServer, make_bridge: MakeBridge, tmp_path: Path) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY, name text, secret text)")
    database.execute("INSERT INTO users SELECT g, 'name ' || g, 'secret ' || g FROM generate_series(1, 20) g")
    database.execute("CREATE PUBLICATION cdc_pub FOR TABLE users; CREATE PUBLICATION part_pub FOR TABLE users (id, name)")
    trained: dict[str, bytes] = {}
    bridges: dict[str, Bridge] = {}
    for stream, publication in (("CDC", "cdc_pub"), ("PART", "part_pub")):
        samples = [json.dumps({"stream": stream, "id": n, "name": f"name {n}"}).encode() for n in range(2000)]
        trained[stream] = zstandard.train_dictionary(1024, samples).as_bytes()
        folder = tmp_path / stream
        folder.mkdir()
        (folder / "users.zstd.dict").write_bytes(trained[stream])
        flags = ("--stream", stream, "--zstd", "--zstd-events", "--dictionaries", str(folder))
        bridges[stream] = make_bridge(database, nats, *flags, slot=f"{stream.lower()}_slot", pub=publication)
    columns = {
        key: [column["name"] for column in decode_body(data)[0]["columns"]] for key, data in keys(nats, "schemas").items()
    }
    assert columns == {"users": ["id", "name", "secret"], "PART.users": ["id", "name"]}
    ids = {stream: dictionary_id("users", content, stream) for stream, content in trained.items()}
    assert ids["PART"].startswith("PART.users_dict.")
    assert keys(nats, "dictionaries") == {
        "users_dict": trained["CDC"], ids["CDC"]: trained["CDC"], "PART.users_dict": trained["PART"], ids["PART"]: trained["PART"],
    }  # fmt: skip
    mirror = MirrorProcess(nats, f"sqlite:///{tmp_path}/part.db", tmp_path, "--stream", "PART")
    with mirror.running():
        mirror.wait_live(1)
        database.execute("INSERT INTO users VALUES (21, repeat('Ada ', 100), 'hers')")
        mirror.wait_for("SELECT * FROM users WHERE id > 19 ORDER BY id", [(20, "name 20"), (21, "Ada " * 100)])
    (event,) = read_messages(nats.url, "PART")
    assert event.headers["Dictionary-Id"] == ids["PART"]
    ask(nats.url, "users@CDC")
    taken = wait_for_snapshots(nats.url, "users", 2, {ids[stream]: content for stream, content in trained.items()})
    assert [(snapshot.start["stream"], len(snapshot.rows)) for snapshot in taken] == [("PART", 20), ("CDC", 21)]
    assert [snapshot.start["dictionary_id"] for snapshot in taken] == [ids["PART"], ids["CDC"]]
    assert bridges["PART"].stop() == 0
    command = [sys.executable, "-m", "actors.main", "cleanup", "--yes", "--slot", "part_slot", "--stream", "PART"]
    done = subprocess.run(command, cwd=ROOT, env=bridges["PART"].env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(keys(nats, "schemas")) == {"users"}
    assert keys(nats, "dictionaries") == {"users_dict": trained["CDC"], ids["CDC"]: trained["CDC"]}
    assert [m.subject for m in read_messages(nats.url, "INIT") if m.subject.startswith("init.snap.")] == [
        chunk.subject for chunk in taken[1].chunks
    ], "its own rows are gone, those of the other bridge are not"
