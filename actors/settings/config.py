"""The settings, each a field of a frozen dataclass, and the values that the rest of the program gets.

A field made by `setting` is the only place where a setting is described: the flags of the command line, the environment,
`walbridge help env`, `--print-config` and the README's table are all derived from it. Secrets are never part of a repr.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Self

from actors.errors import ConfigError
from actors.settings.setting import (
    HTTP,
    PUBLISHING,
    SNAPSHOTS,
    SOURCE,
    Setting,
    choice,
    matching,
    no_choice,
    number,
    setting,
    settings_of,
)
from actors.values.formats import Arrays, Encoding, SnapshotFormat
from actors.wire.api_subjects import DEFAULT_PREFIX, ApiSubjects, domain_prefix

PublishMode = Literal["auto", "fast", "durable", "plain"]
LogFormat = Literal["logfmt", "json"]


Exporter = Literal["otlp", "none"]


def _exporter(text: str) -> Exporter:
    """The standard knows other exporters, and lists of them; for those that are not ours nothing is sent."""
    return "otlp" if "otlp" in text.replace(" ", "").split(",") else "none"


def _level(text: str) -> str:
    level = text.upper()
    if level not in ("DEBUG", "INFO", "WARNING", "WARN", "ERROR"):
        raise ValueError(no_choice(level, ("DEBUG", "INFO", "WARNING", "ERROR")))
    return "WARNING" if level == "WARN" else level


def _host(port_variable: str) -> Callable[[str], str]:
    """Give a reader of a host: a name, an address with or without brackets, or a folder of sockets."""

    def read(text: str) -> str:
        if re.fullmatch(r"[^:/]+:[0-9]+|\[.*\]:[0-9]+", text):
            raise ValueError(f"has a port; give that as {port_variable}")
        if re.fullmatch(r"\[[0-9A-Fa-f:.%]+\]", text):
            return text[1:-1]
        return text

    return read


def _api_prefix(text: str) -> str:
    prefix = text.removesuffix(".")
    if text and not re.fullmatch(r"[^\s.*>]+(\.[^\s.*>]+)*", prefix):
        raise ValueError("is not a prefix of subjects; give e.g. hub.API")
    return prefix


def _command(text: str) -> tuple[str, ...] | None:
    try:
        return tuple(shlex.split(text)) or None
    except ValueError:
        raise ValueError("has a quote that is not closed") from None


def _web_address(text: str) -> str:
    if text and not re.fullmatch(r"https?://[\x21-\x7e]+", text):
        raise ValueError("is not an address of http or https; give e.g. https://hc-ping.com/UUID")
    return text


def _udp_address(text: str) -> str:
    found = re.fullmatch(r"(?:[^\s:]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})", text)
    if text and (found is None or not 0 < int(found[1]) < 65536):
        raise ValueError("is not HOST:PORT; give e.g. 127.0.0.1:8125")
    return text


@dataclass(frozen=True, slots=True)
class SourceConfig:
    """What to read."""

    slot: str = setting(
        "cdc_slot", flag="--slot", value="NAME", variable="BRIDGE_SLOT", group=SOURCE,
        words="replication slot, created if missing",
        read=matching(r"[a-z0-9_]{1,63}", "is not a slot name; give lower-case letters, digits and _, e.g. cdc_slot"),
    )  # fmt: skip
    publication: str = setting(
        "cdc_pub", flag="--pub", value="NAME", variable="BRIDGE_PUB", group=SOURCE, words="publication, must exist",
        read=matching(r"(?s).{1,63}", "is not a publication name; give 1-63 characters, e.g. cdc_pub"),
    )  # fmt: skip
    temporary: bool = setting(
        False, flag="--temporary-slot", group=SOURCE,
        words="the slot ends with the bridge; each start stores a gap event (previews)",
        details="the slot ends with the bridge, so nothing is left behind; each start stores a gap event. For previews",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class PublishConfig:
    """What to write, and how."""

    stream: str = setting(
        "CDC", flag="--stream", value="NAME", variable="BRIDGE_STREAM", group=PUBLISHING,
        words="CDC stream; a second bridge gets its own",
        details="the stream; a second bridge gets its own",
        read=matching(
            r"(?!(INIT|REQUESTS|KV_.*)$)[A-Za-z0-9_-]{1,64}",
            "cannot be the stream of changes; give letters, digits, _ and -, e.g. CDC2, and not INIT, REQUESTS or KV_...",
        ),
    )  # fmt: skip
    mode: PublishMode = setting(
        "auto", flag="--publish", value="auto|fast|durable|plain", variable="BRIDGE_PUBLISH", group=PUBLISHING,
        words="how changes reach JetStream",
        read=choice("auto", "fast", "durable", "plain"),
        details="`fast`: batches, nats-server 2.14 and later. `durable`: a transaction of up to 1,000 messages is stored whole "
        "or not at all, nats-server 2.12.1 and later. `plain`: one acknowledgement per message. `auto`: fast where the stream "
        "allows it. [Which one](docs/reliability.md#ways-to-publish)",
    )  # fmt: skip
    confirm_hold_s: int = setting(
        0, flag="--confirm-hold", value="SECONDS", variable="BRIDGE_CONFIRM_HOLD", group=PUBLISHING,
        words="seconds from an acknowledgement to its confirmation to PostgreSQL",
        details="seconds between JetStream's acknowledgement and the confirmation to PostgreSQL, which keeps the WAL as long: "
        "with twice the `sync_interval` of nats-server, [a power cut of NATS loses nothing](docs/reliability.md#confirming)",
        read=number(0, 86_400, "a number of seconds", "240"),
    )  # fmt: skip
    pack: int = setting(
        1, flag="--pack", value="N", variable="BRIDGE_PACK", group=PUBLISHING,
        words="up to N events of a transaction per message",
        details="up to N consecutive events of one transaction and subject per message, 1 to 1000",
        read=number(1, 1000, "a number of events", "100"),
    )  # fmt: skip
    json: bool = setting(
        False, flag="--json", variable="BRIDGE_JSON", group=PUBLISHING, words="JSON instead of MessagePack",
        details="JSON instead of MessagePack, for events, schemas and snapshots",
    )  # fmt: skip
    arrays: Arrays = setting(
        "literal", flag="--arrays", value="literal|list", variable="BRIDGE_ARRAYS", group=PUBLISHING,
        words="literal: PostgreSQL's text; list: nested lists",
        details="`literal`: PostgreSQL's text. `list`: nested lists", read=choice("literal", "list"),
    )  # fmt: skip

    @property
    def encoding(self) -> Encoding:
        """How every message is written."""
        return "json" if self.json else "msgpack"


RATE_MAX_MB_S = 100_000
"""The highest rate that snapshots can be limited to."""


@dataclass(frozen=True, slots=True)
class SnapshotConfig:
    """How whole tables are sent, and what is compressed."""

    format: SnapshotFormat = setting(
        "map", flag="--snapshot-format", value="map|array", variable="BRIDGE_SNAPSHOT_FORMAT", group=SNAPSHOTS,
        words="map: one map per row; array: arrays in the columns' order",
        details="`map`: one map per row. `array`: arrays in the columns' order, announced first",
        read=choice("map", "array"),
    )  # fmt: skip
    zstd: bool = setting(
        False, flag="--zstd", variable="BRIDGE_ZSTD", group=SNAPSHOTS, words="compress chunks of snapshots",
        details="compress chunks of snapshots, with the table's dictionary where there is one",
    )  # fmt: skip
    zstd_events: bool = setting(
        False, flag="--zstd-events", variable="BRIDGE_ZSTD_EVENTS", group=SNAPSHOTS,
        words="compress events of tables that have a dictionary",
        details="compress events of tables that have a dictionary: [what it saves](docs/performance.md)",
    )  # fmt: skip
    dictionaries: Path = setting(
        Path("dictionaries"), flag="--dictionaries", value="DIR", variable="BRIDGE_DICTIONARIES", group=SNAPSHOTS,
        words="folder of {table}.zstd.dict files",
        details="folder of `{table}.zstd.dict` files, made by `walbridge train`", read=Path,
    )  # fmt: skip
    parallel: int = setting(
        2, flag="--snapshot-parallel", value="N", variable="BRIDGE_SNAPSHOT_PARALLEL", group=SNAPSHOTS,
        words="tables, and connections per table, at once",
        details="snapshots at once, and connections that read one table [in rounds](docs/consumers.md#in-rounds); one more is "
        "kept for small tables",
        read=number(1, 64, "a number of connections", "4"),
    )  # fmt: skip
    round_s: int = setting(
        20, flag="--snapshot-round-s", value="SECONDS", variable="BRIDGE_SNAPSHOT_ROUND_S", group=SNAPSHOTS,
        words="longest transaction of a snapshot in rounds",
        details="seconds that a transaction of a snapshot [in rounds](docs/consumers.md#in-rounds) stays open and holds back "
        "VACUUM",
        read=number(1, 86_400, "a number of seconds", "20"),
    )  # fmt: skip
    rate_mb_s: int = setting(
        0, flag="--snapshot-rate-mb-s", value="N", variable="BRIDGE_SNAPSHOT_RATE_MB_S", group=SNAPSHOTS,
        words="megabytes per second of all snapshots; 0: no limit",
        details="megabytes that all snapshots together send per second, as sent; 0 for no limit",
        read=number(0, RATE_MAX_MB_S, "a number of megabytes", "50"),
    )  # fmt: skip
    database_url: str = setting(
        "", variable="SNAPSHOT_DATABASE_URL", secret=True, words="a standby from which snapshots read rows",
        details="libpq URI or keywords of [a standby from which snapshots read rows]"
        "(docs/operations.md#snapshots-from-a-standby), PostgreSQL 16 or later; role, password and database are those of the "
        "primary unless it says otherwise",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """Where telemetry is served."""

    port: int = setting(
        9090, flag="--port", value="PORT", variable="BRIDGE_PORT", group=HTTP, words="HTTP telemetry", details="HTTP port",
        read=number(1, 65535, "a port", "9091"),
    )  # fmt: skip
    bind: str = setting(
        "127.0.0.1", flag="--bind", value="ADDRESS", variable="BRIDGE_BIND", group=HTTP, words="HTTP address",
        read=matching(r"[0-9A-Za-z.:_-]+", "is not an address; give e.g. 0.0.0.0"),
    )  # fmt: skip
    token: str = setting(
        "", variable="BRIDGE_HTTP_TOKEN", secret=True, words="a POST, and a request for rows, must then carry it"
    )
    messages: bool = setting(
        True, variable="BRIDGE_HTTP_MESSAGES", words="`no`: the page and `GET /messages` show no rows of tables"
    )


@dataclass(frozen=True, slots=True)
class PostgresAddress:
    """Where PostgreSQL is and who we are there, as it was given: a URL, its parts, or both."""

    url: str = setting(
        "", variable="DATABASE_URL", secret=True, words="libpq URI or keywords",
        details="libpq URI or keywords, with `sslmode` and everything else that libpq knows",
    )  # fmt: skip
    host: str = setting("127.0.0.1", variable="PG_HOST", words="not used beside `DATABASE_URL`", read=_host("PG_PORT"))
    port: int = setting(
        5432, variable="PG_PORT", words="not used beside `DATABASE_URL`", read=number(1, 65535, "a port", "5432")
    )
    database: str = setting("postgres", variable="PG_DB", words="not used beside `DATABASE_URL`")
    user: str = setting("", variable="POSTGRES_BRIDGE_USER", words="must be set unless `DATABASE_URL` names a user")
    password: str = setting("", variable="POSTGRES_BRIDGE_PASSWORD", secret=True, words="unless `DATABASE_URL` has a password")
    password_command: tuple[str, ...] | None = setting(
        None, variable="POSTGRES_BRIDGE_PASSWORD_COMMAND", words="command that prints the password, run at each connect",
        details="command that prints the password, run at each connect, without a shell; for [tokens that "
        "expire](docs/operations.md#credentials-that-change)",
        read=_command,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewable:
    """How to reach a server, with secrets that may be in files whose contents change."""

    renew: Callable[[], Self] | None = field(default=None, repr=False, compare=False)
    """Reads the files again; None where no secret is in a file. Raises ConfigError."""
    file_secrets: tuple[str, ...] = field(default=(), repr=False, compare=False)
    """What the log must mask in addition, since the files were read again."""

    def latest(self) -> Self:
        """Return this with the secrets that the files hold now; unchanged while a file cannot be read."""
        if self.renew is None:
            return self
        try:
            return self.renew()
        except ConfigError:
            return self  # perhaps it is being replaced


class PostgresNames(NamedTuple):
    """The settings that count, for a fix to name: advice to set PG_HOST is none where DATABASE_URL beats it."""

    address: str = "PG_HOST and PG_PORT, or DATABASE_URL,"
    database: str = "PG_DB, or DATABASE_URL,"
    user: str = "POSTGRES_BRIDGE_USER, or DATABASE_URL,"
    password: str = "POSTGRES_BRIDGE_PASSWORD, or DATABASE_URL,"


@dataclass(frozen=True, slots=True)
class PostgresConfig(Renewable):
    """How to reach PostgreSQL: a libpq connection string, URI or keywords, without a `replication` word."""

    conninfo: str = field(repr=False)
    password_command: tuple[str, ...] = ()
    """Program and arguments; what it prints is the password. Empty for none."""
    names: PostgresNames = field(default=PostgresNames(), compare=False)


@dataclass(frozen=True, slots=True)
class NatsAddress:
    """Where NATS is, as it was given: a context of the nats command line, URLs, or a host and a port."""

    context: str = setting(
        "", flag="--nats-context", value="NAME|FILE", variable="NATS_CONTEXT", group=PUBLISHING,
        words="context of the nats command line, by name or file",
        details="a context of the `nats` command line, by name or file; what is set here beats it",
    )  # fmt: skip
    url: str = setting("", variable="NATS_URL", secret=True, words="one or more of `nats://` or `tls://`, separated by commas")
    host: str = setting("127.0.0.1", variable="NATS_HOST", words="not used beside `NATS_URL`", read=_host("NATS_PORT"))
    port: int = setting(4222, variable="NATS_PORT", words="not used beside `NATS_URL`", read=number(1, 65535, "a port", "4222"))


@dataclass(frozen=True, slots=True)
class NatsConfig(Renewable):
    """How to reach NATS."""

    urls: tuple[str, ...] = field(repr=False)
    user: str = setting("", variable="NATS_BRIDGE_USER", words="user, with its password")
    password: str = setting("", variable="NATS_BRIDGE_PASSWORD", secret=True, words="password of that user")
    token: str = setting("", variable="NATS_TOKEN", secret=True, words="token, instead of a user")
    nkey_seed: str = setting("", variable="NATS_NKEY_SEED", secret=True, words="seed of an nkey, instead of a user")
    creds: Path | None = setting(
        None,
        variable="NATS_CREDS",
        words="path of a `.creds` file",
        read=lambda text: Path(text).expanduser() if text else None,
    )
    user_jwt: str = field(default="", repr=False)
    """Beside `nkey_seed`, as in a creds file."""
    ca: str | None = setting(
        None, variable="NATS_CA", words="path of the authorities to trust, PEM", read=lambda text: text or None
    )
    cert: str | None = setting(
        None, variable="NATS_CERT", words="path of the client certificate, PEM", read=lambda text: text or None
    )
    key: str | None = setting(None, variable="NATS_KEY", words="path of its key, PEM", read=lambda text: text or None)
    tls_first: bool = setting(False, variable="NATS_TLS_FIRST", words="`yes` for servers with `handshake_first`")
    domain: str = setting(
        "", variable="NATS_DOMAIN", words="domain of JetStream, on a leaf node",
        details="domain of JetStream, [on a leaf node or for an account that imports "
        "JetStream](docs/operations.md#jetstream-of-another-domain-or-account)",
        read=matching(r"[^\s.*>]{0,255}", "is not a domain; give one word, e.g. hub"),
    )  # fmt: skip
    js_prefix: str = setting(
        "", variable="NATS_JS_PREFIX", words="prefix of JetStream's API instead of `$JS.API`",
        details="prefix of JetStream's API instead of `$JS.API`, as the account imports it; instead of a domain",
        read=_api_prefix,
    )  # fmt: skip
    replicas: int = setting(
        1, variable="NATS_REPLICAS", words="of the streams and buckets that the bridge makes",
        read=number(1, 5, "a number of replicas", "3"),
    )  # fmt: skip

    @property
    def api(self) -> ApiSubjects:
        """Where JetStream answers."""
        return ApiSubjects(self.js_prefix or (domain_prefix(self.domain) if self.domain else DEFAULT_PREFIX))


@dataclass(frozen=True, slots=True)
class LogConfig:
    """How the log looks."""

    level: str = setting(
        "INFO", variable="LOG_LEVEL", words="`DEBUG`, `INFO`, `WARNING`, `ERROR`", read=_level,
    )  # fmt: skip
    format: LogFormat = setting("logfmt", variable="LOG_FORMAT", words="or `json`", read=choice("logfmt", "json"))


@dataclass(frozen=True, slots=True)
class OtlpConfig:
    """Where OpenTelemetry is sent. The names are the standard's; what else the standard has, the library reads itself."""

    endpoint: str = setting(
        "", variable="OTEL_EXPORTER_OTLP_ENDPOINT", words="OTLP by HTTP, e.g. http://127.0.0.1:4318; empty for none",
        details="OpenTelemetry: metrics, and a span per batch, go there by OTLP over HTTP, e.g. `http://127.0.0.1:4318`. "
        "Needs the extra `otel`. [What is sent](docs/operations.md#opentelemetry-and-statsd)",
        read=_web_address,
    )  # fmt: skip
    headers: str = setting(
        "", variable="OTEL_EXPORTER_OTLP_HEADERS", secret=True, words="name=value, separated by commas, for each request there"
    )
    metrics: Exporter = setting("otlp", variable="OTEL_METRICS_EXPORTER", words="`none`: send no metrics", read=_exporter)
    traces: Exporter = setting("otlp", variable="OTEL_TRACES_EXPORTER", words="`none`: send no spans", read=_exporter)
    metrics_every_ms: int = setting(
        60_000, variable="OTEL_METRIC_EXPORT_INTERVAL", words="milliseconds between two exports of metrics",
        read=number(100, 86_400_000, "a number of milliseconds", "60000"),
    )  # fmt: skip
    disabled: bool = setting(False, variable="OTEL_SDK_DISABLED", words="`true`: send nothing")


