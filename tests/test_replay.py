"""`walbridge replay`: a durable consumer gets changes again from the place that was named, or the user learns why not."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.js.api import ConsumerConfig, DeliverPolicy

from actors.commands.replay import Reach, why_out_of_reach
from actors.embedded.bridge import nats_environment
from actors.embedded.nats import NatsServer
from actors.mirror.stream_places import Beginning
from actors.positions import format_lsn
from tests.command_line import run_here
from tests.conftest import MakeBridge, MakeNats
from tests.servers import Database, StoredEvent, wait_for_events, with_nats


def replay(nats: NatsServer, to: str, *arguments: str, consumer: str = "shipping") -> subprocess.CompletedProcess[str]:
    return run_here("replay", "--consumer", consumer, "--to", to, *arguments, env=nats_environment(nats))


def read(nats: NatsServer, count: int, **config: object) -> list[int]:
    """Sequences of the messages that the durable consumer gives now; each is acknowledged."""

    async def fetch(client: Client) -> list[int]:
        js = client.jetstream()
        if config:
            await js.add_consumer("CDC", ConsumerConfig(durable_name="shipping", **config))  # type: ignore[arg-type]
        reader = await js.pull_subscribe_bind(consumer="shipping", stream="CDC")
        messages = await reader.fetch(count)
        for message in messages:
            await message.ack_sync()
        return [message.metadata.sequence.stream for message in messages]

    return with_nats(nats.url, fetch)


@pytest.fixture
def events(database: Database, nats: NatsServer, make_bridge: MakeBridge) -> list[StoredEvent]:
    """Twenty inserts, each in a transaction of its own, the eleventh after ten are stored; their bridge has ended."""
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE t")
    bridge = make_bridge(database, nats)
    for i in range(20):
        database.execute(f"INSERT INTO t VALUES ({i})")
        if i == 9:
            wait_for_events(nats.url, 10)
    found = wait_for_events(nats.url, 20)
    assert bridge.stop() == 0
    return found


def test_a_consumer_gets_again_what_came_since_a_sequence_an_lsn_and_a_time(
    events: list[StoredEvent], nats: NatsServer
) -> None:
    assert read(nats, 15, deliver_policy=DeliverPolicy.ALL) == list(range(1, 16))
    done = replay(nats, "12", "--yes")
    assert done.returncode == 0, done.stderr
    assert "given messages up to 15\n" in done.stdout
    assert f"back to  message 12, LSN {format_lsn(events[11].body['lsn'])}, stored 20" in done.stdout
    assert "again    4 messages of the stream" in done.stdout
    assert done.stdout.endswith("set back: 9 messages for shipping from message 12 on\n")
    assert read(nats, 4) == [12, 13, 14, 15]
    assert replay(nats, format_lsn(events[7].body["lsn"]), "--yes").returncode == 0
    assert read(nats, 2) == [8, 9]
    assert read(nats, 10)[-1] > 11
    committed = datetime.fromtimestamp(events[10].body["commit_ts"] / 1e6, UTC)
    assert replay(nats, committed.isoformat(), "--yes").returncode == 0
    assert read(nats, 1) == [11], "all before it were stored before it was committed"
    assert replay(nats, "first", "--yes").returncode == 0
    assert read(nats, 20) == list(range(1, 21))


def test_what_cannot_be_is_told_with_what_to_do_and_changes_nothing(events: list[StoredEvent], nats: NatsServer) -> None:
    for to, words in (
        ("yesterday", "--to: 'yesterday' is no place in the stream; give first, a sequence"), ("now", "give first, a sequence"),
    ):  # fmt: skip
        assert words in replay(nats, to, "--yes").stderr
    done = replay(nats, "3", "--yes")
    assert (done.returncode, "WB525: stream CDC has no consumer shipping" in done.stderr) == (2, True), done.stderr
    assert read(nats, 10, deliver_policy=DeliverPolicy.ALL)[-1] == 10
    assert "give one of these: shipping" in replay(nats, "3", "--yes", consumer="other").stderr
    for stream, words in (
        ("CDC2", "give one of these with --stream: CDC"),
        ("INIT2", "no stream INIT2"),
        ("REQ", "--stream: CDC"),
    ):
        assert words in replay(nats, "3", "--yes", "--stream", stream).stderr

    async def make_another(client: Client) -> None:
        await client.jetstream().add_stream(name="EVEN", subjects=["even.>"])

    with_nats(nats.url, make_another)
    elsewhere = replay(nats, "3", "--yes", "--stream", "EVEN").stderr
    assert "stream EVEN has no consumer shipping, but stream CDC has one" in elsewhere
    assert "add --stream CDC" in elsewhere
    for to, words in (
        ("15", "--to 10, the last message that it was given"), ("15", "it has come to message 10 only"), ("99", "the stream ends before that, at message 20"),
        ("F/0", "the stream ends before that, at message 20"), ("2099-01-01", "the stream ends before that"),
        ("2020-01-01", "set back"),
    ):  # fmt: skip
        done = replay(nats, to, "--yes") if words != "set back" else replay(nats, to)
        assert done.returncode == 2, to
        assert ("WB527" in done.stderr and words in done.stderr) or "nobody is here to be asked" in done.stderr, done.stderr

    async def forget(client: Client) -> None:
        await client.jetstream().purge_stream("CDC", seq=6)

    with_nats(nats.url, forget)
    for to in ("2", "2020-01-01", "0/1"):
        refused = replay(nats, to, "--yes").stderr
        assert "the stream's oldest message is 6; older ones were removed" in refused
        assert "--to first, where the stream begins" in refused
    assert read(nats, 1) == [11], "nothing has moved it"
    assert replay(nats, "first", "--yes").returncode == 0
    assert read(nats, 1) == [6]


def test_a_consumer_that_nats_does_not_set_back_is_copied_instead(events: list[StoredEvent], nats: NatsServer) -> None:
    assert read(nats, 1, deliver_policy=DeliverPolicy.LAST) == [20]
    done = replay(nats, "7")
    assert (done.returncode, "WB526" in done.stderr, "its deliver policy is last: only" in done.stderr) == (2, True, True), (
        done.stderr  # before anybody is asked
    )
    assert "nats consumer copy CDC shipping shipping-again --deliver=7" in done.stderr


def test_an_older_server_has_no_such_request(database: Database, make_nats: MakeNats, make_bridge: MakeBridge) -> None:
    nats = make_nats("2.12")
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE t")
    make_bridge(database, nats)
    database.execute("INSERT INTO t VALUES (1)")
    wait_for_events(nats.url, 1)
    read(nats, 1, deliver_policy=DeliverPolicy.ALL)
    done = replay(nats, "1", "--yes")
    assert "WB526" in done.stderr
    assert "nats-server 2.12.8 has no request for that, which came with 2.14" in done.stderr


@given(st.sampled_from(["first", "seq", "time", "lsn"]), *[st.integers(0, 12)] * 4)
def test_a_consumer_is_only_set_back_to_what_it_got_and_the_stream_still_has(
    kind: str, seq: int, first: int, messages: int, delivered: int
) -> None:
    first += 1
    reach = Reach(first, first + messages - 1, delivered)
    may = not why_out_of_reach(Beginning(kind), seq, reach)  # type: ignore[arg-type]
    if may:
        assert first <= seq <= min(reach.last_seq, delivered)
    if first < seq <= min(reach.last_seq, delivered) or (
        kind in ("first", "seq") and seq == first <= min(reach.last_seq, delivered)
    ):
        assert may
