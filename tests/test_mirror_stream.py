"""What the mirror asks of the stream while its live tables stand still."""

from __future__ import annotations

import pytest
import trio

from actors.clients.nats.connection import open_nats
from actors.clients.nats.jetstream import JetStream, StoredMessage
from actors.embedded.nats import NatsServer
from actors.mirror.boundaries import Boundaries
from actors.mirror.source_stream import SourceStream
from actors.settings.config import NatsConfig

STORED = [
    ("cdc.a.insert", "10-0-a-insert"),
    ("cdc.b.insert", "10-1-b-insert"),
    ("cdc.c.insert", "10-2-c-insert"),
    ("cdc.a.insert", "20-0-a-insert"),
    ("cdc.a.insert", "30-0-a-insert"),
    ("cdc.mine.x", ""),  # somebody has published by hand
    ("cdc.b.insert", "30-1-b-insert"),
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
            assert await Boundaries(source, filters)._may_have_more(lsn, seq) is expected

    trio.run(main)


def test_one_question_is_enough_for_many_tables(nats: NatsServer) -> None:
    async def main() -> None:
        async with open_nats(NatsConfig((nats.url,)), set()) as connection:
            js = Counted(connection)
            source = await stored(js)
            assert not await Boundaries(source, OF_MANY)._may_have_more(0x10, 3)
            assert js.asked == 1
            assert not await Boundaries(source, OF_MANY)._may_have_more(0x10, 1)
            assert js.asked > 1

    trio.run(main)


async def stored(js: JetStream) -> SourceStream:
    """A stream that holds what is above."""
    await js.create_stream({"name": "CDC", "subjects": ["cdc.>"], "storage": "memory"})
    for subject, msg_id in STORED:
        await js.publish(subject, b"", {"Nats-Msg-Id": msg_id} if msg_id else None)
    return SourceStream(js, "CDC")
