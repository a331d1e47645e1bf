"""The streams and buckets of a bridge: made where they are missing, looked at where they are there, never altered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from actors.clients.nats.connection import SinkRefused
from actors.clients.nats.jetstream import JetStream, JetStreamError
from actors.errors import ConfigError, SinkUnavailable
from actors.settings.config import PublishMode
from actors.telemetry.log import get_logger
from actors.values.formats import SnapshotFormat

DAY_NS = 86_400_000_000_000
GIB = 1 << 30
PAYLOAD_MIN_BYTES = 4096
"""Below it not even a schema event fits."""
BUCKETS = ("schemas", "bridges")
CDC_SUBJECTS = "cdc.x.insert cdc.x.update cdc.x.delete cdc.x.truncate cdc.x.schema cdc._bridge.gap".split()
INIT_SUBJECTS = "init.start.x init.snap.x.snap-1-a.0 init.meta.x init.error.x init.schema.x".split()
ARRAY_SUBJECTS = ["snapshot.init.x", "snapshot.data.x"]
SUBJECTS_OVERLAP = 10065
TRY_AGAIN = 503
"""JetStream's status while it has no leader: nothing that a person need mend."""


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


def cdc_config(stream: str, replicas: int, version: tuple[int, int, int]) -> dict[str, object]:
    """The CDC stream as the bridge creates it."""
    config: dict[str, object] = {
        "name": stream,
        "subjects": ["cdc.>"] if stream == "CDC" else [f"_{stream}.cdc.>"],
        "storage": "file",
        "retention": "limits",
        "discard": "old",
        "max_age": 8 * DAY_NS,
        "max_bytes": 10 * GIB,
        "duplicate_window": 10_000_000_000,
        "num_replicas": replicas,
        "allow_direct": True,
    }
    if stream != "CDC":
        config["subject_transform"] = {"src": f"_{stream}.cdc.>", "dest": "cdc.>"}
    if version >= (2, 12, 0):
        config["allow_atomic"] = True
    if version >= (2, 14, 0):
        config["allow_batched"] = True
    return config


def init_config(replicas: int, fmt: SnapshotFormat = "map") -> dict[str, object]:
    """The INIT stream as the bridge creates it."""
    return {
        "name": "INIT",
        "subjects": ["init.>"] if fmt == "map" else ["init.>", "snapshot.init.>", "snapshot.data.>"],
        "storage": "file",
        "retention": "limits",
        "discard": "old",
        "max_age": 7 * DAY_NS,
        "max_bytes": 8 * GIB,
        "num_replicas": replicas,
        "allow_direct": True,
    }


def requests_config(replicas: int) -> dict[str, object]:
    """The stream that keeps requests for snapshots: one for each table, however often it is asked for."""
    return {
        "name": "REQUESTS",
        "subjects": ["snapshot.request.>"],
        "storage": "file",
        "retention": "limits",
        "discard": "new",
        "discard_new_per_subject": True,
        "max_msgs_per_subject": 1,
        "max_msgs": 10_000,
        "max_msg_size": 1024,
        "num_replicas": replicas,
        "allow_direct": True,
    }


async def prepare_streams(
    js: JetStream, *, stream: str, mode: PublishMode, replicas: int, fmt: SnapshotFormat = "map", zstd: bool = False
) -> StreamSetup:
    """Make what is missing and check what is there.

    Raises ConfigError, with the command that mends it, for what cannot work; SinkUnavailable when NATS does not answer.
    """
    version = js.connection.version
    info = await _ensure(js, cdc_config(stream, replicas, version))
    config = info["config"]
    _check_cdc(stream, config)
    init = await _ensure(js, init_config(replicas, fmt))
    _check_covered("INIT", init["config"], "init.>", INIT_SUBJECTS)
    if fmt == "array":
        _check_covered("INIT", init["config"], "init.>,snapshot.init.>,snapshot.data.>", INIT_SUBJECTS + ARRAY_SUBJECTS)
    _check_writable("INIT", init["config"])
    for bucket in (*BUCKETS, "dictionaries") if zstd else BUCKETS:
        try:
            await js.ensure_bucket(bucket, history=10, replicas=replicas)
        except (JetStreamError, SinkRefused) as exc:
            if isinstance(exc, JetStreamError) and exc.status == TRY_AGAIN:
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
        b"" if _covers(config, CDC_SUBJECTS) else f"_{stream}.".encode(),
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
    return _covers(info["config"], ["snapshot.request.x"])


