"""`walbridge help CODE` and `walbridge help env`: from the same page that the docs show."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from actors.errors import ConfigError
from actors.settings.config import SETTINGS


def explain(topic: str) -> str:
    """The section of an error code, or the environment variables. Raises ConfigError for another topic."""
    if topic.lower() == "env":
        return _environment()
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


def _environment() -> str:
    lines = ["Environment variables; a flag beats them, a URL beats its parts. Every secret also as NAME_FILE.", ""]
    for setting in SETTINGS.values():
        if setting.variable:
            notes = [f"flag {setting.flag}"] if setting.flag else []
            notes += [f"default {setting.default}"] if setting.default else []
            notes += ["secret"] if setting.secret else []
            lines.append(f"  {setting.variable:<26} {', '.join(notes)}".rstrip())
    return "\n".join(lines)
