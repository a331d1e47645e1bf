"""Flags, environment and env file put together: one immutable value, and where each part of it came from."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from actors.errors import ConfigError
from actors.settings.config import (
    SETTINGS,
    ClientConfig,
    Config,
    HttpConfig,
    LogConfig,
    NatsConfig,
    PostgresConfig,
    PublishConfig,
    Setting,
    SnapshotConfig,
    SourceConfig,
)
from actors.settings.nats_context import read_context

_STREAM = r"[A-Za-z0-9_-]{1,64}"


def _bad(where: str, value: str, fix: str, code: str = "WB002") -> ConfigError:
    return ConfigError(code, f"{where}: {value!r} {fix}" if value else f"{where}: {fix}")


class _Resolver:
    """Looks settings up and remembers where each came from."""

    def __init__(self, flags: Mapping[str, object], environ: Mapping[str, str], env_file: Mapping[str, str]) -> None:
        self._flags, self._environ, self._env_file = flags, environ, env_file
        self._context: dict[str, str] = {}
        self._context_name = ""
        self.origins: list[tuple[str, str, str]] = []
        self.secrets: set[str] = set()

    def text(self, name: str) -> tuple[str, str]:
        """The value of a setting and the name under which it was given, for an error to point at."""
        setting = SETTINGS[name]
        value, shown, origin = self._find(setting)
        if setting.secret and value:
            self.secrets.add(value)
        display = "********" if setting.secret and value else value
        self.origins.append((setting.flag or setting.variable, display, origin))
        return value, shown

    def show(self, name: str, display: str) -> None:
        """Show this much of a secret: a URL has parts that are none."""
        variable = SETTINGS[name].variable
        self.origins = [(n, display if n == variable else d, origin) for n, d, origin in self.origins]

    def overrule(self, winner: str, *names: str) -> None:
        """Say of settings that were given that another one, also given, has beaten them."""
        beaten = {SETTINGS[name].variable for name in names}
        note = f" (not used: {SETTINGS[winner].variable} is set)"
        self.origins = [
            (n, d, origin + note if n in beaten and origin != "default" else origin) for n, d, origin in self.origins
        ]

    def given(self, *names: str) -> bool:
        """Whether any of these is set, anywhere but in the context."""
        return any(self._find(SETTINGS[name])[2] not in ("default", f"context {self._context_name}") for name in names)

    def use_context(self, name: str, settings: Mapping[str, str]) -> None:
        """From here on what nobody else sets comes from a context of the nats command line."""
        self._context, self._context_name = dict(settings), name

    def _find(self, setting: Setting) -> tuple[str, str, str]:
        flag = self._flags.get(setting.name)
        if flag is not None and flag is not False:
            return ("yes" if flag is True else str(flag)), setting.flag, "flag"
        for source, words in ((self._environ, "environment"), (self._env_file, "env file")):
            # compose files and unit files pass on what is not set as an empty word
            value, file = source.get(setting.variable) or None, source.get(f"{setting.variable}_FILE") or None
            if not setting.variable or (value is None and (file is None or not setting.secret)):
                continue
            if value is not None and file is not None and setting.secret:
                raise ConfigError("WB003", f"{setting.variable} and {setting.variable}_FILE are both set: remove one")
            if value is not None:
                return value, setting.variable, f"{words} {setting.variable}"
            assert file is not None
            try:
                return Path(file).read_text().rstrip("\r\n"), f"{setting.variable}_FILE", f"file {file}"
            except (OSError, UnicodeDecodeError) as exc:
                reason = exc.strerror if isinstance(exc, OSError) else "not text"
                raise ConfigError("WB003", f"{setting.variable}_FILE: cannot read {file!r}: {reason}") from exc
        if setting.name in self._context:
            return self._context[setting.name], f"context {self._context_name}", f"context {self._context_name}"
        return setting.default, setting.flag or setting.variable, "default"

    def number(self, name: str, low: int, high: int, kind: str, example: str) -> int:
        value, where = self.text(name)
        if not re.fullmatch(r"\d{1,9}", value) or not low <= int(value) <= high:
            raise _bad(where, value, f"is not {kind}; give {low}-{high}, e.g. {example}")
        return int(value)

    def choice(self, name: str, choices: tuple[str, ...]) -> Any:
        value, where = self.text(name)
        if value not in choices:
            raise _bad(where, value, f"is not one of {', '.join(choices)}")
        return value

    def switch(self, name: str) -> bool:
        value, where = self.text(name)
        if value.lower() not in ("yes", "no", "true", "false", "1", "0"):
            raise _bad(where, value, "is neither yes nor no")
        return value.lower() in ("yes", "true", "1")

    def pattern(self, name: str, pattern: str, fix: str) -> str:
        value, where = self.text(name)
        if not re.fullmatch(pattern, value):
            raise _bad(where, value, fix)
        return value


def _split_credentials(address: str) -> tuple[str, str, str]:
    """A NATS address without its password or token, that secret as written, and as meant."""
    scheme, slashes, rest = address.rpartition("://")
    credentials, at, host = rest.rpartition("@")
    user, colon, password = credentials.partition(":")
    if not at:
        return address, "", ""
    secret = password if colon else user
    return f"{scheme}{slashes}{user + ':' if colon else ''}********@{host}", secret, unquote(secret)


def read_env_file(path: Path) -> dict[str, str]:
    """NAME=value lines, as systemd's EnvironmentFile: comments, blank lines, optional quotes. Raises ConfigError."""
    found: dict[str, str] = {}
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not text"
        raise ConfigError("WB003", f"--env-file: cannot read {str(path)!r}: {reason}") from exc
    for number, line in enumerate(lines, 1):
        stripped = line.strip().removeprefix("export ")
        if not stripped or stripped.startswith(("#", ";")):
            continue
        name, equals, value = stripped.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name.strip()):
            raise ConfigError("WB003", f"--env-file: {path}:{number} is not NAME=value")
        value = value.strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        found[name.strip()] = value
    return found


