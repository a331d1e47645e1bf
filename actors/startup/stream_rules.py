"""What an administrator may set on a stream or bucket: each field of JetStream's configuration, and what follows from it.

`FIELDS` is the one table. Used at every start, before each confirmation, and by the stream_monitor while the bridge runs. No
I/O.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from actors.clients.nats.ordered_consumer import INACTIVE_S
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
    bucket_key,
    bucket_keys,
    bucket_stream,
    cdc_subjects,
    covers,
    init_subjects,
    is_own,
    overlap,
    publish_prefix,
    request,
)
from actors.errors import ConfigError
from actors.settings.config import Config
from actors.telemetry.quantities import counted, human_bytes
from actors.telemetry.telemetry import Problem
from actors.values.formats import SnapshotFormat

PAYLOAD_MIN_BYTES = 4096
"""A smaller message cannot even hold a schema event."""
HISTORY = 10
"""Versions of a key that the buckets keep."""
_SHORT_NS, _FEW_MESSAGES, _FEW_BYTES, _FEW_CONSUMERS = 60 * 10**9, 10_000, 16 << 20, 10
"""Below these limits a stream keeps so little that a reader which is away for a moment loses changes."""

_FEW_BYTES_OF_BUCKET = 2 << 20
"""The smallest bucket that a bridge makes."""

Settings = Mapping[str, Any]
"""A stream's configuration as JetStream reports it. Fields may be absent that have no value."""
Kind = Literal["changes", "snapshots", "requests", "records", "documents"]
_IF_SMALL: Mapping[Kind, str] = {
    "changes": "a reader that is away for a moment loses changes",
    "snapshots": "larger snapshots fail",
    "records": "once it is full the bridge confirms nothing",
    "documents": "once it is full the bridge waits until it can write the schemas and dictionaries of its tables",
}
"""What follows from a small limit."""


@dataclass(frozen=True, slots=True)
class Role:
    """What a stream is for. Buckets are streams too: `records` is KV `bridges`, `documents` are the others."""

    name: str
    kind: Kind
    patterns: tuple[str, ...]
    """Subjects that the bridge would have given the stream."""
    published: tuple[str, ...]
    """Subjects that the stream must take; `x` stands for any table's token."""
    maps_to: str = ""
    """The pattern to which a stream other than CDC must map its only one; empty for none."""

    @property
    def edit(self) -> str:
        return f"nats stream edit {self.name}"


@dataclass(frozen=True, slots=True)
class Finding:
    """A setting that differs from what the bridge would have made, and that matters."""

    refused: bool
    """The bridge cannot work with it. Else it works, with a risk."""
    code: str
    what: str
    means: str
    fix: str

    def refuse(self) -> NoReturn:
        """Raise the error that ends the bridge."""
        raise ConfigError(self.code, self.what, means=self.means, fix=self.fix)

    @property
    def problem(self) -> Problem:
        return Problem(self.code, self.what, "", self.means, self.fix)


Rule = Callable[[Role, Settings], Finding | None]


def role_of_changes(stream: str) -> Role:
    """The role of the CDC stream."""
    prefix = publish_prefix(stream)
    published = tuple(prefix + subject for subject in cdc_subjects("x"))
    return Role(stream, "changes", (prefix + CDC_ALL,), published, CDC_ALL if prefix else "")


def role_of_snapshots(fmt: SnapshotFormat) -> Role:
    """The role of stream INIT."""
    array = fmt == "array"
    published = init_subjects("x") + (arrays_of_table("x") if array else ())
    return Role(INIT, "snapshots", (INIT_ALL, *(ARRAY_ALL if array else ())), published)


def role_of_bucket(bucket: str) -> Role:
    """The role of a bucket's stream."""
    kind: Kind = "records" if bucket == BRIDGES else "documents"
    return Role(bucket_stream(bucket), kind, (bucket_keys(bucket),), (bucket_key(bucket, "x"),))


ROLE_OF_REQUESTS = Role(REQUESTS, "requests", (REQUEST_ALL,), (request("x"),))


def buckets_of(*, zstd: bool) -> tuple[str, ...]:
    """The buckets that a bridge writes; its records come first."""
    return (BRIDGES, SCHEMAS, DICTIONARIES) if zstd else (BRIDGES, SCHEMAS)


def roles_of(config: Config) -> tuple[Role, ...]:
    """The streams that a bridge writes, the CDC stream first."""
    zstd = config.snapshots.zstd or config.snapshots.zstd_events
    buckets = map(role_of_bucket, buckets_of(zstd=zstd))
    return role_of_changes(config.publish.stream), role_of_snapshots(config.snapshots.format), *buckets, ROLE_OF_REQUESTS


