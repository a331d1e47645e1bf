"""Taking a stream over: the record says where the bridge stands before anything new is stored, and a gap is told once."""

from __future__ import annotations

import pytest
import trio

from actors.clients.nats.jetstream import JetStream
from actors.clients.nats.record_store import RecordStore
from actors.contract.bridge_record import BridgeRecord
from actors.contract.event_encoder import event_encoder
from actors.errors import SinkFenced
from actors.messages import Gap
from actors.positions import GAP_RANK, NO_LSN, START, Lsn, Position
from actors.settings.resolve import resolve
from actors.startup.checkpoint import Start
from actors.startup.start_plan import StartPlan, _read_tail, take_over
from tests.fake_nats import FakeNats, Stored

CONFIG = resolve({}, {"POSTGRES_BRIDGE_USER": "walbridge"})
GAP = Gap(Position(Lsn(1000), 0, GAP_RANK), "cdc_slot", "slot cdc_slot was dropped", Lsn(950), Lsn(1000), ("users",))


def plan(js: JetStream, gap: Gap | None, *, last_seq: int = 0, revision: int = 0) -> StartPlan:
    start = Start(gap.position if gap else START, NO_LSN, last_seq, Lsn(1000), gap)
    record = BridgeRecord(
        "cdc_slot", "cdc_pub", "1", 1, (), start.skip, start.last_seq, start.proven_lsn, pending_gap=start.gap
    )
    return StartPlan(start, Lsn(1000), RecordStore(js, "CDC", record, revision), (), NO_LSN)


def records(nats: FakeNats) -> list[BridgeRecord]:
    return [BridgeRecord.decode(stored.data, "CDC") for stored in nats.streams["KV_bridges"]]


async def taken_over(nats: FakeNats, gap: Gap | None, *, last_seq: int = 0, revision: int = 0) -> StartPlan:
    with trio.fail_after(5):
        async with nats.connected(CONFIG) as connection:
            js = JetStream(connection)
            return await take_over(plan(js, gap, last_seq=last_seq, revision=revision), js, event_encoder("msgpack"))


def test_without_a_gap_the_record_alone_is_written() -> None:
    nats = FakeNats()
    trio.run(taken_over, nats, None)
    assert [(r.pending_gap, r.confirmed_lsn) for r in records(nats)] == [(None, 1000)]
    assert nats.streams["CDC"] == []


def test_a_gap_is_announced_then_stored_then_ticked_off() -> None:
    nats = FakeNats()
    made = trio.run(taken_over, nats, GAP)
    assert [(r.pending_gap, r.last_seq, r.position) for r in records(nats)] == [(GAP, 0, GAP.position), (None, 1, GAP.position)]
    (stored,) = nats.streams["CDC"]
    assert (stored.subject, stored.headers["Nats-Msg-Id"]) == ("cdc._bridge.gap", "3e8-0-_bridge-gap")
    assert (made.start.gap, made.start.last_seq) == (None, 1)


def test_a_gap_is_not_stored_behind_another_writers_message_and_stays_announced() -> None:
    nats = FakeNats()
    trio.run(taken_over, nats, GAP)  # stands for the other writer
    with pytest.RaisesGroup(pytest.RaisesExc(SinkFenced, match="not where this bridge left it"), flatten_subgroups=True):
        trio.run(lambda: taken_over(nats, GAP, revision=2))
    assert len(nats.streams["CDC"]) == 1
    assert records(nats)[-1].pending_gap == GAP


def test_a_bridge_that_does_not_own_the_record_stores_no_gap() -> None:
    nats = FakeNats()
    trio.run(taken_over, nats, None)
    with pytest.RaisesGroup(
        pytest.RaisesExc(SinkFenced, match="another bridge has written the record"), flatten_subgroups=True
    ):
        trio.run(taken_over, nats, GAP)
    assert nats.streams["CDC"] == []


def test_a_gap_whose_id_the_server_remembers_is_stored_with_its_id_in_the_other_header() -> None:
    nats = FakeNats(remembered={"3e8-0-_bridge-gap": 0})
    made = trio.run(taken_over, nats, GAP)
    (stored,) = nats.streams["CDC"]
    assert "Nats-Msg-Id" not in stored.headers
    assert (stored.headers["Walbridge-Msg-Id"], made.start.last_seq) == ("3e8-0-_bridge-gap", 1)
    assert [r.pending_gap for r in records(nats)] == [GAP, None]


@pytest.mark.parametrize("seen", [0, 1, 3])
def test_position_and_sequence_of_the_tail_belong_together_though_another_bridge_stores_meanwhile(seen: int) -> None:
    nats = FakeNats()
    for seq in (1, 2, 3):
        nats.streams["CDC"].append(Stored(seq, "cdc.t.insert", {"Nats-Msg-Id": f"{seq:x}-0-t-insert"}, b"{}"))

    async def read() -> None:
        async with nats.connected(CONFIG) as connection:
            tail = await _read_tail(JetStream(connection), "CDC", seen)
            assert (tail.last_seq, tail.msg_id, tail.deleted) == (3, "3-0-t-insert", 0)

    trio.run(read)
