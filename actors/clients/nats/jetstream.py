"""JetStream's API over one connection: streams, single messages, and key-value buckets, which are streams too.

Requests and replies are JSON: https://docs.nats.io/reference/reference-protocols/nats_api_reference. Configurations stay plain
dicts, so that a field of a newer server survives.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson
from nats.js.api import DiscardPolicy, StorageType, StreamConfig

from actors.clients.nats.connection import NatsConnection, SinkRefused
from actors.contract.subjects import bucket_key, bucket_keys, bucket_stream, parse
from actors.errors import SinkUnavailable
from actors.wire.jetstream import EXPECTED_LAST_SUBJECT_SEQUENCE_HEADER, KV_OPERATION_HEADER, WRONG_LAST_SEQUENCE, ErrCode
from actors.wire.nats import Msg, decode_headers

API_TIMEOUT_S = 5.0


class JetStreamError(SinkUnavailable):
    """JetStream understood and refused: its own status (as in HTTP), code and words."""

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
    """The API as seen by one account. Every method raises SinkUnavailable when no reply comes, JetStreamError when refused."""

    def __init__(self, connection: NatsConnection) -> None:
        self.connection = connection
        self._may_delete_consumers = True

    async def stream_info(self, name: str, *, deleted_details: bool = False) -> dict[str, Any] | None:
        """Configuration and state of a stream, None when there is none. `deleted_details`: with all deleted sequences."""
        query = {"deleted_details": True} if deleted_details else {}
        try:
            return await self._api(f"STREAM.INFO.{name}", query, f"describe stream {name}")
        except JetStreamError as exc:
            if exc.err_code == ErrCode.STREAM_NOT_FOUND:
                return None
            raise

    async def consumers(self, stream: str) -> list[dict[str, Any]]:
        """The consumers of a stream, the first few hundred."""
        reply = await self._api(f"CONSUMER.LIST.{stream}", {"offset": 0}, f"list the consumers of stream {stream}")
        return list(reply["consumers"] or ())

    async def delete_stream(self, name: str) -> None:
        """Delete a stream with all it holds; one that is not there is no error."""
        try:
            await self._api(f"STREAM.DELETE.{name}", {}, f"delete stream {name}")
        except JetStreamError as exc:
            if exc.err_code != ErrCode.STREAM_NOT_FOUND:
                raise

    async def create_stream(self, config: Mapping[str, object]) -> dict[str, Any]:
        """Create a stream; equal to an existing one is no error."""
        return await self._api(f"STREAM.CREATE.{config['name']}", config, f"create stream {config['name']}")

    async def streams_taking(self, subject: str) -> list[str]:
        """Names of the streams that take a subject; with wildcards, some part of it."""
        return list(map(str, (await self._api("STREAM.NAMES", {"subject": subject}, "list streams")).get("streams") or ()))

    async def get_message(self, stream: str, **query: object) -> StoredMessage | None:
        """One message by `seq=n`, `last_by_subj=subject`, or `seq=n, next_by_subj=subject`; None when there is none."""
        try:
            reply = await self._api(f"STREAM.MSG.GET.{stream}", query, f"read a message of stream {stream}")
        except JetStreamError as exc:
            if exc.err_code == ErrCode.MESSAGE_NOT_FOUND:
                return None
            raise
        raw = reply["message"]
        headers = decode_headers(base64.b64decode(raw.get("hdrs", "")))
        return StoredMessage(
            str(raw["subject"]), int(raw["seq"]), headers, base64.b64decode(raw.get("data", "")), str(raw["time"])
        )

    async def create_consumer(self, stream: str, config: Mapping[str, object]) -> dict[str, Any]:
        """Create a consumer by its `name`; returns what STREAM.CONSUMER.INFO would."""
        request = {"stream_name": stream, "config": config, "action": "create"}
        return await self._api(f"CONSUMER.CREATE.{stream}.{config['name']}", request, f"create a consumer of stream {stream}")

    async def delete_consumer(self, stream: str, name: str) -> None:
        """Delete a consumer, if the user may: it ends by itself when it is not read any more."""
        if not self._may_delete_consumers:
            return
        try:
            await self._api(f"CONSUMER.DELETE.{stream}.{name}", {}, f"delete a consumer of stream {stream}")
        except SinkRefused:  # a user who may delete its own may delete others' too: many readers may not
            self._may_delete_consumers = False

    async def purge(self, stream: str, subject: str) -> None:
        """Delete a stream's messages on one subject."""
        await self._api(f"STREAM.PURGE.{stream}", {"filter": subject}, f"delete messages on {subject}")

    async def subjects_of(self, stream: str, pattern: str) -> list[str]:
        """The subjects that a stream has messages on; none when there is no stream."""
        found: list[str] = []
        while True:
            query = {"subjects_filter": pattern, "offset": len(found)}
            try:
                info = await self._api(f"STREAM.INFO.{stream}", query, f"describe stream {stream}")
            except JetStreamError as exc:
                if exc.err_code == ErrCode.STREAM_NOT_FOUND:
                    return []
                raise
            page = list(info["state"].get("subjects") or {})
            found += page
            if not page or len(found) >= int(info.get("total", len(found))):
                return found

    async def publish(self, subject: str, payload: bytes, headers: Mapping[str, str] | None = None) -> int:
        """Publish and wait until it is stored; returns its sequence."""
        reply = await self.connection.request(subject, payload, timeout_s=API_TIMEOUT_S, headers=headers)
        return int(_checked(reply, f"store a message on {subject}")["seq"])

    # -- key-value buckets: https://docs.nats.io/nats-concepts/jetstream/key-value-store (ADR-8)

    async def ensure_bucket(self, name: str, *, history: int, replicas: int) -> None:
        """Create a bucket unless it is there, as the nats command line would."""
        if await self.stream_info(bucket_stream(name)) is None:
            config = StreamConfig(
                name=bucket_stream(name),
                subjects=[bucket_keys(name)],
                storage=StorageType.FILE,
                num_replicas=replicas,
                max_msgs_per_subject=history,
                discard=DiscardPolicy.NEW,
                allow_rollup_hdrs=True,
                deny_delete=True,
                allow_direct=True,
                duplicate_window=120,
            )
            await self.create_stream(config.as_dict())

    async def kv_get(self, bucket: str, key: str) -> KvEntry | None:
        """The newest version of a key, None when it is missing or deleted. Read from the bucket's leader."""
        message = await self.get_message(bucket_stream(bucket), last_by_subj=bucket_key(bucket, key))
        if message is None or KV_OPERATION_HEADER in message.headers:
            return None
        return KvEntry(message.data, message.seq)

    async def keys_of(self, bucket: str) -> list[str]:
        """The keys of a bucket, deleted ones too; none when there is no bucket."""
        found = map(parse, await self.subjects_of(bucket_stream(bucket), bucket_keys(bucket)))
        return [subject.token for subject in found if subject is not None]

    async def kv_put(self, bucket: str, key: str, value: bytes, expected_revision: int | None = None) -> int:
        """Write a key; returns the new revision. With `expected_revision` (0: must not exist) refused if it is another."""
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
        # the key does not exist, and the mark of its deletion is the subject's last message
        return await self.publish(subject, value, {EXPECTED_LAST_SUBJECT_SEQUENCE_HEADER: str(last.seq)})

    async def kv_history(self, bucket: str, key: str) -> list[KvEntry]:
        """The versions of a key that the bucket still has, oldest first."""
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
        reply = await self.connection.request(f"$JS.API.{action}", orjson.dumps(body), timeout_s=API_TIMEOUT_S)
        return _checked(reply, doing)


def _checked(message: Msg, doing: str) -> dict[str, Any]:
    if message.status and not message.payload:
        raise _nobody(doing, f"{message.status} no responders")
    try:
        reply = orjson.loads(message.payload)
        error = reply.get("error")
    except (orjson.JSONDecodeError, AttributeError) as exc:
        raise SinkUnavailable("WB212", f"a reply that is no JSON when asked to {doing}", said=repr(exc)) from exc
    if not error:
        return dict(reply)
    refusal = JetStreamError(doing, int(error.get("code", 0)), int(error.get("err_code", 0)), str(error.get("description", "")))
    raise _nobody(doing, refusal.said) if refusal.err_code == ErrCode.NOT_ENABLED_FOR_ACCOUNT else refusal


def _nobody(doing: str, said: str) -> SinkUnavailable:
    return SinkUnavailable(
        "WB211",
        f"no one in NATS could {doing}",
        said=said,
        means="JetStream is off for this account, has no leader yet, or no stream takes the subject",
        fix="start the server with JetStream: nats-server -js; or look: nats account info",
    )
