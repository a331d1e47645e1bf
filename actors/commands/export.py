"""`walbridge export`: files for operating the bridge, made for this setup from the folder `compose/`.

The files of `compose/` are written for the default names and work as they stand. `PLACES` lists where a name stands in a
file; an export replaces the default there. `compose.yaml` is copied unchanged, and a `.env` beside it has the names.
A place is `@name@`, or `@name|style@` where it has rules of its own for quoting. `walbridge.service` is a template of
such places.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal, cast, get_args
from urllib.parse import unquote, urlsplit

from cyclopts import Parameter

from actors import __version__
from actors.commands.installed_wheel import installed_wheel
from actors.commands.quoting import dotenv, fill
from actors.contract.subjects import key_prefix, publish_prefix
from actors.errors import ConfigError
from actors.settings.config import Config
from actors.settings.env_file import read_env_file
from actors.settings.flags import EnvFile, Flags, option, takes_settings
from actors.settings.resolve import resolve
from actors.settings.setting import OTHER, SOURCE, no_choice
from actors.wire.sql_names import quoted

Kind = Literal["alerts", "grafana", "alloy", "compose", "kubernetes", "systemd", "nats-permissions", "sql-role"]
KINDS: tuple[str, ...] = get_args(Kind)

SERVICE = "walbridge.service"
KUBERNETES = "kubernetes"
"""Folder of the objects, one a file."""

IN_COMPOSE: Mapping[Kind, str] = {
    "alerts": "prometheus/walbridge-alerts.yml",
    "grafana": "grafana/dashboards/walbridge.json",
    "alloy": "logs/config.alloy",
    "nats-permissions": "nats/nats-permissions.conf",
    "sql-role": "init/02-walbridge-role.sql",
}
"""Kind -> the file of `compose/` that it is."""

SINGLE: Mapping[Kind, str] = {
    "alerts": "walbridge-alerts.yml",
    "grafana": "walbridge.json",
    "alloy": "config.alloy",
    "systemd": SERVICE,
    "nats-permissions": "nats-permissions.conf",
    "sql-role": "walbridge-role.sql",
}
"""Kind -> the name of its one file."""

PLACES: Mapping[str, Sequence[str]] = {
    "prometheus/prometheus.yml": ['"bridge:@port@"'],
    "prometheus/walbridge-alerts.yml": ['slot_name="@slot@"', 'stream_name=~"@stream@.*"', 'runbook_url: "@runbooks@#'],
    "grafana/dashboards/walbridge.json": [
        '"Walbridge: @slot@ to @stream@"',
        r"slot_name=\"@slot@\"",
        r"stream_name=~\"@stream@.*",
    ],
    "nats/nats-permissions.conf": [
        "user: @nats_user|json@\n        password: $NATS_BRIDGE_PASSWORD",
        '"@prefix@cdc.>"',
        '"$KV.schemas.@keys@*", "$KV.dictionaries.@keys@*", "$KV.dictionaries.@keys@*.*"',
        '"$KV.bridges.@stream@", "$KV.bridges.@stream@.*"',
        '"$JS.API.STREAM.CREATE.@stream@"',
        '"$JS.API.CONSUMER.LIST.@stream@"',
    ],
    "init/02-walbridge-role.sql": [
        "\\set role @role|psql@",
        "@grants@",
        "SELECT @publication_statement|literal@",
        "pubname = @publication|literal@",
    ],
}
"""File of `compose/` -> where names stand in it; filled with the default names, a place is the text of the file."""

NOT_EXPORTED = ("secrets", "tls", ".env", "*.whl")
"""What a user of the checkout's `compose/` makes there."""


@dataclass(frozen=True, slots=True)
class Setup:
    """The names that the files are made for."""

    slot: str
    publication: str
    stream: str
    port: int
    role: str
    database: str
    nats_user: str
    tables: tuple[tuple[str, str], ...]
    """(schema, table) of what the publication holds."""
    postgres: tuple[tuple[str, str], ...] = (("host", "postgres"), ("port", "5432"))
    """(libpq keyword, value) of where PostgreSQL is and how to connect; without role, database and secrets."""
    nats_urls: tuple[str, ...] = ("nats://nats:4222",)
    """Without credentials."""
    replicas: int = 1
    image: str = f"walbridge:{__version__}"
    runbooks: str = "docs/operations.md"
    """The page that has a section for each alert."""


