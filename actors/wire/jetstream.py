"""JetStream on the wire: publishing at an expected sequence, and the replies.

Fast-ingest batches (nats-server 2.14+) carry their control in the reply subject,
`<prefix>.<batch id>.<flow>.<gap>.<batch seq>.<op>.$FI`: op 0 starts, 1 appends, 2 stores and commits. Each of the
bridge's batches is one such batch, committed by its last message, whose acknowledgement is prompt and final.

Atomic batches (nats-server 2.12+, ADR-50) carry it in headers. The server stores all messages of a batch or none; only the last
one is answered. Headers as in https://docs.nats.io/nats-concepts/jetstream/headers, error codes as in nats-server's
`server/errors.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import IntEnum
from typing import NamedTuple

import orjson

from actors.wire.nats import Msg

MSG_ID_HEADER = "Nats-Msg-Id"
"""The id of a message. JetStream drops a message whose id it has seen within the stream's duplicate window."""
OWN_MSG_ID_HEADER = "Walbridge-Msg-Id"
"""The id of a message that JetStream would drop, because it remembers the id of a message that it no longer holds."""
EXPECTED_LAST_SEQUENCE_HEADER = "Nats-Expected-Last-Sequence"
EXPECTED_LAST_SUBJECT_SEQUENCE_HEADER = "Nats-Expected-Last-Subject-Sequence"
EXPECTED_STREAM_HEADER = "Nats-Expected-Stream"
"""A stream of another name refuses the message."""
ATOMIC_HEADERS_BYTES = sum(
    map(
        len,
        (b"Nats-Batch-Id: 18446744073709551615-12345678\r\n", b"Nats-Batch-Sequence: 1000\r\n", b"Nats-Batch-Commit: 1\r\n"),
    )
)
"""What a message of an atomic batch has more than another, at most."""
LAST_CONSUMER_HEADER, PENDING_MESSAGES_HEADER = "Nats-Last-Consumer", "Nats-Pending-Messages"
"""In a heartbeat: the consumer's last message. At a pull's end: how many messages it did not bring."""
KV_OPERATION_HEADER = "KV-Operation"
"""Only on the marker of a key's deletion."""

UNAVAILABLE = 503
"""Status of JetStream, and of a request without responders: no leader, no stream, or no JetStream."""


class ErrCode(IntEnum):
    """The `err_code`s of JetStream that code checks or metrics name. `nats errors lookup CODE` explains each."""

    ACCOUNT_RESOURCES_EXCEEDED = 10002
    NO_SUITABLE_PEERS = 10005
    CLUSTER_NOT_AVAILABLE = 10008
    CONSUMER_NOT_FOUND = 10014
    INSUFFICIENT_RESOURCES = 10023
    MAXIMUM_CONSUMERS = 10026
    MAXIMUM_STREAMS = 10027
    MESSAGE_NOT_FOUND = 10037
    NOT_ENABLED_FOR_ACCOUNT = 10039
    STORAGE_RESOURCES_EXCEEDED = 10047
    MESSAGE_EXCEEDS_MAXIMUM = 10054
    STREAM_NAME_IN_USE = 10058
    NOT_ENABLED = 10076
    STREAM_NOT_FOUND = 10059
    SUBJECTS_OVERLAP = 10065
    WRONG_LAST_MSG_ID = 10070
    WRONG_LAST_SEQUENCE = 10071
    STORE_FAILED = 10077
    MAX_BYTES_REQUIRED = 10113
    STREAM_MAX_BYTES_EXCEEDED = 10122
    DUPLICATE_IN_PROCESS = 10158
    WRONG_LAST_SEQUENCE_CONSTANT = 10164
    TOO_MANY_REQUESTS = 10167
    ATOMIC_BATCH_TOO_LARGE = 10199
    ATOMIC_BATCH_DUPLICATE_ID = 10201
    CONSUMER_INVALID_RESET = 10204


WRONG_LAST_SEQUENCE = frozenset({ErrCode.WRONG_LAST_SEQUENCE, ErrCode.WRONG_LAST_SEQUENCE_CONSTANT})
"""The last sequence of a stream or subject is not the expected one. A replicated stream answers with the second code while
messages are being replicated."""


_HEADERS = {
    header: f"NATS/1.0\r\n{EXPECTED_LAST_SEQUENCE_HEADER}: %d\r\n{header}: %b\r\n%b\r\n".encode()
    for header in (MSG_ID_HEADER, OWN_MSG_ID_HEADER)
}
"""By the header that has the id: a message's headers, of its expected last sequence, its id and its own header lines."""
_HEADERS_BYTES = {header: len(lines % (0, b"", b"")) - 1 for header, lines in _HEADERS.items()}
"""Without these three."""


class OutMessage(NamedTuple):
    """One encoded message for the stream."""

    subject: bytes
    msg_id: bytes
    body: bytes
    headers: bytes = b""
    """More header lines, each ending in CRLF."""


class Stored(NamedTuple):
    """The stream holds everything up to `seq`; the publish should have reached `expected_seq`."""

    seq: int
    expected_seq: int


class Progress(NamedTuple):
    """An acknowledgement within a batch; the final one is still to come."""


class Refused(NamedTuple):
    """The server did not store a message, or abandoned a batch."""

    code: int
    err_code: int
    description: str


class Duplicate(NamedTuple):
    """The server dropped a message whose id it remembers. The message need not be in the stream any more."""

    seq: int
    """Where the message with that id was stored; 0 when the server does not say."""


PublishReply = Stored | Progress | Refused | Duplicate