async def _ensure(js: JetStream, wanted: Mapping[str, object]) -> dict[str, Any]:
    """The stream's info; made when it is missing. A fault that passes, and one in looking, stays what it is."""
    name = str(wanted["name"])
    found = await js.stream_info(name)
    if found is not None:
        return found
    try:
        return await js.create_stream(wanted)
    except (JetStreamError, SinkRefused) as exc:
        if isinstance(exc, JetStreamError) and exc.status == TRY_AGAIN:
            raise
        means, fix = "", _add_command(wanted)
        if isinstance(exc, JetStreamError) and exc.err_code == SUBJECTS_OVERLAP:
            means = await _who_takes(js, wanted)
            fix = f"take the subjects from that stream: nats stream edit NAME --subjects=...; then: {fix}"
        raise ConfigError(
            "WB230", f"stream {name} is missing and cannot be created", said=exc.said, means=means, fix=fix
        ) from exc


def _add_command(wanted: Mapping[str, Any]) -> str:
    parts = [
        f"nats stream add {wanted['name']} --subjects='{','.join(wanted['subjects'])}'",
        "--storage=file --retention=limits --discard=old",
    ]
    if "subject_transform" in wanted:
        transform = wanted["subject_transform"]
        parts.append(f"--transform-source='{transform['src']}' --transform-destination='{transform['dest']}'")
    if wanted["num_replicas"] != 1:
        parts.append(f"--replicas={wanted['num_replicas']}")
    return " ".join([*parts, "--defaults"])


async def _who_takes(js: JetStream, wanted: Mapping[str, Any]) -> str:
    try:
        names = [name for subject in wanted["subjects"] for name in await js.streams_taking(subject)]
    except SinkUnavailable:  # not allowed to ask: the server's own words must do
        return ""
    return f"{' and '.join(names)} takes {', '.join(wanted['subjects'])} or a part of it" if names else ""


def _check_cdc(stream: str, config: Mapping[str, Any]) -> None:
    _check_writable(stream, config)
    if stream == "CDC":
        _check_covered(stream, config, "cdc.>", CDC_SUBJECTS)
    elif not _covers(config, CDC_SUBJECTS):
        _check_covered(stream, config, f"_{stream}.cdc.>", [f"_{stream}.{subject}" for subject in CDC_SUBJECTS])
        transform = config.get("subject_transform") or {}
        if (transform.get("src"), transform.get("dest")) != (f"_{stream}.cdc.>", "cdc.>"):
            raise ConfigError(
                "WB234",
                f"stream {stream} does not map _{stream}.cdc.> to cdc.>",
                means="its messages would not have the subjects that consumers read",
                fix=f"nats stream edit {stream} --transform-source='_{stream}.cdc.>' --transform-destination='cdc.>'",
            )
    if config.get("retention", "limits") != "limits":
        raise ConfigError(
            "WB235",
            f"stream {stream} has retention {config['retention']}",
            means="it removes what one consumer has read, or what nobody asked for yet",
            fix=f"a stream with retention limits: nats stream rm {stream}; the bridge makes it anew",
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
                else f"nats stream rm {stream}   # the bridge makes it anew; or another one: --stream NAME",
            )


def _check_covered(stream: str, config: Mapping[str, Any], wanted: str, subjects: Sequence[str]) -> None:
    if not _covers(config, subjects):
        raise ConfigError(
            "WB237",
            f"stream {stream} takes {', '.join(config.get('subjects') or ['nothing'])}, not {wanted}",
            fix=f"nats stream edit {stream} --subjects='{wanted}'",
        )


def _covers(config: Mapping[str, Any], subjects: Sequence[str]) -> bool:
    """The stream takes every one of these subjects, of which `x` stands for any table."""
    patterns = [pattern.split(".") for pattern in config.get("subjects") or ()]
    return all(any(_matches(pattern, subject.split(".")) for pattern in patterns) for subject in subjects)


def _matches(pattern: list[str], subject: list[str]) -> bool:
    for i, token in enumerate(pattern):
        if token == ">":
            return len(subject) > i
        if i >= len(subject) or token not in ("*", subject[i]):
            return False
    return len(pattern) == len(subject)