def examine(role: Role, config: Settings) -> list[Finding]:
    """Compare a stream's configuration with what the bridge would have made; refusals come first."""
    found = [finding for rule in FIELDS.values() if (finding := rule(role, config)) is not None]
    return sorted(found, key=lambda finding: not finding.refused)


def unknown_fields(config: Settings) -> list[str]:
    """Fields of a newer server, which nothing here knows."""
    return sorted(config.keys() - FIELDS.keys())


def takes(config: Settings, published: Iterable[str]) -> bool:
    """Return whether the stream takes every one of these subjects."""
    return covers(config.get("subjects") or (), published)


# -- findings


def _refused(role: Role, code: str, what: str, means: str, fix: str) -> Finding:
    # the bridge can do without stream REQUESTS, and then receives requests only while it runs; and without dictionaries
    is_needed = role.kind != "requests" and role.name != bucket_stream(DICTIONARIES)
    return Finding(is_needed, code, f"stream {role.name} {what}", means, fix)


def _risky(role: Role, what: str, means: str, fix: str) -> Finding:
    return Finding(False, "WB239", f"stream {role.name} {what}", means, fix)


def _made_again(role: Role) -> str:
    """The fix for what JetStream does not let anybody edit."""
    again = f"nats stream rm {role.name}   # the bridge creates it again"
    return f"{again}; or use another stream: --stream NAME" if role.kind == "changes" else again


def _number(config: Settings, field: str) -> int:
    """Return a limit; 0 for none."""
    return max(0, int(config.get(field) or 0))


# -- the rules, one for each field


def _harmless(_role: Role, _config: Settings) -> None:
    return None


def _subjects(role: Role, config: Settings) -> Finding | None:
    if takes(config, role.published) or _takes_as_stored(role, config):
        return None
    wanted = ",".join(role.patterns)
    return _refused(
        role, "WB237", f"takes {', '.join(config.get('subjects') or ['nothing'])}, not {wanted}",
        "what the bridge publishes would not be stored", f"{role.edit} --subjects='{wanted}'",
    )  # fmt: skip


def _takes_as_stored(role: Role, config: Settings) -> bool:
    """Whether a stream other than CDC takes the subjects that it stores, without a prefix to map away."""
    return bool(role.maps_to) and takes(config, cdc_subjects("x"))


def _subject_transform(role: Role, config: Settings) -> Finding | None:
    found = config.get("subject_transform") or {}
    source, target = str(found.get("src", "")) or (">" if found else ""), str(found.get("dest", ""))
    means = "its messages would not have the subjects that consumers read"
    if role.maps_to and not _takes_as_stored(role, config):
        (published,) = role.patterns
        if (source, target) == (published, role.maps_to):
            return None
        return _refused(
            role, "WB234", f"does not map {published} to {role.maps_to}", means,
            f"{role.edit} --transform-source='{published}' --transform-destination='{role.maps_to}'",
        )  # fmt: skip
    patterns = (role.maps_to,) if role.maps_to else role.patterns
    if not found or source == target or not any(overlap(source, pattern) for pattern in patterns):
        return None
    return _refused(role, "WB234", f"maps {source} to {target}", means, f"{role.edit} --no-transform")


def _retention(role: Role, config: Settings) -> Finding | None:
    retention = config.get("retention", "limits")
    if retention == "limits":
        return None
    editable = f"{role.edit} --interactive   # retention: limits"
    return _refused(
        role, "WB235", f"has retention {retention}",
        "it removes messages that one consumer has read, or that no consumer has asked for",
        editable if retention == "interest" else f"{_made_again(role)}, with retention limits",
    )  # fmt: skip


def _no_ack(role: Role, config: Settings) -> Finding | None:
    if not config.get("no_ack") or role.kind == "requests":
        return None
    means = "a publish is never acknowledged, so nothing could ever be confirmed"
    return _refused(role, "WB236", "has no_ack", means, f"{role.edit} --ack")


def _sealed(role: Role, config: Settings) -> Finding | None:
    means = "nothing can be stored in it any more"
    return _refused(role, "WB236", "is sealed", means, _made_again(role)) if config.get("sealed") else None


def _mirror(role: Role, config: Settings) -> Finding | None:
    if not config.get("mirror"):
        return None
    return _refused(role, "WB236", "is a mirror of another stream", "only the original can be written", _made_again(role))


