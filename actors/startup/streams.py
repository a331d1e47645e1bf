"""The streams and buckets of a bridge: created if missing, checked if they exist, never altered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig, SubjectTransform

from actors.clients.nats.connection import SinkRefused
from actors.clients.nats.jetstream import JetStream, JetStreamError
from actors.contract.subjects import (
    ARRAY_ALL,
    BRIDGES,
    CDC_ALL,
    DICTIONARIES,
    INIT,
    INIT_ALL,
    REQUEST_ALL,
    REQUESTS,
    SCHEMAS,
    arrays_of_table,
    cdc_subjects,
    covers,
    init_subjects,
    publish_prefix,
    request,
)
from actors.errors import ConfigError, SinkUnavailable
from actors.settings.config import PublishMode
from actors.telemetry.log import get_logger
from actors.values.formats import SnapshotFormat
from actors.wire.jetstream import UNAVAILABLE, ErrCode

DAY_S = 86_400
GIB = 1 << 30
PAYLOAD_MIN_BYTES = 4096
"""A smaller message cannot even hold a schema event."""
BUCKETS = (SCHEMAS, BRIDGES)
CDC_SUBJECTS, INIT_SUBJECTS, ARRAY_SUBJECTS = cdc_subjects("x"), init_subjects("x"), arrays_of_table("x")
"""Subjects that the streams must take for any table; `x` stands for its token."""


log = get_logger("startup")


@dataclass(frozen=True, slots=True)
class StreamSetup:
    """The present state of the streams, as far as the pipeline needs it."""

    stream: str
    publish_prefix: bytes
    """Put before each published subject; the stream removes it before storing."""
    mode: Literal["fast", "plain"]
    last_seq: int
    max_payload: int
    """Bytes of one message, headers included: the smaller of the server's limit and the stream's."""
    init_payload_max: int
    """The same for stream INIT."""
    requests_kept: bool
    """Stream REQUESTS exists; without it a request is received only while the bridge runs."""


def cdc_config(stream: str, replicas: int, version: tuple[int, int, int]) -> StreamConfig:
    """Return the configuration with which the bridge creates the CDC stream."""
    prefix = publish_prefix(stream)
    return StreamConfig(
        name=stream,
        subjects=[prefix + CDC_ALL],
        subject_transform=SubjectTransform(prefix + CDC_ALL, CDC_ALL) if prefix else None,
        storage=StorageType.FILE,
        retention=RetentionPolicy.LIMITS,
        discard=DiscardPolicy.OLD,
        max_age=8 * DAY_S,
        max_bytes=10 * GIB,
        duplicate_window=10,
        num_replicas=replicas,
        allow_direct=True,
        allow_atomic=True if version >= (2, 12, 0) else None,
        allow_batched=True if version >= (2, 14, 0) else None,
    )


def init_config(replicas: int, fmt: SnapshotFormat = "map") -> StreamConfig:
    """Return the configuration with which the bridge creates stream INIT."""
    return StreamConfig(
        name=INIT,
        subjects=_init_patterns(fmt),
        storage=StorageType.FILE,
        retention=RetentionPolicy.LIMITS,
        discard=DiscardPolicy.OLD,
        max_age=7 * DAY_S,
        max_bytes=8 * GIB,
        num_replicas=replicas,
        allow_direct=True,
    )


def _init_patterns(fmt: SnapshotFormat) -> list[str]:
    return [INIT_ALL, *(ARRAY_ALL if fmt == "array" else ())]


def requests_config(replicas: int) -> StreamConfig:
    """Return the configuration of stream REQUESTS, which keeps one request per table."""
    return StreamConfig(
        name=REQUESTS,
        subjects=[REQUEST_ALL],
        storage=StorageType.FILE,
        retention=RetentionPolicy.LIMITS,
        discard=DiscardPolicy.NEW,
        discard_new_per_subject=True,
        max_msgs_per_subject=1,
        max_msgs=10_000,
        max_msg_size=1024,
        num_replicas=replicas,
        allow_direct=True,
    )


async def prepare_streams(
    js: JetStream, *, stream: str, mode: PublishMode, replicas: int, fmt: SnapshotFormat = "map", zstd: bool = False
) -> StreamSetup:
    """Create missing streams and buckets, and check existing ones.

    Raises ConfigError, with the command that fixes the cause, for what cannot work; SinkUnavailable when NATS does not answer.
    """
    version = js.connection.version
    info = await _ensure(js, cdc_config(stream, replicas, version))
    config = info["config"]
    _check_cdc(stream, config)
    init = await _ensure(js, init_config(replicas, fmt))
    _check_covered(INIT, init["config"], _init_patterns("map"), INIT_SUBJECTS)
    if fmt == "array":
        _check_covered(INIT, init["config"], _init_patterns("array"), INIT_SUBJECTS + ARRAY_SUBJECTS)
    _check_writable(INIT, init["config"])
    for bucket in (*BUCKETS, DICTIONARIES) if zstd else BUCKETS:
        try:
            await js.ensure_bucket(bucket, history=10, replicas=replicas)
        except (JetStreamError, SinkRefused) as exc:
            if isinstance(exc, JetStreamError) and exc.status == UNAVAILABLE:
                raise
            raise ConfigError(
                "WB231", f"KV bucket {bucket} is missing and cannot be created", said=exc.said,
                fix=f"nats kv add {bucket} --history=10 --replicas={replicas}",
            ) from exc  # fmt: skip
    fast = version >= (2, 14, 0) and bool(config.get("allow_batched"))
    if mode == "fast" and not fast:
        raise ConfigError(
            "WB232",
            f"--publish fast: stream {stream} does not take fast-ingest batches",
            said=f"nats-server {js.connection.info.get('version')}, allow_batched {bool(config.get('allow_batched'))}",
            fix=f"nats-server 2.14 or later and: nats stream edit {stream} --allow-fast; or --publish auto",
        )
    payload_max = _payload_max(js, config)
    init_payload_max = _payload_max(js, init["config"])
    return StreamSetup(
        stream,
        b"" if _takes(config, CDC_SUBJECTS) else publish_prefix(stream).encode(),
        "plain" if mode == "plain" or not fast else "fast",
        int(info["state"]["last_seq"]),
        payload_max,
        init_payload_max,
        await _requests_kept(js, replicas),
    )


def _payload_max(js: JetStream, config: Mapping[str, Any]) -> int:
    limits = [js.connection.max_payload, int(config.get("max_msg_size", -1))]
    payload_max = min(limit for limit in limits if limit > 0)
    if payload_max < PAYLOAD_MIN_BYTES:
        name = config["name"]
        raise ConfigError(
            "WB233",
            f"messages of stream {name} may have only {payload_max} bytes; the bridge needs {PAYLOAD_MIN_BYTES}",
            fix=f"raise max_payload of nats-server, or: nats stream edit {name} --max-msg-size=-1",
        )
    return payload_max


async def _requests_kept(js: JetStream, replicas: int) -> bool:
    """Create stream REQUESTS if allowed; without it requests are received only while the bridge runs."""
    try:
        info = await _ensure(js, requests_config(replicas))
    except ConfigError as exc:
        log.warning("requests for snapshots are not kept while the bridge is down", reason=str(exc), fix=exc.fix)
        return False
    return _takes(info["config"], [request("x")])


async def _ensure(js: JetStream, wanted: StreamConfig) -> dict[str, Any]:
    """Return a stream's info; create the stream if missing. Transient errors, and errors of the query, pass through."""
    name = str(wanted.name)
    found = await js.stream_info(name)
    if found is not None:
        return found
    try:
        return await js.create_stream(wanted.as_dict())
    except (JetStreamError, SinkRefused) as exc:
        if isinstance(exc, JetStreamError) and exc.status == UNAVAILABLE:
            raise
        means, fix = "", _add_command(wanted)
        if isinstance(exc, JetStreamError) and exc.err_code == ErrCode.SUBJECTS_OVERLAP:
            means = await _who_takes(js, wanted.subjects or ())
            fix = f"take the subjects from that stream: nats stream edit NAME --subjects=...; then: {fix}"
        raise ConfigError(
            "WB230", f"stream {name} is missing and cannot be created", said=exc.said, means=means, fix=fix
        ) from exc


