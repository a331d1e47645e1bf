"""`walbridge init`: the files with which a bridge begins on servers of one's own, and what to do with them.

An env file for `--env-file`, and a script for psql that sets what the server needs and makes role and publication. What is not
given as a flag is asked for on a terminal. Nothing is connected to.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated
from urllib.parse import quote, urlsplit, urlunsplit

from actors.commands.env_file_hints import script_command
from actors.commands.export import make_setup, parse_tables, render
from actors.errors import ConfigError
from actors.settings.config import SETTINGS
from actors.settings.env_file import INIT_WRITES, INIT_WRITES_SQL, read_env_file
from actors.settings.flags import Flags, option, takes_settings
from actors.settings.resolve import resolve
from actors.settings.setting import OTHER, PUBLISHING, SOURCE
from actors.startup.wal_level import NEEDS_CHANGE

_NAMES = ("slot", "pub", "stream", "port")
POSTGRES, NATS, ROLE, KEEP_WAL = "postgresql://127.0.0.1:5432/postgres", "nats://127.0.0.1:4222", "walbridge", "100GB"

_SERVER = """\
-- What the server needs for logical replication, for a superuser; elsewhere it is set in the provider's console.
SELECT rolsuper AS is_superuser FROM pg_roles WHERE rolname = current_user \\gset
\\if :is_superuser
  SELECT @needs_change@ AS needs_restart \\gset
  \\if :needs_restart
    ALTER SYSTEM SET wal_level = 'logical';
  \\endif
  -- what the disk can spare while the bridge is away; a limit that is set already stays
  SELECT format('ALTER SYSTEM SET max_slot_wal_keep_size = %L', @keep_wal@)
  WHERE current_setting('max_slot_wal_keep_size') = '-1' \\gexec
  SELECT pg_reload_conf() \\g /dev/null
\\else
  \\warn 'not a superuser: see to it that wal_level is logical and max_slot_wal_keep_size is what the disk can spare'
\\endif

"""
_RESTART = """
\\if :{?needs_restart}
  \\if :needs_restart
    \\warn 'wal_level is set to logical: restart PostgreSQL now'
  \\endif
