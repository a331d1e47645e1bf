"""The command line's parameters, made from the settings' fields."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec, get_type_hints

from cyclopts import Group, Parameter

from actors.settings.config import ENV_FILE, SETTINGS
from actors.settings.setting import GROUPS, Setting

P = ParamSpec("P")
Flags = Mapping[str, object]
"""The flags of settings that were given, by the setting's name: what `resolve` takes."""

_GROUPS = {title: Group(title, sort_key=place) for place, title in enumerate(GROUPS, 1)}


def option(group: str, words: str, value: str = "", **more: Any) -> Parameter:
    """A flag of one command, with the name of its value; a bool has no `--no-` form. `more` is cyclopts's own."""
    return Parameter(group=_GROUPS[group], help=words, metavar=value or None, **{"negative": "", **more})


EnvFile = Annotated[Path | None, option(ENV_FILE.group, ENV_FILE.help(), ENV_FILE.value)]


def takes_settings(*names: str, **words: str) -> Callable[[Callable[Concatenate[Flags, P], int]], Callable[..., int]]:
    """Give a command the flags of these settings. Its first parameter gets those that were given.

    `words` are names too, with the words that the command has for them instead of the setting's own. The names stand in the
    command's attribute `settings`.
    """
    settings = [SETTINGS[name] for name in (*names, *words)]

    def decorate(command: Callable[Concatenate[Flags, P], int]) -> Callable[..., int]:
        hints = get_type_hints(command, include_extras=True)
        _, *own = inspect.signature(command).parameters.values()
        own = [parameter.replace(annotation=hints[parameter.name]) for parameter in own]
        flags = [_parameter(setting, words.get(setting.name, "")) for setting in settings]

        def run(*arguments: Any, **given: Any) -> int:
            found = {setting.name: given.pop(setting.name, None) for setting in settings}
            return command(found, *arguments, **given)

        parameters = sorted([*flags, *own], key=lambda parameter: parameter.kind)
        run.__name__, run.__doc__, run.__module__ = command.__name__, command.__doc__, command.__module__
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.settings = frozenset(setting.name for setting in settings)  # type: ignore[attr-defined]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return run

    return decorate


def _parameter(setting: Setting, words: str) -> inspect.Parameter:
    kind: Any = bool if setting.is_switch else str | None
    flag = option(setting.group, setting.help(words), setting.value, name=setting.flag)
    return inspect.Parameter(
        setting.name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind, flag],
        default=False if setting.is_switch else None,
    )  # fmt: skip