@dataclass(frozen=True, slots=True)
class Config:
    """Everything one bridge needs to know."""

    postgres: PostgresConfig
    nats: NatsConfig
    source: SourceConfig
    publish: PublishConfig
    snapshots: SnapshotConfig
    http: HttpConfig
    log: LogConfig
    otlp: OtlpConfig
    standby: PostgresConfig | None = None
    """From which snapshots read rows, if not from `postgres` itself."""
    accept_gap: bool = setting(
        False, flag="--accept-gap", group=SOURCE, words="after changes were permanently lost: store the gap event and go on",
        details="after changes were permanently lost (slot lost or dropped, another server): store the gap event and go on",
    )  # fmt: skip
    accept_upgrade: bool = setting(
        False, flag="--accept-upgrade", group=SOURCE, words="after pg_upgrade, which kept the slot: go on without a gap",
        details="after `pg_upgrade` from PostgreSQL 17 or later, which keeps the slot: go on without a gap. Give it once",
    )  # fmt: skip
    heartbeat_url: str = setting(
        "", variable="BRIDGE_HEARTBEAT_URL", secret=True, words="requested (GET) after progress, at most once a minute",
        details="requested (GET) after progress, at most once a minute, for a watchdog such as healthchecks.io",
        read=_web_address,
    )  # fmt: skip
    """Empty for no heartbeat. A secret: anybody who knows the URL can speak for us."""
    statsd: str = setting(
        "",
        variable="BRIDGE_STATSD",
        words="HOST:PORT; the metrics are sent there as StatsD, by UDP every 10 s",
        read=_udp_address,
    )
    """Empty for none."""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """Values that the log masks, should they ever appear."""
    origins: tuple[tuple[str, str, str], ...] = ()
    """(setting, value as it may be shown, where it came from)."""


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """What a reader of a bridge's streams needs to know."""

    nats: NatsConfig
    stream: str
    log: LogConfig
    secrets: tuple[str, ...] = field(default=(), repr=False)
    http: HttpConfig | None = None
    """Only if a flag asked for it: the bridge's variables are not meant for its readers."""


