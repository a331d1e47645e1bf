"""Compression gives back what it was given, and no bytes make decompression do anything but answer or refuse."""

import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from actors.contract.compression import Compressor
from actors.contract.event_encoder import compressed
from actors.errors import MalformedMessage
from actors.wire.jetstream import OutMessage
from tests.frames import decompress

DICTIONARY = zstandard.train_dictionary(
    2048, [b'{"table":"users","data":{"id":%d,"name":"User-%d"}}' % (i, i) for i in range(2000)]
).as_bytes()
PLAIN, TRAINED = Compressor("users"), Compressor("users", DICTIONARY)
BYTES_MAX = 100_000
bodies = st.binary(max_size=2000) | st.builds(lambda part, n: part * n, st.binary(max_size=30), st.integers(0, 3000))
dictionaries = st.sampled_from([None, DICTIONARY])


@given(bodies, dictionaries)
@example(b"", None)
def test_a_body_comes_back(body, dictionary):
    frame = (TRAINED if dictionary else PLAIN).compress(body)
    assert decompress(frame, bytes_max=len(body), dictionary=dictionary) == body
    assert decompress(frame, bytes_max=BYTES_MAX, dictionary=dictionary) == body


@given(bodies, dictionaries)
def test_a_message_never_gets_larger(body, dictionary):
    compressor = TRAINED if dictionary else PLAIN
    message = OutMessage(b"cdc.users.insert", b"1-0-users-insert", body)
    sent = compressed(message, compressor)
    assert (sent.subject, sent.msg_id) == (message.subject, message.msg_id)
    if sent.headers:
        assert sent.headers == compressor.header_lines
        assert len(sent.body) + len(sent.headers) < len(body)
        assert decompress(sent.body, bytes_max=BYTES_MAX, dictionary=dictionary) == body
    else:
        assert sent.body == body


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda tail: b"\x28\xb5\x2f\xfd" + tail), dictionaries)
def test_any_bytes_are_a_bounded_body_or_refused(data, dictionary):
    try:
        assert len(decompress(data, bytes_max=BYTES_MAX, dictionary=dictionary)) <= BYTES_MAX
    except MalformedMessage:
        pass


@given(bodies, st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), min_size=1, max_size=4), dictionaries)
def test_flipped_bytes_give_a_bounded_body_or_the_typed_error(body, flips, dictionary):
    frame = bytearray((TRAINED if dictionary else PLAIN).compress(body))
    for at, value in flips:
        frame[at % len(frame)] = value
    try:
        assert len(decompress(bytes(frame), bytes_max=BYTES_MAX, dictionary=dictionary)) <= BYTES_MAX
    except MalformedMessage:
        pass


@given(st.binary(max_size=300))
def test_any_dictionary_is_taken_or_refused(data):
    frame = TRAINED.compress(b"a body")
    try:
        decompress(frame, bytes_max=100, dictionary=data)
    except MalformedMessage:
        pass
    try:
        Compressor("users", data).compress(b"a body")
    except ValueError:
        pass
