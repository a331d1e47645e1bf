"""The settings in words: `walbridge help env`, `--print-config`, and the README's table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from actors.settings.config import OPTIONS, SETTINGS
from actors.settings.setting import Setting


def environment() -> Iterator[str]:
    """Each variable on a line, and what it is."""
    yield "Environment variables; a flag beats them, a URL beats its parts. Every secret also as NAME_FILE."
    yield ""
    settings = [setting for setting in SETTINGS.values() if setting.variable]
    flags, defaults = (
        max(len(word) for word in words) for words in ([s.flag for s in settings], [s.default for s in settings])
    )
    yield f"  {'variable':<32} {'flag':<{flags}} {'default':<{defaults}}"
    for setting in settings:
        words = f"{setting.plain_words} (secret)" if setting.secret else setting.plain_words
        yield f"  {setting.variable:<32} {setting.flag:<{flags}} {setting.default:<{defaults}} {words}".rstrip()


def origins_table(origins: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    """Each setting on a line: name, value, and where the value came from."""
    names, values = (max(len(row[column]) for row in origins) for column in (0, 1))
    for name, value, origin in origins:
        yield f"{name:<{names}}  {value:<{values}}  {origin}".rstrip()


def readme_table() -> Iterator[str]:
    """The rows of the README's table of settings, in Markdown."""
    yield "| setting | variable | default | |"
    yield "|---|---|---|---|"
    for setting in (*SETTINGS.values(), *OPTIONS):
        variable = f" `{setting.variable}`" if setting.variable else ""
        yield f"| `{setting.label}` |{variable} |{_default(setting)} | {_details(setting)} |"


def _default(setting: Setting) -> str:
    if setting.is_switch:
        return " off" if setting.flag else f" `{setting.default}`"
    return f" `{setting.default}`" if setting.default else ""


def _details(setting: Setting) -> str:
    return "; ".join(filter(None, ("secret" if setting.secret else "", setting.details or setting.words)))
