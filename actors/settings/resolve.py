"""Flags, environment and env file put together as one immutable value. A URL beats its parts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from actors.errors import ConfigError
from actors.settings.config import (
    ClientConfig,
    Config,
    HttpConfig,
    LogConfig,
    NatsAddress,
    NatsConfig,
    OtlpConfig,
    PostgresAddress,
    PostgresConfig,
    PostgresNames,
    PublishConfig,
    Renewable,
    SnapshotConfig,
    SourceConfig,
)
from actors.settings.env_file import ignored_libpq_names, tell
from actors.settings.nats_context import read_context
from actors.settings.sources import Sources, bad_value

R = TypeVar("R", bound=Renewable)


def resolve(flags: Mapping[str, object], environ: Mapping[str, str], env_file: Path | None = None) -> Config:
    """Put everything together. `flags` are those given, by the setting's name.

    Raises ConfigError: one line that names the flag or variable, the value and the fix.
    """
    sources = Sources(flags, environ, env_file)
    if not sources.given("database_url"):
        tell(ignored_libpq_names(environ))
    config = sources.group(
        Config,
        source=sources.group(SourceConfig),
        publish=sources.group(PublishConfig),
        snapshots=sources.group(SnapshotConfig),
        http=sources.group(HttpConfig),
        log=sources.group(LogConfig),
        otlp=sources.group(OtlpConfig),
        postgres=_renewable(_postgres, sources),
        standby=_renewable(_standby, sources) if sources.given("snapshot_database_url") else None,
        nats=_renewable(partial(_nats, environ=environ), sources),
    )
    return replace(config, secrets=sources.secrets, origins=sources.origins)


def resolve_client(flags: Mapping[str, object], environ: Mapping[str, str], env_file: Path | None = None) -> ClientConfig:
    """The part of the settings that does not concern PostgreSQL. Raises ConfigError."""
    sources = Sources(flags, environ, env_file)
    stream, log = sources.read("stream"), sources.group(LogConfig)
    http = HttpConfig(sources.read("port"), sources.read("bind")) if flags.get("port") is not None else None
    if http is None and flags.get("bind") is not None:
        raise ConfigError("WB002", "--bind: is for --port; add --port 9092")
    nats = _renewable(partial(_nats, environ=environ), sources)
    return ClientConfig(nats, stream, log, sources.secrets, http)


def _renewable(read: Callable[[Sources], R], sources: Sources) -> R:
    """Read a server's settings so that they can be read again, if a secret among them is in a file."""
    before = sources.files_read
    config = read(sources)

    def renew() -> R:
        again = sources.again()
        return replace(read(again), renew=renew, file_secrets=again.secrets)

    return replace(config, renew=renew) if sources.files_read > before else config


def _postgres(sources: Sources) -> PostgresConfig:
    given = sources.group(PostgresAddress)
    if given.password and given.password_command:
        raise ConfigError("WB003", "POSTGRES_BRIDGE_PASSWORD and POSTGRES_BRIDGE_PASSWORD_COMMAND are both set: remove one")
    if given.url:
        return _from_url(sources, given)
    if not given.user:
        raise ConfigError(
            "WB004",
            "no PostgreSQL user: set POSTGRES_BRIDGE_USER (and POSTGRES_BRIDGE_PASSWORD), or DATABASE_URL",
            fix="walbridge init asks and writes them into a file; no server at hand? walbridge demo",
        )
    from psycopg.conninfo import make_conninfo  # noqa: PLC0415  (commands that need no PostgreSQL load no libpq)

    password = {"password": given.password} if given.password else {}
    words = {"host": given.host, "port": str(given.port), "dbname": given.database, "user": given.user, **password}
    names = PostgresNames(
        sources.place("pg_host", "pg_port"),
        sources.place("pg_db"),
        sources.place("postgres_bridge_user"),
        _password_place(sources),
    )
    return PostgresConfig(make_conninfo("", **words), password_command=given.password_command or (), names=names)


def _password_place(sources: Sources) -> str:
    by_command = sources.given("postgres_bridge_password_command")
    return sources.place("postgres_bridge_password_command" if by_command else "postgres_bridge_password")


def _from_url(sources: Sources, given: PostgresAddress) -> PostgresConfig:
    """What DATABASE_URL says counts; user and password may stand beside it."""
    from psycopg import conninfo  # noqa: PLC0415

    words, where = _words_of(sources, "database_url")
    sources.overrule("database_url", "pg_host", "pg_port", "pg_db")
    command = given.password_command or ()
    is_beside = {word: word not in words for word in ("user", "password")}
    if "user" in words:
        sources.overrule("database_url", "postgres_bridge_user")
    if "password" in words:
        sources.overrule("database_url", "postgres_bridge_password", "postgres_bridge_password_command")
        command = ()
    words.setdefault("user", given.user or None)
    words.setdefault("password", given.password or None)
    if not words["user"]:
        raise ConfigError("WB004", f"{where} names no user: add one (postgresql://user@...) or set POSTGRES_BRIDGE_USER")
    _show_without_secrets(sources, "database_url", words)
    url = sources.place("database_url")
    names = PostgresNames(
        url, url, sources.place("postgres_bridge_user") if is_beside["user"] else url,
        _password_place(sources) if is_beside["password"] else url,
    )  # fmt: skip
    return PostgresConfig(conninfo.make_conninfo("", **words), password_command=command, names=names)