def resolve(flags: Mapping[str, object], environ: Mapping[str, str], env_file: Path | None = None) -> Config:
    """Put everything together. `flags` are those given, by setting name. Raises ConfigError: one line that names the
    flag or variable, the value and the fix."""
    find = _Resolver(flags, environ, read_env_file(env_file) if env_file else {})
    source = SourceConfig(
        find.pattern("slot", r"[a-z0-9_]{1,63}", "is not a slot name; give lower-case letters, digits and _, e.g. cdc_slot"),
        find.pattern("pub", r"(?s).{1,63}", "is not a publication name; give 1-63 characters, e.g. cdc_pub"),
        find.switch("temporary_slot"),
    )
    publish = PublishConfig(
        find.pattern("stream", _STREAM, "is not a stream name; give letters, digits, _ and -, e.g. CDC2"),
        find.choice("publish", ("auto", "fast", "plain")),
        find.number("pack", 1, 1000, "a number of events", "100"),
        "json" if find.switch("json") else "msgpack",
        find.choice("arrays", ("literal", "list")),
    )
    snapshots = SnapshotConfig(
        find.choice("snapshot_format", ("map", "array")),
        find.switch("zstd"),
        find.switch("zstd_events"),
        Path(find.text("dictionaries")[0]),
    )
    http = HttpConfig(*_address(find), find.text("http_token")[0])
    log = LogConfig(_level(*find.text("log_level")), find.choice("log_format", ("logfmt", "json")))
    accept_gap = find.switch("accept_gap")
    heartbeat_url, where = find.text("heartbeat_url")
    if heartbeat_url and not re.fullmatch(r"https?://[\x21-\x7e]+", heartbeat_url):
        raise ConfigError("WB002", f"{where}: is not an address of http or https; give e.g. https://hc-ping.com/UUID")
    postgres, nats = _postgres(find), _nats(find, environ)
    # a shorter one would mask half of the log, and is none
    secrets = tuple(sorted(secret for secret in find.secrets if len(secret) >= 4))
    return Config(
        postgres, nats, source, publish, snapshots, http, log, accept_gap, heartbeat_url, secrets, tuple(find.origins)
    )


def resolve_client(flags: Mapping[str, object], environ: Mapping[str, str], env_file: Path | None = None) -> ClientConfig:
    """The part of the settings that does not concern PostgreSQL. Raises ConfigError."""
    find = _Resolver(flags, environ, read_env_file(env_file) if env_file else {})
    stream = find.pattern("stream", _STREAM, "is not a stream name; give letters, digits, _ and -, e.g. CDC2")
    log = LogConfig(_level(*find.text("log_level")), find.choice("log_format", ("logfmt", "json")))
    http = HttpConfig(*_address(find)) if flags.get("port") is not None else None
    if http is None and flags.get("bind") is not None:
        raise ConfigError("WB002", "--bind: is for --port; add --port 9092")
    nats = _nats(find, environ)
    return ClientConfig(nats, stream, log, tuple(sorted(secret for secret in find.secrets if len(secret) >= 4)), http)


def _address(find: _Resolver) -> tuple[str, int]:
    """Where HTTP is served: address and port."""
    bind = find.pattern("bind", r"[0-9A-Za-z.:_-]+", "is not an address; give e.g. 0.0.0.0")
    return bind, find.number("port", 1, 65535, "a port", "9091")


def _level(value: str, where: str) -> str:
    if value.upper() not in ("DEBUG", "INFO", "WARNING", "WARN", "ERROR"):
        raise _bad(where, value, "is not one of DEBUG, INFO, WARNING, ERROR")
    return "WARNING" if value.upper() == "WARN" else value.upper()