def _add_command(wanted: StreamConfig) -> str:
    parts = [
        f"nats stream add {wanted.name} --subjects='{','.join(wanted.subjects or ())}'",
        "--storage=file --retention=limits --discard=old",
    ]
    transform = wanted.subject_transform
    if transform is not None:
        parts.append(f"--transform-source='{transform.src}' --transform-destination='{transform.dest}'")
    if wanted.num_replicas != 1:
        parts.append(f"--replicas={wanted.num_replicas}")
    return " ".join([*parts, "--defaults"])


async def _who_takes(js: JetStream, taken: Sequence[str]) -> str:
    try:
        names = [name for subject in taken for name in await js.streams_taking(subject)]
    except SinkUnavailable:  # no permission to list streams: the server's own words must do
        return ""
    return f"{' and '.join(names)} takes {', '.join(taken)} or a part of it" if names else ""


def _check_cdc(stream: str, config: Mapping[str, Any]) -> None:
    _check_writable(stream, config)
    prefix = publish_prefix(stream)
    if not prefix:
        _check_covered(stream, config, [CDC_ALL], CDC_SUBJECTS)
    elif not _takes(config, CDC_SUBJECTS):
        published = prefix + CDC_ALL
        _check_covered(stream, config, [published], [prefix + subject for subject in CDC_SUBJECTS])
        transform = config.get("subject_transform") or {}
        if (transform.get("src"), transform.get("dest")) != (published, CDC_ALL):
            raise ConfigError(
                "WB234",
                f"stream {stream} does not map {published} to {CDC_ALL}",
                means="its messages would not have the subjects that consumers read",
                fix=f"nats stream edit {stream} --transform-source='{published}' --transform-destination='{CDC_ALL}'",
            )
    if config.get("retention", "limits") != "limits":
        raise ConfigError(
            "WB235",
            f"stream {stream} has retention {config['retention']}",
            means="it removes messages that one consumer has read, or that no consumer has asked for",
            fix=f"nats stream rm {stream}   # the bridge creates it again, with retention limits",
        )


