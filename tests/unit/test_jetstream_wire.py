"""JetStream on the wire: frames that expect their place, and each answer to them."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.js.api import Header

from actors.contract.event_encoder import HEADER_BYTES
from actors.wire import jetstream
from actors.wire.jetstream import (
    ATOMIC_HEADERS_BYTES,
    WRONG_LAST_SEQUENCE,
    ErrCode,
    OutMessage,
    Progress,
    Refused,
    Stored,
    frame_atomic_batch,
    frame_fast_batch,
    frame_plain,
    parse_publish_reply,
)
from actors.wire.nats import Msg, decode_headers

subjects = st.text("abcXYZ019$_-=/", min_size=1, max_size=10).map(str.encode)
payloads = st.binary(max_size=50)


@given(st.lists(st.tuples(subjects, payloads), min_size=1, max_size=6), st.integers(0, 10**12), st.booleans())
def test_frames_of_a_batch_expect_the_sequence_before_them(messages, last_seq, fast):
    batch = [OutMessage(subject, b"id%d" % i, body) for i, (subject, body) in enumerate(messages)]
    data = (frame_fast_batch(batch, b"_INBOX.x", b"%d-u" % (last_seq + len(batch)), 500, last_seq) if fast
            else frame_plain(batch, b"_INBOX.x", last_seq))  # fmt: skip
    # a server's delivery of the same frames: HPUB becomes HMSG
    at = 0
    for i, message in enumerate(batch):
        end = data.index(b"\r\n", at)
        word, subject, reply, header_size, total = data[at:end].split(b" ")
        body = data[end + 2 : end + 2 + int(total)]
        headers = decode_headers(body[: int(header_size)])
        assert (word, subject, body[int(header_size) :]) == (b"HPUB", message.subject, message.body)
        assert headers == {"Nats-Expected-Last-Sequence": str(last_seq + i), "Nats-Msg-Id": f"id{i}"}
        if fast:
            op = 2 if i + 1 == len(batch) else 0 if i == 0 else 1
            assert reply == b"_INBOX.x.%d-u.500.fail.%d.%d.$FI" % (last_seq + len(batch), i + 1, op)
        else:
            assert reply == b"_INBOX.x.%d" % (last_seq + i + 1)
        at = end + 2 + int(total) + 2
    assert at == len(data)


@given(st.lists(st.tuples(subjects, payloads), min_size=1, max_size=6), st.integers(0, 10**12))
def test_an_atomic_batch_expects_the_sequence_before_it_and_its_commit_alone_is_answered(messages, last_seq):
    batch = [OutMessage(subject, b"id%d" % i, body, b"More: x\r\n") for i, (subject, body) in enumerate(messages)]
    rest = frame_atomic_batch(batch, b"_INBOX.x", b"b1", last_seq)
    for i, message in enumerate(batch, 1):
        line, _, rest = rest.partition(b"\r\n")
        *words, header_size, total = line.split(b" ")
        is_last = i == len(batch)
        assert words == [b"HPUB", message.subject, *([b"_INBOX.x.%d" % (last_seq + len(batch))] if is_last else [])]
        expected = {"Nats-Batch-Id": "b1", "Nats-Batch-Sequence": str(i), "Nats-Msg-Id": f"id{i - 1}", "More": "x"}
        expected |= {"Nats-Expected-Last-Sequence": str(last_seq)} if i == 1 else {}
        expected |= {"Nats-Batch-Commit": "1"} if is_last else {}
        assert decode_headers(rest[: int(header_size)]) == expected
        assert int(header_size) <= len("idi") + len(message.headers) + HEADER_BYTES + ATOMIC_HEADERS_BYTES
        assert rest[int(header_size) : int(total) + 2] == message.body + b"\r\n"
        rest = rest[int(total) + 2 :]
    assert rest == b""


@given(st.binary(max_size=100), st.sampled_from([b"", b"NATS/1.0 503\r\n\r\n"]))
def test_a_reply_counts_as_stored_only_when_it_says_so(payload, headers):
    reply = parse_publish_reply(Msg(b"_INBOX.x.7", 1, b"", headers, payload), b"_INBOX.x")
    assert not isinstance(reply, Stored) or b'"seq"' in payload


def test_replies_of_the_server_are_told_apart() -> None:
    def parse(payload: bytes, subject: bytes = b"_INBOX.x.7-u.500.fail.3.2.$FI") -> object:
        return parse_publish_reply(Msg(subject, 1, b"", b"", payload), b"_INBOX.x")

    assert parse(b'{"stream":"F","seq":7,"batch":"7-u","count":7}') == Stored(7, 7)
    assert parse(b'{"stream":"A","seq":9}', b"_INBOX.x.7") == Stored(9, 7)
    assert not isinstance(parse(b'{"type":"ack","seq":3,"msgs":3}'), Stored | Refused)
    assert parse(b'{"type":"err","seq":3,"error":{"code":400,"err_code":10071,"description":"wrong"}}') == Refused(
        400, 10071, "wrong"
    )
    assert isinstance(parse(b'{"type":"gap","last_seq":3,"seq":4}'), Refused)


PREFIX = b"_INBOX.x"


def answer(payload: bytes, subject: bytes = b"_INBOX.x.7", headers: bytes = b"") -> object:
    return parse_publish_reply(Msg(subject, 1, b"", headers, payload), PREFIX)


@pytest.mark.parametrize("code", list(ErrCode))
def test_a_refusal_keeps_its_code(code: ErrCode) -> None:
    error = {"code": 400, "err_code": int(code), "description": code.name}
    assert answer(orjson.dumps({"error": error, "stream": "CDC", "seq": 0})) == Refused(400, code, code.name)


def test_a_wrong_last_sequence_has_two_codes() -> None:
    assert {10071, 10164} == WRONG_LAST_SEQUENCE


def test_a_code_reads_as_its_number() -> None:
    """Labels of metrics, and the words of errors."""
    assert f"{ErrCode.STORE_FAILED} {ErrCode.STORE_FAILED!s}" == "10077 10077"


@pytest.mark.parametrize("status", [503, 408, 400])
def test_a_status_without_a_body_is_a_refusal(status: int) -> None:
    refused = answer(b"", headers=b"NATS/1.0 %d\r\n\r\n" % status)
    assert isinstance(refused, Refused)
    assert (refused.code, refused.err_code) == (status, 0)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"7",
        b"{}",
        b'{"seq":"x"}',
        b'{"seq":null}',
        b'{"error":{}}',
        b'{"error":7}',
        b'{"type":"gap"}',
    ],
)
def test_what_is_no_acknowledgement_is_a_refusal(payload: bytes) -> None:
    assert isinstance(answer(payload), Refused)


def test_a_reply_to_a_foreign_subject_is_a_refusal() -> None:
    assert isinstance(answer(b'{"stream":"CDC","seq":7}', b"_INBOX.x.not-a-number"), Refused)


def test_progress_within_a_batch_is_not_the_end_of_it() -> None:
    assert answer(b'{"type":"ack","seq":3,"msgs":3}', b"_INBOX.x.7-u.500.fail.3.1.$FI") == Progress()


@pytest.mark.parametrize("last_seq", [0, 8, 98, 99_999_999, 10**18 - 2])
def test_sizes_are_right_where_the_sequence_gets_another_digit(last_seq: int) -> None:
    messages = [OutMessage(b"cdc.t.insert", b"1-%d-t-insert" % i, b"x" * i, b"Content-Encoding: zstd\r\n") for i in range(4)]
    fast = frame_fast_batch(messages, PREFIX, b"%d-u" % (last_seq + 4), 500, last_seq)
    for frames in (fast, frame_plain(messages, PREFIX, last_seq)):
        rest = frames
        for i, message in enumerate(messages):
            line, _, rest = rest.partition(b"\r\n")
            header_size, total = map(int, line.split(b" ")[-2:])
            assert decode_headers(rest[:header_size]) == {
                "Nats-Expected-Last-Sequence": str(last_seq + i),
                "Nats-Msg-Id": message.msg_id.decode(),
                "Content-Encoding": "zstd",
            }
            assert rest[header_size : total + 2] == message.body + b"\r\n"
            rest = rest[total + 2 :]
        assert rest == b""


def test_headers_are_named_as_another_client_names_them() -> None:
    assert Header.MSG_ID.value == jetstream.MSG_ID_HEADER
    assert Header.EXPECTED_LAST_SEQUENCE.value == jetstream.EXPECTED_LAST_SEQUENCE_HEADER
    assert Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value == jetstream.EXPECTED_LAST_SUBJECT_SEQUENCE_HEADER
    assert Header.LAST_CONSUMER.value == jetstream.LAST_CONSUMER_HEADER
    framed = frame_plain([OutMessage(b"a", b"i", b"")], PREFIX, 1)
    assert f"\r\n{jetstream.EXPECTED_LAST_SEQUENCE_HEADER}: 1\r\n{jetstream.MSG_ID_HEADER}: i\r\n".encode() in framed