def _standby(sources: Sources) -> PostgresConfig:
    """What SNAPSHOT_DATABASE_URL says; who we are there and which database is the primary's, unless it says so itself."""
    from psycopg import conninfo  # noqa: PLC0415

    primary = _postgres(sources)
    of_primary = conninfo.conninfo_to_dict(primary.conninfo)
    words, where = _words_of(sources, "snapshot_database_url")
    database = str(of_primary.get("dbname") or of_primary.get("user") or "")
    if words.setdefault("dbname", database) != database:
        raise bad_value(where, "", f"names another database than the bridge reads; leave it out, or give {database}")
    command = () if words.get("password") else primary.password_command
    for word in ("user", "password"):
        words[word] = words.get(word) or of_primary.get(word)
    _show_without_secrets(sources, "snapshot_database_url", words)
    names = PostgresNames(where, where, where, where)
    return PostgresConfig(conninfo.make_conninfo("", **words), password_command=command, names=names)


def _words_of(sources: Sources, name: str) -> tuple[dict[str, Any], str]:
    """The words of a connection string, and where it was given."""
    from psycopg import ProgrammingError, conninfo  # noqa: PLC0415

    text, where = sources.text(name)
    try:
        words: dict[str, Any] = conninfo.conninfo_to_dict(text)
    except ProgrammingError as exc:
        raise bad_value(
            where,
            "",
            "is not a libpq connection string; give e.g. postgresql://user@host:5432/db, with %25 for %",
        ) from exc
    if not re.fullmatch(r"[\d,]*", str(words.get("port") or "")):  # libpq would look at it only when it connects
        raise bad_value(where, "", "its port is no number; escape what is special in a password, e.g. %40 for @")
    if "@" in str(words.get("host") or "")[1:]:  # before an @ may be a part of the password: show nothing
        raise bad_value(where, "", "its host has an @; escape what is special in a password, e.g. %40 for @")
    words.pop("replication", None)
    return words, where


def _show_without_secrets(sources: Sources, name: str, words: Mapping[str, Any]) -> None:
    from psycopg import conninfo  # noqa: PLC0415

    hidden = [word for word in words if words[word] and ("password" in word or "secret" in word)]
    sources.hide(*(str(words[word]) for word in hidden))
    sources.show(name, conninfo.make_conninfo("", **{**words, **dict.fromkeys(hidden, "********")}))


_NATS_WHERE = ("nats_url", "nats_host", "nats_port")
_NATS_API = ("nats_domain", "nats_js_prefix")
_NATS_WHO = ("nats_bridge_user", "nats_bridge_password", "nats_token", "nats_nkey_seed", "nats_creds")


def _use_nats_context(sources: Sources, environ: Mapping[str, str]) -> str:
    """Read the context that was named; returns its user JWT.

    Any setting of the address replaces the context's whole address, with domain and prefix, and any credential all of its
    credentials: a password of one user must not meet the name of another.
    """
    name, where = sources.text("nats_context")
    if not name:
        return ""
    found = read_context(name, where, environ)
    sources.files_read += 1
    for beaten_by, kind in (
        (_NATS_WHERE, (*_NATS_WHERE, *_NATS_API)), (_NATS_API, _NATS_API), (_NATS_WHO, (*_NATS_WHO, "nats_user_jwt"))
    ):  # fmt: skip
        if sources.given(*beaten_by):
            found = {setting: value for setting, value in found.items() if setting not in kind}
    jwt = found.pop("nats_user_jwt", "")
    if jwt:
        sources.hide(jwt)
    sources.use_context(name, found)
    return jwt


def _nats(sources: Sources, environ: Mapping[str, str]) -> NatsConfig:
    user_jwt = _use_nats_context(sources, environ)
    given = sources.group(NatsAddress)
    if given.url:
        sources.overrule("nats_url", "nats_host", "nats_port")
        url, (_, where) = given.url, sources.text("nats_url")
    else:
        host = f"[{given.host}]" if ":" in given.host and "@" not in given.host else given.host
        url, (_, where) = f"nats://{host}:{given.port}", sources.text("nats_host")
    urls = tuple(u.strip() for u in url.split(",") if u.strip())
    if not urls or not all(map(_is_nats_address, urls)) or (not given.url and (len(urls) > 1 or "@" in url)):
        # a password with a comma or a slash comes here in pieces: show nothing that may be one
        shown = given.url or given.host
        raise bad_value(where, "" if "@" in shown else shown, "is not a NATS address; give nats://host:4222 or tls://host:4222")
    masked = [_split_credentials(address) for address in urls]
    sources.hide(*(secret for _, *both in masked for secret in both))
    if given.url:
        sources.show("nats_url", ",".join(shown for shown, *_ in masked))
    config = sources.group(NatsConfig, urls=urls, user_jwt=user_jwt)
    if config.domain and config.js_prefix:
        (_, domain), (_, prefix) = (sources.text(name) for name in _NATS_API)
        raise ConfigError(
            "WB002", f"{domain} and {prefix} are both set: a domain is a prefix, $JS.{config.domain}.API; remove one"
        )
    return config


def _split_credentials(address: str) -> tuple[str, str, str]:
    """A NATS address without its password or token, that secret as written, and as meant."""
    scheme, slashes, rest = address.rpartition("://")
    credentials, at, host = rest.rpartition("@")
    user, colon, password = credentials.partition(":")
    if not at:
        return address, "", ""
    secret = password if colon else user
    return f"{scheme}{slashes}{user + ':' if colon else ''}********@{host}", secret, unquote(secret)


def _is_nats_address(url: str) -> bool:
    try:
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        more = parts.path.strip("/") or parts.query or parts.fragment or re.search(r"\s", url)
        return parts.scheme in ("nats", "tls") and bool(parts.hostname) and parts.port != 0 and not more
    except ValueError:
        return False