def _sources(role: Role, config: Settings) -> Finding | None:
    if not config.get("sources") or role.kind not in ("changes", "snapshots"):
        return None
    means = "their messages would come between the bridge's"
    return _refused(role, "WB236", "is fed from other streams too", means, f"{role.edit} --interactive   # remove sources")


def _persist_mode(role: Role, config: Settings) -> Finding | None:
    if config.get("persist_mode", "default") != "async" or role.kind in ("requests", "documents"):
        return None
    means = "it acknowledges before it has written anything"
    return _refused(role, "WB236", "has persist_mode async", means, _made_again(role))


def _counter(role: Role, config: Settings) -> Finding | None:
    if not config.get("allow_msg_counter"):
        return None
    return _refused(role, "WB236", "takes counters only", "JetStream refuses all other messages", _made_again(role))


def _msgs_per_subject(role: Role, config: Settings) -> Finding | None:
    most, unlimited = _number(config, "max_msgs_per_subject"), f"{role.edit} --max-msgs-per-subject=-1"
    if not most:
        return None
    what = f"keeps only {counted(most, 'message')} per subject"
    if role.kind == "changes":
        return _refused(role, "WB238", what, "it removes changes from its middle, which readers then lack", unlimited)
    if role.kind == "snapshots":
        if len(role.patterns) > 1:  # all chunks of a table have one subject in the array format
            return _refused(role, "WB238", what, "it removes the rows of snapshots while they are stored", unlimited)
        means = "of several bridges that answer for one table, readers may miss an answer"
        return _risky(role, what, means, unlimited)
    if role.kind == "records" and most < HISTORY:
        means = "after a power cut of NATS older versions prove that nothing is missing; without them a gap event is stored"
        return _risky(role, f"keeps only {counted(most, 'version')}", means, f"{role.edit} --max-msgs-per-subject={HISTORY}")
    return None


def _discard_per_subject(role: Role, config: Settings) -> Finding | None:
    if not config.get("discard_new_per_subject") or role.kind == "requests" or not _number(config, "max_msgs_per_subject"):
        return None
    return _refused(
        role, "WB236", "refuses further messages on a subject that has its limit (discard_new_per_subject)",
        "the bridge publishes on each subject again and again", f"{role.edit} --no-discard-per-subject",
    )  # fmt: skip


def _discard(role: Role, config: Settings) -> Finding | None:
    limited = any(_number(config, field) for field in ("max_bytes", "max_msgs"))
    if config.get("discard") != "old" or not limited or role.kind not in ("records", "documents"):
        return None
    what, fix = "discards the oldest keys when it is full", f"{role.edit} --discard=new"
    if role.kind == "records":
        return _refused(role, "WB238", what, "without its record a bridge would report a gap that is none", fix)
    return _risky(role, what, "readers then lack schemas or dictionaries", fix)


def _max_age(role: Role, config: Settings) -> Finding | None:
    age_ns = _number(config, "max_age")
    if not age_ns:
        return None
    what, unlimited = f"removes what is older than {age_ns / 1e9:g} s", f"{role.edit} --max-age=0s"
    if role.kind == "records":
        means = "the record of a bridge that is down longer, or idle, is gone: it would report a gap that is none"
        return _refused(role, "WB238", what, means, unlimited)
    if role.kind == "documents":
        return _risky(role, what, "readers then lack schemas or dictionaries", unlimited)
    if role.kind in ("changes", "snapshots") and age_ns < _SHORT_NS:
        return _risky(role, what, "a reader that is away for longer loses changes", f"{role.edit} --max-age=8d")
    return None


def _max_msgs(role: Role, config: Settings) -> Finding | None:
    most = _number(config, "max_msgs")
    if role.kind == "requests" or not 0 < most < _FEW_MESSAGES:
        return None
    return _risky(role, f"keeps only {counted(most, 'message')}", _IF_SMALL[role.kind], f"{role.edit} --max-msgs=-1")


def _max_bytes(role: Role, config: Settings) -> Finding | None:
    most = _number(config, "max_bytes")
    is_bucket = role.kind in ("records", "documents")
    if role.kind == "requests" or not 0 < most < (_FEW_BYTES_OF_BUCKET if is_bucket else _FEW_BYTES):
        return None
    larger = "64MB" if is_bucket else "1GB"
    return _risky(
        role, f"keeps only {human_bytes(most)}", _IF_SMALL[role.kind], f"{role.edit} --max-bytes={larger}   # or more"
    )


