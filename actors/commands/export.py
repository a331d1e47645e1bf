"""`walbridge export`: files for operating the bridge, made for this setup from the templates in `actors/ops`.

A template holds `@name@`, or `@name|style@` where the place has rules of its own for quoting. Everything that is no
template marks nothing else with `@word@`.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal, cast, get_args

from actors import __version__
from actors.contract.subjects import publish_prefix
from actors.errors import ConfigError
from actors.settings.config import Config
from actors.settings.resolve import read_env_file, resolve
from actors.wire.sql_names import quoted

Kind = Literal["alerts", "grafana", "compose", "systemd", "nats-permissions", "sql-role"]
KINDS: tuple[str, ...] = get_args(Kind)

SINGLE: Mapping[Kind, tuple[str, str]] = {
    "alerts": ("alerts.yml", "walbridge-alerts.yml"),
    "grafana": ("grafana-dashboard.json", "walbridge.json"),
    "systemd": ("walbridge.service", "walbridge.service"),
    "nats-permissions": ("nats-permissions.conf", "nats-permissions.conf"),
    "sql-role": ("role.sql", "walbridge-role.sql"),
}
"""Kind -> its template, and the name of the file that is made of it."""

IN_COMPOSE: Mapping[Kind, str] = {
    "alerts": "prometheus/walbridge-alerts.yml",
    "grafana": "grafana/dashboards/walbridge.json",
    "nats-permissions": "nats/nats-permissions.conf",
    "sql-role": "init/02-walbridge-role.sql",
}
"""Where the compose folder has the single files."""


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


def export(kind: str, folder: Path | None, setup: Setup) -> int:
    """Print a file, or write it, or all of them, into `folder`, which is made if need be.

    Raises ConfigError when a file is there with other contents, or cannot be written.
    """
    if kind not in KINDS:
        raise ConfigError("WB002", f"export {kind}: is not one of {', '.join(KINDS)}")
    made = render(cast(Kind, kind), setup)
    if folder is None:
        if len(made) > 1:
            raise ConfigError("WB009", "export compose: is a folder of files; add --dir DIR, e.g. --dir compose")
        (text,) = made.values()
        print(text, end="")
        return 0
    try:
        for name, text in made.items():
            path = folder / name
            if path.exists() and path.read_bytes() != text.encode():
                raise ConfigError("WB009", f"--dir: {str(path)!r} is there already, with other contents; move it away first")
        for name, text in made.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode())
            if text.startswith("#!"):
                path.chmod(0o755)
            print(f"written: {path}", file=sys.stderr)
    except OSError as exc:
        where = exc.filename or str(folder)
        raise ConfigError("WB009", f"--dir: cannot write {str(where)!r}: {exc.strerror}") from exc
    return 0


def render(kind: Kind, setup: Setup) -> dict[str, str]:
    """The files of a kind: path below the folder -> contents."""
    templates = files("actors").joinpath("ops")
    words = _words(setup)
    if kind != "compose":
        template, name = SINGLE[kind]
        return {name: _fill(templates.joinpath(template).read_text(encoding="utf-8"), words)}
    made = {name: _fill(text, words) for name, text in _walk(templates.joinpath("compose"))}
    for single, name in IN_COMPOSE.items():
        (made[name],) = render(single, setup).values()
    return dict(sorted(made.items()))


def make_setup(flags: Mapping[str, object], environ: Mapping[str, str], env_file: Path | None, tables: str) -> Setup:
    """The names from flags and environment, as the bridge itself would take them. Raises ConfigError for bad ones."""
    config = resolve(flags, _names_only({**(read_env_file(env_file) if env_file else {}), **environ}))
    words = _conninfo(config)
    return Setup(
        config.source.slot,
        config.source.publication,
        config.publish.stream,
        config.http.port,
        words.get("user") or "walbridge",
        words.get("dbname") or "app",
        config.nats.user or "bridge",
        parse_tables(tables),
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
    """The environment without secrets and without what names servers: an export needs neither."""
    kept = {"POSTGRES_BRIDGE_USER", "PG_DB", "DATABASE_URL", "NATS_BRIDGE_USER", "BRIDGE_PORT"}
    found = {name: value for name, value in environ.items() if name in kept and value}
    if "DATABASE_URL" not in found:
        found.setdefault("POSTGRES_BRIDGE_USER", "walbridge")
        found.setdefault("PG_DB", "app")
    return found


def _conninfo(config: Config) -> dict[str, str]:
    from psycopg import conninfo  # noqa: PLC0415  (main imports this module for its kinds)

    return {name: str(value) for name, value in conninfo.conninfo_to_dict(config.postgres.conninfo).items() if value}


def _walk(folder: Traversable, prefix: str = "") -> Sequence[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for entry in folder.iterdir():
        name = f"{prefix}{entry.name}"
        found += _walk(entry, f"{name}/") if entry.is_dir() else [(name, entry.read_text(encoding="utf-8"))]
    return found


def _words(setup: Setup) -> dict[str, str]:
    role, publication = quoted(setup.role), quoted(setup.publication)
    tables = [f"{quoted(schema)}.{quoted(table)}" for schema, table in setup.tables]
    schemas = dict.fromkeys(quoted(schema) for schema, _ in setup.tables)
    grants = [f"GRANT USAGE ON SCHEMA {schema} TO {role};" for schema in schemas]
    grants += [f"GRANT SELECT ON {table} TO {role};" for table in tables]
    names = (_plain(table if schema == "public" else f"{schema}.{table}") for schema, table in setup.tables)
    return {
        "version": __version__,
        "slot": setup.slot,
        "publication": setup.publication,
        "stream": setup.stream,
        "prefix": publish_prefix(setup.stream),
        "port": str(setup.port),
        "role": setup.role,
        "database": setup.database,
        "nats_user": setup.nats_user,
        "program": shutil.which("walbridge") or "/usr/local/bin/walbridge",
        "grants": "\n".join(grants),
        "publication_statement": f"CREATE PUBLICATION {publication} FOR TABLE {', '.join(tables)}",
        "tables_list": ",".join(names),
    }


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _plain(name: str) -> str:
    """A table as lists on the command line have it."""
    return name if re.fullmatch(r"[\w.]+", name) else quoted(name)


def _psql(text: str) -> str:
    """A word of a psql command."""
    return "'" + text.replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n") + "'"


def _json(text: str) -> str:
    """A string of JSON, which YAML and nats-server's configuration read as well."""
    return json.dumps(text, ensure_ascii=False)


def _compose(text: str) -> str:
    """A string in a compose file, where $ begins a variable."""
    quoted = "".join(c if c.isprintable() else f"\\U{ord(c):08X}" for c in _json(text))
    return quoted.replace("$", "$$")


def _systemd(text: str) -> str:
    """A word of ExecStart."""
    escaped = text.replace("%", "%%").replace("$", "$$")
    return escaped if re.fullmatch(r"[\w./%$-]+", text) else _json(escaped)


STYLES: Mapping[str, Callable[[str], str]] = {
    "literal": _literal,
    "psql": _psql,
    "json": _json,
    "compose": _compose,
    "systemd": _systemd,
}


def _fill(template: str, words: Mapping[str, str]) -> str:
    def word(match: re.Match[str]) -> str:
        text = words[match[1]]
        return STYLES[match[2]](text) if match[2] else text

    return re.sub(r"@([a-z_]+)(?:\|([a-z]+))?@", word, template)