def frame_fast_batch(
    messages: Sequence[OutMessage],
    reply_prefix: bytes,
    batch_id: bytes,
    flow: int,
    last_seq: int,
    id_header: str = MSG_ID_HEADER,
) -> bytes:
    """Return frames that publish `messages` right after stream sequence `last_seq`, as one fast-ingest batch.

    The batch id is the batch's last sequence, a dash and a unique text; `parse_publish_reply` reads the expected sequence from
    it.
    """
    target = b"%b.%b.%d.fail." % (reply_prefix, batch_id, flow)
    return _frames(messages, target, 1, (b".0.$FI", b".1.$FI", b".2.$FI"), last_seq, id_header)


def frame_plain(messages: Sequence[OutMessage], reply_prefix: bytes, last_seq: int, id_header: str = MSG_ID_HEADER) -> bytes:
    """Return frames that publish `messages` right after `last_seq`, each acknowledged on `<prefix>.<its sequence>`."""
    return _frames(messages, reply_prefix + b".", last_seq + 1, (b"", b"", b""), last_seq, id_header)


def _frames(
    messages: Sequence[OutMessage], target: bytes, first: int, ends: tuple[bytes, bytes, bytes], last_seq: int, id_header: str
) -> bytes:
    """Return frames whose reply subjects are `target`, a number counted from `first`, and an end.

    `ends` are those of the first message, of others, and of the last message, also if it is the only one. Formatting takes as
    long as it has values: so what neighbours share is in the format.
    """
    frames: list[bytes] = []
    headers, headers_bytes = _HEADERS[id_header], _HEADERS_BYTES[id_header]
    last = first + len(messages) - 1
    special = {first, first + 1, last}
    digits, longer_from = _digits(last_seq)
    known, known_size, frame = b"", 0, b""
    for number, (subject, msg_id, body, more) in enumerate(messages, first):
        if last_seq >= longer_from:
            digits, longer_from = _digits(last_seq)
        size = headers_bytes + digits + len(msg_id) + len(more)
        if subject is not known or size != known_size or number in special:
            known, known_size, end = subject, size, ends[2 if number == last else number > first]
            frame = b"HPUB %b %b%%d%b %d %%d\r\n%b%%b\r\n" % (_literal(subject), _literal(target), end, size, headers)
        frames.append(frame % (number, size + len(body), last_seq, msg_id, more, body))
        last_seq += 1
    return b"".join(frames)


def frame_atomic_batch(
    messages: Sequence[OutMessage], reply_prefix: bytes, batch_id: bytes, last_seq: int, id_header: str = MSG_ID_HEADER
) -> bytes:
    """Return frames that publish `messages` right after stream sequence `last_seq`, as one atomic batch.

    Only the commit, on the last message, is acknowledged: on `<prefix>.<its sequence>`, as a plain message is.
    """
    frames: list[bytes] = []
    commit = len(messages)
    head = f"NATS/1.0\r\nNats-Batch-Id: {batch_id.decode()}\r\nNats-Batch-Sequence: %d\r\n{id_header}: %b\r\n%b".encode()
    for i, (subject, msg_id, body, more) in enumerate(messages, 1):
        headers = head % (i, msg_id, more)
        target = b""
        if i == 1:
            headers += b"%b: %d\r\n" % (EXPECTED_LAST_SEQUENCE_HEADER.encode(), last_seq)
        if i == commit:
            headers += b"Nats-Batch-Commit: 1\r\n"
            target = b"%b.%d " % (reply_prefix, last_seq + commit)
        size = len(headers) + 2
        frames.append(b"HPUB %b %b%d %d\r\n%b\r\n%b\r\n" % (subject, target, size, size + len(body), headers, body))
    return b"".join(frames)


def _literal(text: bytes) -> bytes:
    """Return a text as part of a format."""
    return text.replace(b"%", b"%%")


def _digits(number: int) -> tuple[int, int]:
    """Return how many digits a number has, and the smallest number with more."""
    digits = len(b"%d" % number)
    return digits, 10**digits


def parse_publish_reply(message: Msg, reply_prefix: bytes) -> PublishReply:
    """Read the reply to a plain publish or an atomic batch, or a reply within or at the end of a fast batch.

    An unreadable reply is a refusal: only a clear "stored" counts.
    """
    if message.status and not message.payload:
        return Refused(message.status, 0, "no stream takes this subject, or its leader is away")
    try:
        reply = orjson.loads(message.payload)
        kind, error = reply.get("type"), reply.get("error")
        if error is not None:
            return Refused(int(error["code"]), int(error.get("err_code", 0)), str(error.get("description", "")))
        if kind == "ack":
            return Progress()
        if kind == "gap":
            return Refused(400, 0, f"the server missed messages {reply.get('last_seq')} to {reply.get('seq')} of a batch")
        # the first token after the prefix begins with the sequence: a plain message's own, or a batch's last
        expected = int(message.subject[len(reply_prefix) + 1 :].split(b".", 1)[0].split(b"-", 1)[0])
        seq = int(reply["seq"])
        # a batch of nothing but duplicates ends at sequence 0
        return Duplicate(seq) if reply.get("duplicate") or not seq else Stored(seq, expected)
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        return Refused(0, 0, f"the reply is not an acknowledgement: {message.payload[:200]!r} ({exc!r})")


def unix_time(text: str) -> float:
    """Return the seconds since 1970 of a time as JetStream writes it: RFC 3339 in UTC, with up to nine digits of a second."""
    seconds, _, fraction = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{seconds}+00:00").timestamp() + float(f"0.{fraction or 0}")
