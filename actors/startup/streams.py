"""The streams and buckets of a bridge: created if missing, checked if they exist, never altered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig, SubjectTransform

from actors.clients.nats.connection import SinkRefused
from actors.clients.nats.jetstream import JetStream, JetStreamError
from actors.contract.subjects import (
    ARRAY_ALL,
    CDC_ALL,
    INIT,
    INIT_ALL,
    REQUEST_ALL,
    REQUESTS,
    bucket_keys,
    bucket_of,
    bucket_stream,
    cdc_subjects,
    publish_prefix,
)
from actors.errors import ConfigError, SinkUnavailable
from actors.settings.config import PublishMode
from actors.startup.stream_rules import (
    HISTORY,
    PAYLOAD_MIN_BYTES,
    ROLE_OF_REQUESTS,
    Role,
    buckets_of,
    examine,
    role_of_bucket,
    role_of_changes,
    role_of_snapshots,
    takes,
    unknown_fields,
)
from actors.startup.stream_sizes import NO_ROOM, SMALLEST_BYTES, Sizes, as_flag
from actors.telemetry.log import get_logger
from actors.telemetry.quantities import counted, human_bytes
from actors.values.formats import SnapshotFormat
from actors.wire.jetstream import ATOMIC_HEADERS_BYTES, UNAVAILABLE, ErrCode

DAY_S = 86_400
ATOMIC_SINCE = (2, 12, 1)
"""2.12.0 has atomic batches, but takes no message ids in them."""
GIB = 1 << 30

log = get_logger("startup")


@dataclass(frozen=True, slots=True)
class StreamSetup:
    """The present state of the streams, as far as the pipeline needs it."""

    stream: str
    publish_prefix: bytes
    """Put before each published subject; the stream removes it before storing."""
    mode: Literal["fast", "durable", "plain"]
    last_seq: int
    max_payload: int
    """Bytes of one message, headers included: the smaller of the server's limit and the stream's, less what an atomic batch
    adds to each message if there are such batches."""
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


def passing_config(name: str) -> StreamConfig:
    """Return the configuration of a stream that is needed for a moment only, and of a test of the path alone."""
    return StreamConfig(
        name=name, subjects=[publish_prefix(name) + CDC_ALL], storage=StorageType.MEMORY, max_age=60, max_bytes=64 * 1024,
        num_replicas=1,
    )  # fmt: skip


def bucket_config(bucket: str, replicas: int) -> StreamConfig:
    """Return the configuration of a bucket, as the nats command line would make it."""
    return StreamConfig(
        name=bucket_stream(bucket),
        subjects=[bucket_keys(bucket)],
        storage=StorageType.FILE,
        num_replicas=replicas,
        max_msgs_per_subject=HISTORY,
        discard=DiscardPolicy.NEW,
        allow_rollup_hdrs=True,
        deny_delete=True,
        allow_direct=True,
        duplicate_window=120,
    )


class WantedStream(NamedTuple):
    """A stream or bucket of a bridge, and how the bridge would make it."""

    role: Role
    config: StreamConfig


def wanted_streams(js: JetStream, *, stream: str, replicas: int, fmt: SnapshotFormat, zstd: bool) -> list[WantedStream]:
    """Return every stream and bucket of a bridge, in the order in which missing ones are created, and how it would make it."""
    buckets = [WantedStream(role_of_bucket(bucket), bucket_config(bucket, replicas)) for bucket in buckets_of(zstd=zstd)]
    changes = WantedStream(role_of_changes(stream), cdc_config(stream, replicas, js.connection.version))
    snapshots = WantedStream(role_of_snapshots(fmt), init_config(replicas, fmt))
    return [*buckets, WantedStream(ROLE_OF_REQUESTS, requests_config(replicas)), changes, snapshots]


async def prepare_streams(
    js: JetStream, *, stream: str, mode: PublishMode, replicas: int, fmt: SnapshotFormat = "map", zstd: bool = False
) -> StreamSetup:
    """Create missing streams and buckets, and check existing ones.

    Raises ConfigError, with the command that fixes the cause, for what cannot work; SinkUnavailable when NATS does not answer.
    """
    infos = await _ensure(js, wanted_streams(js, stream=stream, replicas=replicas, fmt=fmt, zstd=zstd), replicas)
    info, init = infos[stream], infos[INIT]
    config = info["config"]
    chosen = publish_mode(js, stream, mode, config)
    requests = infos.get(REQUESTS)
    return StreamSetup(
        stream,
        b"" if takes(config, cdc_subjects("x")) else publish_prefix(stream).encode(),
        chosen,
        int(info["state"]["last_seq"]),
        payload_max(js, config) - (ATOMIC_HEADERS_BYTES if chosen == "durable" else 0),
        payload_max(js, init["config"]),
        requests is not None and takes(requests["config"], ROLE_OF_REQUESTS.published),
    )


def publish_mode(
    js: JetStream, stream: str, wanted: PublishMode, config: Mapping[str, Any]
) -> Literal["fast", "durable", "plain"]:
    """Return how events are published. Raises ConfigError if server or stream cannot do what was asked for."""
    version = js.connection.version
    has_fast = version >= (2, 14, 0) and bool(config.get("allow_batched"))
    has_atomic = version >= ATOMIC_SINCE and bool(config.get("allow_atomic"))
    said = f"nats-server {js.connection.info.get('version')}"
    level = (config.get("metadata") or {}).get("_nats.level")
    said += f", API level {level}" if level else ""
    if wanted == "fast" and not has_fast:
        raise ConfigError(
            "WB232",
            f"--publish fast: stream {stream} does not take fast-ingest batches",
            said=f"{said}, allow_batched {bool(config.get('allow_batched'))}",
            fix=f"nats-server 2.14 or later and: nats stream edit {stream} --allow-fast; or --publish auto",
        )
    if wanted == "durable" and not has_atomic:
        raise ConfigError(
            "WB232",
            f"--publish durable: stream {stream} does not take atomic batches",
            said=f"{said}, allow_atomic {bool(config.get('allow_atomic'))}",
            means="a transaction could be seen in part",
            fix=f"nats-server 2.12.1 or later (2.15 for speed) and: nats stream edit {stream} --allow-batch; or --publish auto",
        )
    if wanted == "auto":
        return "fast" if has_fast else "plain"
    return wanted


async def check_changes(js: JetStream, stream: str) -> None:
    """Look whether the running CDC stream still keeps what it acknowledges.

    Raises ConfigError, with the command that fixes it, if somebody has edited the stream so that it does not; SinkUnavailable
    when it is gone, or NATS does not answer.
    """
    found = await js.stream_info(stream)
    if found is None:
        raise SinkUnavailable("WB221", f"stream {stream} is gone", means="nothing is confirmed to PostgreSQL")
    _refuse(role_of_changes(stream), found["config"])


async def ensure_bucket(js: JetStream, bucket: str, replicas: int) -> None:
    """Create a bucket if it is missing. Raises JetStreamError, and SinkRefused without permission."""
    if await js.stream_info(bucket_stream(bucket)) is None:
        await Sizes(js, replicas).create(bucket_config(bucket, replicas))


def payload_max(js: JetStream, config: Mapping[str, Any]) -> int:
    """Return the bytes of the largest message that server and stream take. Raises ConfigError if that is too small."""
    limits = [js.connection.max_payload, int(config.get("max_msg_size", -1))]
    most = min(limit for limit in limits if limit > 0)
    if most < PAYLOAD_MIN_BYTES:  # the server's: the stream's has been checked
        raise ConfigError(
            "WB233",
            f"the server takes messages of at most {most} bytes; the bridge needs {PAYLOAD_MIN_BYTES}",
            fix="raise max_payload of nats-server",
        )
    return most


async def _ensure(js: JetStream, wanted: Sequence[WantedStream], replicas: int) -> dict[str, dict[str, Any]]:
    """Return the infos of all streams by name; create what is missing, and check what exists.

    Without stream REQUESTS, which may be left out, requests are received only while the bridge runs. Transient errors, and
    errors of the query, pass through.
    """
    infos: dict[str, dict[str, Any]] = {}
    missing: list[StreamConfig] = []
    for role, config in wanted:
        found = await js.stream_info(role.name)
        if found is None:
            missing.append(config)
        else:
            _refuse(role, found["config"])
            unknown = unknown_fields(found["config"])
            if unknown:
                log.debug("a newer server: these settings are not checked", stream=role.name, settings=", ".join(unknown))
            infos[role.name] = found
    if missing:
        room = Sizes(js, replicas)
        await room.plan(missing)
        for config in list(missing):
            if infos and config.max_bytes:
                await room.fit(missing, next(iter(infos.values()))["config"])
            try:
                infos[str(config.name)] = await _create(js, config, room, missing)
            except ConfigError as exc:
                if config.name != REQUESTS:
                    raise
                log.warning("requests for snapshots are not kept while the bridge is down", reason=str(exc), fix=exc.fix)
            missing.remove(config)
        room.report()
    return infos


def _refuse(role: Role, config: Mapping[str, Any]) -> None:
    """Raise ConfigError for what cannot work. The stream_monitor shows the rest."""
    for finding in examine(role, config):
        if finding.refused:
            finding.refuse()


async def _create(js: JetStream, wanted: StreamConfig, room: Sizes, missing: Sequence[StreamConfig]) -> dict[str, Any]:
    try:
        return await room.create(wanted)
    except (JetStreamError, SinkRefused) as exc:
        if isinstance(exc, JetStreamError) and exc.status == UNAVAILABLE:
            raise
        if isinstance(exc, JetStreamError) and exc.err_code == ErrCode.STREAM_NAME_IN_USE:
            found = await js.stream_info(str(wanted.name))
            if found is not None:  # another bridge has just made it
                return found
        raise await cannot_create(js, wanted, room, missing, exc) from exc


async def cannot_create(
    js: JetStream, wanted: StreamConfig, room: Sizes, missing: Sequence[StreamConfig], exc: JetStreamError | SinkRefused
) -> ConfigError:
    """Return the error that says why, with the command that creates the stream; without permission, those for all missing."""
    err_code = exc.err_code if isinstance(exc, JetStreamError) else 0
    refused = isinstance(exc, SinkRefused)
    means, fix = "", "\n".join(_add_command(one, room.likely(one)) for one in (missing if refused else [wanted]))
    if err_code in NO_ROOM - {ErrCode.STREAM_MAX_BYTES_EXCEEDED}:
        means = f"JetStream cannot reserve even {human_bytes(SMALLEST_BYTES)} for it: the account's limit, the server's "
        means += "max_file_store or its disk is taken by other streams"
        shrink = room.commands_to_shrink()
        look = "nats account info; nats stream report   # see what takes the room, and make some; then: " + fix
        fix = "\n".join([*shrink, "walbridge run"]) if shrink else look
    elif err_code == ErrCode.STREAM_MAX_BYTES_EXCEEDED:
        means = f"the account allows no stream of {human_bytes(SMALLEST_BYTES)}"
        fix = "raise store_max_stream_bytes of the account to 1GB or more in nats-server's configuration, and reload it; then: "
        fix += "walbridge run"
    elif err_code == ErrCode.MAXIMUM_STREAMS:
        means = f"the account may have no more streams; {counted(len(missing), 'stream')} and buckets are missing: "
        means += ", ".join(str(one.name) for one in missing)
        fix = "nats stream ls --all   # remove streams that nobody needs, or raise max_streams of the account in nats-server's "
        fix += "configuration, and reload it; then: walbridge run"
    elif err_code == ErrCode.SUBJECTS_OVERLAP:
        means = await _who_takes(js, wanted.subjects or ())
        fix = f"take the subjects from that stream: nats stream edit NAME --subjects=...; then: {fix}"
    bucket = bucket_of(str(wanted.name))
    if bucket:
        return ConfigError("WB231", f"KV bucket {bucket} is missing and cannot be created", said=exc.said, means=means, fix=fix)
    return ConfigError("WB230", f"stream {wanted.name} is missing and cannot be created", said=exc.said, means=means, fix=fix)


def _add_command(wanted: StreamConfig, size: int) -> str:
    """Return the command that creates what the bridge would, with a size that fits as far as anybody can tell."""
    replicas = wanted.num_replicas or 1
    bucket = bucket_of(str(wanted.name))
    if bucket:
        limit = f" --max-bucket-size={as_flag(size)}" if size else ""
        return f"nats kv add {bucket} --history={HISTORY} --replicas={replicas}{limit}"
    parts = [
        f"nats stream add {wanted.name} --subjects='{','.join(wanted.subjects or ())}'",
        f"--storage=file --retention=limits --discard={'new' if wanted.discard == DiscardPolicy.NEW else 'old'}",
    ]
    if wanted.max_age:
        parts.append(f"--max-age={int(wanted.max_age) // DAY_S}d")
    if size:
        parts.append(f"--max-bytes={as_flag(size)}")
    if wanted.max_msgs_per_subject == 1:
        parts.append("--max-msgs-per-subject=1 --discard-per-subject")
    transform = wanted.subject_transform
    if transform is not None:
        parts.append(f"--transform-source='{transform.src}' --transform-destination='{transform.dest}'")
    if replicas != 1:
        parts.append(f"--replicas={replicas}")
    return " ".join([*parts, "--defaults"])


async def _who_takes(js: JetStream, taken: Sequence[str]) -> str:
    try:
        names = [name for subject in taken for name in await js.streams_taking(subject)]
    except SinkUnavailable:  # no permission to list streams: the server's own words must do
        return ""
    return f"{' and '.join(names)} takes {', '.join(taken)} or a part of it" if names else ""
