"""Addresses, credentials and TLS for a connection to NATS. The only I/O is reading the files that settings name."""

from __future__ import annotations

import base64
import re
import ssl
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import nkeys

from actors.errors import ConfigError
from actors.settings.config import NatsConfig

DEFAULT_PORT = 4222


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """One server of a cluster."""

    host: str
    port: int
    tls: bool = False
    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    tls_name: str = ""
    """The name to expect in the certificate; empty for `host`."""

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def parse_url(url: str) -> ServerAddress:
    """Read `nats://`, `tls://` or a bare host:port, with user:password@ or token@. Raises ValueError."""
    parts = urlsplit(url if "://" in url else f"nats://{url}")
    if parts.scheme not in ("nats", "tls") or not parts.hostname:
        raise ValueError("not a NATS address: give nats://host:4222 or tls://host:4222")
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    port = parts.port or DEFAULT_PORT
    if user and not parts.password:
        return ServerAddress(parts.hostname, port, parts.scheme == "tls", token=user)
    return ServerAddress(parts.hostname, port, parts.scheme == "tls", user, password)


def servers_of(urls: Sequence[str], known: Iterable[str]) -> list[ServerAddress]:
    """Return the configured servers and those that the cluster has announced, `known`, each a bare host:port.

    An announced server has no scheme and no credentials, so the first configured server's apply. A bare IP address is seldom
    in a certificate, so the first server's name is expected there too.
    """
    configured = [parse_url(url) for url in urls]
    first, servers = configured[0], list(configured)
    taken = {(server.host, server.port) for server in configured}
    for announced in sorted(known):
        try:
            address = parse_url(announced)
        except ValueError:
            continue  # no reason to stop: the configured servers remain
        if (address.host, address.port) not in taken:
            name = first.host if _is_ip(address.host) and not _is_ip(first.host) else ""
            servers.append(replace(first, host=address.host, port=address.port, tls_name=name))
    return servers


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def connect_options(config: NatsConfig, server: ServerAddress, info: Mapping[str, Any], version: str) -> dict[str, object]:
    """Return the CONNECT options for a server that sent `info`: https://docs.nats.io/reference/reference-protocols/nats-protocol

    Raises ConfigError for a seed or credentials file that cannot be used.
    """
    options: dict[str, object] = {
        "verbose": False,
        "pedantic": False,
        "lang": "python-walbridge",
        "version": version,
        "name": "walbridge",
        "protocol": 1,
        "headers": True,
        "no_responders": True,
    }
    seed, jwt = config.nkey_seed, config.user_jwt
    if config.creds is not None:
        jwt, seed = _read_creds(config.creds)
    if seed:
        try:
            pair = nkeys.from_seed(seed.encode())  # type: ignore[no-untyped-call]
        except Exception as exc:  # the library raises several kinds, none of which may show the seed
            where, fix = "NATS_NKEY_SEED is", "nk -gen user   # makes one"
            if config.creds is not None:
                where, fix = f"the seed in NATS_CREDS {config.creds} is", "nsc generate creds > user.creds"
            raise ConfigError("WB205", f"{where} not an nkey seed", fix=fix) from exc
        signature = pair.sign(str(info.get("nonce", "")).encode())
        options["sig"] = base64.urlsafe_b64encode(signature).rstrip(b"=").decode()
        if jwt:
            options["jwt"] = jwt
        else:
            options["nkey"] = pair.public_key.decode()
        pair.wipe()
    user, password, token = server.user or config.user, server.password or config.password, server.token or config.token
    if user:
        options["user"], options["pass"] = user, password
    if token:
        options["auth_token"] = token
    return options


def _read_creds(path: Path) -> tuple[str, str]:
    """Return the user JWT and seed of a `.creds` file."""
    try:
        text = path.read_text()
    except OSError as exc:
        raise ConfigError("WB205", f"cannot read NATS_CREDS {path}", said=str(exc.strerror)) from exc
    except UnicodeDecodeError:
        text = ""
    blocks = re.findall(r"-{3,}[^\n]*BEGIN[^\n]*-{3,}\s*(\S+)\s*-{3,}[^\n]*END", text)
    if len(blocks) < 2:
        raise ConfigError("WB205", f"NATS_CREDS {path} has no JWT and seed in it", fix="nsc generate creds > user.creds")
    return blocks[0], blocks[1]


def tls_context(config: NatsConfig) -> ssl.SSLContext:
    """Return the context for TLS to NATS: the system's authorities or NATS_CA, and a client certificate if one is set."""
    try:
        context = ssl.create_default_context(cafile=config.ca)
        if config.cert:
            context.load_cert_chain(config.cert, config.key, password="")  # a locked key is an error, not a prompt
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError(
            "WB205", "cannot use NATS_CA, NATS_CERT or NATS_KEY", said=str(exc), fix="give PEM files that this user can read"
        ) from exc
    return context
