"""How a word is written into a file: SQL, psql, JSON, YAML, .env and systemd each have quotes and escapes of their own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _psql(text: str) -> str:
    """A word of a psql command."""
    return "'" + text.replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n") + "'"


def _json(text: str) -> str:
    """A string of JSON, which YAML and nats-server's configuration read as well."""
    return json.dumps(text, ensure_ascii=False)


def dotenv(text: str) -> str:
    """A value in the .env of Docker Compose: nothing is special in single quotes but themselves and a backslash."""
    if re.fullmatch(r"[\w.,/-]+", text, re.ASCII):
        return text
    if not re.search(r"['\\]", text):
        return f"'{text}'"
    return '"' + re.sub(r'(["\\$])', r"\\\1", text) + '"'


def _yaml(text: str) -> str:
    """A string of YAML. Whatever might not be printable is escaped: a parser refuses it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + re.sub(r"[^\x20-\x7e]", lambda character: f"\\U{ord(character[0]):08x}", escaped) + '"'


def _kubernetes(text: str) -> str:
    """An argument or the value of a variable in a pod, where $(NAME) would be filled in."""
    return _yaml(text.replace("$", "$$"))


def _systemd(text: str) -> str:
    """A word of ExecStart."""
    escaped = text.replace("%", "%%").replace("$", "$$")
    return escaped if re.fullmatch(r"[\w./%$-]+", text) else _json(escaped)


STYLES: Mapping[str, Callable[[str], str]] = {
    "literal": _literal,
    "psql": _psql,
    "json": _json,
    "systemd": _systemd,
    "yaml": _yaml,
    "kubernetes": _kubernetes,
}


def fill(template: str, words: Mapping[str, str]) -> str:
    """Put words into the places of a template: `@name@` as it stands, `@name|style@` by the rules of where it stands."""

    def word(match: re.Match[str]) -> str:
        text = words[match[1]]
        return STYLES[match[2]](text) if match[2] else text

    return re.sub(r"@([a-z_]+)(?:\|([a-z]+))?@", word, template)