EMBEDDED = Setting(
    flag="--embedded", value="[DIR]", group=SOURCE,
    words="start PostgreSQL and NATS from the `embedded` extra, data kept in this folder",
    details="start PostgreSQL and NATS from the `embedded` extra. A folder may follow; without one the data is in the user's "
    "data folder (`~/.local/share/walbridge`, or `$XDG_DATA_HOME/walbridge`), for root in `/var/lib/walbridge`",
)  # fmt: skip
ENV_FILE = Setting(
    flag="--env-file", value="FILE", words="NAME=value lines; the environment beats them", details="file of `NAME=value` lines"
)
PRINT_CONFIG = Setting(
    flag="--print-config", is_switch=True, words="show each value and where it came from, and end",
    details="show the settings and end",
)  # fmt: skip
OPTIONS = (EMBEDDED, ENV_FILE, PRINT_CONFIG)
"""Flags that say where settings come from and what is done with them."""

SETTINGS = {
    one.name: one
    for group in (
        SourceConfig, PublishConfig, SnapshotConfig, HttpConfig, Config, OtlpConfig, PostgresAddress, NatsAddress, NatsConfig,
        LogConfig,
    )
    for one in settings_of(group).values()
}  # fmt: skip
"""Every setting by its name, in the order in which they are shown."""