def _postgres(find: _Resolver) -> PostgresConfig:
    url, where = find.text("database_url")
    host, port, db = find.text("pg_host")[0], find.number("pg_port", 1, 65535, "a port", "5432"), find.text("pg_db")[0]
    user, password = find.text("pg_user")[0], find.text("pg_password")[0]
    from psycopg import ProgrammingError, conninfo  # noqa: PLC0415  (--version and health need no libpq)

    if url:
        try:
            words = conninfo.conninfo_to_dict(url)
        except ProgrammingError as exc:
            raise _bad(where, "", "is not a libpq connection string; give e.g. postgresql://user@host:5432/db") from exc
        if not re.fullmatch(r"[\d,]*", str(words.get("port") or "")):  # libpq would look at it only when it connects
            raise _bad(where, "", "its port is no number; escape what is special in a password, e.g. %40 for @")
        words.pop("replication", None)
        # what the URL says counts; who and with which password may stand beside it
        find.overrule("database_url", "pg_host", "pg_port", "pg_db")
        for part, word in (("pg_user", "user"), ("pg_password", "password")):
            if word in words:
                find.overrule("database_url", part)
        words.setdefault("user", user or None)
        words.setdefault("password", password or None)
        if not words["user"]:
            raise ConfigError("WB004", f"{where} names no user: add one (postgresql://user@...) or set POSTGRES_BRIDGE_USER")
        hidden = [word for word in words if words[word] and ("password" in word or "secret" in word)]
        find.secrets |= {str(words[word]) for word in hidden}
        find.show("database_url", conninfo.make_conninfo("", **{**words, **dict.fromkeys(hidden, "********")}))
        return PostgresConfig(conninfo.make_conninfo("", **words))
    if not user:
        raise ConfigError(
            "WB004",
            "no PostgreSQL user: set POSTGRES_BRIDGE_USER (and POSTGRES_BRIDGE_PASSWORD), or DATABASE_URL",
            fix="no server at hand? walbridge demo",
        )
    parts: dict[str, str] = {"host": host, "port": str(port), "dbname": db, "user": user}
    if password:
        parts["password"] = password
    return PostgresConfig(conninfo.make_conninfo("", **parts))


_NATS_WHERE = ("nats_url", "nats_host", "nats_port")
_NATS_WHO = ("nats_user", "nats_password", "nats_token", "nats_nkey_seed", "nats_creds")


def _use_nats_context(find: _Resolver, environ: Mapping[str, str]) -> str:
    """Read the context that was asked for; returns its user JWT. What the environment says of where or who beats all of it
    of that kind: a password of one user must not meet the name of another.
    """
    name, where = find.text("nats_context")
    if not name:
        return ""
    found = read_context(name, where, environ)
    for kind in (_NATS_WHERE, (*_NATS_WHO, "nats_user_jwt")):
        if find.given(*(setting for setting in kind if setting in SETTINGS)):
            found = {setting: value for setting, value in found.items() if setting not in kind}
    jwt = found.pop("nats_user_jwt", "")
    if jwt:
        find.secrets.add(jwt)
    find.use_context(name, found)
    return jwt


def _nats(find: _Resolver, environ: Mapping[str, str]) -> NatsConfig:
    user_jwt = _use_nats_context(find, environ)
    url, where = find.text("nats_url")
    (host, host_where), port = find.text("nats_host"), find.number("nats_port", 1, 65535, "a port", "4222")
    if url:
        find.overrule("nats_url", "nats_host", "nats_port")
    else:
        url, where = f"nats://[{host}]:{port}" if ":" in host and "@" not in host else f"nats://{host}:{port}", host_where
    urls = tuple(u.strip() for u in url.split(",") if u.strip())
    if not urls or not all(map(_is_nats_address, urls)) or (where == host_where and (len(urls) > 1 or "@" in url)):
        # a password with a comma or a slash comes here in pieces: show nothing that may be one
        given = host if where == host_where else url
        raise _bad(where, "" if "@" in given else given, "is not a NATS address; give nats://host:4222 or tls://host:4222")
    masked = [_split_credentials(address) for address in urls]
    find.secrets |= {secret for _, *both in masked for secret in both}
    if where != host_where:
        find.show("nats_url", ",".join(shown for shown, *_ in masked))
    optional: Callable[[str], str | None] = lambda name: find.text(name)[0] or None  # noqa: E731
    creds = optional("nats_creds")
    return NatsConfig(
        urls,
        find.text("nats_user")[0],
        find.text("nats_password")[0],
        find.text("nats_token")[0],
        find.text("nats_nkey_seed")[0],
        Path(creds).expanduser() if creds else None,
        user_jwt,
        optional("nats_ca"),
        optional("nats_cert"),
        optional("nats_key"),
        find.switch("nats_tls_first"),
        find.number("nats_replicas", 1, 5, "a number of replicas", "3"),
    )


def _is_nats_address(url: str) -> bool:
    try:
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        more = parts.path.strip("/") or parts.query or parts.fragment or re.search(r"\s", url)
        return parts.scheme in ("nats", "tls") and bool(parts.hostname) and parts.port != 0 and not more
    except ValueError:
        return False
