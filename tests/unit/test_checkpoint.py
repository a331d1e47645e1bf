"""Where the bridge goes on, decided from what the stream, KV and the slot say: no server needed for the decision itself."""

from dataclasses import replace

import orjson
import pytest

from actors.contract.bridge_record import BridgeRecord
from actors.errors import ConfigError
from actors.messages import Gap, LastStored, Transaction
from actors.positions import GAP_RANK, NO_LSN, START, Lsn, Position
from actors.startup.checkpoint import (
    Source,
    StreamTail,
    check_owner,
    find_loss,
    loss_error,
    plan_start,
    start_after_loss,
    tail_position,
    unheld_at_end,
)

SOURCE = Source("cdc_slot", "7000", 1, (), Lsn(9000), Lsn(1000))
RECORD = BridgeRecord("cdc_slot", "cdc_pub", "7000", 1, (), Position(Lsn(900), 4), 50, Lsn(1000))

TAIL = StreamTail("CDC", 50, "384-4-users-insert")  # 0x384 = 900


def plan(source=SOURCE, tail=None, record=RECORD, history=()):
    tail = tail or TAIL
    position = tail_position(tail, record)
    assert find_loss(source, tail, record, history, position) is None
    return plan_start(source, tail, record, history, position, ("users",))


def test_a_fresh_stream_starts_at_the_slots_own_position():
    start = plan(tail=StreamTail("CDC", 0, None), record=None)
    assert (start.skip, start.start_lsn, start.last_seq, start.gap) == (START, NO_LSN, 0, None)


def test_a_slot_that_was_read_and_a_nats_that_knows_nothing_of_it_is_a_gap():
    start = plan(source=replace(SOURCE, read_before=True), tail=StreamTail("CDC", 0, None), record=None)
    assert start.gap is not None
    assert (start.gap.from_lsn, start.gap.to_lsn, start.skip) == (0, 1000, start.gap.position)


def test_the_tail_is_the_checkpoint_even_when_the_record_is_older():
    start = plan(tail=StreamTail("CDC", 70, "5dc-2-users-insert"))
    assert start.skip == Position(Lsn(1500), 2)
    assert (start.start_lsn, start.last_seq, start.gap) == (1500, 70, None)


def test_an_expired_tail_is_remembered_by_the_record():
    start = plan(tail=StreamTail("CDC", 50, None, deleted=50))
    assert (start.skip, start.last_seq, start.gap) == (RECORD.position, 50, None)


def test_the_last_stored_transaction_is_expected_again_even_if_its_message_was_removed():
    """A server that was restored from an older copy sends another one in its place, and skipping that would lose it."""
    behind = replace(SOURCE, confirmed_lsn=Lsn(800))
    remembered = replace(RECORD, commit_us=77)
    gone = StreamTail("CDC", 50, None, deleted=50)
    assert plan(source=behind, tail=gone, record=remembered).expected == LastStored(Lsn(900), 77)
    assert plan(source=behind, tail=gone).expected is None, "records of earlier versions do not say when it was committed"
    assert plan(source=SOURCE, tail=gone, record=remembered).expected is None, "the slot does not send it again"
    held = replace(TAIL, transaction=Transaction(Lsn(900), 5, 78))
    assert plan(source=behind, tail=held).expected == LastStored(Lsn(900), 78)


def test_events_after_the_record_come_again_when_the_tail_beyond_it_has_expired():
    start = plan(tail=StreamTail("CDC", 60, None, deleted=60))
    assert (start.skip, start.last_seq, start.gap) == (RECORD.position, 60, None)


@pytest.mark.parametrize(("seq", "position"), [(49, RECORD.position), (50, Position(Lsn(910), 0)), (55, Position(Lsn(910), 0))])
def test_when_the_last_messages_were_deleted_the_newest_witness_counts(seq, position):
    start = plan(tail=StreamTail("CDC", 60, "38e-0-users-insert", deleted=60 - seq))  # 0x38e = 910
    assert (start.skip, start.last_seq) == (position, 60)


def test_a_confirmed_lsn_that_went_back_after_a_crash_is_no_gap():
    assert plan(source=replace(SOURCE, confirmed_lsn=Lsn(10))).gap is None


def test_a_slot_beyond_the_record_is_a_gap():
    start = plan(source=replace(SOURCE, confirmed_lsn=Lsn(5000)))
    assert start.gap is not None
    assert (start.gap.from_lsn, start.gap.to_lsn, start.gap.tables) == (1000, 5000, ("users",))
    assert "NATS lost the newest messages of both, or the slot was moved" in start.gap.reason
    assert start.skip == start.gap.position == Position(Lsn(5000), 0, GAP_RANK)