\\endif
"""


@takes_settings("port", slot="replication slot", pub="publication", stream="CDC stream")
def init(
    flags: Flags,
    *,
    postgres: Annotated[str | None, option(SOURCE, f"address and database [{POSTGRES}]", "URL")] = None,
    tables: Annotated[str | None, option(SOURCE, "tables to publish, separated by commas", "TABLES")] = None,
    role: Annotated[str | None, option(SOURCE, f"the bridge's role, made by the script [{ROLE}]", "NAME")] = None,
    keep_wal: Annotated[str, option(SOURCE, f"WAL to keep while the bridge is away [{KEEP_WAL}]", "SIZE")] = KEEP_WAL,
    nats: Annotated[str | None, option(PUBLISHING, f"address [{NATS}]", "URL")] = None,
    nats_user: Annotated[str | None, option(PUBLISHING, "user of the bridge; empty for none []", "NAME")] = None,
    dir: Annotated[Path, option(OTHER, "where to write the files [.]", "DIR")] = Path(),
    force: Annotated[bool, option(OTHER, "overwrite existing files")] = False,
) -> int:
    """Write an env file and a script for psql, and say what comes next.

    What is wrong is said at once: of the flags before anything is asked, of an answer before the next question.
    """
    paths = [dir / INIT_WRITES, dir / INIT_WRITES_SQL]
    if not re.fullmatch(r"[0-9]{1,9} ?(MB|GB|TB)", keep_wal):
        raise ConfigError("WB002", f"--keep-wal: {keep_wal!r} is not a size; give e.g. {KEEP_WAL}")
    for path in paths:
        if path.exists() and not force:
            raise ConfigError("WB009", f"{str(path)!r} exists already; --force overwrites it, --dir writes elsewhere")
    resolve(flags, {"POSTGRES_BRIDGE_USER": ROLE})
    postgres, tables, role, nats, nats_user = (
        _given_or_asked(given, *question) for given, question in zip((postgres, tables, role, nats, nats_user), (
            (_check_postgres, "PostgreSQL, with the database", POSTGRES),
            (_check_tables, "Tables to publish, e.g. users,sales.orders", ""),
            (_quoted, "The bridge's role in PostgreSQL, made by the script", ROLE),
            (_check_nats, "NATS", NATS),
            (_quoted, "The bridge's user in NATS, empty for none", ""),
        ), strict=True)
    )  # fmt: skip

    postgres = _with_scheme(postgres)
    own = {setting.variable: str(flags[name]) for name in _NAMES if (setting := SETTINGS[name]) and flags.get(name)}
    env = {"DATABASE_URL": _with_user(postgres, role), "POSTGRES_BRIDGE_PASSWORD": secrets.token_urlsafe(24), "NATS_URL": nats}
    if nats_user:
        env |= {"NATS_BRIDGE_USER": nats_user, "NATS_BRIDGE_PASSWORD": secrets.token_urlsafe(24)}
    env |= own
    resolve({}, env)
    (sql,) = render("sql-role", make_setup({}, env, None, tables)).values()
    _write(paths[0], "".join(f"{name}={_quoted(value)}\n" for name, value in env.items()))
    assert read_env_file(paths[0]) == env
    head, stop, rest = sql.partition("\\set ON_ERROR_STOP on\n")
    _write(paths[1], head + stop + _server_script(keep_wal) + rest + _RESTART)

    for line in _next_steps(paths, nats_user):
        print(line)
    return 0


def _server_script(keep_wal: str) -> str:
    return _SERVER.replace("@needs_change@", NEEDS_CHANGE).replace("@keep_wal@", f"'{keep_wal}'")


def _next_steps(paths: list[Path], nats_user: str) -> list[str]:
    env_file, sql_file = (shlex.quote(str(path)) for path in paths)
    steps = [
        ("let an administrator of PostgreSQL run the script in the database, and restart PostgreSQL if it says so; running it "
         "again does no harm",
         script_command(paths[0])),
    ]  # fmt: skip
    if nats_user:
        steps.append(
            (f"give the bridge its rights in NATS: put these into nats-server's configuration, with NATS_BRIDGE_PASSWORD, "
             f"which is new; if {nats_user} is there already, write its own password into {env_file} instead",
             f"walbridge export nats-permissions --env-file {env_file}"),
        )  # fmt: skip
    steps += [
        ("check both servers and the path between them", f"walbridge doctor --env-file {env_file}"),
        ("start the bridge", f"walbridge run --env-file {env_file}"),
        ("see the changes, in another terminal", f"walbridge tail --env-file {env_file}"),
    ]
    lines = [f"Written: {env_file} (has new passwords; only you may read it) and {sql_file}", "Next:"]
    for number, (words, command) in enumerate(steps, 1):
        lines += [f"  {number}. {words}", f"     {command}"]
    return lines


def _given_or_asked(given: str | None, check: Callable[[str], object], words: str, default: str) -> str:
    """What was given, or the answer of a person, who is asked until it can be used. Raises ConfigError without one."""
    if given is not None or not sys.stdin.isatty():
        check(found := default if given is None else given)
        return found
    while True:
        print(f"{words}{f' [{default}]' if default else ''}: ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        answer = line.strip() or default
        try:
            check(answer)
        except ConfigError as exc:
            if not line:  # nobody is there any more
                raise
            print(f"  {exc.what}", file=sys.stderr)
        else:
            return answer


def _check_postgres(url: str) -> None:
    _with_user(url, ROLE)


def _check_tables(text: str) -> None:
    if not text:
        raise ConfigError("WB002", "--tables: say which tables are published, e.g. --tables users,sales.orders")
    parse_tables(text)


def _check_nats(url: str) -> None:
    resolve({}, {"POSTGRES_BRIDGE_USER": ROLE, "NATS_URL": url})


def _with_user(url: str, role: str) -> str:
    """The address with the role in it. Raises ConfigError if it is none, or has a user or a password."""
    try:
        parts = urlsplit(_with_scheme(url))
        is_address = parts.scheme in ("postgresql", "postgres") and parts.path.strip("/") and (parts.port or 1)
    except ValueError:
        is_address = False
    if not is_address:
        raise ConfigError(
            "WB002", "--postgres: is not an address with a database; give e.g. postgresql://db.example.org:5432/app"
        )
    if "@" in parts.netloc:
        raise ConfigError("WB002", "--postgres: leave out user and password: the script makes a role, whose name is --role")
    return urlunsplit(parts._replace(netloc=f"{quote(role, safe='')}@{parts.netloc}"))


def _with_scheme(url: str) -> str:
    return url if "://" in url else f"postgresql://{url}"


def _quoted(value: str) -> str:
    """A value as it stands in an env file. Raises ConfigError if none of its readers could read it."""
    quote = '"' if "'" in value else "'"
    if quote in value or not value.isprintable():
        raise ConfigError("WB002", f"{value!r} cannot stand in an env file; leave out quotes and line ends")
    return value if re.fullmatch(r"[\w@%+=:,./?&-]+", value, re.ASCII) else f"{quote}{value}{quote}"


def _write(path: Path, text: str) -> None:
    """Write a file that only we may read. Raises ConfigError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.unfinished")
        unfinished.unlink(missing_ok=True)
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        unfinished.rename(path)
    except OSError as exc:
        raise ConfigError("WB009", f"--dir: cannot write {str(path)!r}: {exc.strerror}") from exc
