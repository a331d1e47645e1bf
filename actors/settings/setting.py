"""What a setting is: a dataclass field that carries its flag, variable, reader and words."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

T = TypeVar("T")
SOURCE, PUBLISHING, SNAPSHOTS, HTTP, REPLICA, OTHER = (
    "Source", "Publishing", "Snapshots and compression", "HTTP", "Replica", "Settings",
)  # fmt: skip
"""Titles of `--help`."""
GROUPS = (SOURCE, PUBLISHING, SNAPSHOTS, HTTP, REPLICA, OTHER)
"""The titles in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One thing that can be set, and everything that is said about it."""

    words: str
    """For `--help` and the README; `plain_words` leaves out Markdown's backticks."""
    details: str = ""
    """For the README, where it has more to say than `--help`."""
    flag: str = ""
    value: str = ""
    """What `--help` shows for the flag's value: NAME, SECONDS, fast|plain. Empty for a switch."""
    variable: str = ""
    default: str = ""
    """As it would be given; `no` for a switch."""
    secret: bool = False
    is_switch: bool = False
    """Whether the flag takes no value."""
    group: str = OTHER
    read: Callable[[str], Any] = str
    """Makes the value of the text. Raises ValueError with what to do: the words after the text."""

    @property
    def name(self) -> str:
        """The key in `SETTINGS` and of the flags that were given: `temporary_slot`, `nats_url`."""
        return (self.flag.removeprefix("--") or self.variable).replace("-", "_").lower()

    @property
    def label(self) -> str:
        """The name that a user knows: the flag, or the variable where there is no flag."""
        return self.flag or self.variable

    @property
    def plain_words(self) -> str:
        """The words for a terminal."""
        return self.words.replace("`", "")

    def help(self, words: str = "") -> str:
        """The words of a command's flag, or `words` in their place, with the default in brackets.

        The variable too, unless it is the flag's own name: BRIDGE_SLOT of --slot.
        """
        said = words or self.plain_words
        default = "" if self.is_switch else self.default
        variable = f"env {self.variable}" if self.variable not in ("", f"BRIDGE_{self.name.upper()}") else ""
        notes = ", ".join(filter(None, (default, variable)))
        return said if said.endswith("]") or not notes else f"{said} [{notes}]"


def setting(
    default: T, *, words: str, details: str = "", flag: str = "", value: str = "", variable: str = "", secret: bool = False,
    group: str = OTHER, read: Callable[[str], T] | None = None,
) -> T:  # fmt: skip
    """A dataclass field that can be set. `read` may be left out for plain text; a bool is a switch."""
    is_switch = isinstance(default, bool)
    shown = "no" if default is False else "yes" if default is True else "" if default is None else str(default)
    found = Setting(
        words=words, details=details, flag=flag, value=value, variable=variable, default=shown, secret=secret,
        is_switch=is_switch, group=group, read=read or (switch if is_switch else str),
    )  # fmt: skip
    return field(default=default, repr=not secret, metadata={"setting": found})


def settings_of(group: type[Any]) -> dict[str, Setting]:
    """The fields of a dataclass that can be set, by the field's name."""
    return {one.name: one.metadata["setting"] for one in fields(group) if "setting" in one.metadata}


# -- readers: what makes a value of a text


def switch(text: str) -> bool:
    """Read yes or no, in their usual spellings."""
    if text.lower() not in ("yes", "no", "true", "false", "1", "0"):
        raise ValueError("is neither yes nor no")
    return text.lower() in ("yes", "true", "1")


def number(low: int, high: int, kind: str, example: str) -> Callable[[str], int]:
    """Give a reader of a whole number from `low` to `high`."""

    def read(text: str) -> int:
        if not re.fullmatch(r"\d{1,9}", text) or not low <= int(text) <= high:
            raise ValueError(f"is not {kind}; give {low}-{high}, e.g. {example}")
        return int(text)

    return read


def no_choice(text: str, choices: Collection[str]) -> str:
    """Words after a text that is none of the choices: what they are, and which one may have been meant."""
    close = difflib.get_close_matches(text, choices, n=1)
    return f"is not one of {', '.join(choices)}" + (f"; did you mean {close[0]}?" if close else "")


def choice(*choices: T) -> Callable[[str], T]:
    """Give a reader of one of these words."""
    known = {str(word): word for word in choices}

    def read(text: str) -> T:
        if text not in known:
            raise ValueError(no_choice(text, known))
        return known[text]

    return read


def matching(pattern: str, fix: str) -> Callable[[str], str]:
    """Give a reader of text that a regular expression matches."""

    def read(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(fix)
        return text

    return read
