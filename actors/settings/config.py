"""What the command line, the environment and an env file say, as one immutable value.

A flag beats the environment, the environment beats the env file, a URL beats its parts. Every value remembers where it came
from, for `--print-config`. Secrets are never part of a repr.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from actors.values.formats import Arrays, Encoding, SnapshotFormat

PublishMode = Literal["auto", "fast", "plain"]


@dataclass(frozen=True, slots=True)
class PostgresConfig:
    """How to reach PostgreSQL: a libpq connection string, URI or keywords, without a `replication` word."""

    conninfo: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class NatsConfig:
    """How to reach NATS."""

    urls: tuple[str, ...] = field(repr=False)
    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    nkey_seed: str = field(default="", repr=False)
    creds: Path | None = None
    user_jwt: str = field(default="", repr=False)
    """Beside `nkey_seed`, as in a creds file."""
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    tls_first: bool = False
    replicas: int = 1


@dataclass(frozen=True, slots=True)
class SourceConfig:
    """What to read."""

    slot: str = "cdc_slot"
    publication: str = "cdc_pub"
    temporary: bool = False
    """The slot ends with its connection: nothing can be left behind, and each interruption is a gap."""


@dataclass(frozen=True, slots=True)
class PublishConfig:
    """What to write, and how."""

    stream: str = "CDC"
    mode: PublishMode = "auto"
    pack: int = 1
    encoding: Encoding = "msgpack"
    arrays: Arrays = "literal"


@dataclass(frozen=True, slots=True)
class SnapshotConfig:
    """How whole tables are sent, and what is compressed."""

    format: SnapshotFormat = "map"
    zstd: bool = False
    zstd_events: bool = False
    dictionaries: Path = Path("dictionaries")
    """Folder of `{table token}.zstd.dict` files."""


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """Where telemetry is served."""

    bind: str = "127.0.0.1"
    port: int = 9090
    token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class LogConfig:
    """How the log looks."""

    level: str = "INFO"
    format: Literal["logfmt", "json"] = "logfmt"


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
    accept_gap: bool
    heartbeat_url: str = field(default="", repr=False)
    """Asked for after progress; empty for nobody. Whoever knows it can speak for us: a secret."""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """Values that the log masks, should they ever appear."""
    origins: tuple[tuple[str, str, str], ...] = ()
    """(setting, value as it may be shown, where it came from)."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One thing that can be set."""

    name: str
    flag: str = ""
    variable: str = ""
    default: str = ""
    secret: bool = False


SETTINGS = {
    s.name: s
    for s in (
        Setting("slot", "--slot", "", "cdc_slot"),
        Setting("pub", "--pub", "", "cdc_pub"),
        Setting("temporary_slot", "--temporary-slot", "", "no"),
        Setting("port", "--port", "BRIDGE_PORT", "9090"),
        Setting("bind", "--bind", "", "127.0.0.1"),
        Setting("http_token", "", "BRIDGE_HTTP_TOKEN", secret=True),
        Setting("heartbeat_url", "", "BRIDGE_HEARTBEAT_URL", secret=True),
        Setting("stream", "--stream", "", "CDC"),
        Setting("publish", "--publish", "", "auto"),
        Setting("pack", "--pack", "", "1"),
        Setting("json", "--json", "", "no"),
        Setting("arrays", "--arrays", "", "literal"),
        Setting("snapshot_format", "--snapshot-format", "", "map"),
        Setting("zstd", "--zstd", "", "no"),
        Setting("zstd_events", "--zstd-events", "", "no"),
        Setting("dictionaries", "--dictionaries", "", "dictionaries"),
        Setting("accept_gap", "--accept-gap", "", "no"),
        Setting("database_url", "", "DATABASE_URL", secret=True),
        Setting("pg_host", "", "PG_HOST", "127.0.0.1"),
        Setting("pg_port", "", "PG_PORT", "5432"),
        Setting("pg_db", "", "PG_DB", "postgres"),
        Setting("pg_user", "", "POSTGRES_BRIDGE_USER"),
        Setting("pg_password", "", "POSTGRES_BRIDGE_PASSWORD", secret=True),
        Setting("nats_context", "--nats-context", "NATS_CONTEXT"),
        Setting("nats_url", "", "NATS_URL", secret=True),
        Setting("nats_host", "", "NATS_HOST", "127.0.0.1"),
        Setting("nats_port", "", "NATS_PORT", "4222"),
        Setting("nats_user", "", "NATS_BRIDGE_USER"),
        Setting("nats_password", "", "NATS_BRIDGE_PASSWORD", secret=True),
        Setting("nats_token", "", "NATS_TOKEN", secret=True),
        Setting("nats_nkey_seed", "", "NATS_NKEY_SEED", secret=True),
        Setting("nats_creds", "", "NATS_CREDS"),
        Setting("nats_ca", "", "NATS_CA"),
        Setting("nats_cert", "", "NATS_CERT"),
        Setting("nats_key", "", "NATS_KEY"),
        Setting("nats_tls_first", "", "NATS_TLS_FIRST", "no"),
        Setting("nats_replicas", "", "NATS_REPLICAS", "1"),
        Setting("log_level", "", "LOG_LEVEL", "INFO"),
        Setting("log_format", "", "LOG_FORMAT", "logfmt"),
    )
}


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """What a reader of a bridge's streams needs to know."""

    nats: NatsConfig
    stream: str
    log: LogConfig
    secrets: tuple[str, ...] = field(default=(), repr=False)
    http: HttpConfig | None = None
    """Only if it was asked for by a flag: the bridge's variables are not meant for its readers."""
