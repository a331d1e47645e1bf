"""What an env file, and what lies beside it, adds to the fix of an error."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from actors.settings.env_file import INIT_WRITES_SQL, read_env_file, unread_file

NOT_LET_IN = frozenset({"WB103"})
NOT_THERE = frozenset({"WB101", "WB200"})
OF_EMBEDDED = "WB40"
"""How the codes of servers that the bridge itself runs begin: no file says where they are."""


def with_hint(fix: str, code: str, arguments: Sequence[str]) -> str:
    """Return the fix of an error of a command with these arguments, and what the files say of it."""
    if code.startswith(OF_EMBEDDED):
        return fix
    env_file = _named(arguments)
    found = unread_file(is_named=False) if env_file is None else _beside(env_file, code)
    return "\n".join(filter(None, [fix, found]))


def _beside(env_file: Path, code: str) -> str:
    folder = env_file.parent
    if code in NOT_LET_IN and (folder / INIT_WRITES_SQL).is_file():
        if "POSTGRES_BRIDGE_PASSWORD" not in read_env_file(env_file):  # the script has it from there
            return ""
        return f"if {INIT_WRITES_SQL} was not run since it was written: {script_command(env_file)}"
    if code in NOT_THERE:
        from actors.embedded.servers import is_embedded_folder  # noqa: PLC0415  (loads libpq)

        if not is_embedded_folder(folder):
            return ""
        return f"its servers are those of --embedded, which runs them: walbridge run --embedded {shlex.quote(str(folder))}"
    return ""


def script_command(env_file: Path) -> str:
    """The shell line with which an administrator runs the script of `walbridge init`."""
    parts = urlsplit(read_env_file(env_file).get("DATABASE_URL", "the database"))  # somebody may have written its parts instead
    database = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    words = shlex.quote(str(env_file)), shlex.quote(database), shlex.quote(str(env_file.with_name(INIT_WRITES_SQL)))
    return "env $(grep ^POSTGRES_BRIDGE_PASSWORD= {}) psql -U postgres -d {} -f {}".format(*words)


def _named(arguments: Sequence[str]) -> Path | None:
    for word, following in zip(arguments, [*arguments[1:], ""], strict=False):
        flag, equals, value = word.partition("=")
        if flag == "--env-file":
            return Path(value if equals else following)
    return None
