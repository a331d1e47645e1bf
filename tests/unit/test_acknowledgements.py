"""How far the stream has stored what was sent, from the replies alone."""

from __future__ import annotations

from collections import Counter

import orjson
import pytest
import trio
import trio.testing

from actors.clients.nats.acknowledgements import Acknowledgements
from actors.errors import SinkFenced, SinkUnavailable, TakenForDuplicate
from actors.wire.nats import Msg

PREFIX = b"_INBOX.x"


def reply(seq: int, expected: int | None = None) -> Msg:
    """Stored at `seq`, and sent to be stored at `expected`."""
    return Msg(PREFIX + b".%d" % (seq if expected is None else expected), 1, b"", b"", b'{"stream":"CDC","seq":%d}' % seq)


def refused(err_code: int, code: int = 400) -> Msg:
    error = {"code": code, "err_code": err_code, "description": "no"}
    return Msg(PREFIX + b".1", 1, b"", b"", orjson.dumps({"error": error}))


def acknowledgements(last_seq: int = 10) -> tuple[Acknowledgements, Counter[int]]:
    counted: Counter[int] = Counter()
    acks = Acknowledgements(last_seq, counted)
    acks.reply_prefix = PREFIX
    return acks, counted


def test_one_acknowledgement_is_one_of_all_before_it() -> None:
    acks, _ = acknowledgements()
    acks.on_reply(reply(15))
    acks.on_reply(reply(12))  # late: it tells nothing new
    assert acks.stored_seq.value == 15
    assert trio.run(acks.beyond, 14) == 15


def test_progress_within_a_batch_stores_nothing() -> None:
    acks, _ = acknowledgements()
    acks.on_reply(Msg(PREFIX + b".15-u.500.fail.3.1.$FI", 1, b"", b"", b'{"type":"ack","seq":13,"msgs":3}'))
    assert (acks.stored_seq.value, acks.failure) == (10, None)


@pytest.mark.parametrize("err_code", [10071, 10164])
def test_another_writer_fences_this_one_whichever_code_says_so(err_code: int) -> None:
    acks, counted = acknowledgements()
    acks.on_reply(refused(err_code))
    with pytest.raises(SinkFenced) as caught:
        trio.run(acks.beyond, 10)
    assert caught.value.code == "WB220"
    assert counted == {err_code: 1}


def test_a_message_that_is_not_at_its_place_fences_too() -> None:
    acks, _ = acknowledgements()
    acks.on_reply(reply(12, expected=13))
    with pytest.raises(SinkFenced) as caught:
        trio.run(acks.beyond, 10)
    assert caught.value.said == "stored up to 12 instead of 13"


@pytest.mark.parametrize(("err_code", "status"), [(10077, 503), (10047, 500), (10167, 429), (10054, 400)])
def test_any_other_refusal_passes_by_itself(err_code: int, status: int) -> None:
    acks, counted = acknowledgements()
    acks.on_reply(refused(err_code, status))
    with pytest.raises(SinkUnavailable) as caught:
        trio.run(acks.beyond, 10)
    assert (type(caught.value), caught.value.code, caught.value.said) == (SinkUnavailable, "WB221", f"{status} {err_code} no")
    assert counted == {err_code: 1}


def test_a_status_is_counted_where_there_is_no_code() -> None:
    acks, counted = acknowledgements()
    acks.on_reply(Msg(PREFIX + b".11", 1, b"", b"NATS/1.0 503\r\n\r\n", b""))
    assert counted == {503: 1}


def test_the_first_refusal_is_the_cause_and_nothing_counts_after_it() -> None:
    acks, counted = acknowledgements()
    acks.on_reply(refused(10077, 503))
    acks.on_reply(refused(10071))
    acks.on_reply(reply(11))
    with pytest.raises(SinkUnavailable) as caught:
        trio.run(acks.beyond, 10)
    assert caught.value.code == "WB221"
    assert counted == {10077: 1, 10071: 1}


def test_who_waits_is_woken_by_the_acknowledgement_and_by_the_refusal() -> None:
    async def wait(message: Msg) -> int | str:
        acks, _ = acknowledgements()
        found: list[int | str] = []

        async def waiting() -> None:
            try:
                found.append(await acks.beyond(10))
            except SinkUnavailable as exc:
                found.append(exc.code)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(waiting)
            await trio.testing.wait_all_tasks_blocked()
            assert found == []
            acks.on_reply(message)
        return found[0]

    assert trio.run(wait, reply(11)) == 11
    assert trio.run(wait, refused(10071)) == "WB220"


@pytest.mark.parametrize(
    "payload",
    [
        b'{"stream":"CDC","seq":8,"duplicate": true}',
        b'{"stream":"CDC","seq":8,"duplicate": true,"batch":"11-u","count":1}',
        b'{"stream":"CDC","seq":0,"batch":"13-u","count":3}',  # a batch of nothing but duplicates
        b'{"type":"err","seq":3,"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 10"}}',
        b'{"error":{"code":400,"err_code":10201,"description":"atomic publish batch contains duplicate message id"}}',
    ],
    ids=["plain", "a batch of one", "a batch", "the first of a batch", "in an atomic batch"],
)  # as nats-server 2.15.1 answers
def test_a_message_that_is_taken_for_a_duplicate_is_told_from_another_writers(payload: bytes) -> None:
    acks, _ = acknowledgements(10)
    acks.on_reply(Msg(PREFIX + b".13-u.500.fail.3.2.$FI", 1, b"", b"", payload))
    with pytest.raises(TakenForDuplicate) as caught:
        trio.run(acks.beyond, 10)
    assert caught.value.code == "WB225"


def test_a_fence_says_how_far_the_stream_was_known() -> None:
    acks, _ = acknowledgements(10)
    acks.on_reply(reply(12))
    acks.on_reply(refused(10071))
    with pytest.raises(SinkFenced) as caught:
        trio.run(acks.beyond, 10)
    assert caught.value.stored_seq == 12
