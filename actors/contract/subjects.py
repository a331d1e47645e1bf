"""The names that the bridge and its readers agree on in NATS: streams, subjects, buckets, keys (contract, sections 2 to 6).

No other module spells such a name. `parse` reads what the functions here write.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from typing import Literal, NamedTuple

CDC, INIT, REQUESTS = "CDC", "INIT", "REQUESTS"
"""Streams of changes (unless `--stream` says otherwise), of snapshots, and of requests for snapshots."""
SCHEMAS, BRIDGES, DICTIONARIES = "schemas", "bridges", "dictionaries"
"""Key-value buckets."""
BRIDGE_TOKEN = "_bridge"
"""Stands for a table's token where no table is meant; tables' tokens never begin with `_`."""
OPERATIONS = ("insert", "update", "delete", "truncate")

# -- stream CDC

CDC_ALL = "cdc.>"
CDC_GAP = f"cdc.{BRIDGE_TOKEN}.gap"
CDC_PUBLISHED = f"cdc.{BRIDGE_TOKEN}.published"
CDC_NOTICES = f"cdc.{BRIDGE_TOKEN}.>"
"""Pattern of what concerns several tables, which readers of some tables must add to their filter."""


def cdc_event(token: str, operation: str) -> str:
    """Subject of a change of a table's rows."""
    return f"cdc.{token}.{operation}"


def cdc_schema(token: str) -> str:
    """Subject of a table's new shape."""
    return f"cdc.{token}.schema"


def cdc_of_table(token: str) -> str:
    """Pattern of all events of one table."""
    return f"cdc.{token}.>"


def publish_prefix(stream: str) -> str:
    """Prefix of each subject on the wire; a stream other than CDC removes it before storing."""
    return "" if stream == CDC else f"_{stream}."


# -- stream INIT

INIT_ALL = "init.>"
ARRAY_ALL = ("snapshot.init.>", "snapshot.data.>")
"""Patterns that INIT also takes with the array format."""
INIT_STARTS, INIT_ERRORS = "init.start.*", "init.error.*"


def init_start(token: str) -> str:
    """Subject of a snapshot's start."""
    return f"init.start.{token}"


def init_chunk(token: str, snapshot_id: str, number: int) -> str:
    """Subject of a chunk of a snapshot's rows."""
    return f"init.snap.{token}.{snapshot_id}.{number}"


def init_chunks(token: str, snapshot_id: str) -> str:
    """Pattern of the rows of one snapshot."""
    return f"init.snap.{token}.{snapshot_id}.>"


def init_meta(token: str) -> str:
    """Subject of the end of a complete snapshot."""
    return f"init.meta.{token}"


def init_error(token: str) -> str:
    """Subject of the error of a snapshot that failed or cannot be taken."""
    return f"init.error.{token}"


def init_schema(token: str) -> str:
    """Subject of a table's new shape for readers of INIT alone."""
    return f"init.schema.{token}"


def array_start(token: str) -> str:
    """Subject of the columns of a snapshot in the array format."""
    return f"snapshot.init.{token}"


def array_chunk(token: str) -> str:
    """Subject of a chunk of rows in the array format."""
    return f"snapshot.data.{token}"


def snapshot_of_table(token: str) -> tuple[str, ...]:
    """Patterns of a table's snapshots: start, chunks, meta and error."""
    return init_start(token), f"init.snap.{token}.>", init_meta(token), init_error(token)


def arrays_of_table(token: str) -> tuple[str, ...]:
    """Subjects of a table's snapshots that only the array format has."""
    return array_start(token), array_chunk(token)


def init_of_table(token: str) -> tuple[str, ...]:
    """Patterns of all messages of one table in INIT, in either format."""
    return f"init.*.{token}", f"init.snap.{token}.>", f"snapshot.*.{token}"


# -- stream REQUESTS

REQUEST_ALL = "snapshot.request.>"


def request(token: str, stream: str = "") -> str:
    """Subject of a request for a snapshot, to the bridge of `stream`; if none is named, to the one that serves the table.

    No token and no stream's name has an `@`.
    """
    return f"snapshot.request.{token}@{stream}" if stream else f"snapshot.request.{token}"


def snapshot_command(table: str, stream: str) -> str:
    """The command that asks the bridge of `stream` for a snapshot of a table, by its name or token."""
    return f"walbridge snapshot {shlex.quote(table)}" + (f" --stream {stream}" if stream != CDC else "")


# -- parts of a table: a suffix behind the token, of characters that no token has. In requests, and in what answers them.

RANGES = "+ranges"
"""The complete table, in rounds of small transactions (see `ranges`)."""
_PART_ID = re.compile(r"\+([A-Za-z0-9_-]{1,64})")
_CANCEL = "+cancel-"