SUPERUSER = "postgres"
"""The role that `initdb` makes: a script for a role of the bridge's own is not for this one."""
DEFAULT = Setup("cdc_slot", "cdc_pub", "CDC", 9090, "walbridge", "app", "bridge", (("public", "users"), ("public", "orders")))
"""The names that the files of `compose/` hold."""


@takes_settings("port", slot="replication slot", pub="publication", stream="CDC stream")
def export(
    flags: Flags,
    kind: Annotated[str, Parameter(help="alerts, grafana, alloy, compose, kubernetes, systemd, nats-permissions or sql-role")],
    /,
    *,
    dir: Annotated[Path | None, Parameter(help="write into this folder instead of printing", metavar="DIR")] = None,
    tables: Annotated[str, option(SOURCE, "what the publication holds [users,orders]", "TABLES")] = "users,orders",
    runbooks: Annotated[
        str, option(OTHER, "the page where you keep the alerts' sections of docs/operations.md", "URL")
    ] = DEFAULT.runbooks,
    image: Annotated[
        str, option(OTHER, f"for kubernetes: the image that was pushed [{DEFAULT.image}]", "IMAGE")
    ] = DEFAULT.image,
    env_file: EnvFile = None,
) -> int:
    """Print or write files for operating the bridge."""
    if not re.fullmatch(r"[!$-\[\]-~]+", runbooks) or "#" in runbooks:  # it stands in double quotes of YAML
        raise ConfigError("WB002", f"--runbooks: {runbooks!r} is no address; give e.g. https://wiki.example.org/walbridge")
    return write(kind, dir, replace(make_setup(flags, os.environ, env_file, tables), image=image, runbooks=runbooks))


def write(kind: str, folder: Path | None, setup: Setup) -> int:
    """Print a file, or write the files of the kind into `folder`, which is made if it is missing.

    Raises ConfigError when a file is there with other contents, or cannot be written.
    """
    if kind not in KINDS:
        raise ConfigError("WB002", f"export {kind}: {no_choice(kind, KINDS)}")
    if kind == "sql-role" and setup.role == SUPERUSER:
        setup = replace(setup, role=DEFAULT.role)
    made = render(cast(Kind, kind), setup)
    if folder is None:
        if len(made) > 1:
            raise ConfigError("WB009", f"export {kind}: is a folder of files; add --dir DIR, e.g. --dir {kind}")
        (text,) = made.values()
        print(text, end="")
        return 0
    contents = {name: text.encode() for name, text in made.items()}
    wheel = installed_wheel() if kind == "compose" else None
    if wheel is not None:
        contents[f"wheel/{wheel.name}"] = wheel.content
    try:
        for name, content in contents.items():
            path = folder / name
            if path.exists() and path.read_bytes() != content:
                raise ConfigError("WB009", f"--dir: {str(path)!r} is there already, with other contents; move it away first")
        for name, content in contents.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            if content.startswith(b"#!"):
                path.chmod(0o755)
            print(f"written: {path}", file=sys.stderr)
    except OSError as exc:
        where = exc.filename or str(folder)
        raise ConfigError("WB009", f"--dir: cannot write {str(where)!r}: {exc.strerror}") from exc
    if kind == "kubernetes" and (own := _loopback(setup)):
        print(
            f"{own} is each container's own address: put where the servers are into the files before you apply them",
            file=sys.stderr,
        )
    if kind == "compose" and wheel is None:
        pip = ["pip", "wheel", "--no-deps", "--wheel-dir", str(folder / "wheel"), str(_compose_folder().parent)]
        print(f"walbridge runs from a checkout; make the wheel that the image installs: {shlex.join(pip)}", file=sys.stderr)
    return 0


def _loopback(setup: Setup) -> str:
    """The first address of a server that leads to the machine itself; empty if none does."""
    hosts = [dict(setup.postgres).get("host", ""), *(urlsplit(url).hostname or "" for url in setup.nats_urls)]
    return next((host for host in hosts if host.startswith("127.") or host in ("localhost", "::1")), "")