def test_a_stream_cut_short_is_rewound_while_the_slot_is_behind_it():
    cut = StreamTail("CDC", 40, "320-1-users-insert")  # 0x320 = 800
    start = plan(source=replace(SOURCE, confirmed_lsn=Lsn(700)), tail=cut)
    assert (start.skip, start.last_seq, start.gap) == (Position(Lsn(800), 1), 40, None)


def test_a_stream_cut_short_below_the_confirmed_lsn_is_a_gap():
    start = plan(tail=StreamTail("CDC", 40, "320-1-users-insert"))
    assert start.gap is not None
    assert "cut short" in start.gap.reason
    assert (start.gap.from_lsn, start.gap.to_lsn) == (800, 1000)


def test_an_older_record_proves_that_a_cut_stream_is_whole():
    older = replace(RECORD, position=Position(Lsn(800), 1), last_seq=40, confirmed_lsn=Lsn(1000))
    assert plan(tail=StreamTail("CDC", 40, "320-1-users-insert"), history=[older]).gap is None


def test_a_stream_made_anew_is_a_gap():
    start = plan(tail=StreamTail("CDC", 0, None))
    assert start.gap is not None
    assert (start.last_seq, start.gap.to_lsn) == (0, 1000)


def test_a_promoted_standby_that_has_all_we_read_goes_on_without_a_gap():
    promoted = replace(SOURCE, timeline=2, switch_points=((1, Lsn(2000)),))
    assert plan(source=promoted).gap is None


def test_what_was_read_beyond_a_switch_point_is_void_and_said_so():
    promoted = replace(SOURCE, timeline=2, switch_points=((1, Lsn(850)),), confirmed_lsn=Lsn(840))
    start = plan(source=promoted)
    assert start.gap is not None
    assert (start.gap.from_lsn, start.gap.to_lsn) == (850, 901)  # the transaction at 900 is void too
    assert start.skip == Position(Lsn(850), 0, GAP_RANK)
    assert start.start_lsn == NO_LSN


def test_a_message_between_transactions_reads_nothing_at_its_lsn():
    """A gap event is at the LSN where its slot begins: a switch there leaves nothing of it behind."""
    tail = StreamTail("CDC", 51, "352-0-_bridge-gap")  # 0x352 = 850
    record = replace(RECORD, position=Position(Lsn(850), 0, GAP_RANK), last_seq=51, confirmed_lsn=Lsn(850))
    promoted = replace(SOURCE, timeline=2, switch_points=((1, Lsn(850)),), confirmed_lsn=Lsn(850))
    assert plan(source=promoted, tail=tail, record=record).gap is None
    before = replace(promoted, switch_points=((1, Lsn(849)),), confirmed_lsn=Lsn(849))
    assert plan(source=before, tail=tail, record=record).gap is not None


def test_an_older_copy_is_noticed_although_it_has_no_slot():
    """It is from before the slot was made: nothing is known that it has in common with the stream."""
    loss = find_loss(replace(SOURCE, confirmed_lsn=None, wal_end=Lsn(500)), TAIL, RECORD, (), RECORD.position)
    assert loss is not None
    assert (loss.code, loss.from_lsn, loss.to_lsn) == ("WB151", NO_LSN, 1000)


@pytest.mark.parametrize("gone", [{"confirmed_lsn": None}, {"lost": "wal_removed"}])
def test_the_gap_of_a_promoted_standby_without_the_slot_names_what_is_void_too(gone):
    """The new slot may begin below the end of the void changes: LSNs of the new timeline count up from the switch point."""
    promoted = replace(SOURCE, timeline=2, switch_points=((1, Lsn(850)),), wal_end=Lsn(870), **gone)
    loss = find_loss(promoted, TAIL, RECORD, (), RECORD.position)
    assert loss is not None
    gap = start_after_loss(loss, promoted, Lsn(870), TAIL, ("users",)).gap
    assert gap is not None
    assert (gap.from_lsn, gap.to_lsn) == (850, 901)
    assert find_loss(replace(SOURCE, **gone), TAIL, RECORD, (), RECORD.position).to_lsn == NO_LSN


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (replace(SOURCE, system_id="8000"), "another database cluster"),
        (replace(SOURCE, lost="wal_removed"), "is lost"),
        (replace(SOURCE, confirmed_lsn=None), "was dropped"),
        (replace(SOURCE, wal_end=Lsn(500)), "older copy"),
        (replace(SOURCE, timeline=3, switch_points=((2, Lsn(5)),)), "does not descend"),
    ],
)
def test_what_cannot_be_read_any_more_ends_the_bridge_until_somebody_accepts_it(source, words):
    loss = find_loss(source, TAIL, RECORD, (), RECORD.position)
    assert loss is not None
    assert words in loss.reason
    error = loss_error(loss)
    assert error.exit_code == 1
    assert "--accept-gap" in error.fix
    start = start_after_loss(loss, source, Lsn(7000), StreamTail("CDC", 50, None, deleted=50), ("users",))
    assert start.gap is not None
    assert (start.gap.from_lsn, start.gap.to_lsn, start.last_seq) == (1000, 7000, 50)


