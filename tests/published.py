"""Publication events as a bridge writes them, put into the stream of a bridge that is stopped."""

from __future__ import annotations

from nats.aio.client import Client

from actors.contract.event_encoder import event_encoder
from actors.contract.message_ids import position_of
from actors.messages import PublicationChange, PublishedChange
from actors.positions import GAP_RANK, Position
from tests.servers import with_nats


def publish_change(url: str, token: str, change: PublicationChange, version: str = "") -> int:
    """Store an event after the last one of stream CDC; return its sequence."""

    async def publish(client: Client) -> int:
        js = client.jetstream()
        last = await js.get_msg("CDC", (await js.stream_info("CDC")).state.last_seq)
        assert last.headers is not None
        before = position_of(last.headers["Nats-Msg-Id"])
        position = Position(before.lsn, before.seq + 1, GAP_RANK)
        message = event_encoder("msgpack").published(PublishedChange(position, token, change, version, "a test", None))
        headers = {"Nats-Msg-Id": message.msg_id.decode()}
        return (await js.publish(message.subject.decode(), message.body, headers=headers)).seq

    return with_nats(url, publish)