def render(kind: Kind, setup: Setup) -> dict[str, str]:
    """The files of a kind: path below the folder -> contents."""
    if kind == "compose":
        made = {name: _renamed(name, text, setup) for name, text in _walk(_compose_folder())}
        return dict(sorted({**made, ".env": _env(setup)}.items()))
    if kind == "systemd":
        template = files("actors").joinpath("ops", SERVICE).read_text(encoding="utf-8")
        return {SERVICE: fill(template, _words(setup))}
    if kind == "kubernetes":
        templates = files("actors").joinpath("ops", KUBERNETES).iterdir()
        return dict(sorted((file.name, fill(file.read_text(encoding="utf-8"), _words(setup))) for file in templates))
    name = IN_COMPOSE[kind]
    return {SINGLE[kind]: _renamed(name, _compose_folder().joinpath(name).read_text(encoding="utf-8"), setup)}


def make_setup(flags: Mapping[str, object], environ: Mapping[str, str], env_file: Path | None, tables: str) -> Setup:
    """The names from flags and environment, as the bridge itself would take them. Raises ConfigError for bad ones."""
    config = resolve(flags, _names_only({**(read_env_file(env_file) if env_file else {}), **environ}))
    words = _conninfo(config)
    in_urls = [address.username for address in map(urlsplit, config.nats.urls) if address.username and address.password]
    return Setup(
        config.source.slot,
        config.source.publication,
        config.publish.stream,
        config.http.port,
        words.get("user") or "walbridge",
        words.get("dbname") or "app",
        config.nats.user or (unquote(in_urls[0]) if in_urls else "bridge"),
        parse_tables(tables),
        tuple((word, value) for word, value in words.items() if word not in ("user", "dbname") and not _is_secret(word)),
        tuple(re.sub(r"//.*@", "//", url if "://" in url else f"nats://{url}") for url in config.nats.urls),
        config.nats.replicas,
    )


def parse_tables(text: str) -> tuple[tuple[str, str], ...]:
    """`users,sales.orders,"Odd, name"`: what is not in double quotes is taken as it stands. Raises ConfigError."""
    name = r'(?:"((?:[^"]|"")+)"|([^".,\s][^".,]*?))'
    found: list[tuple[str, str]] = []
    rest = text.strip()
    while rest:
        match = re.match(rf"{name}(?:\.{name})?\s*(?:,\s*(?=\S)|$)", rest)
        if match is None:
            raise ConfigError("WB002", f'--tables: {text!r} is no list of tables; give e.g. users,sales.orders,"Odd, name"')
        first, second = (match[1] or match[2], match[3] or match[4])
        schema, table = (first, second) if second else ("public", first)
        found.append((schema.replace('""', '"'), table.replace('""', '"')))
        rest = rest[match.end() :]
    if not found:
        raise ConfigError("WB002", "--tables: give at least one table, e.g. users,orders")
    return tuple(found)