def _check_writable(stream: str, config: Mapping[str, Any]) -> None:
    for wrong, means, fix in (
        (config.get("no_ack"), "no_ack: a publish is never acknowledged, so nothing could ever be confirmed", "--ack"),
        (config.get("sealed"), "sealed: nothing can be stored in it any more", ""),
        (config.get("mirror"), "a mirror of another stream: only the original can be written", ""),
        (config.get("sources"), "fed from other streams too, whose messages would come between the bridge's", ""),
        (config.get("persist_mode") == "async", "persist_mode async: it acknowledges before it has written anything", ""),
    ):
        if wrong:
            raise ConfigError(
                "WB236",
                f"stream {stream} is {means}" if not fix else f"stream {stream} has {means}",
                fix=f"nats stream edit {stream} {fix}"
                if fix
                else f"nats stream rm {stream}   # the bridge creates it again; or use another stream: --stream NAME",
            )


def _check_covered(stream: str, config: Mapping[str, Any], patterns: Sequence[str], published: Sequence[str]) -> None:
    if not _takes(config, published):
        wanted = ",".join(patterns)
        raise ConfigError(
            "WB237",
            f"stream {stream} takes {', '.join(config.get('subjects') or ['nothing'])}, not {wanted}",
            fix=f"nats stream edit {stream} --subjects='{wanted}'",
        )


def _takes(config: Mapping[str, Any], published: Sequence[str]) -> bool:
    """Return whether the stream takes every one of these subjects."""
    return covers(config.get("subjects") or (), published)
