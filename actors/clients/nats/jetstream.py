"""JetStream's API over one connection: streams, single messages, and key-value buckets, which are streams too.

Requests and replies are JSON: https://docs.nats.io/reference/reference-protocols/nats_api_reference. Replies stay plain dicts,
so that the fields of a newer server survive.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import orjson
import trio

from actors.clients.nats.connection import NatsConnection, SinkRefused
from actors.contract.subjects import bucket_key, bucket_stream, is_bucket_key, parse
from actors.errors import SinkUnavailable
from actors.wire.api_subjects import OWN
from actors.wire.jetstream import EXPECTED_LAST_SUBJECT_SEQUENCE_HEADER, KV_OPERATION_HEADER, WRONG_LAST_SEQUENCE, ErrCode
from actors.wire.nats import Msg, decode_headers

API_TIMEOUT_S = 5.0
REQUESTS_AT_ONCE = 100


T = TypeVar("T")


class JetStreamError(SinkUnavailable):
    """A refusal by JetStream: its own status (as in HTTP), code and words."""

    def __init__(self, doing: str, status: int, err_code: int, description: str) -> None:
        super().__init__("WB210", f"JetStream refused to {doing}", said=f"{status} {err_code} {description}")
        self.status, self.err_code, self.description = status, err_code, description


class StoredMessage(NamedTuple):
    """A message as the stream holds it."""

    subject: str
    seq: int
    headers: dict[str, str]
    data: bytes
    time: str = ""
    """When it was stored, as JetStream writes it: RFC 3339, UTC."""


class KvEntry(NamedTuple):
    """One version of a key."""

    data: bytes
    revision: int


class JetStream:
    """JetStream's API for one account. Every method raises SinkUnavailable without a reply, JetStreamError when refused."""

    def __init__(self, connection: NatsConnection) -> None:
        self.connection = connection
        self._may_delete_consumers = True

    async def account(self) -> dict[str, Any]:
        """Return the account's limits, and what it uses and has reserved."""
        return await self._api("INFO", {}, "describe the account")

    async def stream_info(self, name: str, *, deleted_details: bool = False) -> dict[str, Any] | None:
        """Return a stream's configuration and state; None when there is no such stream.

        `deleted_details`: with the sequences of all deleted messages.
        """
        query = {"deleted_details": True} if deleted_details else {}
        doing = f"describe stream {name}"
        try:
            info = await self._api(f"STREAM.INFO.{name}", query, doing)
        except JetStreamError as exc:
            if exc.err_code == ErrCode.STREAM_NOT_FOUND:
                return None
            raise
        with _reading(doing):
            return _stream_in(info)

    async def consumers(self, stream: str) -> list[dict[str, Any]]:
        """Return the consumers of a stream, at most the first few hundred."""
        doing = f"list the consumers of stream {stream}"
        reply = await self._api(f"CONSUMER.LIST.{stream}", {"offset": 0}, doing)
        with _reading(doing):
            return [dict(consumer) for consumer in reply["consumers"] or ()]

    async def consumer(self, stream: str, name: str) -> dict[str, Any] | None:
        """Return a consumer's configuration and state; None when there is no such consumer."""
        doing = f"describe consumer {name} of stream {stream}"
        try:
            info = await self._api(f"CONSUMER.INFO.{stream}.{name}", {}, doing)
        except JetStreamError as exc:
            if exc.err_code in (ErrCode.CONSUMER_NOT_FOUND, ErrCode.STREAM_NOT_FOUND):
                return None
            raise
        with _reading(doing):
            return _consumer_in(info)

    async def reset_consumer(self, stream: str, name: str, seq: int) -> dict[str, Any]:
        """Have a consumer continue at `seq`, as if nothing from there on had been delivered; return its info.

        nats-server 2.14 and later; an older one does not answer.
        """
        doing = f"set back consumer {name} of stream {stream}"
        info = await self._api(f"CONSUMER.RESET.{stream}.{name}", {"seq": seq}, doing)
        with _reading(doing):
            return _consumer_in(info)

    async def delete_stream(self, name: str) -> None:
        """Delete a stream and its messages; a missing stream is not an error."""
        try:
            await self._api(f"STREAM.DELETE.{name}", {}, f"delete stream {name}")
        except JetStreamError as exc:
            if exc.err_code != ErrCode.STREAM_NOT_FOUND:
                raise

    async def create_stream(self, config: Mapping[str, object]) -> dict[str, Any]:
        """Create a stream; an existing stream with the same configuration is not an error."""
        return await self._api(f"STREAM.CREATE.{config['name']}", config, f"create stream {config['name']}")

    async def update_stream(self, config: Mapping[str, object]) -> dict[str, Any]:
        """Give a stream another configuration, complete."""
        return await self._api(f"STREAM.UPDATE.{config['name']}", config, f"edit stream {config['name']}")

    async def streams_taking(self, subject: str) -> list[str]:
        """Return the names of the streams that take a subject, or a part of it if it has wildcards."""
        reply = await self._api("STREAM.NAMES", {"subject": subject}, "list streams")
        with _reading("list streams"):
            return list(map(str, reply.get("streams") or ()))

    async def get_message(self, stream: str, **query: object) -> StoredMessage | None:
        """Return a message by `seq=n`, `last_by_subj=subject` or `seq=n, next_by_subj=subject`; None when there is none."""
        doing = f"read a message of stream {stream}"
        try:
            reply = await self._api(f"STREAM.MSG.GET.{stream}", query, doing)
        except JetStreamError as exc:
            if exc.err_code == ErrCode.MESSAGE_NOT_FOUND:
                return None
            raise
        with _reading(doing):
            raw = reply["message"]
            headers = decode_headers(base64.b64decode(raw.get("hdrs", "")))
            return StoredMessage(
                str(raw["subject"]), int(raw["seq"]), headers, base64.b64decode(raw.get("data", "")), str(raw["time"])
            )

    async def get_messages(self, stream: str, seqs: Iterable[int]) -> dict[int, StoredMessage]:
        """Return messages by their sequences, many asked for at once, without those that are missing."""
        found: dict[int, StoredMessage] = {}

        async def get(seq: int) -> None:
            message = await self.get_message(stream, seq=seq)
            if message is not None:
                found[seq] = message

        await _all_at_once(get, seqs)
        return found

    async def create_consumer(self, stream: str, config: Mapping[str, object]) -> dict[str, Any]:
        """Create a consumer by its `name`; return its info."""
        request = {"stream_name": stream, "config": config, "action": "create"}
        name = config["name"]
        try:
            return await self._api(f"CONSUMER.CREATE.{stream}.{name}", request, f"create a consumer of stream {stream}")
        except JetStreamError as exc:
            if exc.err_code == ErrCode.MAXIMUM_CONSUMERS:
                exc.fix = (
                    f"nats consumer ls {stream}   # remove what nobody needs, or raise the limit: nats stream edit {stream} "
                )
                exc.fix += "--max-consumers=-1; or, of the account, max_consumers in nats-server's configuration, and reload it"
            raise

    async def update_consumer(self, stream: str, config: Mapping[str, object]) -> None:
        """Give a consumer another configuration, complete; readers that wait for messages go on waiting."""
        request = {"stream_name": stream, "config": config, "action": "update"}
        await self._api(f"CONSUMER.CREATE.{stream}.{config['name']}", request, f"describe a consumer of stream {stream}")

    async def delete_consumer(self, stream: str, name: str) -> None:
        """Delete a consumer if the user may; otherwise it ends by itself some time after its last read."""
        if not self._may_delete_consumers:
            return
        try:
            await self._api(f"CONSUMER.DELETE.{stream}.{name}", {}, f"delete a consumer of stream {stream}")
        except SinkRefused:  # many readers may not: permission to delete one's own consumers includes all others
            self._may_delete_consumers = False

    async def purge(self, stream: str, subject: str) -> None:
        """Delete a stream's messages on one subject."""
        await self._api(f"STREAM.PURGE.{stream}", {"filter": subject}, f"delete messages on {subject}")

    async def subjects_of(self, stream: str, pattern: str) -> list[str]:
        """Return the subjects that a stream has messages on; none when there is no such stream."""
        found: list[str] = []
        while True:
            query = {"subjects_filter": pattern, "offset": len(found)}
            doing = f"describe stream {stream}"
            try:
                info = await self._api(f"STREAM.INFO.{stream}", query, doing)
            except JetStreamError as exc:
                if exc.err_code == ErrCode.STREAM_NOT_FOUND:
                    return []
                raise
            with _reading(doing):
                page = list(map(str, info["state"].get("subjects") or {}))
                total = int(info.get("total", len(found) + len(page)))
            found += page
            if not page or len(found) >= total:
                return found

    async def publish(self, subject: str, payload: bytes, headers: Mapping[str, str] | None = None) -> int:
        """Publish a message and wait until it is stored; return its sequence."""
        doing = f"store a message on {subject}"
        target = self.connection.api.key(subject) if is_bucket_key(subject) else subject
        reply = await self.connection.request(target, payload, timeout_s=API_TIMEOUT_S, headers=headers)
        with _reading(doing):
            return int(_checked(reply, doing)["seq"])

    # -- key-value buckets: https://docs.nats.io/nats-concepts/jetstream/key-value-store (ADR-8)

    async def kv_get(self, bucket: str, key: str) -> KvEntry | None:
        """Return a key's newest version from the bucket's leader; None when the key is missing or deleted."""
        message = await self.get_message(bucket_stream(bucket), last_by_subj=bucket_key(bucket, key))
        if message is None or KV_OPERATION_HEADER in message.headers:
            return None
        return KvEntry(message.data, message.seq)

    async def kv_get_all(self, bucket: str, keys: Iterable[str]) -> dict[str, KvEntry]:
        """Return the newest versions of keys, many asked for at once, without those that are missing or deleted."""
        found: dict[str, KvEntry] = {}

        async def get(key: str) -> None:
            entry = await self.kv_get(bucket, key)
            if entry is not None:
                found[key] = entry

        await _all_at_once(get, keys)
        return found

    async def kv_put_all(self, bucket: str, entries: Mapping[str, bytes]) -> None:
        """Write keys, many at once; return once all are stored."""

        async def put(key: str) -> None:
            await self.kv_put(bucket, key, entries[key])

        await _all_at_once(put, entries)

    async def keys_of(self, bucket: str, keys: str = ">") -> list[str]:
        """Return the keys of a bucket that match a pattern, deleted ones included; none when there is no such bucket."""
        found = map(parse, await self.subjects_of(bucket_stream(bucket), bucket_key(bucket, keys)))
        return [subject.token for subject in found if subject is not None]

    async def kv_put(self, bucket: str, key: str, value: bytes, expected_revision: int | None = None) -> int:
        """Write a key; return the new revision. Refused if the key is not at `expected_revision` (0: must not exist)."""
        try:
            return await self._kv_put(bucket, key, value, expected_revision)
        except JetStreamError as exc:
            edit = f"nats stream edit {bucket_stream(bucket)}"
            if exc.err_code == ErrCode.STORE_FAILED:  # a full bucket does not even give up old versions
                exc.fix = f"{edit} --max-bytes=-1 --max-msgs=-1   # or make room, if the disk of nats-server is full"
            elif exc.err_code == ErrCode.MESSAGE_EXCEEDS_MAXIMUM:
                exc.fix = f"{edit} --max-msg-size=-1"
            raise

    async def _kv_put(self, bucket: str, key: str, value: bytes, expected_revision: int | None) -> int:
        subject = bucket_key(bucket, key)
        if expected_revision is None:
            return await self.publish(subject, value)
        try:
            return await self.publish(subject, value, {EXPECTED_LAST_SUBJECT_SEQUENCE_HEADER: str(expected_revision)})
        except JetStreamError as exc:
            if expected_revision or exc.err_code not in WRONG_LAST_SEQUENCE:
                raise
            last = await self.get_message(bucket_stream(bucket), last_by_subj=subject)
            if last is None or KV_OPERATION_HEADER not in last.headers:
                raise
        # the key was deleted: the deletion marker is the subject's last message
        return await self.publish(subject, value, {EXPECTED_LAST_SUBJECT_SEQUENCE_HEADER: str(last.seq)})

    async def kv_history(self, bucket: str, key: str) -> list[KvEntry]:
        """Return the versions of a key that the bucket still has, oldest first."""
        found: list[KvEntry] = []
        seq = 1
        while True:
            message = await self.get_message(bucket_stream(bucket), seq=seq, next_by_subj=bucket_key(bucket, key))
            if message is None:
                return found
            if KV_OPERATION_HEADER not in message.headers:
                found.append(KvEntry(message.data, message.seq))
            seq = message.seq + 1

    async def _api(self, action: str, body: Mapping[str, object], doing: str) -> dict[str, Any]:
        reply = await self.connection.request(self.connection.api.action(action), orjson.dumps(body), timeout_s=API_TIMEOUT_S)
        if reply.status == 503 and self.connection.api != OWN:
            raise SinkUnavailable(
                "WB211", f"nothing answers below {self.connection.api.prefix} in NATS", said="503 no responders",
                means="the leaf node has lost its hub, or there is no such domain or import",
                fix="NATS_DOMAIN: the domain in the configuration of the server with the streams, jetstream { domain: ... }; "
                "NATS_JS_PREFIX: what the account's import of $JS.API has after to:",
            )  # fmt: skip
        if reply.status == 503 and not self.connection.info.get("jetstream"):
            raise _without_jetstream("the server", "503 no responders, and the server announces no JetStream")
        return _checked(reply, doing)