def _max_msg_size(role: Role, config: Settings) -> Finding | None:
    most = _number(config, "max_msg_size")
    if role.kind == "requests" or not 0 < most < PAYLOAD_MIN_BYTES:
        return None
    return _refused(
        role, "WB233", f"takes messages of at most {most} bytes; the bridge needs {PAYLOAD_MIN_BYTES}",
        "even a schema event may be larger", f"{role.edit} --max-msg-size=-1",
    )  # fmt: skip


def _storage(role: Role, config: Settings) -> Finding | None:
    if config.get("storage", "file") == "file" or role.kind == "requests":
        return None
    return _risky(role, "is kept in memory", "a restart of nats-server removes all of it", _made_again(role))


def _republish(role: Role, config: Settings) -> Finding | None:
    target = str((config.get("republish") or {}).get("dest") or "")
    # a reference to a token of the source stands for one token, whatever it is
    pattern = re.sub(r"\{\{[^}]*\}\}|\$\d+", "*", target)
    if not target or not is_own(pattern):
        return None
    means = "the copies would come between the messages of a bridge"
    return _refused(role, "WB236", f"republishes its messages on {target}", means, f"{role.edit} --no-republish")


def _consumer_limits(role: Role, config: Settings) -> Finding | None:
    inactive_ns = _number(config.get("consumer_limits") or {}, "inactive_threshold")
    if role.kind not in ("changes", "snapshots") or not 0 < inactive_ns < INACTIVE_S * 1e9:
        return None
    return _risky(
        role, f"lets consumers be inactive for at most {inactive_ns / 1e9:g} s",
        f"walbridge mirror asks for {INACTIVE_S:g} s and is refused",
        f"{role.edit} --interactive   # consumer_limits: inactive_threshold of {INACTIVE_S:g} s or more",
    )  # fmt: skip


def _max_consumers(role: Role, config: Settings) -> Finding | None:
    most = _number(config, "max_consumers")
    if role.kind not in ("changes", "snapshots") or not 0 < most < _FEW_CONSUMERS:
        return None
    means = "a mirror needs several while it copies: further readers are refused"
    return _risky(role, f"takes at most {counted(most, 'consumer')}", means, f"{role.edit} --max-consumers=-1")


def _delete_markers(role: Role, config: Settings) -> Finding | None:
    if not config.get("subject_delete_marker_ttl"):
        return None
    fix = f"{role.edit} --subject-del-markers-ttl=0s"
    if role.kind == "changes":
        means = "JetStream adds messages of its own when changes expire, between those of the bridge"
        return _refused(role, "WB238", "has subject delete markers", means, fix)
    return None


def _deny_purge(role: Role, config: Settings) -> Finding | None:
    if role.kind != "requests" or not config.get("deny_purge"):
        return None
    means = "the bridge cannot delete a request that it has served: it takes the snapshot again at each start"
    return _risky(role, "denies purges", means, _made_again(role))


FIELDS: Mapping[str, Rule] = {
    "name": _harmless,
    "description": _harmless,
    "metadata": _harmless,
    "template_owner": _harmless,
    "subjects": _subjects,
    "subject_transform": _subject_transform,
    "republish": _republish,
    "retention": _retention,
    "sealed": _sealed,
    "mirror": _mirror,
    "mirror_direct": _harmless,
    "sources": _sources,
    "no_ack": _no_ack,
    "persist_mode": _persist_mode,
    "allow_msg_counter": _counter,
    "max_msgs_per_subject": _msgs_per_subject,
    "discard": _discard,  # `new` on the CDC stream: a full stream makes the bridge wait, and nothing is lost
    "discard_new_per_subject": _discard_per_subject,
    "max_age": _max_age,
    "max_msgs": _max_msgs,
    "max_bytes": _max_bytes,
    "max_msg_size": _max_msg_size,
    "storage": _storage,
    "num_replicas": _harmless,
    "placement": _harmless,
    "compression": _harmless,
    "first_seq": _harmless,  # counts only when the stream is made
    "duplicate_window": _harmless,  # the bridge sends again what a long window takes for a duplicate
    "max_consumers": _max_consumers,
    "consumer_limits": _consumer_limits,
    "allow_direct": _harmless,
    "allow_atomic": _harmless,  # --publish durable demands it at each start, the first one after JetStream's refusal too
    "allow_batched": _harmless,  # without it events are published one by one
    "allow_msg_ttl": _harmless,  # concerns messages with a header that the bridge never sets; so do the next two
    "allow_msg_schedules": _harmless,
    "allow_rollup_hdrs": _harmless,
    "subject_delete_marker_ttl": _delete_markers,
    "deny_delete": _harmless,
    "deny_purge": _deny_purge,
}
"""Field -> what follows from its value."""