PartKind = Literal["whole", "ranges", "keys", "cancel"]


class Part(NamedTuple):
    """What a suffix means."""

    kind: PartKind
    id: str = ""
    """For `keys` the asker's own id, for `cancel` the snapshot's."""


def part_of(suffix: str) -> Part | None:
    """Read a suffix; None for one that this version does not know."""
    if suffix in ("", RANGES):
        return Part("ranges" if suffix else "whole")
    found = _PART_ID.fullmatch(suffix)
    if found is None:
        return None
    return Part("cancel", suffix.removeprefix(_CANCEL)) if suffix.startswith(_CANCEL) else Part("keys", found[1])


def keys_suffix(asker: str) -> str:
    """The suffix of rows that an asker names by their keys. Its id has letters, digits, `_` and `-`."""
    return f"+{asker}"


def cancel_suffix(snapshot_id: str) -> str:
    """The suffix of a request that ends a snapshot."""
    return f"{_CANCEL}{snapshot_id}"


def split_suffix(token: str) -> tuple[str, str]:
    """Split the token of a subject in INIT or REQUESTS into the table's token and the suffix."""
    found = re.search("[+~]", token)
    return (token, "") if found is None else (token[: found.start()], token[found.start() :])


# -- key-value buckets: streams whose subjects are the keys


def bucket_stream(bucket: str) -> str:
    """The stream that holds a bucket."""
    return f"KV_{bucket}"


def bucket_of(stream: str) -> str:
    """The bucket that a stream holds; empty if it holds none."""
    return stream.removeprefix("KV_") if stream.startswith("KV_") else ""


def bucket_keys(bucket: str) -> str:
    """Pattern of all keys of a bucket."""
    return f"$KV.{bucket}.>"


def bucket_key(bucket: str, key: str) -> str:
    """The subject of a key."""
    return f"$KV.{bucket}.{key}"


def is_bucket_key(subject: str) -> bool:
    """Return whether a subject is that of a bucket's key."""
    return subject.startswith("$KV.")


def key_prefix(stream: str) -> str:
    """What keys of buckets `schemas` and `dictionaries` begin with: two bridges may have different shapes of one table."""
    return "" if stream == CDC else f"{stream}."


def schema_key(token: str, stream: str = CDC) -> str:
    """The key of a table in bucket `schemas`, as the bridge of `stream` publishes the table."""
    return key_prefix(stream) + token


BRIDGE_RECORDS = "*"
"""Pattern of the bridges' records among the keys of bucket `bridges`."""


def published_key(token: str, stream: str) -> str:
    """The key of a table in bucket `bridges`: how the bridge of `stream` publishes the table.

    No stream's name has a dot, so these keys differ from those of the bridges' records.
    """
    return f"{stream}.{token}"


def published_keys(stream: str) -> str:
    """Pattern of the keys that `published_key` makes for one stream."""
    return f"{stream}.*"


def dictionary_key(token: str, digest: str = "", stream: str = CDC) -> str:
    """The key of a table in bucket `dictionaries`: its newest dictionary's, or with `digest` that of one dictionary."""
    newest = f"{key_prefix(stream)}{token}_dict"
    return f"{newest}.{digest}" if digest else newest


def is_dictionary_of(key: str, token: str, stream: str = CDC) -> bool:
    """Whether a key of bucket `dictionaries` holds a dictionary of this table and bridge."""
    newest = dictionary_key(token, stream=stream)
    return re.fullmatch(rf"{re.escape(newest)}(\.[0-9a-f]{{8}})?", key) is not None


_OWN_PATTERNS = (CDC_ALL, INIT_ALL, "snapshot.>", "$KV.>")
"""Where nobody but bridges publishes, except requests for snapshots."""


def trial_subjects(stream: str, tokens: Iterable[str], *, arrays: bool, zstd: bool) -> list[str]:
    """Return subjects on which a bridge's user must be allowed to publish, to try it: nobody expects anything on them.

    Only the bridge's record is a real one: the user may be allowed no other key.
    """
    prefix, keys = publish_prefix(stream), (schema_key(BRIDGE_TOKEN, stream), dictionary_key(BRIDGE_TOKEN, stream=stream))
    found = [f"{prefix}cdc.{token}.trial" for token in (BRIDGE_TOKEN, *tokens)]
    found += [f"init.trial.{BRIDGE_TOKEN}", *(arrays_of_table(BRIDGE_TOKEN) if arrays else ())]
    found += [
        bucket_key(BRIDGES, stream),
        bucket_key(BRIDGES, published_key(BRIDGE_TOKEN, stream)),
        bucket_key(SCHEMAS, keys[0]),
    ]
    return [*found, bucket_key(DICTIONARIES, keys[1])] if zstd else found


# -- reading

