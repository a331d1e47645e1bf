"""`walbridge help CODE` and `walbridge help env`: from the same page that the docs show."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from actors.errors import ConfigError
from actors.settings.describe import environment


def help(topic: str = "", /) -> int:
    """Print what there is on an error code or on the environment."""
    print(explain(topic))
    return 0


def explain(topic: str) -> str:
    """The section of an error code, or the environment variables. Raises ConfigError for another topic."""
    if topic.lower() == "env":
        return "\n".join(environment())
    sections = dict(re.findall(r"^### (WB\d{3})\b(.*?)(?=^#{2,3} |\Z)", _operations(), re.MULTILINE | re.DOTALL))
    section = sections.get(topic.upper())
    if section is None:
        raise ConfigError("WB006", f"help {topic}: no such code", fix=f"walbridge help env, or one of {', '.join(sections)}")
    return f"{topic.upper()}{section}".strip()


def _operations() -> str:
    """docs/operations.md: inside the package in an installed wheel, beside it in a source tree."""
    installed = files("actors").joinpath("docs/operations.md")
    if installed.is_file():
        return installed.read_text(encoding="utf-8")
    return (Path(__file__).resolve().parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
