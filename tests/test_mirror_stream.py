"""What the mirror asks of the stream while its live tables stand still."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from nats.aio.client import Client

from actors.clients.nats.connection import open_nats
from actors.clients.nats.jetstream import JetStream, StoredMessage
from actors.embedded.nats import NatsServer
from actors.mirror import gathering
from actors.mirror.boundaries import Boundaries
from actors.mirror.replica import Replica
from actors.mirror.source_stream import SourceStream
from actors.mirror.table_choice import register_tables
from actors.settings.config import NatsConfig
from tests.conftest import MakeBridge
from tests.servers import Database, with_nats
from tests.snapshots import ask, wait_for_snapshots
from tests.unit.fake_stream import FOREIGN, event
from tests.unit.open_replica import with_replica

STORED = [
    event("a", 0x10, 0),
    event("b", 0x10, 1),
    event("c", 0x10, 2, last=True),
    event("a", 0x20, 0, last=True),
    event("a", 0x30, 0),
    FOREIGN,  # somebody has published by hand
    event("b", 0x30, 1, last=True),
]
OF_MANY = [f"cdc.t{i}.>" for i in range(50)]


class Counted(JetStream):
    """Counts what is asked for."""

    asked = 0

    async def get_message(self, stream: str, **query: object) -> StoredMessage | None:
        self.asked += 1
        return await super().get_message(stream, **query)


@pytest.mark.parametrize(
    ("lsn", "seq", "filters", "expected"),
    [
        (0x10, 1, ["cdc.b.>"], True),
        (0x10, 1, ["cdc.d.>", "cdc.c.>"], True),
        (0x10, 1, ["cdc.a.>"], False),  # what comes next there is of another transaction
        (0x10, 3, ["cdc.a.>", "cdc.b.>"], False),
        (0x30, 5, ["cdc.b.>"], True),  # behind what is nobody's
        (0x30, 5, ["cdc.mine.>"], False),
        (0x30, 7, ["cdc.b.>"], False),  # the stream's end
    ],
)
def test_a_transaction_has_more_only_if_it_is_its_own(
    lsn: int, seq: int, filters: list[str], expected: bool, nats: NatsServer
) -> None:
    async def main() -> None:
        async with open_nats(NatsConfig((nats.url,)), set()) as connection:
            source = await stored(Counted(connection))
            assert await Boundaries(source, filters).is_whole(lsn, seq) is not expected

    trio.run(main)


def test_one_question_is_enough_for_many_tables(nats: NatsServer) -> None:
    async def main() -> None:
        async with open_nats(NatsConfig((nats.url,)), set()) as connection:
            js = Counted(connection)
            source = await stored(js)
            assert await Boundaries(source, OF_MANY).is_whole(0x10, 3)
            assert js.asked == 2, "the stream's last message, and the next one"
            assert await Boundaries(source, OF_MANY).is_whole(0x10, 1)
            assert js.asked > len(OF_MANY)

    trio.run(main)


async def stored(js: JetStream) -> SourceStream:
    """A stream that holds what is above."""
    await js.create_stream({"name": "CDC", "subjects": ["cdc.>"], "storage": "memory"})
    for subject, msg_id, body in STORED:
        await js.publish(subject, body, {"Nats-Msg-Id": msg_id} if msg_id else None)
    return SourceStream(js, "CDC")


def test_a_snapshot_whose_end_was_deleted_is_not_waited_for(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY); INSERT INTO users SELECT generate_series(1, 10)")
    database.execute("CREATE PUBLICATION cdc_pub FOR TABLE users")
    make_bridge(database, nats)
    ask(nats.url, "users")
    wait_for_snapshots(nats.url, "users", 1)

    async def delete_meta(client: Client) -> None:
        js = client.jetstream()
        meta = await js.get_last_msg("INIT", "init.meta.users")
        assert meta.seq is not None
        await js.delete_msg("INIT", meta.seq)

    with_nats(nats.url, delete_meta)
    monkeypatch.setattr(gathering, "ASK_AGAIN_S", 0.5)
    monkeypatch.setattr(gathering, "LOOK_S", 0.1)

    async def copy(replica: Replica) -> None:
        async with open_nats(NatsConfig((nats.url,)), set()) as connection:
            await register_tables(replica, ["users"])
            gathered = await gathering.gather(replica, SourceStream(JetStream(connection), "CDC"), "users")
            assert gathered.rows == 10

    with_replica(tmp_path, copy)