def test_a_missing_slot_before_anything_was_read_is_no_loss():
    assert find_loss(replace(SOURCE, confirmed_lsn=None), StreamTail("CDC", 0, None), None, (), None) is None


@pytest.mark.parametrize("tail", [StreamTail("CDC", 5, "hello"), StreamTail("CDC", 5, None, foreign=True)])
def test_a_foreign_tail_is_refused_and_names_the_stream_flag(tail):
    with pytest.raises(ConfigError) as caught:
        tail_position(tail, None)
    assert "--stream" in caught.value.fix


def test_a_stream_of_another_slot_is_refused_and_names_the_stream_flag():
    with pytest.raises(ConfigError) as caught:
        check_owner(RECORD, "CDC", "another_slot", "shop")
    assert "--stream" in caught.value.fix
    assert f"--slot {RECORD.slot}" in caught.value.fix


def test_the_slot_of_another_database_is_not_offered():
    with pytest.raises(ConfigError) as caught:
        check_owner(replace(RECORD, database="crm"), "CDC", "another_slot", "shop")
    assert "of database crm" in caught.value.what
    assert "--slot" not in caught.value.fix


def test_what_was_confirmed_on_another_timeline_proves_nothing_beyond_the_switch_point():
    """A standby without the newest WAL of unpublished tables was promoted: that WAL's LSNs now name other changes."""
    promoted = replace(SOURCE, timeline=2, switch_points=((1, Lsn(950)),), confirmed_lsn=Lsn(940), wal_end=Lsn(960))
    start = plan(source=promoted)
    assert (start.gap, start.skip, start.proven_lsn) == (None, RECORD.position, 950)


def test_a_new_timeline_that_is_shorter_than_the_record_is_not_an_older_server():
    promoted = replace(SOURCE, timeline=2, switch_points=((1, Lsn(950)),), confirmed_lsn=Lsn(940), wal_end=Lsn(960))
    start = plan(source=promoted)
    taken_over = replace(RECORD, timeline=2, switch_points=promoted.switch_points, confirmed_lsn=start.proven_lsn)
    assert find_loss(promoted, TAIL, taken_over, (), RECORD.position) is None


def test_rows_below_the_switch_point_that_a_shortened_stream_lacks_come_again():
    """The stream lost its newest messages and a standby was promoted: WAL still has what the stream lost."""
    promoted = replace(SOURCE, timeline=2, switch_points=((1, Lsn(850)),), confirmed_lsn=Lsn(790))
    start = plan(source=promoted, tail=StreamTail("CDC", 40, "320-1-users-insert"))  # 0x320 = 800
    assert (start.gap, start.skip, start.proven_lsn) == (None, Position(Lsn(800), 1), 800)


def test_a_slot_that_has_confirmed_nothing_more_than_when_it_was_made_is_no_gap():
    """The first start broke off after the record was written: nothing was stored, and nothing is lost."""
    first = plan(tail=StreamTail("CDC", 0, None), record=None)
    written = BridgeRecord("cdc_slot", "cdc_pub", "7000", 1, (), first.skip, first.last_seq, first.proven_lsn)
    assert plan(tail=StreamTail("CDC", 0, None), record=written).gap is None


GAP = Gap(Position(Lsn(1000), 0, GAP_RANK), "cdc_slot", "slot cdc_slot was dropped", Lsn(950), Lsn(1000), ("users",))
ANNOUNCED = replace(RECORD, position=GAP.position, pending_gap=GAP)


def test_a_gap_that_was_decided_and_not_stored_is_stored_at_the_next_start():
    start = plan(record=ANNOUNCED)
    assert (start.gap, start.skip, start.last_seq, start.proven_lsn) == (GAP._replace(number=50), GAP.position, 50, 1000)


