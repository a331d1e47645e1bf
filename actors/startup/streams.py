"""The streams and buckets of a bridge: made where they are missing, checked where they exist, never altered."""

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
"""Below it not even a schema event fits."""
BUCKETS = (SCHEMAS, BRIDGES)
CDC_SUBJECTS, INIT_SUBJECTS, ARRAY_SUBJECTS = cdc_subjects("x"), init_subjects("x"), arrays_of_table("x")
"""What the streams must take, of any table: `x` stands for it."""


log = get_logger("startup")


@dataclass(frozen=True, slots=True)
class StreamSetup:
    """The CDC stream as it is."""

    stream: str
    publish_prefix: bytes
    """Before each subject as published; the stream maps it away before it stores."""
    mode: Literal["fast", "plain"]
    last_seq: int
    max_payload: int
    """Bytes of one message, headers included: the smaller of the server's limit and the stream's."""
    init_payload_max: int
    """The same of stream INIT."""
    requests_kept: bool
    """Stream REQUESTS is there; without it a request is heard only while the bridge runs."""


def cdc_config(stream: str, replicas: int, version: tuple[int, int, int]) -> StreamConfig:
    """The CDC stream as the bridge creates it."""
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
    """The INIT stream as the bridge creates it."""
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
    """The stream that keeps requests for snapshots: one for each table, however often it is asked for."""
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
    """Make what is missing and check what is there.

    Raises ConfigError, with the command that repairs it, for what cannot work; SinkUnavailable when NATS does not answer.
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
            f"messages of stream {name} may have only {payload_max} bytes; at least {PAYLOAD_MIN_BYTES} are needed",
            fix=f"raise max_payload of nats-server, or: nats stream edit {name} --max-msg-size=-1",
        )
    return payload_max


async def _requests_kept(js: JetStream, replicas: int) -> bool:
    """Make stream REQUESTS if it may be made; requests are heard without it too, while the bridge runs."""
    try:
        info = await _ensure(js, requests_config(replicas))
    except ConfigError as exc:
        log.warning("requests for snapshots are not kept while the bridge is down", reason=str(exc), fix=exc.fix)
        return False
    return _takes(info["config"], [request("x")])


async def _ensure(js: JetStream, wanted: StreamConfig) -> dict[str, Any]:
    """The stream's info; made when it is missing. A fault that passes, and one in looking, stays what it is."""
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
    except SinkUnavailable:  # not allowed to ask: the server's own words must do
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
            means="it removes what one consumer has read, or what no consumer has asked for yet",
            fix=f"a stream with retention limits: nats stream rm {stream}; the bridge makes it again",
        )


def _check_writable(stream: str, config: Mapping[str, Any]) -> None:
    for wrong, means, fix in (
        (config.get("no_ack"), "no_ack: a publish is never acknowledged, so nothing could ever be confirmed", "--ack"),
        (config.get("sealed"), "sealed: nothing can be stored in it any more", ""),
        (config.get("mirror"), "a mirror of another stream: only that one can be written", ""),
        (config.get("sources"), "fed from other streams too, which would come between its own messages", ""),
        (config.get("persist_mode") == "async", "persist_mode async: it acknowledges before it has written anything", ""),
    ):
        if wrong:
            raise ConfigError(
                "WB236",
                f"stream {stream} is {means}" if not fix else f"stream {stream} has {means}",
                fix=f"nats stream edit {stream} {fix}"
                if fix
                else f"nats stream rm {stream}   # the bridge makes it again; or another one: --stream NAME",
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
    """The stream takes every one of these subjects."""
    return covers(config.get("subjects") or (), published)
