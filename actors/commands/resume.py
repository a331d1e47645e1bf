"""`walbridge resume`: have a paused bridge read its slot again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actors.commands.pause import tell
from actors.commands.running_bridge import Url, find_bridge
from actors.settings.flags import EnvFile, Flags, takes_settings


@takes_settings(port="of the running bridge")
def resume(flags: Flags, *, url: Url = "", env_file: EnvFile = None) -> int:
    """Resume a bridge."""
    bridge = find_bridge(flags, url, env_file, with_token=True)
    return tell(bridge, "resume", _is_streaming, _words, meanwhile="the pause has ended, and it streams once it can")


def _is_streaming(status: Mapping[str, Any]) -> bool:
    return status["state"] == "streaming" or status["paused"] is not None


def _words(answer: Mapping[str, Any], status: Mapping[str, Any]) -> str:
    if status["paused"]:
        return "paused again by somebody else"
    if answer["status"] == "resuming":  # what it says of itself now is from before the first reply of PostgreSQL
        return f"slot {status['slot']}: resumed. It reads on from where it stopped: walbridge status"
    return f"slot {status['slot']}: it was not paused. {status['verdict']['text']}"