async def _all_at_once(request: Callable[[T], Awaitable[None]], keys: Iterable[T]) -> None:
    """Make requests without waiting for each reply. Raises the first error alone, not in a group."""
    limit = trio.CapacityLimiter(REQUESTS_AT_ONCE)
    errors: list[SinkUnavailable] = []

    async def one(key: T) -> None:
        async with limit:
            try:
                if not errors:
                    await request(key)
            except SinkUnavailable as exc:
                errors.append(exc)

    async with trio.open_nursery() as nursery:
        for key in keys:
            nursery.start_soon(one, key)
    if errors:
        raise errors[0]


def _checked(message: Msg, doing: str) -> dict[str, Any]:
    """Return a reply that is no refusal. Raises SinkUnavailable, JetStreamError for a refusal."""
    if message.status and not message.payload:
        raise _nobody(doing, f"{message.status} no responders")
    with _reading(doing):
        reply: dict[str, Any] = orjson.loads(message.payload)
        error = reply.get("error")
        if not error:
            return reply
        refusal = JetStreamError(doing, int(error["code"]), int(error.get("err_code", 0)), str(error.get("description", "")))
    raise _without_jetstream("the user's account", refusal.said) if refusal.err_code in _OFF else refusal


@contextmanager
def _reading(doing: str) -> Generator[None]:
    """Turn what a reply lacks into SinkUnavailable: something else than JetStream may answer there."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as exc:
        raise SinkUnavailable("WB212", f"the reply to a request to {doing} cannot be read", said=repr(exc)) from exc


async def where_it_exists(reading: Awaitable[T | None]) -> T | None:
    """Return what is read of a stream or bucket; None also when there is no such stream or bucket."""
    try:
        return await reading
    except JetStreamError as exc:
        if exc.err_code != ErrCode.STREAM_NOT_FOUND:
            raise
        return None


def _stream_in(reply: dict[str, Any]) -> dict[str, Any]:
    """Return a stream's description. Raises LookupError or TypeError unless it has what is read of it everywhere."""
    state = reply["state"]
    numbers = [state[name] for name in ("messages", "bytes", "first_seq", "last_seq")]
    numbers += [state.get("num_deleted") or 0, *(state.get("deleted") or ())]
    if any(type(number) is not int or not 0 <= number < 1 << 64 for number in numbers):
        raise TypeError(f"not a stream's state: {str(state)[:200]}")
    if type(reply["created"]) is not str or type(reply["config"]) is not dict:
        raise TypeError("not a stream's description")
    return reply


