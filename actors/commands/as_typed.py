"""Commands in our messages, with the flags that the command line had: typed in as they stand, they reach the same bridge."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from importlib import import_module
from inspect import signature

from actors.settings.config import EMBEDDED, ENV_FILE, SETTINGS

COMMANDS = (
    "run", "doctor", "status", "health", "pause", "resume", "snapshot", "tail", "replay", "mirror", "verify", "train", "export",
    "cleanup",
)  # fmt: skip
"""Those that take settings."""
URL = "url"
_ONCE = frozenset({"accept_gap", "accept_upgrade"})
"""Consents, which nobody gives by the way."""
_OWN: Mapping[str, frozenset[str]] = {"mirror": frozenset({"port", "bind"})}
"""Flags with which a command means itself, and not the bridge."""
_FLAGS = {one.flag: one for one in (*SETTINGS.values(), ENV_FILE, EMBEDDED) if one.flag}
_COMMAND = re.compile(rf"\bwalbridge ({'|'.join(COMMANDS)})\b(?=\s|[;,.:)]|$)([^\n;#]*)")
_typed: ContextVar[Sequence[str]] = ContextVar("typed", default=())


def remember(arguments: Sequence[str]) -> None:
    """Note what was typed, for the messages of this command."""
    _typed.set(tuple(arguments))


def typed() -> Sequence[str]:
    """Return the words of this command."""
    return _typed.get()


def carried(text: str) -> str:
    """Return a message in which each command of ours has the flags that were typed, if it takes them and has not its own."""
    arguments = typed()
    source = arguments[0] if arguments and arguments[0] in COMMANDS else "run"
    if arguments and not arguments[0].startswith("-") and arguments[0] != source:
        return text  # of a command that has no bridge: init, demo
    given = {name: words for name, words in _given(arguments).items() if name in _taken(source)}

    def with_flags(match: re.Match[str]) -> str:
        command, rest = match[1], match[2]
        there = {_name(word) for word in re.findall(r"--[a-z][a-z-]*", rest)}
        if URL in there:
            there.add("port")
        elif "port" in there:
            there.add(URL)
        more = [words for name, words in given.items() if name not in there and name in _taken(command)]
        is_line = not match.start() or text[match.start() - 1] == "\n"  # else words of a sentence may follow the command
        words, blanks = (rest.rstrip(), rest[len(rest.rstrip()) :]) if is_line else ("", rest)
        return " ".join((f"walbridge {command}{words}", *more)) + blanks

    return _COMMAND.sub(with_flags, text) if given else text


def _name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _given(arguments: Sequence[str]) -> dict[str, str]:
    """Each flag of a setting that was typed, by the setting's name, as it is typed in again."""
    found: dict[str, str] = {}
    words = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    while words:
        flag, equals, value = words.pop(0).partition("=")
        setting = _FLAGS.get(flag)
        if flag != "--url" and setting is None:
            continue
        if setting is EMBEDDED:
            folder = value if equals else words.pop(0) if words and not words[0].startswith("-") else ""
            found["embedded"] = f"{flag} {shlex.quote(folder)}" if folder else flag
        elif setting is not None and setting.is_switch:
            found[setting.name] = flag
        elif equals or words:
            found[_name(flag)] = f"{flag} {shlex.quote(value if equals else words.pop(0))}"
    return found


def _taken(command: str) -> frozenset[str]:
    """The settings that a command has flags for, by their names."""
    function = getattr(import_module(f"actors.commands.{command}"), command)
    settings: frozenset[str] = getattr(function, "settings", frozenset())
    own = {name for name in ("env_file", URL, "embedded") if name in signature(function).parameters}
    return (settings | own) - _ONCE - _OWN.get(command, frozenset())
