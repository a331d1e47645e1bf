"""`walbridge demo`: its parameters; the demo itself has a room of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts.validators import Number

from actors.demo.run import run_demo
from actors.settings.flags import option
from actors.settings.setting import OTHER


def demo(
    *,
    seconds: Annotated[float | None, option(OTHER, "end after this many seconds", "SECONDS", validator=Number(gt=0))] = None,
    rate: Annotated[int, option(OTHER, "changed rows per second to begin with [250]", "N", validator=Number(gte=1))] = 250,
    keep: Annotated[Path | None, option(OTHER, "keep data and logs in this folder", "DIR")] = None,
    json: Annotated[bool, option(OTHER, "the outcome as JSON")] = False,
) -> int:
    """Run the demo until `q`, Ctrl-C or so many seconds."""
    return run_demo(seconds=seconds, keep=keep, rate=rate, as_json=json)
