"""`walbridge help TOPIC`: an error code, an alert, or the environment, from the same page that the docs show.

The command line itself answers `help COMMAND`.
"""

from __future__ import annotations

import difflib
import re
from importlib.resources import files
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from actors.errors import ConfigError
from actors.settings.describe import environment


def help(
    topic: Annotated[str, Parameter(help="a code such as WB107 or 107, an alert, a command, or env")] = "",
    /,
) -> int:
    """Print what there is on a topic."""
    print(explain(topic))
    return 0


def explain(topic: str) -> str:
    """The section of an error code or an alert, or the environment variables. Raises ConfigError for another topic."""
    if topic.lower() == "env":
        return "\n".join(environment())
    sections = _sections()
    wanted = f"wb{int(topic):03d}" if re.fullmatch(r"[0-9]{1,3}", topic) else topic.lower()
    heading = next((name for name in sections if name.lower() == wanted), None)
    if heading is None:
        close = difflib.get_close_matches(wanted, [*map(str.lower, sections), "env"], n=1, cutoff=0.7)
        known = {name.lower(): name for name in sections}
        meant = f"did you mean {known.get(close[0], close[0])}? " if close else ""
        raise ConfigError(
            "WB006",
            f"help {topic}: no such topic",
            fix=f"{meant}give a code (WB107), an alert (WalbridgeLag), a command or env",
        )
    return f"{heading}{_plain(sections[heading])}".strip()


def _sections() -> dict[str, str]:
    """Codes and alerts -> the rest of their heading, and their words."""
    pattern = r"^#{3,4} (WB\d{3}|Walbridge[A-Z]\w+)\b(.*?)(?=^#{2,4} |\Z)"
    return dict(re.findall(pattern, _operations(), re.MULTILINE | re.DOTALL))


def _plain(markdown: str) -> str:
    """Without the targets of links, which lead to files that an installation does not have."""
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", markdown)


def _operations() -> str:
    """docs/operations.md: inside the package in an installed wheel, beside it in a source tree."""
    installed = files("actors").joinpath("docs/operations.md")
    if installed.is_file():
        return installed.read_text(encoding="utf-8")
    return (Path(__file__).resolve().parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
