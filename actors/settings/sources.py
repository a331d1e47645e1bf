"""Where a setting's value comes from: a flag beats the environment, the environment an env file, all of them a context.

Every value remembers its source, for `--print-config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any, TypeVar

from actors.errors import ConfigError
from actors.settings.config import SETTINGS
from actors.settings.env_file import read_env_file
from actors.settings.setting import Setting, settings_of

T = TypeVar("T")
SECRET_LENGTH_MIN = 4
"""Masking anything shorter would mask half of the log, and it is no secret."""


class Sources:
    """Looks settings up, reads them, and remembers where each came from."""

    def __init__(self, flags: Mapping[str, object], environ: Mapping[str, str], env_file: Path | None) -> None:
        self._flags, self._environ = flags, environ
        self._env_file = read_env_file(env_file) if env_file else {}
        self._context: dict[str, str] = {}
        self._context_name = ""
        self._origins: dict[str, tuple[str, str]] = {}
        self._secrets: set[str] = set()
        self.files_read = 0
        """How many secrets came from files."""

    def again(self) -> Sources:
        """The same sources, with nothing read yet: a secret's file may have changed."""
        fresh = copy(self)
        fresh._origins, fresh._secrets, fresh.files_read = {}, set(), 0
        return fresh

    def read(self, name: str) -> Any:
        """The value of a setting. Raises ConfigError."""
        setting = SETTINGS[name]
        text, where = self.text(name)
        try:
            return setting.read(text)
        except ValueError as exc:
            raise bad_value(where, "" if setting.secret else text, str(exc)) from None

    def group(self, kind: type[T], **given: object) -> T:
        """A dataclass whose settings are read; `given` are its other fields. Raises ConfigError."""
        return kind(**{field: self.read(setting.name) for field, setting in settings_of(kind).items()} | given)

    def text(self, name: str) -> tuple[str, str]:
        """A setting as it was given, and the name under which it was given, for an error to point at."""
        setting = SETTINGS[name]
        text, where, origin = self._find(setting)
        if setting.secret and text:
            self._secrets.add(text)
        self._origins[name] = "********" if setting.secret and text else text, origin
        return text, where

    def place(self, *names: str) -> str:
        """What to change to change these settings: their variables, and the env file if the first of them is in it."""
        found = [self._find(SETTINGS[name]) for name in names]
        in_file = found[0][2].startswith("env file")
        return " and ".join(where for _, where, _ in found) + (" in the env file" if in_file else "")

    @property
    def origins(self) -> tuple[tuple[str, str, str], ...]:
        """(flag or variable, value as it may be shown, where it came from), in the order of SETTINGS."""
        return tuple((setting.label, *self._origins[name]) for name, setting in SETTINGS.items() if name in self._origins)

    @property
    def secrets(self) -> tuple[str, ...]:
        """What the log must mask."""
        return tuple(sorted(secret for secret in self._secrets if len(secret) >= SECRET_LENGTH_MIN))

    def hide(self, *secrets: str) -> None:
        """Add secrets that are parts of a value."""
        self._secrets.update(secrets)

    def show(self, name: str, shown: str) -> None:
        """Show this much of a secret: a URL has parts that are not secret."""
        self._origins[name] = shown, self._origins[name][1]

    def overrule(self, winner: str, *names: str) -> None:
        """Note on settings that were given that `winner`, also given, has beaten them."""
        for name in names:
            shown, origin = self._origins[name]
            if origin != "default":
                self._origins[name] = shown, f"{origin} (not used: {SETTINGS[winner].variable} is set)"

    def given(self, *names: str) -> bool:
        """Whether any of these is set, anywhere but in the context."""
        return any(self._find(SETTINGS[name])[2] not in ("default", f"context {self._context_name}") for name in names)

    def use_context(self, name: str, settings: Mapping[str, str]) -> None:
        """From now on take what is set nowhere else from a context of the nats command line."""
        self._context, self._context_name = dict(settings), name

    def _find(self, setting: Setting) -> tuple[str, str, str]:
        """The text, the name under which it was given, and the words for its source."""
        flag = self._flags.get(setting.name)
        if flag is not None and flag is not False:
            return ("yes" if flag is True else str(flag)), setting.flag, "flag"
        for source, words in ((self._environ, "environment"), (self._env_file, "env file")):
            # compose files and unit files pass on what is not set as an empty word
            value, file = source.get(setting.variable) or None, source.get(f"{setting.variable}_FILE") or None
            if not setting.variable or (value is None and (file is None or not setting.secret)):
                continue
            if value is not None and file is not None and setting.secret:
                raise ConfigError("WB003", f"{setting.variable} and {setting.variable}_FILE are both set: remove one")
            if value is not None:
                return value, setting.variable, f"{words} {setting.variable}"
            assert file is not None
            self.files_read += 1
            return _read_secret(setting, file), f"{setting.variable}_FILE", f"file {file}"
        if setting.name in self._context:
            return self._context[setting.name], f"context {self._context_name}", f"context {self._context_name}"
        return setting.default, setting.label, "default"


def bad_value(where: str, value: str, fix: str) -> ConfigError:
    """One line that names the flag or variable, the value unless it may be secret, and the fix."""
    return ConfigError("WB002", f"{where}: {value!r} {fix}" if value else f"{where}: {fix}")


def _read_secret(setting: Setting, file: str) -> str:
    try:
        return Path(file).read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError("WB003", f"{setting.variable}_FILE: cannot read {file!r}: {_reason(exc)}") from exc


def _reason(exc: OSError | UnicodeDecodeError) -> str | None:
    return exc.strerror if isinstance(exc, OSError) else "not text"
