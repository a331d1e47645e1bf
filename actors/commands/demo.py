"""`walbridge demo`: its parameters; the demo itself has a room of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts.validators import Number

from actors.demo.browser import run_browser_demo
from actors.demo.run import run_demo
from actors.errors import ConfigError
from actors.settings.flags import option
from actors.settings.setting import OTHER


def demo(
    *,
    seconds: Annotated[float | None, option(OTHER, "end after this many seconds", "SECONDS", validator=Number(gt=0))] = None,
    rate: Annotated[int, option(OTHER, "changed rows per second to begin with [250]", "N", validator=Number(gte=1))] = 250,
    keep: Annotated[Path | None, option(OTHER, "keep data and logs in this folder", "DIR")] = None,
    json: Annotated[bool, option(OTHER, "the outcome as JSON")] = False,
    browser: Annotated[bool, option(OTHER, "instead a page whose tables live in the tab; needs Node and the source")] = False,
) -> int:
    """Run the demo until `q`, Ctrl-C or so many seconds."""
    if browser:
        if seconds is not None or keep is not None or json:
            raise ConfigError("WB002", "--browser: the page has its own buttons; leave out --seconds, --keep and --json")
        return run_browser_demo()
    return run_demo(seconds=seconds, keep=keep, rate=rate, as_json=json)