def _consumer_in(reply: dict[str, Any]) -> dict[str, Any]:
    """Return a consumer's description. Raises LookupError or TypeError unless it has what is read of it."""
    numbers = [reply["delivered"]["stream_seq"], reply["num_pending"], reply["num_ack_pending"]]
    if any(type(number) is not int or not 0 <= number < 1 << 64 for number in numbers) or type(reply["config"]) is not dict:
        raise TypeError(f"not a consumer's description: {str(reply)[:200]}")
    return reply


_OFF = (ErrCode.NOT_ENABLED, ErrCode.NOT_ENABLED_FOR_ACCOUNT)


def _without_jetstream(where: str, said: str) -> SinkRefused:
    """The error where JetStream is off, as the server itself says: only its configuration changes that."""
    return SinkRefused(
        "WB211", f"JetStream is off for {where} in NATS", said=said, means="nothing can be stored there",
        fix="start the server with JetStream: nats-server -js; for an account of its configuration: jetstream: enabled",
    )  # fmt: skip


def _nobody(doing: str, said: str) -> SinkUnavailable:
    return SinkUnavailable(
        "WB211",
        f"nothing in NATS answers a request to {doing}",
        said=said,
        means="JetStream is off for this account, has no leader yet, or no stream takes the subject",
        fix="start the server with JetStream: nats-server -js; or check: nats account info",
    )
