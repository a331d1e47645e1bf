"""Contexts of the nats command line (its ADR-21): one file per context, named by `--nats-context` or NATS_CONTEXT.

Only a context that was named is read, never the selected one: on a laptop where production is selected, a bridge would
publish there.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from actors.errors import ConfigError

HONOURED = {
    "url": "nats_url", "user": "nats_bridge_user", "password": "nats_bridge_password", "token": "nats_token",
    "creds": "nats_creds", "user_jwt": "nats_user_jwt", "user_seed": "nats_nkey_seed", "nkey": "nats_nkey_seed",
    "ca": "nats_ca", "cert": "nats_cert", "key": "nats_key", "tls_first": "nats_tls_first",
    "jetstream_domain": "nats_domain", "jetstream_api_prefix": "nats_js_prefix",
}  # fmt: skip
"""Key of the file -> our setting."""
REFUSED = (
    "nsc", "socks_proxy", "inbox_prefix", "windows_cert_store",
    "windows_cert_match", "windows_cert_match_by", "windows_ca_certs_match",
)  # fmt: skip
"""Keys that change the peer or the protocol: ignoring them would be wrong."""
PATHS = ("creds", "nkey", "ca", "cert", "key")


def read_context(name: str, where: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The settings that a context gives, by our names. `name` is a context's or a file's (.json); `where` it was given.

    Raises ConfigError when the context cannot be read or asks for something that the bridge cannot do.
    """
    path = _path_of(name, where, environ)
    try:
        found = json.loads(path.read_text())
    except OSError as exc:
        raise ConfigError(
            "WB003", f"{where}: cannot read {str(path)!r}: {exc.strerror}", fix="nats context ls   # shows what there is"
        ) from exc
    except ValueError as exc:
        raise ConfigError("WB003", f"{where}: {str(path)!r} is not a context of the nats command line") from exc
    if not isinstance(found, dict):
        raise ConfigError("WB003", f"{where}: {str(path)!r} is not a context of the nats command line")
    for key in REFUSED:
        if found.get(key):
            raise ConfigError(
                "WB003", f"{where}: context {name} sets {key}, which the bridge does not support",
                fix=f"a context without it: nats context copy {name} walbridge; nats context edit walbridge",
            )  # fmt: skip
    settings: dict[str, str] = {}
    for key, setting in HONOURED.items():
        value = found.get(key)
        if not value:
            continue
        text = "yes" if value is True else str(value)
        if key in PATHS:
            text = _expanded(text, environ)
        if key == "nkey":
            try:
                text = re.findall(r"\bS[A-Z0-9]{20,}\b", Path(text).read_text())[0]
            except (OSError, UnicodeDecodeError, IndexError) as exc:
                raise ConfigError("WB003", f"{where}: context {name} names an nkey file without a seed: {text!r}") from exc
        settings[setting] = text
    return settings


def _path_of(name: str, where: str, environ: Mapping[str, str]) -> Path:
    if name.endswith(".json"):
        return Path(name).expanduser()
    if not re.fullmatch(r"[^/\\\0]{1,200}", name) or ".." in name:
        raise ConfigError("WB002", f"{where}: {name!r} is not a context's name; give one of: nats context ls")
    folder = environ.get("XDG_CONFIG_HOME") or f"{environ.get('HOME') or os.path.expanduser('~')}/.config"
    return Path(folder) / "nats" / "context" / f"{name}.json"


def _expanded(text: str, environ: Mapping[str, str]) -> str:
    """`~` and `$VAR`, as the nats command line does."""
    known = re.sub(r"\$(\w+)|\$\{(\w+)\}", lambda m: environ.get(m[1] or m[2], m[0]), text)
    home = environ.get("HOME")
    return f"{home}{known[1:]}" if home and known.startswith("~/") else os.path.expanduser(known)
