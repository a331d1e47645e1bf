"""The files of a compose folder as Docker Compose reads them: `.env` beside them, and variables filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


def read_compose(folder: Path, name: str = "compose.yaml") -> dict[str, Any]:
    """A compose file of `folder`, with the names of its `.env` or, without one, with the defaults."""
    env = folder / ".env"
    return parse_compose((folder / name).read_text(encoding="utf-8"), env.read_text(encoding="utf-8") if env.exists() else "")


def parse_compose(text: str, env: str = "") -> dict[str, Any]:
    """Variables are filled in after the YAML is parsed, so that no value changes the structure."""
    found = _fill(yaml.safe_load(text), parse_env(env))
    assert isinstance(found, dict)
    return found


ASSIGNMENT = re.compile(
    r"""^(?P<name>[A-Za-z_]\w*)=(?:'(?P<plain>[^']*)'|"(?P<escaped>(?:[^"\\]|\\.)*)"|(?P<bare>[^\s'"#$][^\n'"#$]*))?$""",
    re.MULTILINE | re.DOTALL | re.ASCII,
)


def parse_env(text: str) -> dict[str, str]:
    """The rules of compose-go for what we write: quotes of both kinds, escapes in double ones; anything else is refused."""
    found: dict[str, str] = {}
    rest = re.sub(r"\A(?:#[^\n]*\n)*", "", text)
    while rest:
        match = ASSIGNMENT.match(rest)
        assert match is not None, f"no assignment: {rest[:60]!r}"
        value = match["plain"] or match["bare"] or ""
        if match["escaped"] is not None:
            assert not re.search(r"(?<!\\)(?:\\\\)*\$", match["escaped"]), "a variable would be filled in"
            assert set(re.findall(r"\\(.)", match["escaped"], re.DOTALL)) <= set('"\\$'), "an escape that means something else"
            value = re.sub(r"\\(.)", r"\1", match["escaped"], flags=re.DOTALL)
        found[match["name"]] = value
        rest = rest[match.end() :].removeprefix("\n")
    return found


VARIABLE = re.compile(r"\$(?:\$|\{(\w+):-([^}]*)\})")


def _fill(value: Any, env: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {name: _fill(inner, env) for name, inner in value.items()}
    if isinstance(value, list):
        return [_fill(inner, env) for inner in value]
    if isinstance(value, str):
        return VARIABLE.sub(lambda match: (env.get(match[1]) or match[2]) if match[1] else "$", value)
    return value
