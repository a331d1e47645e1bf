"""The file of `--env-file`: NAME=value lines as systemd, Docker and shells read them alike, or words on what is wrong."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from actors.errors import ConfigError
from actors.settings.config import SETTINGS

VARIABLES = frozenset(
    name
    for setting in SETTINGS.values()
    if setting.variable
    for name in (setting.variable, *([f"{setting.variable}_FILE"] if setting.secret else []))
)
"""Every name that counts."""
LIBPQ = {
    "PGHOST": "PG_HOST", "PGPORT": "PG_PORT", "PGDATABASE": "PG_DB", "PGUSER": "POSTGRES_BRIDGE_USER",
    "PGPASSWORD": "POSTGRES_BRIDGE_PASSWORD",
}  # fmt: skip
"""libpq's names of what has a name of ours."""
_OURS = re.compile(r"PG|POSTGRES|DATABASE|NATS|BRIDGE|LOG_|WALBRIDGE")
"""A name that begins like this is meant for us; a file for a container may well hold others."""
INIT_WRITES, INIT_WRITES_SQL = "walbridge.env", "walbridge.sql"
_told: set[str] = set()


def read_env_file(path: Path) -> dict[str, str]:
    """Read NAME=value lines; `#` begins a comment, quotes may enclose a value. Tells on stderr of names that count nowhere.

    Raises ConfigError for a line that other readers of such files would take in different ways.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not text"
        close = _like(path) if isinstance(exc, FileNotFoundError) else ""
        meant = f"; did you mean {close}?" if close else ""
        raise ConfigError("WB003", f"--env-file: cannot read {str(path)!r}: {reason}{meant}") from exc
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        stripped = line.strip().removeprefix("export ")
        if not stripped or stripped.startswith(("#", ";")):
            continue
        name, equals, value = stripped.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name.strip()):
            raise ConfigError("WB003", f"--env-file: {path}:{number} is not NAME=value")
        found[name.strip()] = _unquoted(value.strip(), f"{path}:{number}")
    tell(f"--env-file: {path}: {words}" for words in misspelt(found))
    return found


def unread_file(is_named: bool) -> str:
    """Words on the env file that `walbridge init` wrote here, if nobody has named one; what is missing may be in it."""
    if is_named or not Path(INIT_WRITES).is_file():
        return ""
    return f"{INIT_WRITES} lies here and was not read: add --env-file {INIT_WRITES}"


def _like(path: Path) -> str:
    """The env file beside a path that does not exist whose name is nearest to it; empty if there is none."""
    try:
        there = [file.name for file in path.parent.iterdir() if file.suffix == ".env"]
    except OSError:
        return ""
    return next((str(path.parent / name) for name in difflib.get_close_matches(path.name, there, n=1)), "")


def _unquoted(value: str, where: str) -> str:
    """A value without its quotes. The value itself is not shown: it may be a password."""
    quote = value[:1] if value[:1] in ("'", '"') else ""
    if quote and len(value) >= 2 and value[-1] == quote:
        return value[1:-1]
    if re.search(r"\s#", value):
        raise ConfigError(
            "WB003", f"--env-file: {where} has a # within its value; put a comment on a line of its own, or the value in quotes"
        )
    if quote:
        raise ConfigError("WB003", f"--env-file: {where} has a quote that is not closed; use the other kind around the value")
    return value


def misspelt(names: Iterable[str]) -> Iterator[str]:
    """Words on each name that is meant for us, it seems, and that we do not know."""
    for name in names:
        if name in VARIABLES:
            continue
        close = [LIBPQ[name]] if name in LIBPQ else difflib.get_close_matches(name, VARIABLES, n=1, cutoff=0.8)
        if close:
            yield f"{name} is not used; did you mean {close[0]}?"
        elif _OURS.match(name):
            yield f"{name} is not used; walbridge help env lists the names"


def ignored_libpq_names(environ: Mapping[str, str]) -> Iterator[str]:
    """Words on libpq's variables that are set in the environment and have no effect, because ours have values or defaults."""
    for name, ours in LIBPQ.items():
        # libpq itself takes a password that we do not give
        if environ.get(name) and not environ.get(ours) and not environ.get(f"{ours}_FILE") and name != "PGPASSWORD":
            yield f"{name} is set and not used; set {ours}, or DATABASE_URL"


def tell(warnings: Iterable[str]) -> None:
    """Write to stderr what was not written before: settings are read more than once."""
    for words in warnings:
        if words not in _told:
            _told.add(words)
            print(f"walbridge: warning: {words}", file=sys.stderr)