def _names_only(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without secrets. What it does not name is as in the files of `compose/`."""
    servers = {"DATABASE_URL", "PG_HOST", "PG_PORT", "NATS_URL", "NATS_HOST", "NATS_PORT"}
    names = {"BRIDGE_SLOT", "BRIDGE_PUB", "BRIDGE_STREAM", "BRIDGE_PORT"}
    kept = {"POSTGRES_BRIDGE_USER", "PG_DB", "NATS_BRIDGE_USER", "NATS_REPLICAS"} | names | servers
    found = {name: value for name, value in environ.items() if name in kept and value}
    if "DATABASE_URL" not in found:
        found = {"POSTGRES_BRIDGE_USER": DEFAULT.role, "PG_DB": DEFAULT.database, "PG_HOST": "postgres", **found}
    if not found.keys() & {"NATS_URL", "NATS_HOST"}:
        found["NATS_HOST"] = "nats"
    return found


def _is_secret(word: str) -> bool:
    """Whether a keyword of libpq holds a secret."""
    return "password" in word or "secret" in word


def _conninfo(config: Config) -> dict[str, str]:
    from psycopg import conninfo  # noqa: PLC0415  (main imports this module for its kinds)

    return {name: str(value) for name, value in conninfo.conninfo_to_dict(config.postgres.conninfo).items() if value}


def _compose_folder() -> Path:
    """`compose/`: inside the package in an installed wheel, beside the package in a source tree."""
    package = Path(str(files("actors")))
    installed = package / "ops" / "compose"
    return installed if installed.is_dir() else package.parent / "compose"


def _walk(folder: Path, prefix: str = "") -> Sequence[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for entry in folder.iterdir():
        name = f"{prefix}{entry.name}"
        if any(fnmatch(entry.name, pattern) for pattern in NOT_EXPORTED):
            continue
        found += _walk(entry, f"{name}/") if entry.is_dir() else [(name, entry.read_text(encoding="utf-8"))]
    return found


def _renamed(name: str, text: str, setup: Setup) -> str:
    """A file of `compose/` with the names of this setup in place of the default ones."""
    if name not in PLACES:
        return text
    ours, default = _words(setup), _words(DEFAULT)
    replaced = {fill(place, default): fill(place, ours) for place in PLACES[name]}
    missing = [place for place in replaced if place not in text]
    assert not missing, f"compose/{name} has no {missing}: PLACES names what the file no longer holds"
    return re.sub("|".join(map(re.escape, replaced)), lambda match: replaced[match[0]], text)


def _env(setup: Setup) -> str:
    """The variables of `compose.yaml`. The shell's own variables beat `.env`, so the names begin with WALBRIDGE_."""
    names = {
        "SLOT": setup.slot,
        "PUB": setup.publication,
        "STREAM": setup.stream,
        "TABLES": _words(setup)["tables_list"],
        "PORT": str(setup.port),
        "DB": setup.database,
        "PG_USER": setup.role,
        "NATS_USER": setup.nats_user,
    }
    lines = [
        "# The names in compose.yaml; no secret is here. Alerts, dashboard, prometheus.yml, NATS permissions and the script of",
        "# the role hold names as well: for other names, run walbridge export compose into an empty folder.",
        *(f"WALBRIDGE_{name}={dotenv(text)}" for name, text in names.items()),
    ]
    return "\n".join(lines) + "\n"


def _words(setup: Setup) -> dict[str, str]:
    role, publication = quoted(setup.role), quoted(setup.publication)
    tables = [f"{quoted(schema)}.{quoted(table)}" for schema, table in setup.tables]
    schemas = dict.fromkeys(quoted(schema) for schema, _ in setup.tables)
    grants = [f"GRANT USAGE ON SCHEMA {schema} TO {role};" for schema in schemas]
    grants += [f"GRANT SELECT ON {table} TO {role};" for table in tables]
    names = (_plain(table if schema == "public" else f"{schema}.{table}") for schema, table in setup.tables)
    return {
        "slot": setup.slot,
        "publication": setup.publication,
        "stream": setup.stream,
        "prefix": publish_prefix(setup.stream),
        "keys": key_prefix(setup.stream),
        "port": str(setup.port),
        "role": setup.role,
        "nats_user": setup.nats_user,
        "runbooks": setup.runbooks,
        "program": shutil.which("walbridge") or "/usr/local/bin/walbridge",
        "grants": "\n".join(grants),
        "publication_statement": f"CREATE PUBLICATION {publication} FOR TABLE {', '.join(tables)}",
        "tables_list": ",".join(names),
        "kubernetes_name": _kubernetes_name(setup.slot),
        "image": setup.image,
        "database_url": _database_url(setup),
        "nats_url": ",".join(setup.nats_urls),
        "replicas": str(setup.replicas),
        "postgres_ports": _ports(dict(setup.postgres).get("port", "").split(","), "5432"),
        "nats_ports": _ports([str(urlsplit(url).port or "") for url in setup.nats_urls], "4222"),
    }


def _database_url(setup: Setup) -> str:
    from psycopg.conninfo import make_conninfo  # noqa: PLC0415

    return make_conninfo("", **dict(setup.postgres), dbname=setup.database, user=setup.role)


def _kubernetes_name(slot: str) -> str:
    """A name for the objects, at most 63 letters, digits and hyphens: several bridges may share a namespace."""
    name = "walbridge" if slot == DEFAULT.slot else f"walbridge-{slot.replace('_', '-')}"
    if len(name) <= 63 and not name.endswith("-"):
        return name
    return f"{name[:54]}-{hashlib.sha256(slot.encode()).hexdigest()[:8]}"


def _ports(ports: Iterable[str], default: str) -> str:
    """The ports of a rule of a NetworkPolicy, each once."""
    return ", ".join(f"{{protocol: TCP, port: {port}}}" for port in dict.fromkeys(port or default for port in ports)).join("[]")


def _plain(name: str) -> str:
    """A table as lists on the command line have it."""
    return name if re.fullmatch(r"[\w.]+", name) else quoted(name)