Kind = Literal[
    "event", "schema", "gap", "published",
    "start", "chunk", "meta", "error", "init schema", "array start", "array chunk",
    "request", "key",
]  # fmt: skip


class Subject(NamedTuple):
    """The parts of a subject."""

    kind: Kind
    token: str
    """A table's token; for a request the requested text, for a key the key."""
    operation: str = ""
    """For an event."""
    snapshot_id: str = ""
    chunk: int = 0
    bucket: str = ""
    """For a key."""
    """Of a key."""
    stream: str = ""
    """For a request: the stream whose bridge is asked; empty when none is named."""
    suffix: str = ""
    """For a request: from `+` or `~` on, which no token has. Something else than the complete table is asked for."""


_INIT_KINDS: dict[str, Kind] = {"start": "start", "meta": "meta", "error": "error", "schema": "init schema"}
_ARRAY_KINDS: dict[str, Kind] = {"init": "array start", "data": "array chunk"}


def parse(subject: str) -> Subject | None:
    """Read any subject; return None if no function here writes it."""
    found: Subject | None = None
    match subject.split("."):
        case ["cdc", token, "gap"] if token == BRIDGE_TOKEN:
            found = Subject("gap", token)
        case ["cdc", token, "published"] if token == BRIDGE_TOKEN:
            found = Subject("published", token)
        case ["cdc", token, "schema"] if token:
            found = Subject("schema", token)
        case ["cdc", token, operation] if token and operation in OPERATIONS:
            found = Subject("event", token, operation)
        case ["init", "snap", token, snapshot_id, number] if token and snapshot_id and _is_number(number):
            found = Subject("chunk", token, snapshot_id=snapshot_id, chunk=int(number))
        case ["init", kind, token] if token and kind in _INIT_KINDS:
            found = Subject(_INIT_KINDS[kind], token)
        case ["snapshot", "request", *asked] if any(asked):
            found = _request(".".join(asked))
        case ["snapshot", kind, token] if token and kind in _ARRAY_KINDS:
            found = Subject(_ARRAY_KINDS[kind], token)
        case ["$KV", bucket, *key] if bucket and any(key):
            found = Subject("key", ".".join(key), bucket=bucket)
    return found


def _request(asked: str) -> Subject:
    """A request for a token as `request` writes it, with or without a suffix; what is neither is taken whole."""
    found = _ASKED.fullmatch(asked)
    token, suffix, stream = (asked, "", "") if found is None else found.groups("")
    return Subject("request", token, stream=stream, suffix=suffix)


_ASKED = re.compile(r"([^@+~]+)([+~][^@]*)?(?:@([A-Za-z0-9_-]+))?")


def _is_number(text: str) -> bool:
    """Return whether `init_chunk` writes this number: never `07`."""
    return re.fullmatch("0|[1-9][0-9]{0,17}", text) is not None


# -- which stream takes what


def cdc_subjects(token: str) -> tuple[str, ...]:
    """All subjects that stream CDC must take for a table, and those of what concerns several tables."""
    return *(cdc_event(token, operation) for operation in OPERATIONS), cdc_schema(token), CDC_GAP, CDC_PUBLISHED


def init_subjects(token: str) -> tuple[str, ...]:
    """All subjects that stream INIT must take for a table."""
    return init_start(token), init_chunk(token, "snap-1-a", 0), init_meta(token), init_error(token), init_schema(token)


def covers(patterns: Iterable[str], subjects: Iterable[str]) -> bool:
    """Return whether each of the subjects matches one of the patterns."""
    taken = list(patterns)
    return all(any(matches(pattern, subject) for pattern in taken) for subject in subjects)


def overlap(one: str, other: str) -> bool:
    """Return whether some subject matches both patterns."""
    left, right = one.split("."), other.split(".")
    for i in range(max(len(left), len(right))):
        if i >= len(left) or i >= len(right):
            return False
        if ">" in (left[i], right[i]):
            return True
        if "*" not in (left[i], right[i]) and left[i] != right[i]:
            return False
    return True


def is_own(pattern: str) -> bool:
    """Return whether a pattern has subjects on which nobody but bridges publishes, except requests for snapshots."""
    if any(overlap(pattern, own) for own in _OWN_PATTERNS):
        return True
    # with the prefix of a stream other than CDC: no pattern of NATS says that a token begins with `_`
    return pattern[0] in "_*>" and overlap(pattern, f"*.{CDC_ALL}")


def matches(pattern: str, subject: str) -> bool:
    """Match by NATS's rule: `*` stands for one token, `>` for one or more tokens at the end."""
    wanted, found = pattern.split("."), subject.split(".")
    for i, token in enumerate(wanted):
        if token == ">":
            return len(found) > i
        if i >= len(found) or token not in ("*", found[i]):
            return False
    return len(wanted) == len(found)