def test_a_gap_that_was_stored_before_the_record_said_so_is_not_told_again():
    start = plan(record=ANNOUNCED, tail=StreamTail("CDC", 51, "3e8-0-_bridge-gap"))  # 0x3e8 = 1000
    assert (start.gap, start.skip, start.last_seq, start.proven_lsn) == (None, GAP.position, 51, 1000)


def test_a_second_loss_covers_a_gap_that_was_not_stored():
    loss = find_loss(replace(SOURCE, confirmed_lsn=None), TAIL, ANNOUNCED, (), RECORD.position)
    assert loss is not None
    assert loss.from_lsn == 950
    moved = plan(source=replace(SOURCE, confirmed_lsn=Lsn(3000)), record=ANNOUNCED)
    assert moved.gap is not None
    assert (moved.gap.from_lsn, moved.gap.to_lsn) == (950, 3000)


def test_a_pending_gap_survives_the_record():
    assert BridgeRecord.decode(ANNOUNCED.encode(), "CDC") == ANNOUNCED


PROMOTED = Source("cdc_slot", "7000", 2, ((1, Lsn(850)),), Lsn(870), Lsn(840))
"""It lacks what the stream holds from 850 to 900, and its own WAL is shorter still."""


def test_a_gap_after_a_failover_that_was_decided_and_not_stored_is_no_older_server():
    decided = plan(source=PROMOTED)
    assert decided.gap is not None
    announced = replace(
        RECORD, timeline=2, switch_points=PROMOTED.switch_points, position=decided.skip, confirmed_lsn=decided.proven_lsn,
        pending_gap=decided.gap,
    )  # fmt: skip
    again = plan(source=PROMOTED, record=announced, history=[RECORD])
    assert (again.gap, again.skip) == (decided.gap, decided.skip)


def test_a_stream_cut_back_to_before_a_failovers_gap_event_tells_the_gap_again():
    """The record knows of the new timeline, the stream's last message is of the old one: its LSN names other changes now."""
    source = replace(PROMOTED, wal_end=Lsn(2000), confirmed_lsn=Lsn(1200))
    told = replace(RECORD, timeline=2, position=Position(Lsn(850), 0, GAP_RANK), last_seq=51, confirmed_lsn=Lsn(850))
    later = replace(told, position=Position(Lsn(1150), 1), last_seq=60, confirmed_lsn=Lsn(1200))
    start = plan(source=source, record=later, history=[RECORD, told, later])
    assert start.gap is not None
    assert (start.gap.from_lsn, start.gap.to_lsn, start.skip) == (850, 1200, Position(Lsn(1200), 0, GAP_RANK))


def test_another_clusters_gap_that_was_not_stored_keeps_its_range_and_its_reason():
    cluster = Source("cdc_slot", "8000", 1, (), Lsn(500), Lsn(400))
    loss = find_loss(cluster, TAIL, RECORD, (), RECORD.position)
    assert loss is not None
    decided = start_after_loss(loss, cluster, Lsn(400), TAIL, ("users",))
    announced = replace(RECORD, system_id="8000", position=decided.skip, confirmed_lsn=Lsn(400), pending_gap=decided.gap)
    again = plan(source=cluster, record=announced, history=[RECORD])
    assert again.gap == decided.gap


def test_the_end_of_a_gap_in_an_older_versions_record_proves_nothing():
    raw = orjson.loads(replace(RECORD, position=Position(Lsn(850), 0, GAP_RANK), confirmed_lsn=Lsn(900)).encode())
    del raw["pending_gap"]
    assert BridgeRecord.decode(orjson.dumps(raw), "CDC").confirmed_lsn == 850


@pytest.mark.parametrize(
    ("tail", "record", "unheld"),
    [
        (TAIL, RECORD, 0),
        (replace(TAIL, last_seq=70), RECORD, 0),  # the record is older than the last message
        (replace(TAIL, last_seq=60, deleted=10), RECORD, 10),  # it names the last message that is held
        (StreamTail("CDC", 60, None, deleted=60), RECORD, 10),  # nothing is held, the record says what was
        (StreamTail("CDC", 60, None, deleted=60), None, 60),
        (replace(TAIL, last_seq=55, deleted=10), RECORD, 5),  # the record is newer than the last message
    ],
)
def test_how_much_at_the_end_is_no_longer_held(tail, record, unheld):
    assert unheld_at_end(tail, record) == unheld
